"""Density that is known only when a frame is over: put right in its combined k-space, at no cost per spoke."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..types import KSpace, Notice
from .density import AnglePlan, density_gain


class CorrectDensity:
    """Multiplies combined k-space by `density_gain` where spokes stood for other angles than they were weighted with.

    That is so for spokes that were lost, angles that were not planned, frames that ended early, and windows over
    several frames. The sum over spokes forgets each spoke, so earlier ones cannot be weighted anew; but combined
    k-space still shows where they lie. Frames whose spokes came as planned pass untouched, to the bit.

    Parameters
    ----------
    plan : knows what every spoke was taken for.
    span : frames that one output is the mean of (`ShareFrames`); it is numbered by the last of them.
    aspect : field of view along y over that along x.
    """

    takes = (KSpace,)
    gives = (KSpace, Notice)

    def __init__(self, plan: AnglePlan, span: int = 1, aspect: float = 1.0) -> None:
        self._plan, self._span, self._aspect = plan, span, aspect
        self._told = False

    def push(self, kspace: KSpace) -> list[Any]:
        frames = range(kspace.frame - self._span + 1, kspace.frame + 1)
        by_frame = [self._plan.used(kspace.slice, frame) for frame in frames]
        if not all(by_frame):
            return [kspace]
        used = [spoke for spokes in by_frame for spoke in spokes]
        angles = np.array([spoke.angle_rad for spoke in used])
        steps = np.array([spoke.step_rad for spoke in used]) / self._span
        ny, nx = kspace.data.shape[1:]
        gain = density_gain(angles, steps, (ny, nx), self._aspect)
        if gain is None:
            return [kspace]
        told = [] if self._told or self._span > 1 else [Notice("info", self._text(kspace, len(used)))]
        self._told = True
        return [*told, kspace.changed(lambda data: np.asarray(data * gain, np.complex64))]

    def finish(self) -> list[Any]:
        return []

    @staticmethod
    def _text(kspace: KSpace, n_spokes: int) -> str:
        where = f"frame {kspace.frame} slice {kspace.slice}"
        return f"{where}: the angles of its {n_spokes} spokes are not those planned; density put right afterwards"
