"""The last step of the stream: what came out becomes IMAGE messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import ConfigError
from ..types import Delivered, FrameImage, LabelMap, Notice, Scan
from .images import Counter, OverlayStyle, SeriesSplitter, label_images, magnitude_images, overlay_images
from .messages import Image

HEADROOM = 4.0
"""Contrast makes later frames brighter than the first: uint16 pixels leave this factor above its maximum."""

WAITING = 2
"""Frames of a slice whose magnitude or labels wait for the other, for the overlay."""


@dataclass(frozen=True)
class Overlay:
    """A series that shows labels on the magnitude; the fields are those of `overlay_images`."""

    series: int
    style: OverlayStyle = "rgb"
    contour_axes: Literal["xy", "yx"] = "xy"


_COUNTERS: dict[str, Counter] = {"contrast": "contrast", "phase": "phase", "set": "set"}


class MakeImages:
    """Frame images to magnitude images, label maps to label images, each followed by `Delivered`, as are overlays.

    uint16 pixels of all frames share the scale of the first frame that is full. An image of another shape or pixel
    type than its series had so far begins a series of its own, with a notice: clients die of mixed series.

    Parameters
    ----------
    magnitude_series, label_series : ``image_series_index``; derived images are never put among others.
    magnitude_type : pixel type of magnitude images.
    frames_by : what numbers the frames (``FramePlan.by``): the header counter of that name carries the frame, or else
        ``repetition``.
    label_lut : palette of the host for label images; empty: grey.
    overlay : sent after final labels and magnitude of a frame, whichever comes last; halves that wait for the other
        are kept for the newest `WAITING` frames of each slice.
    provisional_series : of labels that are not final; None: there will be none.

    Raises
    ------
    ConfigError : two kinds of image would share a series.
    """

    takes = (FrameImage, LabelMap)
    gives = (Delivered, Notice)

    def __init__(
        self,
        scan: Scan,
        magnitude_series: int,
        label_series: int,
        magnitude_type: Literal["float32", "uint16"],
        frames_by: str = "repetition",
        label_lut: str = "",
        overlay: Overlay | None = None,
        provisional_series: int | None = None,
    ) -> None:
        _check_series(magnitude_series, label_series, overlay, provisional_series)
        self._provisional_series = label_series if provisional_series is None else provisional_series
        self._label_lut, self._overlay = label_lut, overlay
        self._waiting: dict[tuple[int, int], FrameImage | LabelMap] = {}  # for its other half, by slice and frame
        self._scan = scan
        self._magnitude_series, self._label_series = magnitude_series, label_series
        self._is_integer = magnitude_type == "uint16"
        self._frame_counter: Counter = _COUNTERS.get(frames_by, "repetition")
        self._slope: float | None = None
        self._splitter = SeriesSplitter()
        self._told: set[int] = set()

    def push(self, item: FrameImage | LabelMap) -> list[Any]:
        if isinstance(item, LabelMap):
            counter = self._frame_counter
            series = self._label_series if item.is_final else self._provisional_series
            images = label_images(item, self._scan, series, lut=self._label_lut, frame_counter=counter)
            kind: Literal["magnitude", "labels"] = "labels"
        else:
            images = self._magnitude(item)
            kind = "magnitude"
        sent = [part for image in images for part in self._without_mixing(image)]
        delivered = Delivered(kind, item.frame, item.slice, item.received_ns)
        return [*sent, delivered, *self._overlaid(item)]

    def finish(self) -> list[Any]:
        return []

    def _without_mixing(self, image: Image) -> list[Any]:
        """The image in a series where all are alike; before the first one that had to move, a notice."""
        split = self._splitter.split(image)
        series, number = int(image.header["image_series_index"]), int(split.header["image_series_index"])
        if number == series or number in self._told:
            return [split]
        self._told.add(number)
        shape = " x ".join(str(n) for n in image.data.shape[::-1])
        text = f"images of {shape} {image.data.dtype.name} are sent as series {number}: series {series} has others"
        return [Notice("warning", text), split]

    def _overlaid(self, item: FrameImage | LabelMap) -> list[Any]:
        """Final labels on the magnitude, once both of a frame are there."""
        if self._overlay is None or (isinstance(item, LabelMap) and not item.is_final):
            return []
        key = item.slice, item.frame
        match item, self._waiting.pop(key, None):
            case (FrameImage() as frame, LabelMap() as labels) | (LabelMap() as labels, FrameImage() as frame):
                pass
            case _:
                self._wait(key, item)
                return []
        series, style, axes = self._overlay.series, self._overlay.style, self._overlay.contour_axes
        images = overlay_images(
            frame, labels, self._scan, series, style, contour_axes=axes, frame_counter=self._frame_counter
        )
        sent = [part for image in images for part in self._without_mixing(image)]
        return [*sent, Delivered("overlay", item.frame, item.slice, item.received_ns)]

    def _wait(self, key: tuple[int, int], item: FrameImage | LabelMap) -> None:
        """Keep one half until the other comes; the oldest of its slice goes for it."""
        self._waiting[key] = item
        of_slice = [other for other in self._waiting if other[0] == key[0]]
        if len(of_slice) > WAITING:
            del self._waiting[of_slice[0]]

    def _magnitude(self, item: FrameImage) -> list[Image]:
        if self._is_integer and self._slope is None:
            brightest = float(np.abs(item.data[np.isfinite(item.data)]).max(initial=0.0))
            self._slope = (brightest or 1.0) * HEADROOM / 65535
        return magnitude_images(
            item,
            item.data,
            self._scan,
            self._magnitude_series,
            rescale_slope=self._slope,
            frame_counter=self._frame_counter,
        )


def _check_series(magnitude: int, label: int, overlay: Overlay | None, provisional: int | None) -> None:
    """Every kind of image needs a series of its own."""
    given = {"images.magnitude_series": magnitude, "images.label_series": label}
    if overlay is not None:
        given["images.overlay_series"] = overlay.series
    if provisional is not None:
        given["images.provisional_series"] = provisional
    for series in given.values():
        sharing = [other for other in given if given[other] == series]
        if len(sharing) > 1:
            free = next(n for n in range(1, 65536) if n not in given.values())
            raise ConfigError(
                f"{' and '.join(sharing)} are both series {series}", where="images", hint=f"--set {sharing[1]}={free}"
            )
