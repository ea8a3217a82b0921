"""A folder of public data into the cache, exam by exam; all are looked at before the first is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py

from ...errors import ConfigError, KstreamError, RecordingError
from ..breast.data import Exam, save_exam
from . import cine_cache, fastmri_breast, mama_mia

DATASETS = ("fastmri-breast", "fastmri-breast-batch", "fastmri-breast-synthetic", "mama-mia")
METHODS = dict(zip(DATASETS[:3], fastmri_breast.METHODS, strict=True))
ALL_DATASETS = (*DATASETS, *cine_cache.READERS)


def convert(dataset: str, folder: Path, cache: Path, masks: Path | None = None) -> Iterator[tuple[str, int, int]]:
    """Read a data set; gives ``(patient, done, total)`` as each exam is in the cache.

    Exams that are there are kept if they were read in the same way from the same mask. All others are checked (layout,
    time points, geometry, mask) before the first of them is read, which may take hours.

    Parameters
    ----------
    dataset : one of `ALL_DATASETS`; the first three read the same files, cine goes to `cine_cache`.
    folder : of the data set: fastMRI's ``*_2.h5`` files, MAMA-MIA's root, or that of the subjects' folders.
    masks : of fastMRI's masks ``NAME_mask.nii[.gz]``; exams without one have no lesion.

    Raises
    ------
    ConfigError : for another data set, or a folder without exams, or of masks that fit none of them.
    RecordingError : if the cache holds an exam that was read in another way. Else as the readers, with the exam's name.
    """
    if dataset not in ALL_DATASETS:
        raise ConfigError(f"unknown data set {dataset!r}", hint="one of: " + ", ".join(ALL_DATASETS))
    if dataset in cine_cache.READERS:
        yield from cine_cache.convert_cine(dataset, folder, cache)
        return
    names = _names(dataset, folder)
    if not names:
        raise ConfigError(
            "no exam was found", where=str(folder), likely=f"this is not a folder of {dataset} as it is published"
        )
    exams = [_Exam(dataset, folder, name, number, masks) for number, name in enumerate(names)]
    if masks is not None and not any(exam.mask for exam in exams):
        raise ConfigError(
            "none of the exams has a mask", where=str(masks), hint=f"NAME_mask.nii, such as {names[0]}_mask.nii"
        )
    missing = [exam for exam in exams if not exam.is_in(cache)]
    for exam in missing:
        with _named(exam.name):
            exam.check()
    for exam in exams:
        if exam in missing:
            with _named(exam.name):
                save_exam(exam.read(), exam.path(cache), exam.recipe)
        yield exam.name, exam.number + 1, len(exams)


@dataclass(frozen=True)
class _Exam:
    """One exam of a data set that may be read."""

    dataset: str
    folder: Path
    name: str
    number: int
    masks: Path | None

    @property
    def mask(self) -> Path | None:
        """Where its mask is; None if it has none."""
        if self.dataset == "mama-mia":
            return mama_mia.mask_path(self._segmentations, self.name)
        endings = ("_mask.nii", "_mask.nii.gz")
        candidates = [] if self.masks is None else [self.masks / f"{self.name}{ending}" for ending in endings]
        return next((path for path in candidates if path.is_file()), None)

    @property
    def recipe(self) -> str:
        return reader_recipe(self.dataset, self.mask)

    def path(self, cache: Path) -> Path:
        return cache / f"exam-{self.name}.h5"

    def is_in(self, cache: Path) -> bool:
        """True if the cache has it; raises if it was read in another way."""
        path = self.path(cache)
        if not path.is_file():
            return False
        _check_recipe(path, self.recipe)
        return True

    def check(self) -> None:
        """Everything that can be wrong with it but its values, in a moment."""
        if self.dataset == "mama-mia":
            mama_mia.check_exam(self.folder / "images", self._segmentations, self.name)
        else:
            fastmri_breast.check_exam(self._raw, self.mask, METHODS[self.dataset])

    def read(self) -> Exam:
        if self.dataset == "mama-mia":
            return mama_mia.read_exam(self.folder / "images", self._segmentations, self.name, self.number)
        return fastmri_breast.read_exam(self._raw, self.mask, self.number, METHODS[self.dataset])

    @property
    def _raw(self) -> Path:
        return self.folder / f"{self.name}_2.h5"

    @property
    def _segmentations(self) -> Path:
        return self.folder / "segmentations" / "expert"


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors say which exam they are about."""
    try:
        yield
    except KstreamError as error:
        raise error.at(f"exam {name}") from error


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
