"""The last step of the stream: what came out becomes IMAGE messages."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from ..types import Delivered, FrameImage, KSpace, LabelMap, Scan
from .images import SeriesSplitter, label_images, magnitude_images

HEADROOM = 4.0
"""Contrast makes later frames brighter than the first: uint16 pixels leave this factor above its maximum."""


class MakeImages:
    """Frame images to magnitude images, label maps to label images, each followed by `Delivered`.

    uint16 pixels of all frames share the scale of the first frame that is full. Series that would
    change shape or pixel type are split, because clients die of that.
    """

    takes = (FrameImage, LabelMap)
    gives = (Delivered,)

    def __init__(
        self, scan: Scan, magnitude_series: int, label_series: int, magnitude_type: Literal["float32", "uint16"]
    ) -> None:
        self._scan = scan
        self._magnitude_series, self._label_series = magnitude_series, label_series
        self._is_integer = magnitude_type == "uint16"
        self._slope: float | None = None
        self._splitter = SeriesSplitter()

    def push(self, item: FrameImage | LabelMap) -> list[Any]:
        if isinstance(item, LabelMap):
            images = label_images(item, self._scan, self._label_series)
            kind: Literal["magnitude", "labels"] = "labels"
        else:
            images = self._magnitude(item)
            kind = "magnitude"
        delivered = Delivered(kind, item.frame, item.slice, item.received_ns)
        return [*(self._splitter.split(image) for image in images), delivered]

    def finish(self) -> list[Any]:
        return []

    def _magnitude(self, item: FrameImage) -> list[Any]:
        if self._is_integer and self._slope is None:
            brightest = float(np.abs(item.data).max())
            self._slope = (brightest or 1.0) * HEADROOM / 65535
        kspace = KSpace(item.data, item.frame, item.slice, item.received_ns, item.geometry)
        return list(magnitude_images(kspace, item.data, self._scan, self._magnitude_series, rescale_slope=self._slope))
