"""What the heart's networks answer, how good each answer is, and what that comes to over a cohort.

A row belongs to one subject under one condition; its columns are named after classes, `PHENOTYPES` and `DISEASES`:
``dice_LV_cavity``, ``hausdorff_LV_cavity_px``, ``found_LVEDV_mL`` and ``true_LVEDV_mL``, ``chance_hypertension`` and
``true_hypertension``, ``psnr_db``; of single short axes also `SLICE_MEASURES`, as ``found_LV_area_max_cm2``. What a
network does not answer has no column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...output.phenotypes import DISEASES, PHENOTYPES, slice_measures
from ..fit import Validation
from .data import Subject
from .metrics import (
    ClassScore,
    class_dice,
    class_hausdorff,
    classification_score,
    peak_signal_to_noise_db,
)

Scores = dict[str, float]

GAINS = {"dice": 1.0, "phenotype_error_over_mean_guess": -1.0, "auc": 0.2, "psnr_db": 0.02}
"""Weights of a validation's parts in its score. A dozen validation subjects hold two or three that are ill, so the area
under the curve is mostly chance and weighs little."""


@dataclass(frozen=True)
class Answers:
    """What a network says about one subject; None for what it does not answer.

    Parameters
    ----------
    labels : uint8 ``(views, frames, y, x)``.
    phenotypes : ``(18,)`` in their units.
    chances : of the diseases, ``(3,)`` in ``[0, 1]``.
    image : magnitudes ``(views, frames, y, x)`` of any brightness.
    """

    labels: NDArray[np.uint8] | None = None
    phenotypes: NDArray[np.floating[Any]] | None = None
    chances: NDArray[np.floating[Any]] | None = None
    image: NDArray[np.floating[Any]] | None = None


def case_row(answers: Answers, subject: Subject, classes: Sequence[str], pixel_mm2: float | None = None) -> Scores:
    """Scores of one subject.

    Parameters
    ----------
    classes : names of the classes that the network knows, background first; others count as background.
    pixel_mm2 : area of a pixel of a single short-axis slice, whose areas are measured then.
    """
    row: Scores = {}
    if answers.labels is not None:
        names = [name.replace(" ", "_") for name in classes[1:]]
        truth = np.where(subject.labels < len(classes), subject.labels, 0)
        dice = class_dice(answers.labels, truth, len(classes))
        far = class_hausdorff(_planes(answers.labels), _planes(truth), len(classes), (1.0, 1.0))
        row |= {f"dice_{name}": float(value) for name, value in zip(names, dice, strict=True)}
        row |= {f"hausdorff_{name}_px": float(value) for name, value in zip(names, far, strict=True)}
        row["dice"], row["hausdorff_px"] = _mean(dice), _mean(far)
        if pixel_mm2 is not None:
            for told, labels in (("found", answers.labels), ("true", truth)):
                row |= {f"{told}_{name}": value for name, value in slice_measures(labels[0], pixel_mm2).items()}
    if answers.phenotypes is not None:
        row |= {f"found_{n}": float(v) for n, v in zip(PHENOTYPES, answers.phenotypes, strict=True)}
        row |= {f"true_{n}": float(v) for n, v in zip(PHENOTYPES, subject.phenotypes, strict=True)}
    if answers.chances is not None:
        row |= {f"chance_{n}": float(v) for n, v in zip(DISEASES, answers.chances, strict=True)}
        row |= {f"true_{n}": float(v) for n, v in zip(DISEASES, subject.diseases, strict=True)}
    if answers.image is not None:
        row["psnr_db"] = _psnr_at_best_gain_db(answers.image, np.abs(subject.images))
    return row


def column(rows: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    """A column of all rows."""
    return np.array([row[name] for row in rows], np.float64)


def measure_errors(rows: Sequence[Mapping[str, Any]], names: Sequence[str] = PHENOTYPES) -> dict[str, dict[str, float]]:
    """Errors of each phenotype or area; NaN values of what was found or is true do not count.

    Mean absolute error (``mae``), spread of the absolute error (``mae_sd``), mean error (``bias``), spread of the error
    (``sd``), correlation with the truth (``r``), number (``n``).
    """
    errors = {}
    for name in names:
        found, true = column(rows, f"found_{name}"), column(rows, f"true_{name}")
        known = np.isfinite(found) & np.isfinite(true)
        error = (found - true)[known]
        if not len(error):
            continue
        varies = len(error) > 2 and float(np.ptp(found[known])) > 0 and float(np.ptp(true[known])) > 0
        errors[name] = {
            "mae": float(np.abs(error).mean()),
            "mae_sd": float(np.abs(error).std()),
            "bias": float(error.mean()),
            "sd": float(error.std()),
            "r": float(np.corrcoef(found[known], true[known])[0, 1]) if varies else 0.0,
            "n": float(len(error)),
        }
    return errors


def disease_scores(rows: Sequence[Scores], threshold: float = 0.5) -> dict[str, ClassScore]:
    """Curves and thresholds of each disease over subjects."""
    return {
        name: classification_score(column(rows, f"chance_{name}"), column(rows, f"true_{name}") > 0.5, threshold)
        for name in DISEASES
    }


def summary(rows: Sequence[tuple[float, Scores]], mean_guess: NDArray[np.floating[Any]]) -> Validation:
    """What rows at some accelerations come to: one number for each task, and their weighted sum as score.

    Parameters
    ----------
    rows : acceleration and scores of every subject; all rows have the same columns.
    mean_guess : phenotypes ``(18,)`` of the mean training subject, which errors are compared with.
    """
    plain, metrics = [row for _, row in rows], dict[str, float]()
    first = plain[0]
    if "dice" in first:
        metrics["dice"] = _mean(column(plain, "dice"))
        for acceleration in dict.fromkeys(a for a, _ in rows):
            own = [row for a, row in rows if a == acceleration]
            metrics[f"dice_{acceleration:g}x"] = _mean(column(own, "dice"))
            metrics[f"hausdorff_{acceleration:g}x_px"] = _mean(column(own, "hausdorff_px"))
    if f"found_{PHENOTYPES[0]}" in first:
        metrics["phenotype_error_over_mean_guess"] = _error_over_guess(plain, mean_guess)
    if f"chance_{DISEASES[0]}" in first:
        areas = np.array([score.auc for score in disease_scores(plain).values()])
        metrics["auc"] = _mean(areas) if np.isfinite(areas).any() else 0.5
    if "psnr_db" in first:
        metrics["psnr_db"] = _mean(column(plain, "psnr_db"))
    return Validation(sum(gain * metrics[name] for name, gain in GAINS.items() if name in metrics), metrics)


def _error_over_guess(rows: Sequence[Scores], guess: NDArray[np.floating[Any]]) -> float:
    """Mean over phenotypes of the absolute error over that of a constant guess."""
    ratios = []
    for name, value in zip(PHENOTYPES, guess, strict=True):
        true = column(rows, f"true_{name}")
        ratios.append(
            float(np.nanmean(np.abs(column(rows, f"found_{name}") - true)))
            / max(float(np.nanmean(np.abs(value - true))), 1e-12)
        )
    return float(np.mean(ratios))


def _psnr_at_best_gain_db(image: NDArray[np.floating[Any]], truth: NDArray[np.floating[Any]]) -> float:
    """PSNR with the brightness of least squares: none of the networks is told the gain of the receiver."""
    found, true = image.astype(np.float64), truth.astype(np.float64)
    gain = float((found * true).sum()) / max(float((found * found).sum()), 1e-30)
    return peak_signal_to_noise_db(gain * found, true)


def _planes(labels: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    """All frames of all views, one after another."""
    return labels.reshape(-1, *labels.shape[-2:])


def _mean(values: NDArray[np.float64]) -> float:
    """Mean without NaN; NaN if there is nothing else."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")
