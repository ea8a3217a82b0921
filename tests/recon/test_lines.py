"""Cartesian lines at their places, early looks at open frames, coil combination, and units for networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kstream.errors import ScanError
from kstream.recon.calibration import EspiritSettings
from kstream.recon.fourier import to_image, to_kspace
from kstream.recon.lines import PlaceLines
from kstream.recon.scaling import ScaleKSpace, image_scale, scaled, unit
from kstream.types import EarlyKSpace, FrameEnd, FrameProgress, Geometry, KSpace, Readout, ScaledKSpace, Scan

NX, NY = 24, 27
SCAN = Scan((NX, NY, 1), (NX, NY, 1), (240.0, 270.0, 5.0), (240.0, 270.0, 5.0), "cartesian")
GEOMETRY = Geometry((NX, NY, 1), (240.0, 270.0, 5.0), (0.0, 0.0, 7.0))
ESPIRIT = EspiritSettings(12, 5, 0.02, 0.0, 64, 30)


def kspace(n_coils: int = 1, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = (n_coils, NY, NX)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def line(data: np.ndarray, y: int, frame: int = 0, slice_: int = 0, shift: float = 0.0) -> Readout:
    trajectory = np.zeros((NX, 3), np.float32)
    trajectory[:, 0] = np.arange(NX) - NX // 2
    trajectory[:, 1] = y - NY // 2 + shift
    return Readout(data[:, y], trajectory, frame, slice_, 0, (y, 0), 5)


def end(n: int, frame: int = 0, slice_: int = 0) -> FrameEnd:
    return FrameEnd(frame, slice_, n, n, 9, GEOMETRY)


def stage(method: Any = "espirit", memory_gib: float = 1.0) -> PlaceLines:
    return PlaceLines(SCAN, method, ESPIRIT, memory_gib)


def test_lines_in_any_order_become_the_kspace_that_was_measured_and_exact_zeros() -> None:
    data, places = kspace(), stage()
    for y in (20, 3, 13, 14):
        assert places.push(line(data, y)) == []
    over, made = places.push(end(4))
    assert isinstance(over, FrameEnd)
    assert isinstance(made, KSpace)
    expected = np.zeros_like(data)
    expected[:, [3, 13, 14, 20]] = data[:, [3, 13, 14, 20]]
    assert np.array_equal(made.data, expected)
    assert (made.geometry, made.received_ns) == (GEOMETRY, 9)


def test_reversed_lines_are_put_the_right_way_round() -> None:
    data, places = kspace(), stage()
    forward = line(data, 4)
    places.push(Readout(forward.data[:, ::-1], forward.trajectory[::-1], 0, 0, 0, (4, 0), 0))
    assert np.array_equal(places.push(end(1))[1].data[0, 4], data[0, 4])


def test_lines_measured_twice_are_averaged() -> None:
    data, places = kspace(), stage()
    for factor in (1, 3):
        places.push(line(factor * data, 8))
    np.testing.assert_allclose(places.push(end(2))[1].data[0, 8], 2 * data[0, 8], rtol=1e-6)


def test_slices_and_frames_do_not_mix() -> None:
    places = stage()
    first, second = kspace(seed=1), kspace(seed=2)
    places.push(line(first, 5))
    places.push(line(second, 6, slice_=1))
    assert np.flatnonzero(places.push(end(1))[1].data.any(axis=(0, 2))).tolist() == [5]
    made = places.push(end(1, slice_=1))[1]
    assert made.slice == 1
    assert np.flatnonzero(made.data.any(axis=(0, 2))).tolist() == [6]


def test_an_open_frame_can_be_looked_at_and_goes_on() -> None:
    data, places = kspace(), stage()
    places.push(line(data, 13))
    (early,) = places.push(FrameProgress(FrameEnd(0, 0, 1, 2, 6, GEOMETRY)))
    assert isinstance(early, EarlyKSpace)
    assert (early.n_readouts, early.n_expected, early.kspace.received_ns) == (1, 2, 6)
    kept = early.kspace.data.copy()
    places.push(line(data, 14))
    assert np.array_equal(early.kspace.data, kept)
    assert np.flatnonzero(places.push(end(2))[1].data.any(axis=(0, 2))).tolist() == [13, 14]


def test_open_frame_whose_lines_are_held_by_another_step_is_not_looked_at() -> None:
    assert stage().push(FrameProgress(FrameEnd(0, 0, 1, 2, 6, GEOMETRY))) == []


@pytest.mark.parametrize("method", ["espirit", "rss"])
def test_coils_are_combined_and_missing_lines_stay_zero(method: Any) -> None:
    y, x = np.indices((NY, NX))
    image = ((np.abs(y - 13) < 9) & (np.abs(x - 12) < 8)).astype(np.complex64)
    maps = np.stack([np.exp(-(((x - c) / 20.0) ** 2)) for c in (0, 24)]) / 1.1
    data = to_kspace((image * maps).astype(np.complex64))
    places = stage(method)
    lines = [n for n in range(NY) if n not in (1, 25)]
    for n in lines:
        places.push(line(data, n))
    made = places.push(end(len(lines)))[1].data[0]
    assert not made[[1, 25]].any()
    found = np.abs(to_image(made))
    expected = np.sqrt((np.abs(image * maps) ** 2).sum(axis=0))
    assert np.abs(found - expected)[5:22, 6:19].max() < 0.15


def test_lines_off_the_grid_are_refused() -> None:
    with pytest.raises(ScanError, match="does not lie on the Cartesian grid") as caught:
        stage().push(line(kspace(), 5, shift=0.4))
    assert "remove_oversampling" in caught.value.hint


def test_partitions_and_too_many_open_frames_are_refused() -> None:
    with pytest.raises(ScanError, match="4 partitions"):
        PlaceLines(Scan((NX, NY, 4), (NX, NY, 4), (1, 1, 1), (1, 1, 1), "cartesian"), "rss", ESPIRIT, 1.0)
    places = stage(memory_gib=6e-6)
    places.push(line(kspace(), 5))
    with pytest.raises(ScanError, match="2 open frames"):
        places.push(line(kspace(), 5, slice_=1))


def test_scaled_kspace_has_an_image_of_unit_brightness_in_any_units() -> None:
    data = kspace()
    for factor in (1e-9, 1.0, 1e7):
        made = scaled((factor * data).astype(np.complex64))
        assert np.percentile(np.abs(to_image(made)), 99) == pytest.approx(1.0, rel=1e-5)
        np.testing.assert_allclose(made, scaled(data), rtol=1e-4, atol=1e-5)
    assert image_scale(np.zeros((NY, NX), np.complex64)) == 1.0


def test_scaling_leaves_zeros_and_the_frame_itself_alone() -> None:
    data = kspace()
    data[:, ::3] = 0
    frame = KSpace(data, 2, 3, 4, GEOMETRY)
    same, made = ScaleKSpace().push(frame)
    assert same is frame
    assert isinstance(made, ScaledKSpace)
    assert np.array_equal(made.data == 0, data == 0)
    np.testing.assert_allclose(made.data * made.scale, data, rtol=1e-5)
    assert (made.frame, made.slice, made.received_ns, made.early) == (2, 3, 4, None)
    (early,) = ScaleKSpace().push(EarlyKSpace(frame, 7, 9))
    assert early.early == (7, 9)


def test_the_phase_of_the_receiver_does_not_reach_a_network() -> None:
    data = kspace()[None]
    turned = (data * np.exp(2.5j)).astype(np.complex64)
    np.testing.assert_allclose(scaled(turned), scaled(data), atol=2e-6 * float(np.abs(data).max()))
    centre = complex(scaled(data)[..., NY // 2, NX // 2].ravel()[0])
    assert abs(centre.imag) < 1e-6 * centre.real
    assert abs(unit(turned)) == pytest.approx(image_scale(data), rel=1e-6)
    assert unit(np.zeros((NY, NX), np.complex64)) == 1.0
