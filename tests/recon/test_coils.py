import numpy as np
import pytest

from kstream.errors import ScanError
from kstream.recon.coils import CombineCoils, combine, volume_maps
from kstream.recon.espirit import espirit_maps
from kstream.recon.fourier import to_kspace
from kstream.types import CoilImages, Geometry, KSpace, Notice

mr = pytest.importorskip("sigpy.mri")
import sigpy  # noqa: E402

N = 64


def coil_images() -> tuple[np.ndarray, np.ndarray]:
    """A head phantom seen by six smooth coils, with a little noise; images and true maps of unit norm."""
    rng = np.random.default_rng(0)
    maps = mr.birdcage_maps((6, N, N)).astype(np.complex64)
    maps /= np.sqrt((np.abs(maps) ** 2).sum(0))
    phantom = np.abs(sigpy.shepp_logan((N, N))).astype(np.complex64)
    noise = rng.standard_normal((6, N, N)) + 1j * rng.standard_normal((6, N, N))
    return (maps * phantom + 2e-3 * noise).astype(np.complex64), maps


def centre(kspace: np.ndarray, size: int) -> np.ndarray:
    low = N // 2 - size // 2
    return kspace[:, low : low + size, low : low + size]


@pytest.mark.parametrize("map_size", [N, 40])
def test_combination_agrees_with_sigpy_espirit(map_size: int) -> None:
    images, _ = coil_images()
    kspace = to_kspace(images)
    ours = espirit_maps(centre(kspace, 24), (N, N), crop=0.95, map_size=map_size)
    theirs = mr.app.EspiritCalib(kspace, calib_width=24, kernel_width=6, crop=0.95, show_pbar=False).run()
    both = (np.abs(ours).sum(0) > 0) & (np.abs(theirs).sum(0) > 0)
    assert both.mean() > 0.95 * (np.abs(theirs).sum(0) > 0).mean()
    agreement = np.abs((ours.conj() * theirs).sum(0))[both]
    assert 1 - agreement.mean() < 2e-3
    a, b = (np.abs((m.conj() * images).sum(0)) * both for m in (ours, theirs))
    assert np.linalg.norm(a - b) < 0.01 * np.linalg.norm(b)


def test_maps_explain_the_coil_images() -> None:
    images, maps = coil_images()
    found = espirit_maps(centre(to_kspace(images), 24), (N, N), crop=0.8)
    inside = np.abs(images).sum(0) > 0.3
    assert 1 - np.abs((found.conj() * maps).sum(0))[inside].mean() < 2e-3
    np.testing.assert_allclose(np.sqrt((np.abs(found) ** 2).sum(0))[inside], 1, atol=1e-4)
    residual = images - found * (found.conj() * images).sum(0)
    assert np.linalg.norm(residual[:, inside]) < 0.03 * np.linalg.norm(images[:, inside])


def test_too_small_calibration_is_refused() -> None:
    with pytest.raises(ScanError, match="calibration region"):
        espirit_maps(np.ones((2, 5, 5), np.complex64), (16, 16))


def test_empty_calibration_gives_empty_maps() -> None:
    assert not espirit_maps(np.zeros((2, 12, 12), np.complex64), (16, 16)).any()


def items(method: str = "espirit", order: tuple[int, ...] = (0, 1)) -> list[object]:
    images, _ = coil_images()
    volume = np.stack([images, images[:, ::-1]], axis=1)
    stage = CombineCoils(method, 0, 24, 6, 0.02, 0.8, 64, 100)
    geometry = Geometry((N, N, 2), (200.0, 200.0, 10.0))
    out: list[object] = []
    for frame in order:
        out += stage.push(CoilImages(volume * (1 + frame), frame, 0, 0, geometry))
    return out + stage.finish()


def test_frames_wait_for_their_calibration_frame() -> None:
    forward, backward = items(order=(0, 1)), items(order=(1, 0))
    assert [i.frame for i in forward if isinstance(i, KSpace)] == [0, 1]
    by_frame = {i.frame: i.data for i in backward if isinstance(i, KSpace)}
    for item in forward:
        assert isinstance(item, KSpace)
        np.testing.assert_array_equal(item.data, by_frame[item.frame])


def test_missing_calibration_frame_is_told_and_replaced() -> None:
    out = items(order=(1,))
    assert any(isinstance(i, Notice) and i.level == "warning" for i in out)
    assert any(isinstance(i, KSpace) for i in out)


def test_root_sum_of_squares_is_the_magnitude() -> None:
    images, _ = coil_images()
    first = next(i for i in items("rss") if isinstance(i, KSpace))
    assert np.linalg.norm(first.data[0]) == pytest.approx(np.linalg.norm(images), rel=1e-4)


def test_maps_are_made_slice_by_slice() -> None:
    images, _ = coil_images()
    volume = np.stack([images, images[:, ::-1]], axis=1)
    maps = volume_maps(volume, 24, 6, 0.02, 0.8, 64, 100)
    first = combine(volume, maps)[0]
    expected = (espirit_maps(centre(to_kspace(images), 24), (N, N), crop=0.8).conj() * images).sum(0)
    np.testing.assert_allclose(first, expected, atol=1e-4)
