"""The value of an object does not depend on how finely its k-space was sampled: weights are areas."""

from dataclasses import replace

import numpy as np
import pytest

from kstream.config import resolve
from kstream.pipeline import build_pipeline
from kstream.recon.density import line_weights
from kstream.recon.fourier import dft_matrix
from kstream.recon.sampling import Sampling, kz_positions
from kstream.stream.runners import run_inline
from kstream.types import EncodingLimit, Float, Readout, Scan
from tests.scans import StackOfStars

STARS = StackOfStars(nz=6, n_partitions=6)


def slab(n_partitions: int, centre: int, fov_mm: float, nz: int = 6) -> Scan:
    """Recon space of `nz` slices over 50 mm, encoded over `fov_mm`."""
    limits = {**STARS.scan().limits, "kspace_encode_step_2": EncodingLimit(0, n_partitions - 1, centre)}
    return replace(
        STARS.scan(),
        limits=limits,
        recon_matrix=(19, 19, nz),
        encoded_matrix=(38, 38, n_partitions),
        encoded_fov_mm=(400.0, 400.0, fov_mm),
    )


@pytest.mark.parametrize(
    ("n_partitions", "centre", "fov_mm"), [(6, 3, 50.0), (12, 6, 100.0), (8, 4, 50 * 8 / 6), (9, 4, 75.0)]
)
def test_slice_oversampling_leaves_the_object_as_it_is(n_partitions: int, centre: int, fov_mm: float) -> None:
    scan, column = slab(n_partitions, centre, fov_mm), np.array([0, 0.5, 1, 2, 1, 0])
    measured = dft_matrix(kz_positions(scan, n_partitions), 6).conj().T @ column
    found = Sampling(scan, 13, n_partitions, 1, "polar").partition_to_z() @ measured
    np.testing.assert_allclose(found, column, atol=1e-5)


def test_partitions_without_oversampling_are_the_plain_transform() -> None:
    scan = slab(4, 1, 50.0)
    np.testing.assert_array_equal(kz_positions(scan, 4), [-1, 0, 1, 2])
    found = Sampling(scan, 13, 4, 1, "polar").partition_to_z()
    np.testing.assert_array_equal(found, dft_matrix(np.arange(-1.0, 3.0), 6))


def test_a_single_partition_stands_for_all_of_its_kz() -> None:
    scan = slab(1, 0, 100.0, nz=1)
    np.testing.assert_array_equal(Sampling(scan, 13, 1, 1, "polar").partition_to_z(), [[1]])


def cartesian(over_x: float, over_y: float, n: int = 14) -> Scan:
    return Scan(
        (int(n * over_x), int(n * over_y), 1),
        (n, n, 1),
        (200 * over_x, 200 * over_y, 5.0),
        (200.0, 200.0, 5.0),
        "cartesian",
        limits={"kspace_encode_step_1": EncodingLimit(0, int(n * over_y) - 1, int(n * over_y) // 2)},
        n_coils=1,
    )


def image(over_x: float, over_y: float, *settings: str) -> Float:
    """Magnitude of a box of value 1, ``(14, 14)``, from its exact k-space."""
    n, scan = 14, cartesian(over_x, over_y)
    box = np.zeros((n, n))
    box[3:11, 4:12] = 1
    nx, ny = scan.encoded_matrix[:2]
    kx = (np.arange(nx) - nx // 2) / over_x
    acquisitions = []
    for line in range(ny):
        ky = np.array([(line - ny // 2) / over_y])
        data = dft_matrix(ky, n).conj().T @ box @ dft_matrix(kx, n).conj()
        acquisitions.append(STARS.acquisition(data.astype(np.complex64), np.zeros((nx, 0), np.float32), line, 0))
    config = resolve("recon-cartesian", settings=settings).config
    made = run_inline(build_pipeline(scan, config).pipeline, acquisitions)
    (found,) = [item.data for item in made if hasattr(item, "data")]
    return np.asarray(np.abs(found).reshape(n, n), np.float32)


@pytest.mark.parametrize(("over_x", "over_y"), [(1, 1), (2, 1), (1, 1.5), (2, 1.5)])
@pytest.mark.parametrize("is_removed", ["false", "true"])
def test_value_of_a_cartesian_object_is_one_with_and_without_oversampling(
    over_x: float, over_y: float, is_removed: str
) -> None:
    found = image(over_x, over_y, f"readouts.remove_oversampling={is_removed}")
    assert found[5:9, 6:10].mean() == pytest.approx(1, abs=0.01)
    assert found[:2].max() < 0.01


def weights(scan: Scan, k: Float, n_averages: int = 1) -> Float:
    readout = Readout(np.zeros((1, len(k)), np.complex64), k, 0, 0, 0, (0, 0), 0)
    return Sampling(scan, 14, 1, n_averages, "uniform").weights(readout)[0]


def test_uniform_weights_are_exactly_one_over_averages_without_oversampling() -> None:
    k = np.stack([np.arange(-7, 7), np.full(14, 3), np.zeros(14)], axis=1).astype(np.float32)
    np.testing.assert_array_equal(weights(cartesian(1, 1), k), np.ones(14, np.float32))
    np.testing.assert_array_equal(weights(cartesian(1, 1), k, 3), np.full(14, np.float32(1) / np.float32(3)))
    np.testing.assert_array_equal(weights(cartesian(1, 2), k), np.full(14, 0.5, np.float32))
    np.testing.assert_array_equal(weights(cartesian(2, 1), k[:, [1, 0, 2]]), np.full(14, 0.5, np.float32))


def test_uneven_lines_weigh_by_their_steps_and_curves_weigh_alike() -> None:
    ramp = np.array([-6, -5.5, -4.5, -2.5, -0.5, 1.5], np.float32)
    k = np.stack([ramp, 0 * ramp, 0 * ramp], axis=1)
    np.testing.assert_allclose(weights(cartesian(1, 1), k)[1:-1].sum(), 0.75 + 1.5 + 2 + 2)
    k[:, 1] = ramp**2 / 9
    np.testing.assert_array_equal(weights(cartesian(1, 1), k), np.ones(6, np.float32))
    np.testing.assert_array_equal(line_weights(k[:1], 0.25), [0.25])
