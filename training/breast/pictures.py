"""Examples to look at while a network learns: truth in green, prediction in red, both on the difference image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...engines import Engine
from ...recon.fourier import to_image
from ...segment import segment_volume
from ...types import Complex
from ..experiment import NetworkConfig
from .data import Exam

GREEN, RED = (0.1, 0.9, 0.2), (1.0, 0.2, 0.2)
OPACITY = 0.5

Labels = NDArray[np.uint8]
Picture = NDArray[np.uint8]


def outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels of a mask ``(y, x)`` that have a neighbour outside it."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def blend(image: NDArray[np.floating], truth: Labels, predicted: Labels | None = None) -> Picture:
    """One slice ``(y, x)``, as bright as its 99.5th percentile: prediction filled in red, truth outlined in green."""
    top = float(np.percentile(image, 99.5)) or 1.0
    picture = np.repeat(np.clip(image / top, 0, 1)[..., None], 3, axis=-1)
    if predicted is not None:
        inside = predicted > 0
        picture[inside] = (1 - OPACITY) * picture[inside] + OPACITY * np.array(RED)
    picture[outline(truth > 0)] = GREEN
    return np.asarray(np.rint(255 * picture), np.uint8)


def fullest_slice(labels: Labels) -> int:
    """The slice with most voxels of a lesion, the middle one without any."""
    counts = np.count_nonzero(labels, axis=(1, 2))
    return int(counts.argmax()) if counts.any() else len(labels) // 2


def side_by_side(kspace: Complex, truth: Labels, predicted: Labels) -> Picture:
    """The fullest slice: the image with the truth, and the same with the prediction too."""
    z = fullest_slice(truth)
    image = np.abs(to_image(kspace[z]))
    return np.concatenate([blend(image, truth[z]), blend(image, truth[z], predicted[z])], axis=1)


def overlay(exam: Exam, engine: Engine, frame: int, network: NetworkConfig) -> Picture:
    """`side_by_side` of one exam, segmented as in validation."""
    kspace = exam.difference(frame)
    return side_by_side(kspace, exam.labels, segment_volume(kspace, engine, network.patch_depth, network.patch_stride))
