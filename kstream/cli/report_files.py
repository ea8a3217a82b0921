"""The files of a run, and what the report reads from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..models.bundle import Bundle
    from ..output.runinfo import RunInfo
    from ..types import Notice
    from .stacks import Volume

SERIES = (("magnitude", 1), ("label", 2))
"""Kinds of images, and the series that they have if nobody sets another one."""


@dataclass(frozen=True)
class Found:
    """Files that belong to a run; None where there is none."""

    recording: Path | None
    images: Path | None
    truth: Path | None


def first(*paths: Path) -> Path | None:
    """The first path that is a file."""
    return next((path for path in paths if path.is_file()), None)


def told(info: RunInfo, notices: list[Notice]) -> RunInfo:
    """The account with further notices; one that it has already (from an earlier report) is not told twice."""
    return info.model_copy(update={"notices": (*info.notices, *(n for n in notices if n not in info.notices))})


def remove_overlays(folder: Path, keep: set[int]) -> None:
    """Delete pictures of slices that another run in the same folder left; `keep` counts from 1."""
    for path in folder.glob("overlay_z*.png"):
        if slice_of(path) not in (keep | {0}):
            path.unlink()


def slice_of(path: Path) -> int:
    """Number of the slice in ``overlay_z07.png``; 0 if it is not ours."""
    text = path.stem.removeprefix("overlay_z")
    return int(text) if text.isdecimal() else 0


def series_setting(info: RunInfo, key: str, default: int) -> int:
    """A setting of the run that is a whole number."""
    return next((int(setting.value) for setting in info.settings if setting.key == key), default)


def truth_volume(path: Path | None, labels: Volume) -> tuple[NDArray[np.uint8] | None, str]:
    """The ground truth if it lies on the grid of the labels, or else why not."""
    import numpy as np

    from ..output.nifti import LPS_TO_RAS, read_nifti

    if path is None:
        return None, ""
    data, affine = read_nifti(path)
    if data.shape != labels.geometry.shape:
        return None, f"{path.name} has shape {data.shape}, the labels {labels.geometry.shape}: not compared"
    if not np.allclose(affine, LPS_TO_RAS @ labels.geometry.affine_lps, atol=0.05):
        return None, f"{path.name} lies elsewhere in the patient than the labels: not compared"
    return data.astype(np.uint8), ""


def bundle_of(info: RunInfo) -> Bundle | None:
    """The bundle that made the labels of a run, if it is here and still the same."""
    from ..errors import ModelError
    from ..models.bundle import Bundle

    model = info.model
    if model is None:
        return None
    named = (setting.value.strip('"') for setting in info.settings if setting.key in ("segment.model", "cine.model"))
    for source in (model.name, *named):
        try:
            bundle = Bundle.load(source) if source else None
        except ModelError:
            continue
        if bundle is not None and bundle.info.sha256 == model.sha256:
            return bundle
    return None
