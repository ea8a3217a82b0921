"""Exams for training: simulated scans that went through the product's own streaming pipeline, kept in a cache.

One HDF5 file per exam, ``FOLDER/COHORT/exam-SEED.h5``:

===============  ==============================================================================================
``differences``  complex64 ``(frames, z, y, x)``: `types.Difference.data` of every post-contrast frame, in order
``frames``       int ``(frames,)``: their frame numbers
``labels``       uint8 ``(z, y, x)``: the truth in scan geometry
attributes       ``seed``, ``voxel_size_mm`` (xyz), ``recipe`` (JSON of protocol and pipeline settings)
===============  ==============================================================================================
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..config import resolve
from ..errors import ConfigError, RecordingError, ScanError, ShapeError
from ..simulate.protocol import BreastProtocol
from ..types import Complex, Difference, Vector
from .experiment import Experiment


@dataclass(frozen=True)
class Exam:
    """One exam as training sees it; the fields are those of the cache file."""

    seed: int
    differences: Complex
    frames: tuple[int, ...]
    labels: NDArray[np.uint8]
    voxel_size_mm: Vector

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


def simulate_exam(seed: int, protocol: Mapping[str, Any], preset: str, settings: tuple[str, ...]) -> Exam:
    """Simulate a scan and stream it through the pipeline without a network.

    Raises
    ------
    ScanError : if the pipeline gave no difference.
    ShapeError : if truth and reconstruction have different grids.
    """
    from ..pipeline import build_pipeline
    from ..simulate.exam import simulate_breast_exam

    exam = simulate_breast_exam(_protocol(protocol), seed)
    pipeline = build_pipeline(exam.scan, resolve(preset, settings=settings).config).pipeline
    items = [item for acquisition in exam.acquisitions for item in pipeline.push(acquisition)] + pipeline.finish()
    differences = sorted((i for i in items if isinstance(i, Difference)), key=lambda i: i.frame)
    if not differences:
        raise ScanError(
            f"exam {seed} gave no contrast difference",
            likely="the preset does not subtract, or the protocol has one frame",
            hint="contrast.subtract=true and at least two frames",
        )
    data = np.stack([difference.data for difference in differences])
    if data.shape[1:] != exam.truth_labels.shape:
        raise ShapeError(f"exam {seed}: reconstruction {data.shape[1:]}, truth {exam.truth_labels.shape}")
    frames = tuple(difference.frame for difference in differences)
    return Exam(seed, data, frames, exam.truth_labels.astype(np.uint8), differences[0].geometry.voxel_size_mm)


def save_exam(exam: Exam, path: Path, recipe: str) -> None:
    """Write a cache file; an interrupted write leaves nothing that looks finished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    with h5py.File(unfinished, "w") as file:
        file["differences"] = exam.differences
        file["frames"] = np.array(exam.frames)
        file.create_dataset("labels", data=exam.labels, compression="gzip")
        file.attrs.update(seed=exam.seed, voxel_size_mm=exam.voxel_size_mm, recipe=recipe)
    unfinished.replace(path)


def load_exam(path: Path, recipe: str) -> Exam:
    """Read a cache file.

    Raises
    ------
    RecordingError : if it is missing, damaged, or was made with another protocol or pipeline.
    """
    try:
        with h5py.File(path) as file:
            if file.attrs["recipe"] != recipe:
                raise RecordingError(
                    "this exam was made with other settings",
                    where=str(path),
                    likely="the experiment's protocol or pipeline settings changed after the cache was built",
                    hint="choose another cache folder, or delete this one and build it again",
                )
            x, y, z = (float(size) for size in file.attrs["voxel_size_mm"])
            return Exam(
                seed=int(file.attrs["seed"]),
                differences=file["differences"][...],
                frames=tuple(int(frame) for frame in file["frames"]),
                labels=file["labels"][...],
                voxel_size_mm=(x, y, z),
            )
    except (OSError, KeyError) as error:
        raise RecordingError(
            f"cannot read the exam: {error}", where=str(path), hint="python -m kstream.training cache EXPERIMENT"
        ) from error


def recipe_of(experiment: Experiment, cohort: str) -> str:
    """What decides an exam besides its seed, defaults included, as canonical JSON."""
    config = resolve(experiment.data.preset, settings=experiment.data.settings).config
    protocol = _protocol(experiment.protocol(cohort))
    return json.dumps({"protocol": asdict(protocol), "pipeline": config.model_dump(mode="json")}, sort_keys=True)


def _protocol(settings: Mapping[str, Any]) -> BreastProtocol:
    try:
        return BreastProtocol(**settings)
    except TypeError as error:
        raise ConfigError(f"the simulator refuses the protocol: {error}", where="data.protocol") from error


def exam_path(folder: Path, cohort: str, seed: int) -> Path:
    return folder / cohort / f"exam-{seed}.h5"


def load_cohort(experiment: Experiment, cohort: str, folder: Path) -> list[Exam]:
    """All exams of a cohort, in memory (8 MB each at the default protocol)."""
    recipe = recipe_of(experiment, cohort)
    return [load_exam(exam_path(folder, cohort, seed), recipe) for seed in experiment.cohorts[cohort].seeds]


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
    exam = simulate_exam(seed, experiment.protocol(cohort), experiment.data.preset, experiment.data.settings)
    save_exam(exam, path, recipe_of(experiment, cohort))
    return path
