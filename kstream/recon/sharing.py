"""Outputs that share spokes: a sliding window over frames."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from ..types import KSpace


class ShareFrames:
    """Gives the mean of the last `span` frames whenever a frame comes: a sliding window that costs only its new spokes.

    The combined k-space is a sum over spokes, and density weights of ``span`` times as many spokes are ``span`` times
    smaller: the mean of frames is the frame of all their spokes. The first ``span - 1`` frames give nothing. Frames
    must come in order; after a gap the window starts anew.
    """

    takes = (KSpace,)
    gives = (KSpace,)

    def __init__(self, span: int) -> None:
        self._span = span
        self._windows: dict[int, deque[KSpace]] = {}

    def push(self, kspace: KSpace) -> list[Any]:
        window = self._windows.setdefault(kspace.slice, deque(maxlen=self._span))
        if window and kspace.frame != window[-1].frame + 1:
            window.clear()
        window.append(kspace)
        if len(window) < self._span:
            return []
        data = np.asarray(sum(k.data for k in window) / np.float32(self._span), np.complex64)
        return [KSpace(data, kspace.frame, kspace.slice, kspace.received_ns, kspace.geometry)]

    def finish(self) -> list[Any]:
        return []
