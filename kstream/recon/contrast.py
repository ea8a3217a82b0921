"""Post-contrast minus pre-contrast k-space (paper 000, supplement S1)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..types import Complex, Difference, EarlyKSpace, KSpace, Notice

SMALLEST = float(np.finfo(np.float32).tiny)


def rms(kspace: Complex) -> float:
    """Root mean square magnitude over the whole volume."""
    energy = sum(
        float(np.vdot(plane, plane).real) for plane in kspace
    )  # planes in single precision, their sum in double
    return float(np.sqrt(energy / kspace.size))


class SubtractContrast:
    """Keeps the pre-contrast frame; gives ``(post - pre) / rms(pre)`` for every later frame. K-space passes on.

    Frames may come in any order: post-contrast frames that come first wait for the pre-contrast frame. Post-contrast
    frames that are looked at before they are full (`EarlyKSpace`) give a difference if the pre-contrast frame is there.
    """

    takes = (KSpace, EarlyKSpace)
    gives = (KSpace, Difference, Notice)

    def __init__(self, pre_frame: int = 0) -> None:
        self._pre_frame = pre_frame
        self._pre: dict[int, tuple[Complex, float]] = {}
        self._waiting: list[KSpace] = []

    def push(self, item: KSpace | EarlyKSpace) -> list[Any]:
        if isinstance(item, EarlyKSpace):
            is_ready = item.kspace.frame != self._pre_frame and item.kspace.slice in self._pre
            return [self._difference(item.kspace, (item.n_readouts, item.n_expected))] if is_ready else []
        return self._take(item)

    def _take(self, kspace: KSpace) -> list[Any]:
        if kspace.frame != self._pre_frame:
            if kspace.slice in self._pre:
                return [kspace, self._difference(kspace)]
            self._waiting.append(kspace)
            return [kspace]
        self._pre[kspace.slice] = (kspace.data, rms(kspace.data))
        ready = [k for k in self._waiting if k.slice == kspace.slice]
        self._waiting = [k for k in self._waiting if k.slice != kspace.slice]
        return [kspace, *(self._difference(k) for k in ready)]

    def finish(self) -> list[Any]:
        if not self._waiting:
            return []
        return [Notice("error", f"no contrast difference: pre-contrast frame {self._pre_frame} never came")]

    def _difference(self, post: KSpace, early: tuple[int, int] | None = None) -> Difference:
        pre, scale = self._pre[post.slice]
        data: Complex = np.subtract(post.data, pre)
        data.view(np.float32)[...] /= np.float32(max(scale, SMALLEST))  # in place: a volume is 160 MB
        return Difference(
            data=data,
            scale=scale,
            frame=post.frame,
            pre_frame=self._pre_frame,
            slice=post.slice,
            received_ns=post.received_ns,
            geometry=post.geometry,
            early=early,
        )
