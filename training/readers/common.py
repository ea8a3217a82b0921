"""What all readers do: difference k-space of given frames, masks from NIfTI files, synthetic k-space from images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import RecordingError, ScanError, ShapeError
from ...recon.fourier import to_kspace
from ...types import Complex

Labels = NDArray[np.uint8]
Image = NDArray[np.float32]


def differences(kspace: Complex) -> Complex:
    """Each later frame minus the first, over the RMS of the first (paper 000, S1).

    Parameters
    ----------
    kspace : complex64 ``(frames, z, y, x)``.

    Raises
    ------
    ScanError : if there is one frame only, or the first is empty or not finite.
    """
    if len(kspace) < 2:
        raise ScanError(
            f"{len(kspace)} time point cannot be subtracted from another", likely="post-contrast frames are missing"
        )
    rms = float(np.sqrt(np.mean(np.abs(kspace[0]) ** 2, dtype=np.float64)))
    if not np.isfinite(rms) or rms == 0:
        raise ScanError(
            f"the pre-contrast k-space has an RMS of {rms}", likely="empty slices, or values that are not finite"
        )
    return np.asarray((kspace[1:] - kspace[:1]) / np.float32(rms), np.complex64)


def synthetic_kspace(images: NDArray[np.floating]) -> Complex:
    """The 2-D transform of every slice of real images ``(frames, z, y, x)``: k-space that no scanner measured."""
    return np.asarray(to_kspace(np.asarray(images, np.complex64)), np.complex64)


def read_volume(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """A NIfTI volume as ``(z, y, x)`` in the order of the file, and its affine (x, y, z to RAS mm).

    Raises
    ------
    RecordingError : if it cannot be read or has not three axes.
    """
    import nibabel

    try:
        image: Any = nibabel.load(path)
        values, affine = np.asarray(image.dataobj), np.asarray(image.affine, np.float64)
    except (OSError, nibabel.filebasedimages.ImageFileError) as error:
        raise RecordingError(f"cannot read the volume: {error}", where=str(path)) from error
    if values.ndim != 3:
        raise RecordingError(f"a volume has three axes, this one {values.ndim}", where=str(path))
    return values.transpose(2, 1, 0), affine


def read_mask(path: Path, shape: Sequence[int], affine: NDArray[np.float64] | None = None) -> Labels:
    """A binary mask ``(z, y, x)`` that must fit an image; the published code replaces one that does not by zeros.

    Parameters
    ----------
    affine : of the image, if it has one: the mask must lie in the same place (0.01 mm).

    Raises
    ------
    ShapeError : if it has another shape or lies elsewhere.
    ScanError : if it holds values that are not finite, or fractions.
    """
    mask, own = read_volume(path)
    if mask.shape != tuple(shape):
        raise ShapeError(
            f"the mask is {mask.shape}, the image {tuple(shape)} (z, y, x)",
            where=str(path),
            likely="mask and image have different geometry",
            hint="a mask drawn on this reconstruction",
        )
    if affine is not None and not np.allclose(own, affine, atol=0.01):
        raise ShapeError(
            "mask and image lie in different places",
            where=str(path),
            likely="one of them was resampled or reoriented",
        )
    if not np.isfinite(mask).all() or not np.array_equal(mask, np.rint(mask)):
        raise ScanError("the mask holds values that are no classes", where=str(path), likely="an interpolated mask")
    return (mask > 0).astype(np.uint8)
