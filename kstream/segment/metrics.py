"""How well a label map agrees with a known truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from ..errors import ShapeError

Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class LesionScore:
    """One lesion of the truth: its voxels, the voxels of the predictions that touch it, and their Dice."""

    n_truth: int
    n_predicted: int
    dice: float


def dice(predicted: Labels, truth: Labels) -> float:
    """Dice similarity coefficient of the foreground, ``2 TP / (2 TP + FP + FN)``; NaN if both are empty.

    Raises
    ------
    ShapeError : the arrays differ in shape.
    """
    if predicted.shape != truth.shape:
        raise ShapeError(f"a prediction {predicted.shape} cannot be compared with a truth {truth.shape}")
    total = np.count_nonzero(predicted) + np.count_nonzero(truth)
    overlap = np.count_nonzero((predicted > 0) & (truth > 0))
    return 2 * overlap / total if total else float("nan")


def lesion_scores(predicted: Labels, truth: Labels) -> list[LesionScore]:
    """One score for each connected lesion of the truth, largest first.

    A lesion is compared with all predicted components that touch it.
    """
    lesions, n_lesions = scipy.ndimage.label(truth > 0)
    found, _ = scipy.ndimage.label(predicted > 0)
    scores = []
    for number in range(1, n_lesions + 1):
        lesion = lesions == number
        touching = np.isin(found, np.setdiff1d(np.unique(found[lesion]), [0]))
        touching &= (lesions == 0) | lesion  # what covers a neighbouring lesion belongs to that one
        overlap = np.count_nonzero(touching & lesion)
        n_truth, n_predicted = int(np.count_nonzero(lesion)), int(np.count_nonzero(touching))
        scores.append(LesionScore(n_truth, n_predicted, 2 * overlap / (n_truth + n_predicted)))
    return sorted(scores, key=lambda score: -score.n_truth)


def false_positive_voxels(predicted: Labels, truth: Labels) -> int:
    """Voxels of predicted components that touch no lesion of the truth."""
    found, _ = scipy.ndimage.label(predicted > 0)
    touching = np.unique(found[truth > 0])
    return int(np.count_nonzero((found > 0) & ~np.isin(found, touching)))
