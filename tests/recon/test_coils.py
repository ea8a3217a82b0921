from collections.abc import Callable

import numpy as np
import pytest

from kstream.errors import ScanError
from kstream.recon.calibration import EspiritSettings
from kstream.recon.coils import CombineCoils, combine, volume_maps
from kstream.recon.espirit import coil_maps, espirit_maps
from kstream.recon.fourier import to_kspace
from kstream.recon.gpu import torch_coil_maps
from kstream.stream.runners import ThreadCrew
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
    stage = CombineCoils(method, 0, EspiritSettings(24, 6, 0.02, 0.8, 64, 100))
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
    maps = volume_maps(volume, EspiritSettings(24, 6, 0.02, 0.8, 64, 100))
    first = combine(volume, maps)[0]
    expected = (espirit_maps(centre(to_kspace(images), 24), (N, N), crop=0.8).conj() * images).sum(0)
    np.testing.assert_allclose(first, expected, atol=1e-4)


def test_maps_of_many_slices_are_those_of_one_by_one() -> None:
    images, _ = coil_images()
    centres = np.stack([centre(to_kspace(images), 24), centre(to_kspace(images[:, ::-1]), 24)], axis=1)
    together = coil_maps(centres, (N, N), crop=0.8, map_size=40, crew=ThreadCrew(2)).full()
    for z in range(2):
        np.testing.assert_array_equal(together[:, z], espirit_maps(centres[:, z], (N, N), crop=0.8, map_size=40))


@pytest.mark.parametrize("weighting", ["hard", "soft"])
def test_torch_finds_the_same_maps(weighting: str) -> None:
    images, _ = coil_images()
    centres = np.stack([centre(to_kspace(images), 24), np.zeros((6, 24, 24))], axis=1).astype(np.complex64)
    settings = {"crop": 0.8, "map_size": 31, "weighting": weighting}
    ours, theirs = (
        coil_maps(centres, (N, N + 3), **settings),
        torch_coil_maps(centres, (N, N + 3), device="cpu", **settings),
    )
    a, b = ours.full(), theirs.full()
    inside = (np.abs(a).sum(0) > 0) & (np.abs(b).sum(0) > 0)
    assert inside.mean() > 0.98 * (np.abs(a).sum(0) > 0).mean() > 0.1
    assert np.abs(a - b)[:, inside].mean() < 1e-3
    assert not b[:, 1].any()


def two_folded() -> tuple[np.ndarray, np.ndarray]:
    """An object that folds over itself: voxels show two places with different sensitivities."""
    maps = mr.birdcage_maps((6, 2 * N, N)).astype(np.complex64)
    tall = np.zeros((2 * N, N), np.complex64)
    tall[N // 2 - 24 : N // 2 + N + 24, 8:-8] = 1
    seen = maps * tall
    folded = sum(np.roll(seen, s, axis=1)[:, N // 2 : N // 2 + N] for s in (-N, 0, N))
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((6, N, N)) + 1j * rng.standard_normal((6, N, N))
    return (folded + 1e-3 * noise).astype(np.complex64), np.abs(folded).sum(0) > 0


def test_two_sets_of_maps_explain_an_object_that_folds_over_itself() -> None:
    images, _ = two_folded()
    sets = coil_maps(centre(to_kspace(images), 24)[:, None], (N, N), crop=0.9, n_sets=2)
    first, second = sets.full(0)[:, 0], sets.full(1)[:, 0]
    left = images - first * (first.conj() * images).sum(0)
    left_of_both = left - second * (second.conj() * left).sum(0)
    both = np.abs(second).sum(0) > 0
    assert 0.05 < both.mean() < 0.95
    assert np.linalg.norm(left_of_both[:, both]) < 0.2 * np.linalg.norm(left[:, both])
    np.testing.assert_allclose((first.conj() * second).sum(0)[both], 0, atol=0.2)


def test_soft_maps_fade_where_hard_ones_are_cut() -> None:
    images, _ = coil_images()
    k = centre(to_kspace(images), 24)
    hard, soft = (np.linalg.norm(espirit_maps(k, (N, N), crop=0.6, weighting=w), axis=0) for w in ("hard", "soft"))
    assert set(np.unique(hard.round(3))) == {0, 1}
    assert ((soft > 0.01) & (soft < 0.9)).sum() > 20
    assert soft[np.abs(images).sum(0) > 0.3].mean() > 0.9


@pytest.mark.parametrize("find", [coil_maps, lambda *a, **k: torch_coil_maps(*a, device="cpu", **k)])
def test_two_points_seen_by_even_coils_have_maps_where_they_are_and_nothing_anywhere_else(find: Callable) -> None:
    """Operators of rank two, and empty between the points: only rounding is left there, which must not grow."""
    n, coils = 32, np.array([1.0, 0.6 - 0.5j, -0.3j])
    image = np.zeros((n, n))
    image[11, 19], image[22, 7] = 1, 0.5
    k = to_kspace((coils[:, None, None] * image).astype(np.complex64))
    maps = find(k[:, None, 4:28, 4:28], (n, n), crop=0.8).full()[:, 0]
    assert np.isfinite(maps).all()
    for y, x in ((11, 19), (22, 7)):
        np.testing.assert_allclose(maps[:, y, x], coils / np.linalg.norm(coils), atol=1e-3)
