"""Missing kz of an object of known smooth phase: zero-filled, homodyne and POCS, on odd and even sizes."""

from dataclasses import replace

import numpy as np
import pytest

from kstream.errors import ScanError
from kstream.recon.fourier import to_image, to_kspace
from kstream.recon.partial_fourier import FillPartialFourier, fill_homodyne, fill_pocs, is_partial
from kstream.recon.sampling import kz_positions
from kstream.types import Complex, EncodingLimit, Geometry, KSpace, Notice
from tests.scans import StackOfStars

NY, NX = 7, 5


def body(nz: int) -> Complex:
    """Boxes and balls along z with a phase that is smooth along z and different in every column: ``(z, y, x)``."""
    rng = np.random.default_rng(nz)
    z = (np.arange(nz) - nz // 2) / nz
    magnitude = np.zeros((nz, NY, NX))
    for _ in range(6):
        centre, width = rng.uniform(-0.3, 0.3), rng.uniform(0.03, 0.15)
        magnitude += (np.abs(z - centre) < width)[:, None, None] * rng.uniform(0.2, 1, (1, NY, NX))
    slope, offset = rng.uniform(-2, 2, (NY, NX)), rng.uniform(-3, 3, (NY, NX))
    phase = offset + slope * z[:, None, None] + 3 * z[:, None, None] ** 2
    return (magnitude * np.exp(1j * phase)).astype(np.complex64)


def zero_filled(image: Complex, kz: np.ndarray) -> Complex:
    nz = image.shape[0]
    measured = np.isin(np.arange(nz) - nz // 2, kz)
    return to_image((to_kspace(image, (0,)) * measured[:, None, None]).astype(np.complex64), (0,))


def error(found: Complex, exact: Complex) -> float:
    return float(np.linalg.norm(np.abs(found) - np.abs(exact)) / np.linalg.norm(exact))


@pytest.mark.parametrize("nz", [64, 61])
@pytest.mark.parametrize("side", [1, -1])
def test_conjugate_symmetry_restores_what_zero_filling_blurs(nz: int, side: int) -> None:
    exact, kz = body(nz), side * np.arange(-8, nz // 2)
    blurred = zero_filled(exact, kz)
    before = error(blurred, exact)
    assert error(fill_homodyne(blurred, kz), exact) < 0.55 * before
    assert error(fill_pocs(blurred, kz, 20), exact) < 0.55 * before


def test_pocs_leaves_measured_samples_as_they_are() -> None:
    exact, kz = body(61), np.arange(-8, 30)
    filled = to_kspace(fill_pocs(zero_filled(exact, kz), kz), (0,))
    measured = np.isin(np.arange(61) - 30, kz)
    np.testing.assert_allclose(filled[measured], to_kspace(exact, (0,))[measured], atol=1e-5)
    assert np.abs(filled[~measured]).max() > 0.01


def test_homodyne_of_a_real_object_is_exact_where_the_phase_is_known() -> None:
    exact, kz = np.abs(body(64)).astype(np.complex64), np.arange(-8, 32)
    assert error(fill_homodyne(zero_filled(exact, kz), kz), exact) < 0.06


def test_symmetric_coverage_is_not_partial() -> None:
    assert not is_partial(np.arange(-32, 32))
    assert not is_partial(np.arange(-30, 31))
    assert is_partial(np.arange(-20, 32))
    assert is_partial(np.arange(-31, 12))


STARS = StackOfStars(nz=61)
LIMITS = {**STARS.scan().limits, "kspace_encode_step_2": EncodingLimit(3, 41, 11)}
SCAN = replace(STARS.scan(), limits=LIMITS, recon_matrix=(NX, NY, 61))


def test_kz_follows_from_the_limits_centre() -> None:
    np.testing.assert_array_equal(kz_positions(SCAN, 39), np.arange(-8, 31))


@pytest.mark.parametrize("method", ["homodyne", "pocs"])
def test_stage_fills_each_frame_and_tells_once(method: str) -> None:
    exact, kz = body(61), np.arange(-8, 31)
    geometry = Geometry((NX, NY, 61), (200.0, 200.0, 50.0))
    frames = [KSpace(to_kspace(zero_filled(exact, kz)), frame, 0, 0, geometry) for frame in (0, 1)]
    stage = FillPartialFourier(SCAN, 39, method)  # type: ignore[arg-type]
    out = [made for frame in frames for made in stage.push(frame)]
    assert [type(item) for item in out] == [Notice, KSpace, KSpace]
    assert "kz from -8 to 30" in out[0].text
    assert error(to_image(out[2].data), exact) < 0.6 * error(zero_filled(exact, kz), exact)


def test_symmetric_scan_passes_untouched_and_cut_slabs_are_refused() -> None:
    symmetric = replace(SCAN, limits={**LIMITS, "kspace_encode_step_2": EncodingLimit(0, 38, 19)})
    frame = KSpace(np.ones((61, NY, NX), np.complex64), 0, 0, 0, Geometry((NX, NY, 61), (200.0, 200.0, 50.0)))
    assert FillPartialFourier(symmetric, 39, "pocs").push(frame)[-1] is frame
    with pytest.raises(ScanError, match="same extent along z"):
        FillPartialFourier(replace(SCAN, encoded_fov_mm=(400.0, 400.0, 60.0)), 39, "pocs")
