"""Takes a phantom file of BrainWeb that the user has, gives a head that can be scanned.

BrainWeb (https://brainweb.bic.mni.mcgill.ca, McGill University) distributes labelled heads as MINC (``.mnc``), raw
bytes (``.rawb``) and raw 16-bit numbers (``.raws``), packed with gzip; nothing of it comes with kstream. Read are the
*crisp* volumes, in which every voxel is one tissue: the normal brain (10 classes, 181 x 217 x 181 voxels of 1 mm) and
the twenty normal brains (12 classes, 362 x 434 x 362 voxels of 0.5 mm), and either as NIfTI.
"""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray

from ...errors import RecordingError
from ...types import Geometry
from ..raster import fine_positions_mm
from .head import Labels, Tissue

NORMAL, TWENTY = (181, 217, 181), (362, 434, 362)
"""Shapes ``(z, y, x)`` of the two sets."""

COMMISSURE_MM = 17.0
"""The anterior commissure (BrainWeb's origin) lies this far in front of the middle of the brain (`head.Head`'s)."""

MAX_BYTES = 1 << 30

# Of the normal brain: muscle and skin, skin, skull, glia (as grey matter), connective tissue.
_OF_NORMAL = np.array(
    [
        *(Tissue.BACKGROUND, Tissue.CSF, Tissue.GREY, Tissue.WHITE, Tissue.FAT),
        *(Tissue.MUSCLE, Tissue.SKIN, Tissue.SKULL, Tissue.GREY, Tissue.CONNECTIVE),
    ],
    np.uint8,
)


@dataclass(frozen=True)
class BrainWebHead:
    """A labelled volume with its place; stands where a `head.Head` stands.

    Parameters
    ----------
    tissues : uint8 `Tissue` ``(z, y, x)``, x to the right, y to the front, z to the head, as BrainWeb stores it.
    start_mm : centre of the first voxel along x, y, z, from the anterior commissure.
    step_mm : voxel size along x, y, z.
    """

    tissues: Labels
    start_mm: tuple[float, float, float]
    step_mm: tuple[float, float, float]

    def labels(self, geometry: Geometry, factor: tuple[int, int, int] = (1, 1, 1)) -> Labels:
        """Tissue of the voxel at every point of a grid; background outside the volume. See `head.Head.labels`."""
        x, y, z = fine_positions_mm(geometry, factor)
        world = (-x, -y - COMMISSURE_MM, z)  # LPS to right, front, head
        index, inside = [], np.ones(np.broadcast_shapes(x.shape, y.shape, z.shape), np.bool_)
        for position, start, step, n in zip(
            world, self.start_mm, self.step_mm, reversed(self.tissues.shape), strict=True
        ):
            i = np.rint((position - start) / step).astype(np.intp)
            inside &= (i >= 0) & (i < n)
            index.append(np.clip(i, 0, n - 1))
        ix, iy, iz = index
        return np.where(inside, self.tissues[iz, iy, ix], np.uint8(Tissue.BACKGROUND))


def read_brainweb(path: Path) -> BrainWebHead:
    """A head from a file of BrainWeb, by the end of its name; ``.gz`` and ``.bz2`` are unpacked.

    Raises
    ------
    RecordingError : the file cannot be read, is of another kind, or holds more than tissue numbers.
    """
    kind = next((suffix for suffix in reversed(path.suffixes) if suffix not in (".gz", ".bz2")), "")
    readers = {".rawb": _read_bytes, ".raws": _read_shorts, ".mnc": _read_minc}
    if kind not in (*readers, ".nii"):
        raise RecordingError(
            f"{path.name[:80]!r} is no phantom that can be read",
            where=str(path),
            hint="crisp volumes as .mnc, .rawb, .raws or .nii, also .gz and .bz2",
        )
    try:
        values, start, step = _read_nifti(path) if kind == ".nii" else readers[kind](_unpacked(path))
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, IndexError) as error:
        raise RecordingError(
            f"cannot read a BrainWeb phantom: {type(error).__name__}: {error}"[:300],
            where=str(path),
            likely="a damaged download, or another kind of file under this name",
        ) from error
    return BrainWebHead(_tissues(values, path), start, step)


Volume = tuple[NDArray[Any], tuple[float, float, float], tuple[float, float, float]]


def _unpacked(path: Path) -> bytes:
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open}
    with openers.get(path.suffix, open)(path, "rb") as file:
        content: bytes = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    return content


def _read_bytes(content: bytes) -> Volume:
    return _raw(np.frombuffer(content, np.uint8))


def _read_shorts(content: bytes) -> Volume:
    """Tissue numbers of 0 to 255 were stretched over 12 bits: number n became ``n * 4095 / 255``, rounded."""
    stretched = np.frombuffer(content, "<u2").astype(np.float32)
    return _raw(np.rint(stretched * np.float32(255 / 4095)))


def _raw(values: NDArray[Any]) -> Volume:
    for shape, step in ((NORMAL, 1.0), (TWENTY, 0.5)):
        if values.size == int(np.prod(shape)):
            first = (step - 1) / 2
            return values.reshape(shape), (-90 + first, -126 + first, -72 + first), (step, step, step)
    raise ValueError(f"{values.size} voxels are neither {NORMAL} nor {TWENTY}")


def _read_minc(content: bytes) -> Volume:
    """MINC 1, a NetCDF file: integers of a valid range that stand for real values between a minimum and a maximum."""
    with scipy.io.netcdf_file(io.BytesIO(content), "r", mmap=False) as file:
        image = file.variables["image"]
        axes = ("zspace", "yspace", "xspace")
        if tuple(image.dimensions) != axes:
            raise ValueError(f"axes {image.dimensions}, expected {axes}")
        raw = np.asarray(image[:])
        if getattr(image, "signtype", b"") == b"unsigned":
            raw = raw.view(np.dtype(f"u{raw.dtype.itemsize}").newbyteorder(raw.dtype.byteorder))
        low, high = (float(v) for v in np.asarray(getattr(image, "valid_range", (0, 255))).reshape(-1))
        bounds = [np.asarray(file.variables[name][...], np.float64) for name in ("image-min", "image-max")]
        below, above = (b.reshape(b.shape + (1,) * (3 - b.ndim)) for b in bounds)
        values = below + (raw.astype(np.float64) - low) * ((above - below) / (high - low))
        space = [file.variables[name] for name in reversed(axes)]
        start = [float(np.asarray(axis.start).reshape(-1)[0]) for axis in space]
        step = [float(np.asarray(axis.step).reshape(-1)[0]) for axis in space]
    return np.rint(values), (start[0], start[1], start[2]), (step[0], step[1], step[2])


def _read_nifti(path: Path) -> Volume:
    """A NIfTI volume that is not rotated."""
    from ...output.nifti import read_nifti  # brings nibabel, which the other kinds do not need

    values, affine = read_nifti(path)
    matrix = affine[:3, :3]
    if np.abs(matrix - np.diag(np.diag(matrix))).max() > 1e-3:
        raise ValueError("a rotated volume")
    (x, y, z), (dx, dy, dz) = affine[:3, 3].tolist(), np.diag(matrix).tolist()
    return np.rint(values), (x, y, z), (dx, dy, dz)


def _tissues(values: NDArray[Any], path: Path) -> Labels:
    """Tissue numbers of either set as `Tissue`: 10 classes in a volume of the normal brain's shape, else 12."""
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if not 0 <= low <= high < len(Tissue):
        raise RecordingError(
            f"the phantom holds numbers from {low:g} to {high:g}, and there are {len(Tissue)} tissues",
            where=str(path),
            likely="an intensity image, or a fuzzy volume of one tissue",
            hint="download the crisp volume (phantom_..._crisp, or subjectNN_crisp)",
        )
    tissues = values.astype(np.uint8)
    is_normal = high < len(_OF_NORMAL) and values.shape != TWENTY
    return np.ascontiguousarray(_OF_NORMAL[tissues] if is_normal else tissues)
