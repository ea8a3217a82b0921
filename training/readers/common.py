"""What all readers do: difference k-space of given frames, masks that fit, synthetic k-space from images."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import RecordingError, ScanError, ShapeError
from ...recon.fourier import to_kspace
from ...types import Complex
from .dicom_series import read_segmentation

TOLERANCE_MM = 0.05
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


def open_volume(path: Path) -> tuple[tuple[int, ...], NDArray[np.float64], Callable[[], NDArray[Any]]]:
    """Shape ``(z, y, x)`` of a NIfTI volume, its affine (x, y, z to RAS mm), and what reads its values in that order.

    Raises
    ------
    RecordingError : if it cannot be read, has not three axes, or an affine that maps it to a plane; from the header
        here, from the values when they are read.
    """
    import nibabel

    try:
        image: Any = nibabel.load(path)
        shape, affine = tuple(image.shape), np.asarray(image.affine, np.float64)
    except (OSError, nibabel.filebasedimages.ImageFileError) as error:
        raise RecordingError(f"cannot read the volume: {error}", where=str(path)) from error
    if len(shape) != 3:
        raise RecordingError(f"a volume has three axes, this one {len(shape)}", where=str(path))
    if not np.isfinite(affine).all() or not np.linalg.det(affine):
        raise RecordingError(f"the affine maps the volume to a plane: {affine.tolist()}", where=str(path))

    def read() -> NDArray[Any]:
        try:
            return np.asarray(image.dataobj).transpose(2, 1, 0)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise RecordingError(f"cannot read the values: {error}", where=str(path)) from error

    return shape[::-1], affine, read


def read_volume(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Values ``(z, y, x)`` and affine of a NIfTI volume; raises as `open_volume`."""
    _, affine, read = open_volume(path)
    return read(), affine


def read_mask(path: Path, shape: Sequence[int], affine: NDArray[np.float64] | None = None) -> Labels:
    """A binary mask ``(z, y, x)`` that must fit an image; the published code replaces one that does not by zeros.

    Parameters
    ----------
    path : NIfTI, or a DICOM segmentation (``.dcm``), which may leave out slices without a lesion.
    affine : of the image, if it has one: the mask must lie in the same place, and is turned to the image's axes.

    Raises
    ------
    ShapeError : if it has another shape or lies elsewhere.
    ScanError : if it holds values that are not finite, or fractions.
    """
    is_dicom = path.suffix == ".dcm"
    mask, own = read_segmentation(path) if is_dicom else read_volume(path)
    fits = mask.shape == tuple(shape) if affine is None else sorted(mask.shape) == sorted(shape)
    if not fits and not (is_dicom and affine is not None):
        raise ShapeError(
            f"the mask is {mask.shape}, the image {tuple(shape)} (z, y, x)",
            where=str(path),
            likely="mask and image have different geometry",
            hint="a mask drawn on this reconstruction",
        )
    if not np.isfinite(mask).all() or not np.array_equal(mask, np.rint(mask)):
        raise ScanError("the mask holds values that are no classes", where=str(path), likely="an interpolated mask")
    marked = (mask > 0).astype(np.uint8)
    return marked if affine is None else laid_over(marked, own, shape, affine, str(path))


def laid_over(
    mask: Labels, own: NDArray[np.float64], shape: Sequence[int], affine: NDArray[np.float64], where: str
) -> Labels:
    """A mask on the grid of an image, whatever the order and direction of its axes; 0 where it has no voxels.

    Parameters
    ----------
    mask : ``(z, y, x)``.
    own, affine : of the mask and of the image, x, y, z to RAS mm.
    shape : of the image.

    Raises
    ------
    ShapeError : if their voxels do not coincide (`TOLERANCE_MM`, at every corner), or a marked one is outside.
    """
    to_mask = np.rint(np.linalg.inv(own) @ affine)
    corners = np.array([(*corner, 1) for corner in np.ndindex(2, 2, 2)]) * (*np.subtract(shape, 1)[::-1], 1)
    apart_mm = float(np.linalg.norm((own @ to_mask - affine) @ corners.T, axis=0).max())
    is_turn = np.array_equal(np.abs(to_mask[:3, :3]).sum(axis=0), np.ones(3)) and abs(np.linalg.det(to_mask)) == 1
    marked = np.argwhere(mask)[:, ::-1]
    places = np.rint((np.c_[marked, np.ones(len(marked))] @ np.linalg.inv(to_mask).T)[:, :3]) if is_turn else marked
    if not is_turn or apart_mm > TOLERANCE_MM or (places < 0).any() or (places >= tuple(shape)[::-1]).any():
        raise ShapeError(
            "mask and image lie in different places",
            where=where,
            likely="one of them was resampled or reoriented",
        )
    out = np.zeros(tuple(shape), np.uint8)
    x, y, z = places.astype(np.int64).T
    out[z, y, x] = 1
    return out
