"""Dynamic MR series in DICOM: which files are which time point, and each time point as a volume; masks from DICOM SEG.

A dynamic scan comes as one series that holds every slice several times, or as one series for each time point; scanners
differ. So files are told apart by where they lie and when they were acquired, never by their names.

pydicom and highdicom come with the extra ``kstream[dicom]``.
"""

from __future__ import annotations

import importlib
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError, RecordingError, ShapeError

if TYPE_CHECKING:
    from pydicom import Dataset

Volume = NDArray[np.float32]
Affine = NDArray[np.float64]

MR_IMAGE, ENHANCED_MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
POSITION_TOLERANCE_MM = 0.01
DIRECTION_TOLERANCE = 1e-3
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Slice:
    """What the header of one image says.

    Parameters
    ----------
    when : key that orders images of one place in time: date and time of acquisition, temporal position, trigger time,
        numbers of acquisition and instance; an element that a scanner leaves out is equal in all.
    grid : rows, columns, row and column spacing (mm), directions of a row and of a column (LPS).
    """

    path: Path
    series: str
    series_number: int
    description: str
    patient: str
    is_derived: bool
    when: tuple[str, int, float, int, int]
    position_mm: NDArray[np.float64]
    grid: tuple[float, ...]

    @property
    def normal(self) -> NDArray[np.float64]:
        return np.cross(self.grid[4:7], self.grid[7:10])

    @property
    def height_mm(self) -> float:
        return float(self.normal @ self.position_mm)


@dataclass(frozen=True)
class TimePoint:
    """The slices of one volume, from low to high along their normal: a right-handed grid, as SimpleITK orders it."""

    slices: tuple[Slice, ...]

    def __str__(self) -> str:
        first = self.slices[0]
        return f"series {first.series_number} {first.description!r} ({len(self.slices)} slices)"

    @property
    def folder(self) -> Path:
        return self.slices[0].path.parent

    @property
    def shape(self) -> tuple[int, ...]:
        """``(z, y, x)``."""
        return len(self.slices), int(self.slices[0].grid[0]), int(self.slices[0].grid[1])

    @property
    def affine(self) -> Affine:
        """From x, y, z voxels to RAS mm, as NIfTI has it."""
        first, last, grid = self.slices[0], self.slices[-1], self.slices[0].grid
        lps = np.eye(4)
        lps[:3, 0] = np.multiply(grid[4:7], grid[3])
        lps[:3, 1] = np.multiply(grid[7:10], grid[2])
        lps[:3, 2] = (last.position_mm - first.position_mm) / (len(self.slices) - 1)
        lps[:3, 3] = first.position_mm
        return np.asarray(_LPS_TO_RAS @ lps)

    def read(self) -> Volume:
        """Rescaled values ``(z, y, x)``.

        Raises
        ------
        RecordingError : if the pixels of an image cannot be read.
        """
        return np.stack([_pixels(each.path) for each in self.slices])


def first_time_points(folder: Path, n_wanted: int) -> list[TimePoint]:
    """The first time points of the dynamic scan in a folder and the folders below it; only headers are read.

    Raises
    ------
    ConfigError : pydicom is not installed.
    RecordingError : no images, several patients, original and derived images together, slices or time points that are
        missing, images that cannot be read or ordered.
    ShapeError : time points of different geometry.
    """
    found = time_points(folder)
    if len(found) < n_wanted:
        raise RecordingError(
            f"{len(found)} time point{'s' * (len(found) != 1)} found, {n_wanted} needed",
            where=str(folder),
            likely="an incomplete download, or the dynamic series is elsewhere",
            hint="the folder holds: " + "; ".join(map(str, found)),
        )
    return found[:n_wanted]


def time_points(folder: Path) -> list[TimePoint]:
    """All time points of the dynamic scan in a folder, in the order of their acquisition.

    Raises
    ------
    As `first_time_points`, but for their number.
    """
    headers = _headers(folder)
    _check_one_scan(headers, folder)
    series: dict[str, list[Slice]] = defaultdict(list)
    for header in headers:
        series[header.series].append(header)
    points = [point for members in series.values() for point in _split(members, folder)]
    if len({bool(point.slices[0].when[0]) for point in points}) > 1:
        raise RecordingError(
            "time points cannot be put in order: only some have a time of acquisition",
            where=str(folder),
            hint="the folder holds: " + "; ".join(map(str, points)),
        )
    points.sort(key=lambda point: (point.slices[0].when[0], point.slices[0].series_number, point.slices[0].when))
    for point in points[1:]:
        if point.shape != points[0].shape:
            raise ShapeError(
                f"time points have different geometry: {points[0]}, {point}",
                where=str(folder),
                likely="series that are not part of the dynamic scan",
                hint="leave the dynamic series alone in the folder",
            )
    return points


def read_segmentation(path: Path) -> tuple[NDArray[np.uint8], Affine]:
    """A DICOM segmentation as ``(z, y, x)``, 1 where any segment is, and its affine (x, y, z to RAS mm).

    It may cover part of the images only: slices without a segment need not be stored.

    Raises
    ------
    ConfigError : highdicom is not installed.
    RecordingError : if it cannot be read, is no segmentation, or has no volume geometry.
    """
    highdicom, errors = _extra("highdicom"), _extra("pydicom").errors
    try:
        volume = highdicom.seg.segread(path).get_volume(
            combine_segments=True, skip_overlap_checks=True, dtype=np.uint16
        )
    except (OSError, ValueError, RuntimeError, AttributeError, errors.InvalidDicomError) as error:
        raise RecordingError(f"cannot read the segmentation: {error}", where=str(path)) from error
    slices_rows_columns = np.asarray(volume.affine, np.float64)
    affine = _LPS_TO_RAS @ slices_rows_columns[:, [2, 1, 0, 3]]
    return (np.asarray(volume.array) > 0).astype(np.uint8), np.asarray(affine)


def holds_dicom(folder: Path) -> bool:
    """True if a folder, or one below it, has a file that begins as DICOM does (PS3.10, section 7.1)."""
    return any(_is_dicom(path) for path in sorted(folder.rglob("*")) if path.is_file())


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _headers(folder: Path) -> list[Slice]:
    pydicom = _extra("pydicom")
    headers = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if not _is_dicom(path):
            continue
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except (OSError, EOFError, ValueError, pydicom.errors.InvalidDicomError) as error:
            raise RecordingError(f"cannot read the image: {error}", where=str(path)) from error
        kind = str(header.get("SOPClassUID", ""))
        if kind == ENHANCED_MR_IMAGE:
            raise RecordingError(
                "multi-frame (enhanced) MR images are not read",
                where=str(path),
                hint="convert them to one image per file, or to NIfTI",
            )
        if kind == MR_IMAGE:
            headers.append(_slice(header, path))
    if not headers:
        raise RecordingError("no MR image was found", where=str(folder), likely="an incomplete download")
    return headers


def _slice(header: Dataset, path: Path) -> Slice:
    try:
        grid = (header.Rows, header.Columns, *header.PixelSpacing, *header.ImageOrientationPatient)
        return Slice(
            path=path,
            series=str(header.SeriesInstanceUID),
            series_number=_whole(header.get("SeriesNumber")),
            description=str(header.get("SeriesDescription", "")),
            patient=str(header.get("PatientID", "")),
            is_derived="DERIVED" in header.get("ImageType", ()),
            when=(
                _acquired(header),
                _whole(header.get("TemporalPositionIdentifier")),
                float(header.get("TriggerTime") or 0),
                _whole(header.get("AcquisitionNumber")),
                _whole(header.get("InstanceNumber")),
            ),
            position_mm=np.array(header.ImagePositionPatient, np.float64),
            grid=tuple(float(value) for value in grid),
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise RecordingError(f"the image does not say where and when it is: {error}", where=str(path)) from error


def _acquired(header: Dataset) -> str:
    """Date and time of acquisition as text that sorts in time; empty if the image does not say."""
    date, time = str(header.get("AcquisitionDate") or ""), str(header.get("AcquisitionTime") or "")
    return f"{date}{float(time):017.6f}" if time else ""


def _whole(value: Any) -> int:
    return int(value) if value else 0


def _check_one_scan(headers: Sequence[Slice], folder: Path) -> None:
    if len(patients := sorted({header.patient for header in headers})) > 1:
        raise RecordingError(f"images of {len(patients)} patients in one folder", where=str(folder))
    names = {flag: sorted({h.description for h in headers if h.is_derived == flag}) for flag in (False, True)}
    if all(names.values()):
        raise RecordingError(
            f"original images ({', '.join(names[False])}) and derived ones ({', '.join(names[True])}) in one folder",
            where=str(folder),
            likely="subtractions or projections beside the dynamic series",
            hint="leave the dynamic series alone in the folder",
        )


def _split(members: Sequence[Slice], folder: Path) -> list[TimePoint]:
    """The time points of one series: the first, second, ... image of every place."""
    name = f"series {members[0].series_number} {members[0].description!r}"
    where = f"{folder}, {name}"
    if any(not np.allclose(m.grid, members[0].grid, atol=DIRECTION_TOLERANCE) for m in members):
        raise ShapeError("images of one series lie on different grids", where=where, likely="a localiser")
    places: list[list[Slice]] = []
    for member in sorted(members, key=lambda m: (m.height_mm, m.when)):
        if places and member.height_mm - places[-1][0].height_mm < POSITION_TOLERANCE_MM:
            places[-1].append(member)
        else:
            places.append([member])
    for place in places:
        place.sort(key=lambda m: m.when)
        if any(a.when == b.when for a, b in itertools.pairwise(place)):
            raise RecordingError(
                "two images of one place cannot be told apart in time", where=where, likely="the same file twice"
            )
    counts = sorted({len(place) for place in places})
    if len(counts) > 1:
        raise RecordingError(
            f"slices have between {counts[0]} and {counts[-1]} time points",
            where=where,
            likely="missing files, or images that are not part of the dynamic scan",
        )
    _check_steps([place[0] for place in places], where)
    return [TimePoint(tuple(place[index] for place in places)) for index in range(counts[0])]


def _check_steps(slices: Sequence[Slice], where: str) -> None:
    """Slices must lie one above the other at equal distances."""
    if len(slices) < 2:
        raise RecordingError("a volume needs at least two slices", where=where, likely="missing files")
    steps = np.diff([each.position_mm for each in slices], axis=0)
    mean = steps.mean(axis=0)
    if np.abs(steps - mean).max() > max(POSITION_TOLERANCE_MM, 0.01 * float(np.linalg.norm(mean))):
        raise RecordingError("slices are not evenly spaced", where=where, likely="missing files")
    if np.linalg.norm(np.cross(mean, slices[0].normal)) > DIRECTION_TOLERANCE * np.linalg.norm(mean):
        raise ShapeError("slices do not lie above each other", where=where, likely="a sheared stack")


def _pixels(path: Path) -> Volume:
    """Values ``(y, x)`` after the linear rescaling of PS3.3, section C.11.1."""
    pydicom = _extra("pydicom")
    try:
        image = pydicom.dcmread(path)
        values = np.asarray(image.pixel_array, np.float32)
    except (OSError, EOFError, AttributeError, ValueError, RuntimeError, pydicom.errors.InvalidDicomError) as error:
        raise RecordingError(
            f"cannot read the pixels: {error}",
            where=str(path),
            likely="a file that was cut short, or a compression whose decoder is not installed",
        ) from error
    slope, intercept = image.get("RescaleSlope"), image.get("RescaleIntercept")
    return values * np.float32(1 if slope is None else slope) + np.float32(0 if intercept is None else intercept)


def _extra(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"DICOM needs {name}, which is not installed", hint="pip install 'kstream[dicom]'", code="missing-extra"
        ) from error
