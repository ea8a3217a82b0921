"""The zero-wait volume against the slow exact sum, and its physics."""

import numpy as np
import pytest

from kstream.errors import ScanError
from kstream.recon import kernels
from kstream.recon.combine import FrameSum
from kstream.recon.density import polar_weights
from kstream.recon.espirit import CoilMaps
from kstream.recon.fourier import dft_matrix, line_profiles, to_image, to_kspace
from kstream.recon.gpu import TorchSums
from kstream.recon.zero_wait import Line, SpokeSum
from kstream.stream.runners import ThreadCrew
from tests.scans import exact_adjoint

NZ, NP = 7, 5
TO_Z = dft_matrix(np.arange(NP) - 2.0, NZ)
SUMS = {"compiled": SpokeSum, "torch": TorchSums("cpu")}


def random_complex(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def random_maps(rng: np.random.Generator, n_coils: int, ny: int, nx: int) -> CoilMaps:
    """Vectors at 9 x 8 nodes; a fifth of the voxels, and some whole rows, have no map."""
    vectors = np.zeros((1, NZ, 9, 8, 2, kernels.padded(n_coils)), np.float32)
    vectors[..., :n_coils] = rng.standard_normal((1, NZ, 9, 8, 2, n_coils))
    scale = rng.random((1, NZ, ny, nx)) * (rng.random((1, NZ, ny, nx)) > 0.2)
    scale[0, 2, 3:6] = 0
    return CoilMaps(vectors, scale.astype(np.float32), n_coils)


def spoke(angle: float, n_samples: int, nx: int, ny: int, shift: float = 0.0) -> np.ndarray:
    radius = (np.arange(n_samples) - n_samples // 2) * (nx / n_samples)
    x, y = radius * np.cos(angle) + shift, radius * np.sin(angle) * ny / nx - 0.8 * shift
    return np.stack([x, y, 0 * radius], axis=1).astype(np.float32)


def exact_combined(maps: CoilMaps, samples: np.ndarray, k: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``sum_c conj(S_c) A_c^H W y`` in double precision: complex ``(z, y, x)``."""
    planes = np.stack([exact_adjoint(p, k.astype(np.float64), weights, maps.shape[1:]) for p in samples], axis=1)
    return np.einsum("czyx,zp,cpyx->zyx", maps.full().conj(), TO_Z, planes, optimize=True)


def image_of(total: FrameSum) -> np.ndarray:
    return to_image(total.kspace())


@pytest.mark.parametrize("where", SUMS)
@pytest.mark.parametrize(
    ("n_coils", "ny", "nx", "n_samples", "shift"),
    [(3, 19, 23, 46, 0.0), (12, 33, 20, 61, 0.37), (5, 20, 41, 41, 0.0), (17, 13, 16, 32, -0.5)],
)
def test_sum_of_angles_is_the_exact_adjoint(
    where: str, n_coils: int, ny: int, nx: int, n_samples: int, shift: float
) -> None:
    """White samples, odd sizes, anisotropic fields of view, spokes beside the centre, no readout oversampling."""
    rng = np.random.default_rng(n_coils)
    maps = random_maps(rng, n_coils, ny, nx)
    total = SUMS[where](maps, TO_Z)
    exact = np.zeros(maps.shape, complex)
    for number in range(6):
        k = spoke(number * 1.9416, n_samples, nx, ny, shift)
        samples = random_complex(rng, NP, n_coils, n_samples)
        weights = polar_weights(k, np.pi / 6, ny / nx)
        total.add(samples, k, weights)
        exact += exact_combined(maps, samples, k, weights)
    assert np.linalg.norm(image_of(total) - exact) < 1e-3 * np.linalg.norm(exact)


def test_torch_gives_what_the_compiled_loops_give() -> None:
    rng = np.random.default_rng(1)
    maps = random_maps(rng, 3, 19, 23)
    samples, k = random_complex(rng, NP, 3, 46), spoke(0.7, 46, 23, 19, 0.2)
    volumes = []
    for make in SUMS.values():
        total = make(maps, TO_Z)
        total.add(samples, k, np.ones(46, np.float32))
        volumes.append(total.kspace())
    assert np.linalg.norm(volumes[0] - volumes[1]) < 1e-5 * np.linalg.norm(volumes[0])


def test_combination_is_the_adjoint_of_seeing_an_image_through_coils() -> None:
    """<A S x, y> = <x, S^H A^H y> with the exact forward transform."""
    rng = np.random.default_rng(2)
    ny, nx, n_coils = 15, 18, 4
    maps, k = random_maps(rng, n_coils, ny, nx), spoke(2.3, 36, nx, ny)
    x, y = random_complex(rng, NZ, ny, nx), random_complex(rng, NP, n_coils, 36)
    rows, columns = np.mgrid[:ny, :nx]
    phase = k[:, 0, None, None] * (columns - nx // 2) / nx + k[:, 1, None, None] * (rows - ny // 2) / ny
    planes = np.einsum("zp,czyx->cpyx", TO_Z.conj(), maps.full() * x)
    forward = np.einsum("cpyx,syx->pcs", planes, np.exp(-2j * np.pi * phase)) / np.sqrt(nx * ny)
    total = SpokeSum(maps, TO_Z)
    total.add(y, k, np.ones(36, np.float32))
    difference = np.vdot(forward, y) - np.vdot(x, total.image())
    assert abs(difference) < 1e-3 * np.linalg.norm(forward) * np.linalg.norm(y) / np.sqrt(len(k))


def test_sum_is_linear_and_forgets_the_order_and_the_parts() -> None:
    """Twice the samples give twice the volume; partitions may come one by one."""
    rng = np.random.default_rng(3)
    maps = random_maps(rng, 3, 11, 13)
    angles = [(spoke(a, 26, 13, 11), random_complex(rng, NP, 3, 26)) for a in (0.1, 1.2, 2.9)]
    weights = np.ones(26, np.float32)
    forward, backward, doubled, in_parts = (SpokeSum(maps, TO_Z) for _ in range(4))
    for (k, y), (k_back, y_back) in zip(angles, angles[::-1], strict=True):
        forward.add(y, k, weights)
        backward.add(y_back, k_back, weights)
        doubled.add(2 * y, k, weights)
        for p in range(NP):
            in_parts.add(np.where(np.arange(NP)[:, None, None] == p, y, 0), k, weights)
    for other, factor in ((backward, 1), (in_parts, 1), (doubled, 2)):
        np.testing.assert_allclose(other.image(), factor * forward.image(), atol=2e-5 * np.abs(forward.image()).max())


def test_threads_add_exactly_what_one_thread_adds() -> None:
    rng = np.random.default_rng(4)
    maps = random_maps(rng, 3, 19, 23)
    k, y, weights = spoke(0.4, 46, 23, 19), random_complex(rng, NP, 3, 46), np.ones(46, np.float32)
    crew = ThreadCrew(3)
    alone, together = SpokeSum(maps, TO_Z), SpokeSum(maps, TO_Z, crew)
    for total in (alone, together):
        total.add(y, k, weights)
    np.testing.assert_array_equal(together.kspace(), alone.kspace())
    crew.close()


def one_coil(n: int) -> CoilMaps:
    """A coil that sees everything with sensitivity 1."""
    vectors = np.zeros((1, 1, 2, 2, 2, 8), np.float32)
    vectors[..., 0, 0] = 1
    return CoilMaps(vectors, np.ones((1, 1, n, n), np.float32), 1)


def test_fully_sampled_spokes_return_a_point_where_it_is_in_its_own_units() -> None:
    n, n_spokes, (y, x) = 33, 120, (9, 21)
    total = SpokeSum(one_coil(n), np.ones((1, 1), np.complex64))
    for number in range(n_spokes):
        k = spoke(number * np.pi / n_spokes, 2 * n, n, n)
        samples = np.exp(-2j * np.pi * (k[:, 0] * (x - n // 2) + k[:, 1] * (y - n // 2)) / n) / n
        total.add(samples[None, None].astype(np.complex64), k, polar_weights(k, np.pi / n_spokes))
    image = total.image()[0]
    assert np.unravel_index(np.abs(image).argmax(), image.shape) == (y, x)
    assert image[y, x].real == pytest.approx(np.pi / 4, rel=0.03)  # the disc of the spokes is pi/4 of the square
    assert abs(image[y, x].imag) < 1e-3


def test_rotating_the_spokes_rotates_the_image() -> None:
    """A quarter turn of k-space is a quarter turn about voxel n // 2."""
    n, rng = 21, np.random.default_rng(5)
    samples = random_complex(rng, 1, 1, 2 * n)
    images = []
    for turn in (0.0, np.pi / 2):
        total = SpokeSum(one_coil(n), np.ones((1, 1), np.complex64))
        total.add(samples, spoke(0.3 + turn, 2 * n, n, n), np.ones(2 * n, np.float32))
        images.append(total.image()[0])
    np.testing.assert_allclose(np.rot90(images[0], -1), images[1], atol=2e-3 * np.abs(images[0]).max())


def test_kspace_is_the_transform_of_the_image() -> None:
    rng = np.random.default_rng(6)
    for ny, nx in ((11, 14), (12, 16)):
        total = SpokeSum(random_maps(rng, 3, ny, nx), TO_Z)
        total.add(random_complex(rng, NP, 3, 28), spoke(0.4, 28, nx, ny), np.ones(28, np.float32))
        np.testing.assert_allclose(total.kspace(), to_kspace(total.image()), atol=1e-6 * np.abs(total.kspace()).max())


def test_crooked_readouts_are_refused() -> None:
    t = np.linspace(0, 1, 30)
    spiral = np.stack([9 * t * np.cos(9 * t), 9 * t * np.sin(9 * t), 0 * t], 1).astype(np.float32)
    ramp = np.stack([9 * t**2, 0 * t, 0 * t], 1).astype(np.float32)
    for trajectory in (spiral, ramp, spiral[:1]):
        with pytest.raises(ScanError, match="straight line"):
            Line.of(trajectory)


def test_line_profile_is_the_slow_sum() -> None:
    rng = np.random.default_rng(7)
    for n_samples, n in ((9, 20), (8, 15)):
        y = random_complex(rng, 2, n_samples)
        waves = np.exp(2j * np.pi * np.outer(np.arange(n_samples) - n_samples // 2, np.arange(n)) / n)
        np.testing.assert_allclose(line_profiles(y, n), y @ waves, atol=1e-5)
