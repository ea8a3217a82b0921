"""Subjects for the heart's task: simulated once, kept in a cache, sampled anew for every batch.

One HDF5 file per subject, ``FOLDER/COHORT/heart-SEED.h5``: ``images`` complex64 and ``labels`` uint8 ``(views, frames,
y, x)``, ``phenotypes`` ``(18,)``, ``diseases`` ``(3,)``, attributes ``seed`` and ``recipe`` (JSON of the protocol).
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from ...errors import RecordingError
from ...recon.fourier import to_kspace
from ...simulate.heart.dataset import cine_subject
from ...simulate.heart.lines import Lines, disk_lines, sampled_lines
from ...simulate.heart.protocol import CineProtocol
from ...types import Complex
from .experiment import HeartData, HeartExperiment

Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Subject:
    """One subject; the fields are those of the cache file."""

    seed: int
    images: Complex
    labels: Labels
    phenotypes: NDArray[np.float32]
    diseases: NDArray[np.bool_]

    def of_views(self, chosen: tuple[int, ...]) -> Subject:
        """The same subject with some of its views."""
        index = list(chosen)
        return Subject(self.seed, self.images[index], self.labels[index], self.phenotypes, self.diseases)


def simulate_subject(protocol: CineProtocol, seed: int) -> Subject:
    """Images and truth of a seed."""
    made = cine_subject(protocol, seed)
    phenotypes = np.array(list(made.subject.phenotypes().values()), np.float32)
    return Subject(seed, made.images, made.labels, phenotypes, np.array(list(made.subject.diseases().values())))


def recipe_of(experiment: HeartExperiment, cohort: str) -> str:
    """What decides a subject besides its seed, as canonical JSON."""
    return json.dumps(asdict(experiment.protocol(cohort)), sort_keys=True)


def subject_path(folder: Path, cohort: str, seed: int) -> Path:
    return folder / cohort / f"heart-{seed}.h5"


def save_subject(subject: Subject, path: Path, recipe: str) -> None:
    """Write a cache file; an interrupted write leaves nothing that looks finished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    with h5py.File(unfinished, "w") as file:
        file["images"] = subject.images
        file.create_dataset("labels", data=subject.labels, compression="gzip")
        file["phenotypes"], file["diseases"] = subject.phenotypes, subject.diseases
        file.attrs.update(seed=subject.seed, recipe=recipe)
    unfinished.replace(path)


def load_subject(path: Path, recipe: str) -> Subject:
    """Read a cache file.

    Raises
    ------
    RecordingError : if it is missing, damaged, or was made with another protocol.
    """
    try:
        with h5py.File(path) as file:
            if file.attrs["recipe"] != recipe:
                raise RecordingError(
                    "this subject was made with another protocol",
                    where=str(path),
                    hint="choose another cache folder, or delete this one and build it again",
                )
            return Subject(
                int(file.attrs["seed"]),
                file["images"][...],
                file["labels"][...],
                file["phenotypes"][...],
                file["diseases"][...],
            )
    except (OSError, KeyError) as error:
        raise RecordingError(
            f"cannot read the subject: {error}", where=str(path), hint="kstream train --help"
        ) from error


def load_cohort(experiment: HeartExperiment, cohort: str, folder: Path) -> list[Subject]:
    """All subjects of a cohort, in memory; those of public data are numbered by their names, from 1."""
    if experiment.data.source != "simulator":
        from .real import load_real

        protocol = experiment.protocol(cohort)
        return load_real(experiment.data.source, experiment.cohorts[cohort].seeds, protocol, folder)
    recipe = recipe_of(experiment, cohort)
    seeds = experiment.cohorts[cohort].seeds
    return [load_subject(subject_path(folder, cohort, seed), recipe) for seed in seeds]


def build_cache(experiment: HeartExperiment, folder: Path, workers: int = 2) -> Iterator[tuple[str, int, int]]:
    """Simulate the subjects that the cache lacks; gives ``(what, done, total)`` as each is finished."""
    if experiment.data.source != "simulator":
        return
    wanted = [(cohort, seed) for cohort, config in experiment.cohorts.items() for seed in config.seeds]
    missing = [(cohort, seed) for cohort, seed in wanted if not subject_path(folder, cohort, seed).is_file()]
    done = len(wanted) - len(missing)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(_cache_subject, experiment, cohort, seed, folder) for cohort, seed in missing]
        try:
            for job in as_completed(jobs):
                done += 1
                yield job.result(), done, len(wanted)
        finally:
            for job in jobs:
                job.cancel()


def _cache_subject(experiment: HeartExperiment, cohort: str, seed: int, folder: Path) -> str:
    path = subject_path(folder, cohort, seed)
    save_subject(simulate_subject(experiment.protocol(cohort), seed), path, recipe_of(experiment, cohort))
    return path.stem


def draw_lines(data: HeartData, n_lines: int, n_frames: int, acceleration: float, rng: np.random.Generator) -> Lines:
    """Lines of one view: bool ``(frames, lines)``."""
    if data.density == "disk":
        return disk_lines(n_lines, n_frames, acceleration, rng)
    return sampled_lines(data.density, n_lines, n_frames, acceleration, rng)


def moved(subject: Subject, data: HeartData, rng: np.random.Generator) -> Subject:
    """The subject shifted and turned at random, images and labels alike; every view by itself."""
    if not data.shift_voxels and not data.rotate_deg:
        return subject
    views = zip(subject.images, subject.labels, strict=True)
    pairs = [_moved_view(images, labels, data, rng) for images, labels in views]
    turned_images, turned_labels = (np.stack(parts) for parts in zip(*pairs, strict=True))
    return Subject(subject.seed, turned_images, turned_labels, subject.phenotypes, subject.diseases)


def _moved_view(images: Complex, labels: Labels, data: HeartData, rng: np.random.Generator) -> tuple[Complex, Labels]:
    angle = np.deg2rad(rng.uniform(-data.rotate_deg, data.rotate_deg))
    shift = rng.uniform(-data.shift_voxels, data.shift_voxels, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = (np.array(images.shape[1:]) - 1) / 2
    matrix = np.eye(3)
    matrix[1:, 1:] = turn
    offset = np.concatenate(([0.0], middle - turn @ (middle + shift)))
    parts = [affine_transform(part, matrix, offset, order=1) for part in (images.real, images.imag)]
    turned = affine_transform(labels, matrix, offset, order=0)
    return np.asarray(parts[0] + 1j * parts[1], np.complex64), np.asarray(turned, np.uint8)


def received(subject: Subject, data: HeartData, rng: np.random.Generator) -> Subject:
    """The subject as a surface coil would see it: each view times a smooth complex sensitivity of random shape.

    The exponential of a random polynomial of second order; its phase includes that of the receiver, which no scan
    tells. Simulated subjects are seen by a body coil, and streams by a virtual coil of many.
    """
    if not data.receiver:
        return subject
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in subject.images.shape[2:])
    terms = np.stack(np.broadcast_arrays(y[:, None], x[None], y[:, None] ** 2, y[:, None] * x[None], x[None] ** 2))
    weights = data.receiver * (rng.standard_normal((len(subject.images), 5, 2)) @ [1, 2j])
    phase = np.exp(1j * rng.uniform(-np.pi, np.pi))
    sensitivity = phase * np.exp(np.tensordot(weights, terms, axes=1))
    images = np.asarray(subject.images * sensitivity[:, None], np.complex64)
    return Subject(subject.seed, images, subject.labels, subject.phenotypes, subject.diseases)


def noisy_kspace(images: Complex, data: HeartData, rng: np.random.Generator) -> Complex:
    """K-space ``(views, frames, y, x)`` of images, with complex noise of a random level if the data want it."""
    kspace = to_kspace(images)
    if not data.noise:
        return kspace
    level = rng.uniform(0, data.noise) * float(np.sqrt(np.mean(np.abs(kspace) ** 2) / 2))
    white = rng.standard_normal((*kspace.shape, 2), np.float32)
    return np.asarray(kspace + level * (white[..., 0] + 1j * white[..., 1]), np.complex64)
