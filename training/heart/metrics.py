"""How good cardiac results are: overlap and distance of labels, errors of phenotypes, curves of classifiers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.stats import rankdata

from ...errors import ShapeError

Labels = NDArray[np.integer]
Numbers = NDArray[np.floating]


def class_dice(predicted: Labels, truth: Labels, n_classes: int) -> NDArray[np.float64]:
    """Dice of every class but the background; NaN for a class that neither has."""
    if predicted.shape != truth.shape:
        raise ShapeError(f"a prediction {predicted.shape} cannot be compared with a truth {truth.shape}")
    scores = np.full(n_classes - 1, np.nan)
    for index in range(1, n_classes):
        ours, theirs = predicted == index, truth == index
        total = int(ours.sum()) + int(theirs.sum())
        if total:
            scores[index - 1] = 2 * int((ours & theirs).sum()) / total
    return scores


def hausdorff(predicted: NDArray[np.bool_], truth: NDArray[np.bool_], spacing: tuple[float, ...]) -> float:
    """Symmetric Hausdorff distance of two regions, in the unit of `spacing`; NaN if one of them is empty.

    ``max(max_p d(p, T), max_t d(t, P))`` over the points of the regions, which is that of their boundaries or more.
    """
    if not predicted.any() or not truth.any():
        return float("nan")
    to_truth = distance_transform_edt(~truth, sampling=spacing)
    to_predicted = distance_transform_edt(~predicted, sampling=spacing)
    return float(max(to_truth[predicted].max(), to_predicted[truth].max()))


def class_hausdorff(
    predicted: Labels, truth: Labels, n_classes: int, spacing: tuple[float, float]
) -> NDArray[np.float64]:
    """Hausdorff distance of every class but the background, mean over the frames ``(frames, y, x)`` that both have.

    NaN for a class that they never share. `spacing` is along y and x: ``(1, 1)`` for pixels, as the papers report.
    """
    distances = np.full((n_classes - 1, len(truth)), np.nan)
    for number, (p, t) in enumerate(zip(predicted, truth, strict=True)):
        for index in range(1, n_classes):
            distances[index - 1, number] = hausdorff(p == index, t == index, spacing)
    shared = np.isfinite(distances)
    total = np.where(shared, distances, 0.0).sum(axis=1)
    return np.where(shared.any(axis=1), total / np.maximum(shared.sum(axis=1), 1), np.nan)


@dataclass(frozen=True)
class ClassScore:
    """One disease: areas under the curves, and what the threshold gives. NaN where a class is missing."""

    auc: float
    average_precision: float
    f1: float
    recall: float
    precision: float


def classification_score(probability: Numbers, truth: NDArray[np.bool_], threshold: float = 0.5) -> ClassScore:
    """Scores of one disease over subjects.

    The area under the ROC curve is the share of pairs in order (Mann-Whitney, ties half); average precision is the sum
    of ``(R_n - R_n-1) P_n`` over distinct thresholds.
    """
    truth = np.asarray(truth, np.bool_)
    n_positive, n_negative = int(truth.sum()), int((~truth).sum())
    called = probability > threshold
    hits = int((called & truth).sum())
    recall = hits / n_positive if n_positive else float("nan")
    precision = hits / int(called.sum()) if called.any() else 0.0
    f1 = 2 * hits / (n_positive + int(called.sum())) if n_positive or called.any() else float("nan")
    if not n_positive or not n_negative:
        return ClassScore(float("nan"), float("nan"), f1, recall, precision)
    ranks = rankdata(probability)
    auc = (float(ranks[truth].sum()) - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)
    return ClassScore(auc, _average_precision(probability, truth), f1, recall, precision)


def _average_precision(probability: Numbers, truth: NDArray[np.bool_]) -> float:
    order = np.argsort(-probability, kind="stable")
    ordered, values = truth[order], probability[order]
    last = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)  # the end of each run of equal values
    hits = np.cumsum(ordered)[last]
    precision, recall = hits / (last + 1), hits / ordered.sum()
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def peak_signal_to_noise_db(image: Numbers, truth: Numbers) -> float:
    """``20 log10(max / rms error)`` with the largest value of the truth."""
    error = float(np.sqrt(np.mean((np.asarray(image, np.float64) - truth) ** 2)))
    return float(20 * np.log10(float(np.max(truth)) / max(error, 1e-30)))
