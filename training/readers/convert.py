"""A folder of public data into the cache, exam by exam; what cannot be read is named and left out, or ends it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ...errors import ConfigError
from ..breast.data import Exam, save_exam
from . import fastmri_breast, mama_mia

DATASETS = ("fastmri-breast", "fastmri-breast-batch", "fastmri-breast-synthetic", "mama-mia")
METHODS = dict(zip(DATASETS[:3], ("stream", "batch", "synthetic"), strict=True))


def convert(dataset: str, folder: Path, cache: Path, masks: Path | None = None) -> Iterator[tuple[str, int, int]]:
    """Read a data set; gives ``(patient, done, total)`` as each exam is in the cache. Exams that are there are kept.

    Parameters
    ----------
    dataset : one of `DATASETS`; the first three read the same files.
    folder : of the data set: fastMRI's ``*_2.h5`` files, or MAMA-MIA's root.
    masks : of fastMRI's masks ``NAME_mask.nii[.gz]``; exams without one have no lesion.

    Raises
    ------
    ConfigError : for another data set, or a folder without exams. Else as the readers.
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
        if not path.is_file():
            save_exam(_read(dataset, folder, name, number, masks), path, json.dumps({"reader": dataset}))
        yield name, number + 1, len(names)


def _names(dataset: str, folder: Path) -> list[str]:
    if dataset == "mama-mia":
        return sorted(path.name for path in (folder / "images").glob("*") if path.is_dir())
    return sorted(path.stem.rpartition("_")[0] for path in folder.glob("*_2.h5"))


def _read(dataset: str, folder: Path, name: str, number: int, masks: Path | None) -> Exam:
    if dataset == "mama-mia":
        return mama_mia.read_exam(folder / "images", folder / "segmentations" / "expert", name, number)
    candidates = [] if masks is None else [masks / f"{name}_mask.nii", masks / f"{name}_mask.nii.gz"]
    mask = next((path for path in candidates if path.is_file()), None)
    return fastmri_breast.read_exam(folder / f"{name}_2.h5", mask, number, METHODS[dataset])
