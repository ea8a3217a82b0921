"""Whether anything stands out of the noise: a scan of nothing looks like a scan until somebody looks at its images."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..types import FrameEnd, Notice, Readout


def largest_of_noise(n_samples: int) -> float:
    """Bound for the power over the mean that the strongest of so many samples of white noise in one coil has.

    ``1 + sqrt(2 L) + L`` with ``L = ln n``, for the power is distributed exponentially (Boucheron et al., Concentration
    Inequalities, 2013, corollary 2.6); what is expected is ``L + 0.58``, and less in several coils. An object gathers
    its signal near the centre of k-space: one with a twentieth of the noise in a third of 10^5 voxels, which nobody can
    see, comes to 28, where 60000 samples of noise are allowed 17.
    """
    log = np.log(max(n_samples, 1))
    return float(1 + np.sqrt(2 * log) + log)


@dataclass
class _Power:
    """Of the samples of one frame, summed over coils."""

    largest: float = 0.0
    total: float = 0.0
    n_samples: int = 0


class WatchSignal:
    """Passes everything on; says at the end of a frame if nothing in it stands out of the noise.

    Such a frame is reconstructed like any other: its images are finite, and show noise, or nothing if all its samples
    are zero. The first frame of each kind is told, all are counted.
    """

    takes = (Readout, FrameEnd)
    gives = (Readout, FrameEnd, Notice)

    def __init__(self) -> None:
        self._open: dict[tuple[int, int], _Power] = {}
        self._counts: Counter[str] = Counter()

    def push(self, item: Readout | FrameEnd) -> list[Any]:
        place = (item.frame, item.slice)
        if isinstance(item, FrameEnd):
            return [*self._judged(item, self._open.pop(place, _Power())), item]
        parts = np.ascontiguousarray(item.data).view(item.data.real.dtype)  # real and imaginary in turns
        power = np.einsum("cs,cs->s", parts, parts, dtype=np.float64).reshape(-1, 2).sum(axis=1)
        of_frame = self._open.setdefault(place, _Power())
        of_frame.largest = max(of_frame.largest, float(power.max(initial=0)))
        of_frame.total += float(power.sum())
        of_frame.n_samples += len(power)
        return [item]

    def finish(self) -> list[Any]:
        noise, zero = self._counts["only_noise"], self._counts["no_signal"]
        told = [
            Notice("warning", f"nothing but noise was found in {noise} frames", kind="only_noise", amount=noise - 1),
            Notice("warning", f"all samples of {zero} frames are zero", kind="no_signal", amount=zero - 1),
        ]
        return [notice for notice in told if notice.amount > 0]

    def _judged(self, end: FrameEnd, power: _Power) -> list[Any]:
        where = f"frame {end.frame} slice {end.slice}: "
        if not power.total:
            return self._first(Notice("warning", where + "all its samples are zero", kind="no_signal"))
        times = power.largest * power.n_samples / power.total
        if times > largest_of_noise(power.n_samples):
            return []
        text = f"nothing but noise was found: its strongest sample has only {times:.1f} times the mean power"
        return self._first(Notice("warning", f"{where}{text}; its images are made nevertheless", kind="only_noise"))

    def _first(self, notice: Notice) -> list[Any]:
        """The notice if it is the first of its kind."""
        self._counts[notice.kind] += 1
        return [notice] if self._counts[notice.kind] == 1 else []
