"""Frames in which nothing stands out of the noise are told once and counted; weak objects are objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kstream.readouts.signal import WatchSignal
from kstream.types import FrameEnd, Geometry, Notice, Readout

GEOMETRY = Geometry((33, 33, 1), (1.0, 1.0, 1.0))


def frame(number: int, n_coils: int, n_spokes: int, n_samples: int, peak: float = 0.0, noise: float = 1.0) -> list[Any]:
    """Noise of unit power, and as much in the middle of every spoke."""
    rng = np.random.default_rng(number)
    out: list[Any] = []
    for spoke in range(n_spokes):
        data = rng.standard_normal((n_coils, n_samples, 2)).astype(np.float32).view(np.complex64)[..., 0]
        data *= np.float32(noise * np.sqrt(0.5))
        data[:, n_samples // 2] += np.complex64(peak)
        out.append(Readout(data, np.zeros((n_samples, 3), np.float32), number, 0, 0, (spoke, 0), 0))
    return [*out, FrameEnd(number, 0, n_spokes, n_spokes, 0, GEOMETRY)]


def run(items: list[Any]) -> tuple[list[Any], list[Notice]]:
    stage = WatchSignal()
    made = [one for item in items for one in stage.push(item)] + stage.finish()
    return [i for i in made if not isinstance(i, Notice)], [i for i in made if isinstance(i, Notice)]


@pytest.mark.parametrize(("n_coils", "n_spokes", "n_samples"), [(1, 3, 7), (1, 211, 640), (3, 13, 38), (17, 33, 129)])
@pytest.mark.parametrize("noise", [1e-30, 1e-12, 1.0, 1e30])
def test_noise_of_any_size_and_level_is_found(n_coils: int, n_spokes: int, n_samples: int, noise: float) -> None:
    items = frame(0, n_coils, n_spokes, n_samples, noise=noise)
    passed, told = run(items)
    assert all(a is b for a, b in zip(passed, items, strict=True))
    assert [(notice.kind, notice.amount, notice.level) for notice in told] == [("only_noise", 1, "warning")]
    assert "frame 0 slice 0: nothing but noise was found" in told[0].text


def test_first_frame_of_noise_is_told_and_all_are_counted() -> None:
    _, told = run([item for number in range(4) for item in frame(number, 2, 9, 31, peak=20.0 * (number == 1))])
    assert [notice.amount for notice in told] == [1, 2]
    assert told[1].text == "nothing but noise was found in 3 frames"


def test_an_object_in_one_readout_of_many_is_not_noise() -> None:
    """As where partitions come from the edge of kz."""
    items = frame(0, 4, 60, 65)
    items[37].data[:, 32] += 12
    assert run(items)[1] == []


@pytest.mark.parametrize("level", [1e-30, 1e30])
def test_an_object_is_seen_at_levels_whose_power_float32_cannot_hold(level: float) -> None:
    items = frame(0, 2, 9, 31, peak=20.0)
    for readout in items[:-1]:
        readout.data *= np.float32(level)
    assert run(items)[1] == []


def test_frames_of_zeros_are_told_and_counted() -> None:
    items = [item for n in range(4) for item in frame(n, 2, 9, 31, peak=20.0 * (n == 1), noise=float(n == 1))]
    _, told = run(items)
    assert [(notice.kind, notice.amount, notice.level) for notice in told] == [
        ("no_signal", 1, "warning"),
        ("no_signal", 2, "warning"),
    ]
    assert told[0].text == "frame 0 slice 0: all its samples are zero"
    assert told[1].text == "all samples of 3 frames are zero"
