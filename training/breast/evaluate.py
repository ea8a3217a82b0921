"""How well a model segments whole exams, through the very function that the pipeline uses."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from ...engines import Engine
from ...segment import segment_volume
from ...segment.metrics import dice, false_positive_voxels
from .data import Exam

Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class ExamScore:
    """One exam.

    Parameters
    ----------
    dice : of the foreground; NaN if neither truth nor prediction holds any, 0 if one of them does.
    lesion_ml, predicted_ml : volumes of truth and prediction.
    false_positive_ml : volume of the predicted components that touch no lesion.
    """

    seed: int
    has_lesion: bool
    dice: float
    lesion_ml: float
    predicted_ml: float
    false_positive_ml: float


@dataclass(frozen=True)
class Summary:
    """A cohort.

    Parameters
    ----------
    mean_dice : over exams with a lesion; NaN without any.
    failure_rate : share of exams with a lesion whose Dice is 0 (catastrophic failure, paper 000).
    false_positive_ml_lesion_free : mean over exams without a lesion; NaN without any.
    """

    n_lesion_exams: int
    n_lesion_free_exams: int
    mean_dice: float
    lowest_dice: float
    failure_rate: float
    false_positive_ml: float
    false_positive_ml_lesion_free: float


def score_exam(predicted: Labels, exam: Exam) -> ExamScore:
    """Compare a prediction ``(z, y, x)`` with an exam's truth."""
    ml = float(np.prod(exam.voxel_size_mm)) / 1000
    return ExamScore(
        seed=exam.seed,
        has_lesion=exam.has_lesion,
        dice=dice(predicted, exam.labels),
        lesion_ml=np.count_nonzero(exam.labels) * ml,
        predicted_ml=np.count_nonzero(predicted) * ml,
        false_positive_ml=false_positive_voxels(predicted, exam.labels) * ml,
    )


def evaluate(exams: Iterable[Exam], engine: Engine, frame: int, patch_depth: int, patch_stride: int) -> list[ExamScore]:
    """Segment one frame of every exam and score it."""
    return [
        score_exam(segment_volume(exam.difference(frame), engine, patch_depth, patch_stride), exam) for exam in exams
    ]


def summarise(scores: Sequence[ExamScore]) -> Summary:
    """Means over a cohort."""
    with_lesion = [score for score in scores if score.has_lesion]
    without = [score for score in scores if not score.has_lesion]
    values = [score.dice for score in with_lesion]
    return Summary(
        n_lesion_exams=len(with_lesion),
        n_lesion_free_exams=len(without),
        mean_dice=_mean(values),
        lowest_dice=min(values, default=math.nan),
        failure_rate=_mean([float(value == 0) for value in values]),
        false_positive_ml=_mean([score.false_positive_ml for score in scores]),
        false_positive_ml_lesion_free=_mean([score.false_positive_ml for score in without]),
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def to_csv(scores: Sequence[ExamScore]) -> str:
    """One line per exam."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(ExamScore))
    for score in scores:
        writer.writerow(
            [score.seed, int(score.has_lesion)]
            + [f"{value:.4f}" for value in (score.dice, score.lesion_ml, score.predicted_ml, score.false_positive_ml)]
        )
    return text.getvalue()


def to_markdown(scores: Sequence[ExamScore]) -> str:
    """A table of exams, and the summary below it."""
    lines = ["| exam | Dice | lesion ml | predicted ml | false positive ml |", "|---|---|---|---|---|"]
    lines += [
        f"| {s.seed} | {'-' if math.isnan(s.dice) or not s.has_lesion else f'{s.dice:.3f}'} | {s.lesion_ml:.2f} "
        f"| {s.predicted_ml:.2f} | {s.false_positive_ml:.2f} |"
        for s in scores
    ]
    total = summarise(scores)
    parts = []
    if total.n_lesion_exams:
        parts.append(
            f"{total.n_lesion_exams} exams with lesions: mean Dice {total.mean_dice:.3f}, lowest "
            f"{total.lowest_dice:.3f}, failures {total.failure_rate:.0%}"
        )
    if total.n_lesion_free_exams:
        parts.append(
            f"{total.n_lesion_free_exams} exams without: mean false-positive volume "
            f"{total.false_positive_ml_lesion_free:.2f} ml"
        )
    return "\n".join([*lines, "", "; ".join(parts) + "."]) + "\n"
