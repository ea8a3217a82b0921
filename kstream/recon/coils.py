"""Coil combination with ESPIRiT maps of a calibration frame, or by root sum of squares."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from ..types import CoilImages, Complex, KSpace, Notice
from .calibration import EspiritSettings
from .fourier import to_kspace

Method = Literal["espirit", "rss"]


def map_sets(images: Complex, espirit: EspiritSettings) -> Complex:
    """ESPIRiT maps slice by slice from coil images ``(coils, z, y, x)``: complex64 ``(sets, coils, z, y, x)``.

    The calibration region is the centre of the images' k-space.
    """
    maps = espirit.maps(espirit.centre(images), (images.shape[2], images.shape[3]))
    return np.stack([maps.full(number) for number in range(espirit.n_sets)])


def volume_maps(images: Complex, espirit: EspiritSettings) -> Complex:
    """The first set of `map_sets`: shape and dtype of the images."""
    return np.asarray(map_sets(images, espirit)[0], np.complex64)


def combine(images: Complex, maps: Complex) -> Complex:
    """``sum_c conj(S_c) m_c``: complex64 ``(z, y, x)`` from coil images and maps ``(coils, z, y, x)``.

    Maps ``(sets, coils, z, y, x)`` give ``(sets, z, y, x)``.
    """
    return np.asarray(np.einsum("...czyx,czyx->...zyx", maps.conj(), images), np.complex64)


class CombineCoils:
    """Coil images to combined k-space; maps come from the calibration frame and serve all frames of its slice.

    A frame that is full before the calibration frame waits for it. If it never comes, the first frame that did come is
    used and the user is told.

    Parameters
    ----------
    method : ``espirit`` keeps phase; ``rss`` gives magnitude only and needs no calibration.
    calibration_frame : frame whose images give the maps; -1 calibrates every frame on itself.
    espirit : how maps are made.
    """

    takes = (CoilImages,)
    gives = (KSpace, Notice)

    def __init__(self, method: Method, calibration_frame: int, espirit: EspiritSettings) -> None:
        self._method, self._calibration_frame, self._espirit = method, calibration_frame, espirit
        self._maps: dict[int, Complex] = {}
        self._waiting: list[CoilImages] = []

    def push(self, images: CoilImages) -> list[Any]:
        if images.data.shape[0] == 1:
            return [self._kspace(images, images.data)]
        if self._method == "rss":
            total = np.sqrt(np.sum(np.abs(images.data) ** 2, axis=0, keepdims=True))
            return [self._kspace(images, total.astype(np.complex64))]
        if self._calibration_frame in (-1, images.frame):
            self._maps[images.slice] = map_sets(images.data, self._espirit)
        if images.slice not in self._maps:
            self._waiting.append(images)
            return []
        return [self._combined(images), *self._combine_waiting(images.slice)]

    def finish(self) -> list[Any]:
        left: list[Any] = []
        while self._waiting:
            first = min(self._waiting, key=lambda images: images.frame)
            text = (
                f"slice {first.slice}: calibration frame {self._calibration_frame} never came; maps from {first.frame}"
            )
            self._maps[first.slice] = map_sets(first.data, self._espirit)
            left += [Notice("warning", text), *self._combine_waiting(first.slice)]
        return left

    def _combine_waiting(self, slice_: int) -> list[Any]:
        ready = [images for images in self._waiting if images.slice == slice_]
        self._waiting = [images for images in self._waiting if images.slice != slice_]
        return [self._combined(images) for images in ready]

    def _combined(self, images: CoilImages) -> KSpace:
        return self._kspace(images, combine(images.data, self._maps[images.slice]))

    @staticmethod
    def _kspace(images: CoilImages, sets: Complex) -> KSpace:
        """From combined images ``(sets, z, y, x)``."""
        return KSpace.of_sets(list(to_kspace(sets)), images.frame, images.slice, images.received_ns, images.geometry)
