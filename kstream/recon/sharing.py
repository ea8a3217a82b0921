"""Outputs that share spokes: a sliding window over frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..types import KSpace, Notice


@dataclass
class _Slice:
    """Frames of one slice that are still needed, and the windows (by last frame) that were given."""

    frames: dict[int, KSpace] = field(default_factory=dict)
    came: set[int] = field(default_factory=set)
    given: set[int] = field(default_factory=set)


class ShareFrames:
    """Gives the mean of `span` successive frames when the last of them to come has come: a sliding window.

    A window costs only its new spokes, for the combined k-space is a sum over spokes, and density weights of ``span``
    times as many spokes are ``span`` times smaller: with the mean angle between spokes (``gridding.angles = mean``) the
    mean of frames is the frame of all their spokes. With the gaps of each frame's own angles it is the mean of frames,
    each weighted on its own, and the density of all their spokes is put right after it (`late_density.CorrectDensity`).

    Frames may come in any order. A window is numbered by its last frame; the first ``span - 1`` frames end none.
    Windows of which a frame never came are told at the end.
    """

    takes = (KSpace,)
    gives = (KSpace, Notice)

    def __init__(self, span: int) -> None:
        self._span = span
        self._slices: dict[int, _Slice] = {}

    def push(self, kspace: KSpace) -> list[Any]:
        state = self._slices.setdefault(kspace.slice, _Slice())
        state.frames[kspace.frame] = kspace
        state.came.add(kspace.frame)
        ends = range(max(kspace.frame, self._span - 1), kspace.frame + self._span)
        made = [self._mean(state, end) for end in ends if state.came.issuperset(self._window(end))]
        for frame in self._window(kspace.frame + self._span - 1, 2 * self._span - 1):
            if state.given.issuperset(range(max(frame, self._span - 1), frame + self._span)):
                state.frames.pop(frame, None)
        return made

    def finish(self) -> list[Any]:
        """What is missing."""
        told: list[Any] = []
        for number, state in sorted(self._slices.items()):
            missing = sorted(set(range(self._span - 1, max(state.came) + 1)) - state.given)
            absent = sorted(set(range(max(state.came))) - state.came)
            if missing:
                text = f"slice {number}: frames {_listed(absent)} did not come, so there is no image of the windows of "
                told.append(Notice("warning", f"{text}{self._span} frames that end with frames {_listed(missing)}"))
            state.frames.clear()
        return told

    def _window(self, end: int, span: int = 0) -> range:
        """Frames up to this one."""
        return range(max(end - (span or self._span) + 1, 0), end + 1)

    def _mean(self, state: _Slice, end: int) -> KSpace:
        state.given.add(end)
        window = [state.frames[frame] for frame in self._window(end)]
        by_set = zip(*(kspace.sets for kspace in window), strict=True)
        means = [np.asarray(sum(parts) / np.float32(self._span), np.complex64) for parts in by_set]
        last = window[-1]
        received_ns = max(k.received_ns for k in window)
        return KSpace.of_sets(means, end, last.slice, received_ns, last.geometry)


def _listed(numbers: list[int], at_most: int = 8) -> str:
    more = f" and {len(numbers) - at_most} more" if len(numbers) > at_most else ""
    return ", ".join(str(number) for number in numbers[:at_most]) + more
