"""Conditions under which a trained network is judged, and its scores exam by exam under each.

A scenario has a name: ``cartesian-8`` (random lines, 8-fold), ``noise--5`` (-5 dB), ``radial-uniform-4`` and
``cg-sense-uniform-4`` (fewer spokes, reconstructed from them alone; they come with the exam), ``full``, which is part
of every family of curves as 1x.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from ...engines import Engine
from ...errors import ConfigError, RecordingError, ScanError
from ...segment import segment_volume
from ...segment.metrics import dice, false_positive_voxels, lesion_scores
from ...segment.patches import cut_patch, majority_vote, patch_starts
from ...segment.volume import to_channels
from ...types import Complex
from ..scores import Row
from .data import Exam
from .undersampling import CENTRE_FRACTIONS, Scope, centre_fraction, noisy, undersample
from .variants import parse

Labels = NDArray[np.uint8]
Kind = Literal["full", "cartesian", "noise", "radial", "cg-sense"]


@dataclass(frozen=True)
class Scenario:
    """One condition: `level` is an acceleration, or a signal-to-noise ratio in dB."""

    name: str
    kind: Kind
    level: float

    @classmethod
    def of(cls, name: str) -> Scenario:
        """The scenario of a name.

        Raises
        ------
        ConfigError : if there is none.
        """
        kind, _, level = name.partition("-")
        if name == "full":
            return cls(name, "full", 1)
        if kind == "noise" and _is_number(level):
            return cls(name, "noise", float(level))
        if kind == "cartesian" and level.isdigit() and int(level) in CENTRE_FRACTIONS:
            return cls(name, "cartesian", int(level))
        if kind in ("radial", "cg"):
            return cls(name, "radial" if kind == "radial" else "cg-sense", parse(name).factor)
        known = ", ".join(str(factor) for factor in CENTRE_FRACTIONS)
        raise ConfigError(
            f"unknown scenario {name!r}",
            hint=f"full, cartesian-R (R one of {known}), noise-DB, radial-SCHEME-R, cg-sense-SCHEME-R",
        )

    def apply(self, exam: Exam, kspace: Complex, patient_index: int, z_start: int = 0) -> Complex:
        """The k-space ``(z, y, x)`` that this condition leaves of an exam or a patch.

        Raises
        ------
        ScanError : if the exam does not have the variant.
        """
        if self.kind == "cartesian":
            return undersample(kspace, int(self.level), patient_index, z_start)
        if self.kind == "noise":
            return noisy(kspace, self.level, patient_index, z_start)
        if self.kind == "full":
            return kspace
        if self.name not in exam.variants:
            raise ScanError(f"exam {exam.patient} has no variant {self.name}", hint="add it to data.variants")
        return exam.variants[self.name]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


@dataclass(frozen=True)
class Score:
    """One exam under one condition.

    Parameters
    ----------
    fold : the training run: fold of a cross-validation, or seed.
    patient_index : `mask_index` of the exam; it decides masks and noise.
    dice : NaN if neither truth nor prediction holds a lesion.
    n_lesions, n_found : lesions of the truth, and those that a prediction touches.
    n_false : predicted components that touch no lesion.
    """

    model: str
    fold: int
    scenario: str
    patient_index: int
    patient_id: str
    has_lesion: bool
    dice: float
    n_lesions: int
    n_found: int
    n_false: int
    false_positive_ml: float

    @property
    def is_failure(self) -> bool:
        """Catastrophic failure (paper 000): an exam with a lesion and a Dice of exactly 0."""
        return self.has_lesion and self.dice == 0


def segment_under(
    scenario: Scenario,
    exam: Exam,
    patient_index: int,
    engine: Engine,
    frame: int,
    patch: tuple[int, int],
    scope: Scope = "exam",
) -> Labels:
    """Labels ``(z, y, x)`` of an exam under a condition.

    Parameters
    ----------
    patch : depth and stride in slices.
    scope : ``exam`` degrades the exam once, as a scan would; ``patch`` every patch with a seed of its own (published).
    """
    kspace, (depth, stride) = exam.difference(frame), patch
    if scope == "exam" or scenario.kind in ("full", "radial", "cg-sense"):
        return segment_volume(scenario.apply(exam, kspace, patient_index), engine, depth, stride)
    votes = []
    for start in patch_starts(len(kspace), depth, stride):
        degraded = scenario.apply(exam, cut_patch(kspace, start, depth), patient_index, start)
        votes.append((start, engine.run(to_channels(degraded)[None])[0].argmax(axis=0).astype(np.uint8)))
    n_slices, height, width = kspace.shape
    return majority_vote(votes, (n_slices, height, width))


def score(predicted: Labels, exam: Exam, model: str, fold: int, scenario: str, patient_index: int) -> Score:
    """Compare a prediction with an exam's truth, voxel by voxel and lesion by lesion."""
    components, n_components = scipy.ndimage.label(predicted > 0)
    touching = np.setdiff1d(np.unique(components[exam.labels > 0]), [0])
    lesions = lesion_scores(predicted, exam.labels)
    return Score(
        model=model,
        fold=fold,
        scenario=scenario,
        patient_index=patient_index,
        patient_id=exam.patient or str(exam.seed),
        has_lesion=exam.has_lesion,
        dice=dice(predicted, exam.labels),
        n_lesions=len(lesions),
        n_found=sum(lesion.n_predicted > 0 for lesion in lesions),
        n_false=n_components - len(touching),
        false_positive_ml=false_positive_voxels(predicted, exam.labels) * float(np.prod(exam.voxel_size_mm)) / 1000,
    )


def mask_index(exam: Exam, position: int) -> int:
    """What decides the masks and noise of an exam.

    Of public data it is the place among all patients in the order of their names, the same in every fold; of simulated
    exams their `position` in the cohort.
    """
    return position if exam.source == "simulated" else exam.seed


def score_under(
    scenarios: Sequence[Scenario],
    exams: Sequence[Exam],
    engine: Engine,
    model: str,
    fold: int,
    frame: int,
    patch: tuple[int, int],
    scope: Scope = "exam",
) -> Iterable[Score]:
    """Scores of one network, scenario by scenario, exam by exam."""
    for scenario in scenarios:
        for position, exam in enumerate(exams):
            index = mask_index(exam, position)
            predicted = segment_under(scenario, exam, index, engine, frame, patch, scope)
            yield score(predicted, exam, model, fold, scenario.name, index)


def as_row(score: Score) -> Row:
    """What a run's table says besides the names of arm and seed, ``model`` and ``fold``."""
    row = {**asdict(score), "has_lesion": int(score.has_lesion)}
    return {key: value for key, value in row.items() if key not in ("model", "fold")}


def read_scores(path: Path) -> list[Score]:
    """A run's table.

    Raises
    ------
    RecordingError : if the file is missing or damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                Score(
                    model=row["model"],
                    fold=int(row["fold"]),
                    scenario=row["scenario"],
                    patient_index=int(row["patient_index"]),
                    patient_id=row["patient_id"],
                    has_lesion=row["has_lesion"] == "1",
                    dice=float(row["dice"]),
                    n_lesions=int(row["n_lesions"]),
                    n_found=int(row["n_found"]),
                    n_false=int(row["n_false"]),
                    false_positive_ml=float(row["false_positive_ml"]),
                )
                for row in csv.DictReader(file)
            ]
    except (OSError, KeyError, ValueError) as error:
        raise RecordingError(f"cannot read the scores: {error}", where=str(path)) from error


def write_published(scores: Sequence[Score], folder: Path, n_lines: int) -> list[Path]:
    """Tables in the columns of the published code: ``dice_per_patient.csv`` and ``noise_dice_per_patient.csv``.

    Parameters
    ----------
    n_lines : phase-encode lines, on which the centre fraction depends.
    """
    shared = ("fold", "patient_index", "patient_id", "has_lesion", "dice")
    lines: dict[str, list[dict[str, object]]] = {"dice_per_patient": [], "noise_dice_per_patient": []}
    for row in scores:
        scenario = Scenario.of(row.scenario)
        plain = {name: getattr(row, name) for name in shared} | {"has_lesion": int(row.has_lesion)}
        if scenario.kind in ("full", "cartesian"):
            factor = int(scenario.level)
            fraction = 1.0 if factor == 1 else centre_fraction(factor, n_lines)
            condition: dict[str, object] = {"acceleration": factor, "center_fraction": fraction}
            lines["dice_per_patient"].append({"model": row.model, **condition, **plain})
        elif scenario.kind == "noise":
            lines["noise_dice_per_patient"].append({"model": row.model, "snr_db": scenario.level, **plain})
    written = []
    for name, rows in lines.items():
        if rows:
            path = folder / f"{name}.csv"
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            written.append(path)
    return written
