"""What paper 000 says about differences between models, and what it would take to believe them.

Paired by exam throughout: bootstrap intervals, two-sided Wilcoxon tests with Holm's correction within a family, exact
McNemar tests for failures, effect sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from ..errors import ScanError

Values = NDArray[np.float64]
ZeroMethod = Literal["wilcox", "pratt"]
Key = TypeVar("Key")

N_RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean, or what else its maker says, and its bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two models on the same exams.

    Parameters
    ----------
    n : exams that count.
    difference : mean of a minus b, with its interval.
    median_difference : median of a minus b, with its interval: an effect size that few exams cannot carry.
    p : two-sided Wilcoxon signed-rank test, differences of zero dropped (``wilcox``).
    p_pratt : the same, zeros ranked and then dropped.
    p_holm : `p` corrected within its family; NaN until `holm_family` fills it in.
    effect : matched-pairs rank-biserial correlation, -1 to 1.
    wins, losses : exams on which a is better, or worse.
    """

    n: int
    difference: Interval
    median_difference: Interval
    p: float
    p_pratt: float
    effect: float
    wins: int
    losses: int
    p_holm: float = math.nan


@dataclass(frozen=True)
class FailureComparison:
    """Failures of two models on the same exams: only a fails, only b fails, and McNemar's exact two-sided p."""

    n: int
    only_a: int
    only_b: int
    p: float
    p_holm: float = math.nan


def bootstrap(
    values: Sequence[float] | Values,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    of: Literal["mean", "median"] = "mean",
) -> Interval:
    """Mean (or median) over exams and its 95 % percentile interval.

    Exams are resampled (PCG64, the same draws for equal seeds).

    NaN (neither truth nor prediction holds a lesion) does not count; all three numbers are NaN if nothing is left.
    """
    finite = _finite(values)
    if not len(finite):
        return Interval(math.nan, math.nan, math.nan)
    rng = np.random.Generator(np.random.PCG64(seed))
    statistic = np.mean if of == "mean" else np.median
    drawn = statistic(finite[rng.integers(0, len(finite), (n_resamples, len(finite)))], axis=1)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(float(statistic(finite)), float(low), float(high))


def compare(a: Sequence[float] | Values, b: Sequence[float] | Values) -> Comparison:
    """Model a against model b; exams on which either is NaN do not count.

    Raises
    ------
    ScanError : if they were not scored on the same number of exams, or none is left.
    """
    x, y = _paired(a, b)
    difference = x - y
    return Comparison(
        n=len(difference),
        difference=bootstrap(difference),
        median_difference=bootstrap(difference, of="median"),
        p=wilcoxon(difference, "wilcox"),
        p_pratt=wilcoxon(difference, "pratt"),
        effect=rank_biserial(difference),
        wins=int(np.count_nonzero(difference > 0)),
        losses=int(np.count_nonzero(difference < 0)),
    )


def wilcoxon(difference: Values, zero_method: ZeroMethod = "wilcox") -> float:
    """Two-sided p of the signed-rank test; 1 if no difference is left."""
    if not np.any(difference):
        return 1.0
    return float(scipy.stats.wilcoxon(difference, zero_method=zero_method, alternative="two-sided").pvalue)


def rank_biserial(difference: Values) -> float:
    """Matched-pairs rank-biserial correlation: share of rank sum in favour minus share against (Kerby 2014)."""
    nonzero = difference[difference != 0]
    if not len(nonzero):
        return 0.0
    ranks = scipy.stats.rankdata(np.abs(nonzero))
    return float((ranks[nonzero > 0].sum() - ranks[nonzero < 0].sum()) / ranks.sum())


def compare_failures(a: Sequence[bool] | NDArray[np.bool_], b: Sequence[bool] | NDArray[np.bool_]) -> FailureComparison:
    """McNemar's exact test: the discordant exams against a fair coin, two-sided.

    Raises
    ------
    ScanError : if they were not scored on the same number of exams.
    """
    x, y = np.asarray(a, bool), np.asarray(b, bool)
    if x.shape != y.shape:
        raise ScanError(f"{len(x)} and {len(y)} exams cannot be paired")
    only_a, only_b = int(np.count_nonzero(x & ~y)), int(np.count_nonzero(y & ~x))
    n_discordant = only_a + only_b
    p = float(scipy.stats.binomtest(only_a, n_discordant, 0.5).pvalue) if n_discordant else 1.0
    return FailureComparison(len(x), only_a, only_b, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given; NaN stays NaN and does not count."""
    adjusted = [math.nan] * len(p_values)
    ordered = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    largest = 0.0
    for rank, index in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def holm_family(comparisons: Mapping[Key, Comparison]) -> dict[Key, Comparison]:
    """One family of comparisons with `p_holm` filled in."""
    adjusted = holm([comparison.p for comparison in comparisons.values()])
    pairs = zip(comparisons.items(), adjusted, strict=True)
    return {name: Comparison(**{**vars(comparison), "p_holm": p}) for (name, comparison), p in pairs}


def holm_failures(comparisons: Mapping[Key, FailureComparison]) -> dict[Key, FailureComparison]:
    """One family of failure comparisons with `p_holm` filled in."""
    adjusted = holm([comparison.p for comparison in comparisons.values()])
    pairs = zip(comparisons.items(), adjusted, strict=True)
    return {name: FailureComparison(**{**vars(comparison), "p_holm": p}) for (name, comparison), p in pairs}


def _finite(values: Sequence[float] | Values) -> Values:
    array = np.asarray(values, np.float64)
    return array[~np.isnan(array)]


def _paired(a: Sequence[float] | Values, b: Sequence[float] | Values) -> tuple[Values, Values]:
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.shape != y.shape:
        raise ScanError(f"{len(x)} and {len(y)} exams cannot be paired", likely="a table lacks exams")
    both = ~(np.isnan(x) | np.isnan(y))
    if not both.any():
        raise ScanError("no exam was scored by both models")
    return x[both], y[both]
