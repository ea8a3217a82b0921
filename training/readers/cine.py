"""Cardiac cine in NIfTI, as UK Biobank's and ACDC's public layouts have it.

UK Biobank, after the segmentation of Bai et al. (JCMR 20:65 (2018)), one folder per subject::

    SUBJECT/sa.nii.gz     seg_sa.nii.gz        short axes (x, y, slice, frame)
    SUBJECT/la_2ch.nii.gz seg_la_2ch.nii.gz    long axes (x, y, 1, frame); the same for la_4ch
    SUBJECT/sa_ED.nii.gz  seg_sa_ED.nii.gz     one frame only, where the sequence is missing

ACDC (Bernard et al., IEEE TMI 37:2514 (2018))::

    patient001/patient001_4d.nii.gz                                  short axes (x, y, slice, frame)
    patient001/patient001_frame01.nii.gz  ..._frame01_gt.nii.gz      end-diastole and end-systole, with labels
    patient001/Info.cfg                                              ED, ES, Group, Height, NbFrame, Weight
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import RecordingError, ShapeError
from ...output.phenotypes import LEFT_ATRIUM, LV_CAVITY, LV_MYOCARDIUM, RIGHT_ATRIUM, RV_CAVITY
from ...simulate.phase_map import complex_image
from ...types import Complex, Geometry, Vector

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])

UK_BIOBANK_SHORT_AXIS = {0: 0, 1: LV_CAVITY, 2: LV_MYOCARDIUM, 3: RV_CAVITY, 4: RV_CAVITY}
"""3 in the sequences' own labels; 4 in files that other tools of that community wrote."""
UK_BIOBANK_LONG_AXIS = {"la_2ch": {0: 0, 1: LEFT_ATRIUM}, "la_4ch": {0: 0, 1: LEFT_ATRIUM, 2: RIGHT_ATRIUM}}
ACDC = {0: 0, 1: RV_CAVITY, 2: LV_MYOCARDIUM, 3: LV_CAVITY}

_VIEWS = {"la_4ch": "4ch", "la_2ch": "2ch", "la_3ch": "3ch"}


@dataclass(frozen=True)
class CineView:
    """One slice over the heartbeat.

    Parameters
    ----------
    name : ``4ch``, ``2ch``, ``3ch``, or ``sax0`` ... from the base to the apex.
    magnitude : float32 ``(frames, y, x)``.
    labels : uint8 ``(frames, y, x)``, indices of `output.phenotypes.HEART_LABELS`; None where nobody drew any.
    labelled_frames : frames that have labels.
    geometry : where the slice lies, LPS.
    """

    name: str
    magnitude: NDArray[np.float32]
    labels: NDArray[np.uint8] | None
    labelled_frames: tuple[int, ...]
    geometry: Geometry


@dataclass(frozen=True)
class CineStudy:
    """One subject: long-axis views first, then short axes from base to apex; `info` holds what the layout adds."""

    subject: str
    views: tuple[CineView, ...]
    info: Mapping[str, str] = field(default_factory=dict)


def read_uk_biobank(folder: Path) -> CineStudy:
    """A subject's folder in the layout of UK Biobank.

    Raises
    ------
    RecordingError : no short axes in the folder, or a damaged file.
    ShapeError : labels of another size than their images, and not to be laid over them.
    """
    views: list[CineView] = []
    for stem, name in _VIEWS.items():
        if (image := _find(folder, stem)) is not None:
            labels = _find(folder, f"seg_{stem}")
            views += _views(image, labels, UK_BIOBANK_LONG_AXIS.get(stem, {0: 0}), name)
    image = _find(folder, "sa")
    labels = _find(folder, "seg_sa")
    if image is None:
        image, labels = _find(folder, "sa_ED"), _find(folder, "seg_sa_ED")
    if image is None:
        raise RecordingError(f"{folder.name} has no short axes", where=str(folder), hint="sa.nii.gz or sa_ED.nii.gz")
    return CineStudy(folder.name, (*views, *_views(image, labels, UK_BIOBANK_SHORT_AXIS, "sax")))


def read_acdc(folder: Path) -> CineStudy:
    """A patient's folder in the layout of ACDC; labels are there for the two frames that were drawn.

    Raises
    ------
    RecordingError : the sequence or ``Info.cfg`` is missing or damaged.
    """
    name = folder.name
    info = _read_info(folder / "Info.cfg")
    image = _find(folder, f"{name}_4d")
    if image is None:
        raise RecordingError(f"{name} has no sequence", where=str(folder), hint=f"{name}_4d.nii.gz")
    magnitude, geometries = _load(image)
    labels = np.zeros(magnitude.shape, np.uint8)
    drawn = []
    for key in ("ED", "ES"):
        frame = int(info.get(key, "0")) - 1
        path = _find(folder, f"{name}_frame{frame + 1:02d}_gt")
        if path is not None and 0 <= frame < magnitude.shape[1]:
            own, _ = _load(path)
            if own[:, 0].shape != labels[:, frame].shape:
                raise ShapeError(f"labels {own.shape}, images {magnitude.shape}", where=str(path))
            labels[:, frame] = _translated(own[:, 0], ACDC)
            drawn.append(frame)
    views = [
        CineView(f"sax{i}", frames, truth if drawn else None, tuple(drawn), place)
        for i, (frames, truth, place) in enumerate(zip(magnitude, labels, geometries, strict=True))
    ]
    return CineStudy(name, _from_base(views), info)


def synthetic_kspace_images(view: CineView, rng: np.random.Generator) -> Complex:
    """Complex images of a view with a smooth synthetic phase, as papers 001 and 003 make k-space from magnitudes.

    K-space from such images was measured by no scanner.
    """
    return complex_image(view.magnitude, rng)


def _views(image: Path, labels: Path | None, translation: Mapping[int, int], name: str) -> tuple[CineView, ...]:
    magnitude, geometries = _load(image)
    truth = None if labels is None else _laid_over(labels, magnitude.shape, geometries)
    views = []
    for index, (frames, geometry) in enumerate(zip(magnitude, geometries, strict=True)):
        own = None if truth is None else _translated(truth[index], translation)
        drawn = () if own is None else tuple(range(len(own)))
        views.append(CineView(f"{name}{index}" if name == "sax" else name, frames, own, drawn, geometry))
    return _from_base(views) if name == "sax" else tuple(views[:1])


def _laid_over(path: Path, shape: tuple[int, ...], geometries: list[Geometry]) -> NDArray[np.float32]:
    """Labels on the images' slices; a label file may hold more slices than the image, and is matched by position."""
    labels, places = _load(path)
    if labels.shape == shape:
        return labels
    if labels.shape[1:] != shape[1:] or len(labels) < shape[0]:
        raise ShapeError(f"labels {labels.shape}, images {shape} (slices, frames, y, x)", where=str(path))
    normal = np.array(geometries[0].slice_dir)
    heights = np.array([np.array(g.position_mm) @ normal for g in places])
    chosen = [int(np.abs(heights - np.array(g.position_mm) @ normal).argmin()) for g in geometries]
    return np.asarray(labels[chosen])


def _from_base(views: list[CineView]) -> tuple[CineView, ...]:
    """Short axes in order from base to apex, renumbered: the base is where the patient's upper right back is."""
    if len(views) < 2:
        return tuple(views)
    step = np.array(views[-1].geometry.position_mm) - np.array(views[0].geometry.position_mm)
    towards_apex = float(step @ np.array([0.66, -0.53, -0.53])) > 0  # left, anterior, down
    ordered = views if towards_apex else views[::-1]
    return tuple(
        CineView(f"sax{i}", v.magnitude, v.labels, v.labelled_frames, v.geometry) for i, v in enumerate(ordered)
    )


def _translated(labels: NDArray[np.floating], translation: Mapping[int, int]) -> NDArray[np.uint8]:
    out = np.zeros(labels.shape, np.uint8)
    for theirs, ours in translation.items():
        out[labels == theirs] = ours
    return out


def _load(path: Path) -> tuple[NDArray[np.float32], list[Geometry]]:
    """Values ``(slices, frames, y, x)`` of a file ``(x, y, slice[, frame])``, and where its slices lie."""
    import nibabel

    try:
        image: Any = nibabel.nifti1.Nifti1Image.from_filename(path)
        data = np.asarray(image.dataobj, np.float32)
    except (OSError, EOFError, ValueError, nibabel.filebasedimages.ImageFileError) as error:
        raise RecordingError(f"cannot read {path.name}: {error}", where=str(path)) from error
    if data.ndim not in (3, 4):
        raise ShapeError(f"{path.name} has {data.ndim} axes, expected x, y, slice and frame", where=str(path))
    data = data if data.ndim == 4 else data[..., None]
    affine = np.asarray(image.affine, np.float64)
    return np.ascontiguousarray(data.transpose(2, 3, 1, 0)), _geometries(affine, data.shape)


def _geometries(affine: NDArray[np.float64], shape: tuple[int, ...]) -> list[Geometry]:
    axes = _RAS_TO_LPS @ affine[:3, :3]
    sizes = np.linalg.norm(axes, axis=0)
    read, phase, normal = (_vector(axes[:, i] / sizes[i]) for i in range(3))
    nx, ny, n_slices = shape[:3]
    fov = float(nx * sizes[0]), float(ny * sizes[1]), float(sizes[2])
    places = []
    for index in range(n_slices):
        centre = affine[:3, :3] @ np.array([(nx - 1) / 2, (ny - 1) / 2, index]) + affine[:3, 3]
        places.append(Geometry((nx, ny, 1), fov, _vector(_RAS_TO_LPS @ centre), read, phase, normal))
    return places


def _vector(values: NDArray[np.float64]) -> Vector:
    return float(values[0]), float(values[1]), float(values[2])


def _find(folder: Path, stem: str) -> Path | None:
    found = [folder / f"{stem}{ending}" for ending in (".nii.gz", ".nii") if (folder / f"{stem}{ending}").is_file()]
    return found[0] if found else None


def _read_info(path: Path) -> dict[str, str]:
    """``KEY: value`` lines."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise RecordingError(f"cannot read {path.name}: {error.strerror}", where=str(path)) from error
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}
