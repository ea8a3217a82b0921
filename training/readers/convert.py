"""A folder of public data into the cache, exam by exam; what cannot be read is named and left out, or ends it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import h5py

from ...errors import ConfigError, RecordingError
from ..breast.data import Exam, save_exam
from . import fastmri_breast, mama_mia

DATASETS = ("fastmri-breast", "fastmri-breast-batch", "fastmri-breast-synthetic", "mama-mia")
METHODS = dict(zip(DATASETS[:3], ("stream", "batch", "synthetic"), strict=True))


def convert(dataset: str, folder: Path, cache: Path, masks: Path | None = None) -> Iterator[tuple[str, int, int]]:
    """Read a data set; gives ``(patient, done, total)`` as each exam is in the cache.

    Exams that are there are kept if they were read in the same way from the same mask.

    Parameters
    ----------
    dataset : one of `DATASETS`; the first three read the same files.
    folder : of the data set: fastMRI's ``*_2.h5`` files, or MAMA-MIA's root.
    masks : of fastMRI's masks ``NAME_mask.nii[.gz]``; exams without one have no lesion.

    Raises
    ------
    ConfigError : for another data set, or a folder without exams.
    RecordingError : if the cache holds an exam that was read in another way. Else as the readers.
    """
    if dataset not in DATASETS:
        raise ConfigError(f"unknown data set {dataset!r}", hint="one of: " + ", ".join(DATASETS))
    names = _names(dataset, folder)
    if not names:
        raise ConfigError(
            "no exam was found", where=str(folder), likely=f"this is not a folder of {dataset} as it is published"
        )
    for number, name in enumerate(names):
        path = cache / f"exam-{name}.h5"
        mask = _mask(dataset, folder, name, masks)
        recipe = reader_recipe(dataset, mask)
        if path.is_file():
            _check_recipe(path, recipe)
        else:
            save_exam(_read(dataset, folder, name, number, mask), path, recipe)
        yield name, number + 1, len(names)


def _names(dataset: str, folder: Path) -> list[str]:
    if dataset == "mama-mia":
        return sorted(path.name for path in (folder / "images").glob("*") if path.is_dir())
    return sorted(path.stem.rpartition("_")[0] for path in folder.glob("*_2.h5"))


def reader_recipe(dataset: str, mask: Path | None) -> str:
    """How an exam was read, as canonical JSON: the data set, the method, and the hash of its mask."""
    digest = None if mask is None or not mask.is_file() else hashlib.sha256(mask.read_bytes()).hexdigest()
    return json.dumps({"reader": dataset, "method": METHODS.get(dataset, "synthetic"), "mask": digest}, sort_keys=True)


def _check_recipe(path: Path, recipe: str) -> None:
    with h5py.File(path) as file:
        stored = str(file.attrs["recipe"])
    if stored != recipe:
        raise RecordingError(
            "the cache holds this exam as it was read in another way",
            where=str(path),
            likely="another method, or another mask, than the first time",
            hint="choose another cache folder, or delete this one and read it again",
        )


def _mask(dataset: str, folder: Path, name: str, masks: Path | None) -> Path | None:
    """Where the mask of an exam is; None if it has none."""
    if dataset == "mama-mia":
        return folder / "segmentations" / "expert" / f"{name}.nii.gz"
    candidates = [] if masks is None else [masks / f"{name}_mask.nii", masks / f"{name}_mask.nii.gz"]
    return next((path for path in candidates if path.is_file()), None)


def _read(dataset: str, folder: Path, name: str, number: int, mask: Path | None) -> Exam:
    if dataset == "mama-mia":
        return mama_mia.read_exam(folder / "images", folder / "segmentations" / "expert", name, number)
    return fastmri_breast.read_exam(folder / f"{name}_2.h5", mask, number, METHODS[dataset])
