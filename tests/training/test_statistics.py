from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from kstream.errors import ScanError
from kstream.training.statistics import (
    Comparison,
    Interval,
    bootstrap,
    compare,
    compare_failures,
    holm,
    holm_failures,
    holm_family,
    rank_biserial,
    wilcoxon,
)

RNG = np.random.default_rng(7)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for seed in range(200):
        interval = bootstrap(rng.normal(0.5, 0.2, 40), 500, seed)
        inside += interval.low <= 0.5 <= interval.high
    assert 180 <= inside <= 198


def test_the_bootstrap_repeats_and_ignores_nan() -> None:
    values = [0.1, 0.4, math.nan, 0.7]
    assert bootstrap(values) == bootstrap([0.1, 0.4, 0.7])
    assert bootstrap(values).mean == pytest.approx(0.4)
    assert math.isnan(bootstrap([math.nan]).mean)
    assert bootstrap([0.3]) == Interval(0.3, 0.3, 0.3)


def test_wilcoxon_is_scipys_in_both_treatments_of_zeros() -> None:
    difference = np.array([0.0, 0.0, 0.1, -0.05, 0.2, 0.3, -0.02, 0.15, 0.4, 0.25])
    for method in ("wilcox", "pratt"):
        expected = scipy.stats.wilcoxon(difference, zero_method=method).pvalue
        assert wilcoxon(difference, method) == expected  # type: ignore[arg-type]
    assert wilcoxon(difference, "wilcox") != wilcoxon(difference, "pratt")
    assert wilcoxon(np.zeros(5)) == 1.0


def test_wilcoxon_by_hand_for_five_gains() -> None:
    assert wilcoxon(np.array([0.1, 0.2, 0.3, 0.4, 0.5])) == pytest.approx(2 / 2**5)


def test_rank_biserial_by_hand() -> None:
    assert rank_biserial(np.array([0.1, 0.2, -0.3, 0.0])) == pytest.approx((1 + 2 - 3) / 6)
    assert rank_biserial(np.array([0.1, 0.2])) == 1
    assert rank_biserial(np.zeros(3)) == 0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    corrected = holm([0.01, math.nan, 0.02])
    assert corrected[0] == pytest.approx(0.02)
    assert math.isnan(corrected[1])
    assert holm([]) == []


def test_mcnemar_is_exact() -> None:
    a = np.array([1] * 8 + [0] * 1 + [1] * 5 + [0] * 20, bool)
    b = np.array([0] * 8 + [1] * 1 + [1] * 5 + [0] * 20, bool)
    result = compare_failures(a, b)
    assert (result.n, result.only_a, result.only_b) == (34, 8, 1)
    assert result.p == pytest.approx(2 * (1 + 9) / 2**9)
    assert compare_failures(a, a).p == 1.0
    with pytest.raises(ScanError, match="cannot be paired"):
        compare_failures(a, b[1:])


def test_a_comparison_pairs_exams() -> None:
    b = RNG.uniform(0.2, 0.8, 30)
    a = b + 0.1 + 0.01 * RNG.standard_normal(30)
    a[3] = math.nan
    result = compare(a, b)
    assert (result.n, result.wins, result.losses, result.effect) == (29, 29, 0, 1.0)
    assert result.difference.low < 0.1 < result.difference.high
    assert result.p < 1e-6
    assert compare(b, a).p == result.p
    with pytest.raises(ScanError, match="30 and 29"):
        compare(a, b[1:])
    with pytest.raises(ScanError, match="no exam"):
        compare([math.nan], [0.3])


def test_families_are_corrected_together_and_apart() -> None:
    def comparison(p: float) -> Comparison:
        return Comparison(9, Interval(0, 0, 0), Interval(0, 0, 0), p, p, 0.0, 5, 4)

    family = holm_family({"8": comparison(0.02), "12": comparison(0.04)})
    assert [c.p_holm for c in family.values()] == pytest.approx([0.04, 0.04])
    alone = holm_family({"8": comparison(0.02)})
    assert alone["8"].p_holm == 0.02
    failures = holm_failures({"8": compare_failures([True] * 6, [False] * 6)})
    assert failures["8"].p_holm == failures["8"].p == pytest.approx(2 / 2**6)


def test_the_median_difference_is_not_carried_by_one_exam() -> None:
    a, b = np.array([0.11, 0.12, 0.13, 0.14, 0.95]), np.full(5, 0.1)
    found = compare(a, b).median_difference
    assert found.mean == pytest.approx(0.03)
    assert found.low <= 0.03 <= found.high
    assert found.low == pytest.approx(0.01)
    assert compare(a, b).difference.mean == pytest.approx(0.19)
