"""MAMA-MIA: breast DCE images of many centres in NIfTI, turned into synthetic k-space as published.

Layout: ``images/NAME/NAME_0000.nii.gz`` (before contrast), ``_0001``, ``_0002``, ...; masks in
``segmentations/expert/NAME.nii.gz``.
The published code resamples to 1 mm, pads or crops to 384 x 384 with a taper in the border it added, transforms every
slice and subtracts in k-space. Its note on z-scores is not what it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from ...errors import RecordingError, ShapeError
from ..breast.data import Exam
from .common import Image, Labels, differences, read_mask, read_volume, synthetic_kspace

SIZE = (384, 384)
SPACING_MM = 1.0
FRAMES = (1, 2)
SPLINE_ORDER = 3


def phases_of(folder: Path, name: str) -> list[Path]:
    """Files of the pre-contrast and the first two post-contrast phases.

    Raises
    ------
    RecordingError : if one is missing.
    """
    paths = [folder / name / f"{name}_{phase:04d}.nii.gz" for phase in (0, *FRAMES)]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise RecordingError(
            f"time points of {name} are missing: {', '.join(missing)}",
            where=str(folder / name),
            likely="an incomplete download",
        )
    return paths


def resample(volume: NDArray[Any], spacing_mm: tuple[float, float, float], order: int = SPLINE_ORDER) -> Image:
    """A volume ``(z, y, x)`` on a grid of 1 mm that begins at the same first voxel.

    Parameters
    ----------
    spacing_mm : of the volume along z, y, x.
    order : of the B-spline; 0 for masks.
    """
    new = [max(round(n * s / SPACING_MM), 1) for n, s in zip(volume.shape, spacing_mm, strict=True)]
    steps = [SPACING_MM / s for s in spacing_mm]
    return np.asarray(
        scipy.ndimage.affine_transform(
            volume.astype(np.float32), np.array(steps), output_shape=tuple(new), order=order, mode="nearest"
        ),
        np.float32,
    )


def pad_or_crop(volume: NDArray[np.floating], size: tuple[int, int] = SIZE, tapered: bool = True) -> Image:
    """Slices ``(z, y, x)`` about their middle, on a plane of `size`.

    `tapered` multiplies the border that was added by a raised cosine, as published: that border is zero already, so it
    changes nothing; it is here so that nobody wonders.
    """
    for axis, n in zip((1, 2), size, strict=True):
        have = volume.shape[axis]
        if have > n:
            first = (have - n) // 2
            volume = np.take(volume, range(first, first + n), axis)
        elif have < n:
            before = (n - have) // 2
            widths = [(0, 0)] * 3
            widths[axis] = (before, n - have - before)
            volume = np.pad(volume, widths)
            if tapered:
                shape = [1, 1, 1]
                shape[axis] = n
                volume = volume * taper(n, before, n - have - before).reshape(shape)
    return np.asarray(volume, np.float32)


def taper(n: int, before: int, after: int) -> NDArray[np.float32]:
    """One inside, a raised cosine towards the ends of the border: ``0.5 (1 - cos(pi (i + 1) / (n_pad + 1)))``."""
    window = np.ones(n, np.float32)
    for width, edge in ((before, slice(0, before)), (after, slice(n - 1, n - 1 - after, -1))):
        if width:
            window[edge] = 0.5 * (1 - np.cos(np.pi * (np.arange(width) + 1) / (width + 1)))
    return window


def read_exam(images: Path, segmentations: Path, name: str, number: int = 0, size: tuple[int, int] = SIZE) -> Exam:
    """One exam of the data set; every one has a lesion.

    Raises
    ------
    RecordingError : if a phase or the segmentation is missing or unreadable.
    ShapeError : if phases, or mask and image, have different geometry.
    """
    loaded = [(path, *read_volume(path)) for path in phases_of(images, name)]
    first, affine = loaded[0][1:]
    for path, volume, other in loaded[1:]:
        if volume.shape != first.shape or not np.allclose(other, affine, atol=0.01):
            raise ShapeError(f"phases of {name} have different geometry", where=str(path))
    mask = read_mask(segmentations / f"{name}.nii.gz", first.shape, affine)
    x, y, z = (float(v) for v in np.linalg.norm(affine[:3, :3], axis=0))
    phases = np.stack([pad_or_crop(resample(volume, (z, y, x)), size) for _, volume, _ in loaded])
    labels: Labels = pad_or_crop(resample(mask, (z, y, x), order=0), size, tapered=False).astype(np.uint8)
    data = differences(synthetic_kspace(phases))
    return Exam(number, data, FRAMES, labels, (SPACING_MM,) * 3, name, "synthetic")
