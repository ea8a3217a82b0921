"""MAMA-MIA: breast DCE images of many centres in NIfTI or DICOM, turned into synthetic k-space as published.

Layout: ``images/NAME/NAME_0000.nii.gz`` (before contrast), ``_0001``, ``_0002``, ...; masks in
``segmentations/expert/NAME.nii.gz``. Or, as the archives that it is made of give them, ``images/NAME/`` with the
dynamic series in DICOM (any names, any folders below it; see `dicom_series`); the mask may be ``NAME.dcm`` then, a
segmentation.

The published code resamples to 1 mm, pads or crops to 384 x 384 with a taper in the border it added, transforms every
slice and subtracts in k-space. Its note on z-scores is not what it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from ...errors import RecordingError, ShapeError
from ..breast.data import Exam
from .common import Image, Labels, differences, open_volume, read_mask, synthetic_kspace
from .dicom_series import first_time_points, holds_dicom

SIZE = (384, 384)
SPACING_MM = 1.0
FRAMES = (1, 2)
SPLINE_ORDER = 3


@dataclass(frozen=True)
class Phase:
    """One time point: where it is from, its grid ``(z, y, x)`` and affine (x, y, z to RAS mm); `read` gives values."""

    where: str
    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    read: Callable[[], NDArray[Any]]


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


def find_phases(folder: Path, name: str) -> list[Phase]:
    """The pre-contrast and the first two post-contrast phases, from NIfTI if there is any, else from DICOM.

    Only headers are read.

    Raises
    ------
    RecordingError : if one is missing or unreadable.
    ShapeError : if they have different geometry.
    """
    if not any((folder / name).glob("*.nii.gz")) and holds_dicom(folder / name):
        found = first_time_points(folder / name, 1 + len(FRAMES))
        phases = [Phase(str(point.folder), point.shape, point.affine, point.read) for point in found]
    else:
        phases = [Phase(str(path), *open_volume(path)) for path in phases_of(folder, name)]
    for phase in phases[1:]:
        if phase.shape != phases[0].shape or not np.allclose(phase.affine, phases[0].affine, atol=0.01):
            raise ShapeError(f"phases of {name} have different geometry", where=phase.where)
    return phases


def mask_path(folder: Path, name: str) -> Path:
    """The segmentation of an exam: NIfTI or DICOM, the first that is there."""
    paths = [folder / f"{name}{ending}" for ending in (".nii.gz", ".nii", ".dcm")]
    return next((path for path in paths if path.is_file()), paths[0])


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


def check_exam(images: Path, segmentations: Path, name: str) -> tuple[list[Phase], Labels]:
    """Phases, unread, and the mask ``(z, y, x)`` of an exam: all that can be wrong with it but its values.

    Raises
    ------
    RecordingError : if a phase or the segmentation is missing or unreadable.
    ShapeError : if phases, or mask and image, have different geometry.
    """
    phases = find_phases(images, name)
    return phases, read_mask(mask_path(segmentations, name), phases[0].shape, phases[0].affine)


def read_exam(images: Path, segmentations: Path, name: str, number: int = 0, size: tuple[int, int] = SIZE) -> Exam:
    """One exam of the data set; every one has a lesion.

    Raises
    ------
    As `check_exam`, and RecordingError for values that cannot be read.
    """
    phases, mask = check_exam(images, segmentations, name)
    x, y, z = (float(v) for v in np.linalg.norm(phases[0].affine[:3, :3], axis=0))
    resampled = np.stack([pad_or_crop(resample(phase.read(), (z, y, x)), size) for phase in phases])
    labels: Labels = pad_or_crop(resample(mask, (z, y, x), order=0), size, tapered=False).astype(np.uint8)
    data = differences(synthetic_kspace(resampled))
    return Exam(number, data, FRAMES, labels, (SPACING_MM,) * 3, name, "synthetic")
