"""Heads for training: fully sampled, noise-free k-space of simulated scans in a cache, and what is drawn from it.

One HDF5 file per head, ``FOLDER/COHORT/head-SEED.h5``: ``samples`` complex64 ``(z, y, x)`` in orthonormal units,
``labels`` uint8 ``(z, y, x)`` (indices of `brain_scanner.LABELS`), attributes ``seed``, ``white`` (signal of white
matter, the reference of the noise) and ``recipe`` (JSON of the protocol).
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

from ...errors import RecordingError
from ...recon.scaling import unit
from ...simulate.brain.exam import add_noise
from ...simulate.brain.lines import Lines, gaussian_lines
from ...simulate.brain.protocol import BrainProtocol
from ...simulate.brain.scanner import scan_head
from ...types import Complex
from .experiment import BrainExperiment


@dataclass(frozen=True)
class HeadExam:
    """One head as training sees it; the fields are those of the cache file."""

    seed: int
    samples: Complex
    labels: NDArray[np.uint8]
    white: float

    def measured(self, z: int, lines: Lines, noise: float, rng: np.random.Generator) -> tuple[Complex, Complex]:
        """One slice as a scanner would measure it, in units that a network knows: undersampled and fully sampled.

        Parameters
        ----------
        z : slice.
        lines : bool ``(y,)``, which are kept.
        noise : over the signal of white matter, of real and imaginary part each.

        Returns
        -------
        Two complex64 ``(y, x)`` of equal noise; lines that are not kept are 0 in the first. Both are over the
        `unit` of the first, as the stream does it (`recon.scaling`).
        """
        full = add_noise(self.samples[z], noise * self.white, rng)
        under = np.where(lines[:, None], full, 0).astype(np.complex64)
        scale = unit(under)
        return under / scale, full / scale


def simulate_head(seed: int, protocol: BrainProtocol) -> HeadExam:
    """Scan one simulated head fully, with one coil."""
    head = scan_head(protocol, seed)
    return HeadExam(seed, head.samples[:, 0], head.labels, head.white)


def draw_lines(experiment: BrainExperiment, n_lines: int, rng: np.random.Generator) -> Lines:
    """A pattern of lines."""
    return gaussian_lines(n_lines, experiment.data.fraction, experiment.data.n_centre, rng)


def head_path(folder: Path, cohort: str, seed: int) -> Path:
    """Where a head is cached."""
    return folder / cohort / f"head-{seed}.h5"


def load_heads(experiment: BrainExperiment, cohort: str, folder: Path) -> list[HeadExam]:
    """All heads of a cohort, in memory (20 MB each at the default protocol).

    Raises
    ------
    RecordingError : one is missing, damaged, or was made with another protocol.
    """
    recipe = _recipe(experiment.protocol(cohort))
    return [_load(head_path(folder, cohort, seed), recipe) for seed in experiment.cohorts[cohort].seeds]


def build_heads(experiment: BrainExperiment, folder: Path, workers: int) -> Iterator[tuple[Path, int, int]]:
    """Simulate the heads that the cache lacks; gives ``(path, done, total)`` as each is finished."""
    wanted = [(cohort, seed) for cohort, config in experiment.cohorts.items() for seed in config.seeds]
    missing = [(cohort, seed) for cohort, seed in wanted if not head_path(folder, cohort, seed).is_file()]
    done = len(wanted) - len(missing)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [
            pool.submit(_cache_head, head_path(folder, cohort, seed), seed, experiment.protocol(cohort))
            for cohort, seed in missing
        ]
        try:
            for job in as_completed(jobs):
                done += 1
                yield job.result(), done, len(wanted)
        finally:
            for job in jobs:
                job.cancel()


def _cache_head(path: Path, seed: int, protocol: BrainProtocol) -> Path:
    head = simulate_head(seed, protocol)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    with h5py.File(unfinished, "w") as file:
        file["samples"] = head.samples
        file.create_dataset("labels", data=head.labels, compression="gzip")
        file.attrs.update(seed=seed, white=head.white, recipe=_recipe(protocol))
    unfinished.replace(path)
    return path


def _load(path: Path, recipe: str) -> HeadExam:
    try:
        with h5py.File(path) as file:
            if file.attrs["recipe"] != recipe:
                raise RecordingError(
                    "this head was scanned with another protocol",
                    where=str(path),
                    likely="the experiment's protocol changed after the cache was built",
                    hint="choose another cache folder, or delete this one and build it again",
                )
            seed, white = int(file.attrs["seed"]), float(file.attrs["white"])
            return HeadExam(seed, file["samples"][...], file["labels"][...], white)
    except (OSError, KeyError) as error:
        raise RecordingError(
            f"cannot read the head: {error}", where=str(path), hint="kstream train makes it"
        ) from error


def _recipe(protocol: BrainProtocol) -> str:
    return json.dumps(asdict(protocol), sort_keys=True)
