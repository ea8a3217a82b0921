"""Exams for training: what a reader or the simulator made, through the product's own pipeline, in one cache format.

One HDF5 file per exam, ``FOLDER/COHORT/exam-NAME.h5``:

===============  ==============================================================================================
``differences``  complex64 ``(frames, z, y, x)``: `types.Difference.data` of every post-contrast frame, in order
``frames``       int ``(frames,)``: their frame numbers
``labels``       uint8 ``(z, y, x)``: the truth in scan geometry
``variants/``    float16 ``(z, y, x, re/im)`` by name: the last frame's difference from fewer spokes (see `variants`)
attributes       ``seed``, ``patient``, ``source``, ``voxel_size_mm`` (xyz), ``recipe`` (JSON: how it was made)
===============  ==============================================================================================

``source`` says where the k-space is from: ``simulated`` and ``acquired`` went through coils and a trajectory;
``synthetic`` is the transform of images, which makes every task easier than it is (paper 000).
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ...config import Config, resolve
from ...errors import ConfigError, RecordingError, ScanError, ShapeError
from ...simulate.breast.protocol import BreastProtocol
from ...types import Acquisition, Complex, Difference, Scan, Vector
from ..experiment import Experiment, FoldConfig
from ..folds import split_patients
from .variants import parse

SOURCES = ("simulated", "acquired", "synthetic")


@dataclass(frozen=True)
class Exam:
    """One exam as training sees it; the fields are those of the cache file."""

    seed: int
    differences: Complex
    frames: tuple[int, ...]
    labels: NDArray[np.uint8]
    voxel_size_mm: Vector
    patient: str = ""
    source: str = "simulated"
    variants: Mapping[str, Complex] = field(default_factory=dict)

    @property
    def has_lesion(self) -> bool:
        return bool(self.labels.any())

    def difference(self, frame: int) -> Complex:
        """The difference ``(z, y, x)`` of a frame.

        Raises
        ------
        ScanError : if the exam has no such frame.
        """
        if frame not in self.frames:
            raise ScanError(f"exam {self.seed} has no frame {frame}", hint=f"it has {self.frames}; set data.frame")
        return np.asarray(self.differences[self.frames.index(frame)])


def simulate_exam(
    seed: int, protocol: Mapping[str, Any], preset: str, settings: tuple[str, ...], variants: Sequence[str] = ()
) -> Exam:
    """Simulate a scan and stream it through the pipeline without a network.

    Parameters
    ----------
    variants : fewer spokes to reconstruct from too, such as ``radial-uniform-4`` (see `variants.parse`).

    Raises
    ------
    ScanError : if the pipeline gave no difference.
    ShapeError : if truth and reconstruction have different grids.
    """
    from ...simulate.breast.exam import simulate_breast_exam

    exam = simulate_breast_exam(_protocol(protocol), seed)
    differences = stream_differences(exam.scan, exam.acquisitions, preset, settings, f"exam {seed}")
    data = np.stack([difference.data for difference in differences])
    if data.shape[1:] != exam.truth_labels.shape:
        raise ShapeError(f"exam {seed}: reconstruction {data.shape[1:]}, truth {exam.truth_labels.shape}")
    frames = tuple(difference.frame for difference in differences)
    thinner = {}
    for name in variants:
        scan, acquisitions, more = parse(name).of(exam.scan, exam.acquisitions, exam.protocol.n_spokes, seed)
        thinner[name] = stream_differences(scan, acquisitions, preset, (*settings, *more), f"exam {seed}")[-1].data
    labels, size = exam.truth_labels.astype(np.uint8), differences[0].geometry.voxel_size_mm
    return Exam(seed, data, frames, labels, size, patient=str(seed), variants=thinner)


def stream_differences(
    scan: Scan, acquisitions: Iterable[Acquisition], preset: str, settings: tuple[str, ...], what: str
) -> list[Difference]:
    """Contrast differences of a scan through the streaming pipeline, by frame.

    Raises
    ------
    ScanError : if the pipeline gave none.
    """
    from ...pipeline import build_pipeline

    pipeline = build_pipeline(scan, resolve(preset, settings=settings).config).pipeline
    items = [item for acquisition in acquisitions for item in pipeline.push(acquisition)] + pipeline.finish()
    differences = sorted((i for i in items if isinstance(i, Difference)), key=lambda i: i.frame)
    if not differences:
        raise ScanError(
            f"{what} gave no contrast difference",
            likely="the preset does not subtract, or the scan has one frame",
            hint="contrast.subtract=true and at least two frames",
        )
    return differences


def save_exam(exam: Exam, path: Path, recipe: str) -> None:
    """Write a cache file; an interrupted write leaves nothing that looks finished."""
    check_exam(exam, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    with h5py.File(unfinished, "w") as file:
        file["differences"] = exam.differences
        file["frames"] = np.array(exam.frames)
        file.create_dataset("labels", data=exam.labels, compression="gzip")
        for name, kspace in exam.variants.items():
            file[f"variants/{name}"] = np.stack((kspace.real, kspace.imag), axis=-1).astype(np.float16)
        file.attrs.update(
            seed=exam.seed,
            patient=exam.patient,
            source=exam.source,
            has_lesion=exam.has_lesion,
            voxel_size_mm=exam.voxel_size_mm,
            recipe=recipe,
        )
    unfinished.replace(path)


def check_exam(exam: Exam, where: str) -> None:
    """Refuse an exam that would waste hours.

    Raises
    ------
    ShapeError : if labels or variants lie on another grid than the differences.
    ScanError : if k-space holds values that are not finite, or nothing at all.
    """
    shape = exam.differences.shape
    if len(shape) != 4 or len(exam.frames) != shape[0] or exam.labels.shape != shape[1:]:
        raise ShapeError(
            f"differences {shape} of {len(exam.frames)} frames, labels {exam.labels.shape}",
            where=where,
            likely="mask and image have different geometry",
        )
    for name, kspace in {"differences": exam.differences, **exam.variants}.items():
        if kspace.shape[-3:] != shape[1:]:
            raise ShapeError(f"{name} {kspace.shape}, expected {shape[1:]}", where=where)
        if not np.isfinite(kspace).all():
            raise ScanError(f"{name} hold values that are not finite", where=where, likely="a damaged file")
        if not kspace.any():
            raise ScanError(
                f"{name} are all zero", where=where, likely="the same time point was subtracted from itself"
            )


def load_exam(path: Path, recipe: str | None = None) -> Exam:
    """Read a cache file.

    Raises
    ------
    RecordingError : if it is missing, damaged, or was made by another recipe (None: any will do).
    """
    try:
        with h5py.File(path) as file:
            if recipe is not None and not same_recipe(file.attrs["recipe"], recipe):
                raise RecordingError(
                    "this exam was made with other settings",
                    where=str(path),
                    likely="the experiment's protocol or pipeline settings changed after the cache was built",
                    hint="choose another cache folder, or delete this one and build it again",
                )
            x, y, z = (float(size) for size in file.attrs["voxel_size_mm"])
            variants = file.get("variants", {})
            exam = Exam(
                seed=int(file.attrs["seed"]),
                differences=file["differences"][...],
                frames=tuple(int(frame) for frame in file["frames"]),
                labels=file["labels"][...],
                voxel_size_mm=(x, y, z),
                patient=str(file.attrs.get("patient", "")),
                source=str(file.attrs.get("source", "simulated")),
                variants={name: _as_complex(variants[name][...]) for name in variants},
            )
    except (OSError, KeyError) as error:
        raise RecordingError(
            f"cannot read the exam: {error}", where=str(path), hint="kstream train makes it"
        ) from error
    check_exam(exam, str(path))
    return exam


def _as_complex(parts: NDArray[np.float16]) -> Complex:
    return np.ascontiguousarray(parts, np.float32).view(np.complex64)[..., 0]


UNRELATED = {"segment": None, "images": None, "cine": None, "frames": ("close_after", "early")}
"""Sections of the pipeline's configuration, or keys of them, that cannot change the difference of a whole scan."""


def same_recipe(stored: str, wanted: str) -> bool:
    """True if two recipes make the same exam; an option that a recipe does not name has its default."""
    if stored == wanted:
        return True
    try:
        recipes = [json.loads(text) for text in (stored, wanted)]
    except ValueError:
        return False
    if not all(isinstance(recipe, dict) and "protocol" in recipe for recipe in recipes):
        return False
    defaults = json.loads(_recipe(BreastProtocol(), Config(), ()))
    a, b = (_over(defaults, recipe) for recipe in recipes)
    return bool(_related(a) == _related(b))


def _related(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe without what cannot change an exam."""
    pipeline = {}
    for section, values in recipe["pipeline"].items():
        if section not in UNRELATED:
            pipeline[section] = values
        elif keys := UNRELATED[section]:
            pipeline[section] = {key: value for key, value in values.items() if key not in keys}
    return {**recipe, "pipeline": pipeline}


def _over(defaults: Any, given: Any) -> Any:
    if isinstance(defaults, dict) and isinstance(given, dict):
        return {key: _over(defaults.get(key), given.get(key, defaults.get(key))) for key in {*defaults, *given}}
    return given


def recipe_of(experiment: Experiment, cohort: str) -> str:
    """What decides an exam besides its seed, defaults included, as canonical JSON."""
    config = resolve(experiment.data.preset, settings=experiment.data.settings).config
    return _recipe(_protocol(experiment.protocol(cohort)), config, experiment.data.variants)


def _recipe(protocol: BreastProtocol, config: Config, variants: Sequence[str]) -> str:
    plain = {"protocol": asdict(protocol), "pipeline": config.model_dump(mode="json"), "variants": list(variants)}
    return json.dumps(plain, sort_keys=True)


def _protocol(settings: Mapping[str, Any]) -> BreastProtocol:
    try:
        return BreastProtocol(**settings)
    except TypeError as error:
        raise ConfigError(f"the simulator refuses the protocol: {error}", where="data.protocol") from error


def exam_path(folder: Path, cohort: str, seed: int) -> Path:
    return folder / cohort / f"exam-{seed}.h5"


def load_cohort(experiment: Experiment, cohort: str, folder: Path) -> list[Exam]:
    """All exams of a cohort, in memory (8 MB each at the default protocol).

    Raises
    ------
    RecordingError : if the cache lacks one, or it was made by another recipe.
    ConfigError : if the cache of files is empty, or its patients cannot be split.
    """
    if experiment.folds:
        return _load_fold(experiment.folds, cohort, folder)
    recipe = recipe_of(experiment, cohort)
    return [load_exam(exam_path(folder, cohort, seed), recipe) for seed in experiment.cohorts[cohort].seeds]


def _load_fold(folds: FoldConfig, cohort: str, folder: Path) -> list[Exam]:
    """Exams of the patients of one part of one fold; a patient with several exams is never in two parts."""
    owners: dict[Path, str] = {}
    has_lesion: dict[str, bool] = {}
    recipes: dict[str, Path] = {}
    for path in sorted(folder.glob("exam-*.h5")):
        try:
            with h5py.File(path) as file:
                patient = str(file.attrs["patient"])
                owners[path] = patient
                has_lesion[patient] = bool(file.attrs["has_lesion"]) or has_lesion.get(patient, False)
                recipes.setdefault(_without_mask(str(file.attrs["recipe"])), path)
        except (OSError, KeyError) as error:
            raise RecordingError(
                f"cannot read the exam: {error}",
                where=str(path),
                likely="a file that was cut short",
                hint="delete it and read the data set again; the others are kept",
            ) from error
    if len(recipes) > 1:
        raise RecordingError(
            "the cache mixes exams that were read in different ways",
            where=", ".join(str(path) for path in recipes.values()),
            likely="two data sets, or two methods, went into one folder",
            hint="one cache folder for each data set and method",
        )
    if not owners:
        raise ConfigError(
            "the cohort is empty",
            where=str(folder),
            hint="python -m kstream.training read DATASET FOLDER --cache CACHE",
        )
    chosen = split_patients(has_lesion, folds.n_folds, folds.fold, folds.seed, folds.published)[cohort]
    return [load_exam(path) for path, patient in owners.items() if patient in chosen]


def _without_mask(recipe: str) -> str:
    """A reader's recipe without what differs from exam to exam."""
    content = json.loads(recipe)
    return json.dumps({key: value for key, value in content.items() if key != "mask"}, sort_keys=True)


def build_cache(experiment: Experiment, folder: Path, workers: int = 2) -> Iterator[tuple[Path, int, int]]:
    """Simulate the exams that the cache lacks; gives ``(path, done, total)`` as each is finished.

    Raises
    ------
    KstreamError : what a simulation or the pipeline raised; finished exams stay.
    """
    wanted = [(cohort, seed) for cohort, config in experiment.cohorts.items() for seed in config.seeds]
    missing = [(cohort, seed) for cohort, seed in wanted if not exam_path(folder, cohort, seed).is_file()]
    done = len(wanted) - len(missing)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = [pool.submit(_cache_exam, experiment, cohort, seed, folder) for cohort, seed in missing]
        try:
            for job in as_completed(jobs):
                done += 1
                yield job.result(), done, len(wanted)
        finally:
            for job in jobs:
                job.cancel()


def _cache_exam(experiment: Experiment, cohort: str, seed: int, folder: Path) -> Path:
    path = exam_path(folder, cohort, seed)
    data = experiment.data
    exam = simulate_exam(seed, experiment.protocol(cohort), data.preset, data.settings, data.variants)
    save_exam(exam, path, recipe_of(experiment, cohort))
    return path
