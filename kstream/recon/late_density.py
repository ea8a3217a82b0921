"""Density that is known only when a frame is over, or looked at: put right in its k-space, at no cost per spoke."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..types import Complex, EarlyKSpace, Float, FrameEnd, FrameProgress, KSpace, Notice
from .density import AnglePlan, UsedStep, density_gain


@dataclass
class _Frame:
    """Angles and steps of the spokes of a frame that is over, and how many outputs that it is part of are to come."""

    angles_rad: NDArray[np.float64]
    steps_rad: NDArray[np.float64]
    n_outputs: int


class CorrectDensity:
    """Multiplies combined k-space by `density_gain` where spokes stood for other angles than they were weighted with.

    That is so for spokes that were lost, angles that were not planned, frames that ended early, and windows over
    several frames. The sum over spokes forgets each spoke, so earlier ones cannot be weighted anew; but combined
    k-space still shows where they lie. Frames whose spokes came as planned pass untouched, to the bit.

    What spokes were taken for is asked when their frame ends, which does not depend on when its k-space is made. Frames
    pass untouched too if one gain cannot put them right: if a spoke lacks a partition that others have, turns with the
    partition, or starts at the centre.

    A frame that is looked at before it is full (`FrameProgress`, then its `EarlyKSpace`) gets the density that its
    whole spokes have without those that are to come: weights follow each spoke that is added, and what they do to the
    sum is worked out only when somebody looks.

    Parameters
    ----------
    plan : knows what every spoke was taken for, and forgets it when the frame ends.
    span : frames that one output is the mean of (`ShareFrames`); it is numbered by the last of them.
    aspect : field of view along y over that along x.
    early_only : leave full frames as they are.
    """

    takes = (KSpace, EarlyKSpace, FrameEnd, FrameProgress)
    gives = (KSpace, EarlyKSpace, FrameEnd, Notice)

    def __init__(self, plan: AnglePlan, span: int = 1, aspect: float = 1.0, *, early_only: bool = False) -> None:
        self._plan, self._span, self._aspect, self._early_only = plan, span, aspect, early_only
        self._over: dict[tuple[int, int], _Frame] = {}
        self._looked_at: dict[tuple[int, int, int], tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
        self._told = False

    def push(self, item: KSpace | EarlyKSpace | FrameEnd | FrameProgress) -> list[Any]:
        if isinstance(item, FrameProgress):
            whole = _whole(self._plan.used(item.slice, item.frame))
            self._looked_at[item.slice, item.frame, item.so_far.n_readouts] = _angles_and_steps(whole)
            return []
        if isinstance(item, EarlyKSpace):
            return [self._early(item)]
        if isinstance(item, FrameEnd):
            used = self._plan.end_frame(item.slice, item.frame)
            if not self._early_only and _share_one_density(used, item.n_readouts):
                angles, steps = _angles_and_steps(used)
                self._over[item.slice, item.frame] = _Frame(angles, steps, min(item.frame + 1, self._span))
            return [item]
        return self._put_right(item)

    def _early(self, item: EarlyKSpace) -> EarlyKSpace:
        """A frame that is not full: its spokes share the plane among themselves."""
        kspace = item.kspace
        angles, steps = self._looked_at.pop((kspace.slice, kspace.frame, item.n_readouts))
        if not len(angles):
            return item  # memory was short, and angles were added that lack partitions
        whole = np.float32(np.pi / steps.sum())
        gain = density_gain(angles, steps * whole, (kspace.data.shape[1], kspace.data.shape[2]), self._aspect)
        factor: Float | np.float32 = whole if gain is None else gain * whole
        return replace(item, kspace=kspace.changed(lambda data: _times(data, factor)))

    def _put_right(self, item: KSpace) -> list[Any]:
        """A frame that is over."""
        frames = self._frames_of(item)
        if len(frames) < self._span:
            return [item]
        angles = np.concatenate([frame.angles_rad for frame in frames])
        steps = np.concatenate([frame.steps_rad for frame in frames]) / self._span
        ny, nx = item.data.shape[1:]
        gain = density_gain(angles, steps, (ny, nx), self._aspect)
        if gain is None:
            return [item]
        told = [] if self._told or self._span > 1 else [Notice("info", self._text(item, len(angles)))]
        self._told = True
        return [*told, item.changed(lambda data: _times(data, gain))]

    def finish(self) -> list[Any]:
        return []

    def _frames_of(self, kspace: KSpace) -> list[_Frame]:
        """The known ones of the frames that an output is made of; those of which it was the last are forgotten."""
        found = []
        for number in range(kspace.frame - self._span + 1, kspace.frame + 1):
            place = (kspace.slice, number)
            if place in self._over:
                found.append(frame := self._over[place])
                frame.n_outputs -= 1
                if not frame.n_outputs:
                    del self._over[place]
        return found

    @staticmethod
    def _text(kspace: KSpace, n_spokes: int) -> str:
        where = f"frame {kspace.frame} slice {kspace.slice}"
        return f"{where}: the angles of its {n_spokes} spokes are not those planned; density put right afterwards"


def _times(data: Complex, gain: Float | np.float32) -> Complex:
    return np.asarray(data * gain, np.complex64)


def _angles_and_steps(used: list[UsedStep]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Directions of readouts and the angles that they were taken to stand for, in rad."""
    angles, steps = np.array([(spoke.angle_rad, spoke.step_rad) for spoke in used]).reshape(-1, 2).T
    return angles, steps


def _whole(used: list[UsedStep]) -> list[UsedStep]:
    """Readouts that came in every partition that any of them came in."""
    partitions = set().union(*(spoke.partitions for spoke in used))
    return [spoke for spoke in used if spoke.partitions == partitions]


def _share_one_density(used: list[UsedStep], n_readouts: int) -> bool:
    """True if all readouts of a frame are known, and all its partitions have the same spokes through the centre."""
    is_known = sum(len(spoke.partitions) for spoke in used) == n_readouts
    alike = all(spoke.partitions == used[0].partitions and spoke.turn_rad == np.pi for spoke in used)
    return bool(used) and is_known and alike
