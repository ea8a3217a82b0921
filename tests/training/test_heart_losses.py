"""Losses and scores of the cardiac networks against values by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import directed_hausdorff
from torch.nn import functional

from kstream.errors import ShapeError
from kstream.models.disk import DiSK
from kstream.output.phenotypes import PHENOTYPES
from kstream.training.heart.data import Subject
from kstream.training.heart.judge import Answers, case_row, measure_errors, summary
from kstream.training.heart.losses import (
    alignment_loss,
    classification_loss,
    disk_loss,
    kgin_loss,
    masked_error,
    slices_loss,
    soft_dice_loss,
)
from kstream.training.heart.metrics import (
    class_dice,
    class_hausdorff,
    classification_score,
    hausdorff,
    peak_signal_to_noise_db,
)


def test_dice_of_certain_and_of_undecided_predictions() -> None:
    labels = torch.tensor([[0, 1, 2, 1]])
    certain = torch.full((1, 3, 4), -50.0).scatter(1, labels[:, None], 50.0)
    assert float(soft_dice_loss(certain, labels)) == pytest.approx(0.0, abs=1e-4)
    undecided = soft_dice_loss(torch.zeros(1, 3, 4), labels)
    by_class = [2 * (n / 3) / (4 / 3 + n) for n in (1, 2, 1)]
    assert float(undecided) == pytest.approx(1 - np.mean(by_class), abs=1e-4)


def test_loss_of_disk_has_its_three_parts() -> None:
    network = DiSK(width=27, n_latents=3, n_layers=1, n_classes=2)
    labels = torch.tensor([[0, 1]])
    parts = disk_loss(torch.zeros(1, 2, 2), labels, network)
    assert float(parts["entropy"].detach()) == pytest.approx(np.log(2), rel=1e-4)
    squares = sum(float((p.detach() ** 2).sum()) for p in network.parameters())
    assert float(parts["l2"].detach()) == pytest.approx(1e-5 * squares, rel=1e-4)
    assert set(parts) == {"dice", "entropy", "l2"}


@pytest.mark.parametrize("form", ["standard", "decoupled"])
def test_alignment_is_equation_3(form: str) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 5, 7))
    cosine = (a @ b.T) / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    expected = 0.0
    for table, weight in ((cosine, 0.3), (cosine.T, 0.7)):
        terms = []
        for m in range(5):
            others = [n for n in range(5) if form == "standard" or n != m]
            terms.append(-table[m, m] / 0.1 + np.log(np.exp(table[m, others] / 0.1).sum()))
        expected += weight * np.mean(terms)
    loss = alignment_loss(torch.from_numpy(a), torch.from_numpy(b), 0.1, 0.3, form)  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_alignment_needs_two_subjects() -> None:
    with pytest.raises(ValueError, match="two subjects"):
        alignment_loss(torch.ones(1, 3), torch.ones(1, 3))


def test_pairs_that_agree_cost_least() -> None:
    z = torch.eye(4)
    assert float(alignment_loss(z, z)) < float(alignment_loss(z, z.roll(1, 0)))


def test_only_hidden_tokens_count_if_asked() -> None:
    predicted, target = torch.zeros(1, 3, 2), torch.tensor([[[1.0, 1.0], [2.0, 2.0], [0.0, 0.0]]])
    assert float(masked_error(predicted, target)) == pytest.approx(5 / 3)
    assert float(masked_error(predicted, target, torch.tensor([[False, True, False]]))) == pytest.approx(4.0)


def test_slices_are_volumes_of_their_own() -> None:
    labels = torch.zeros(1, 2, 1, 2, 2, dtype=torch.long)
    labels[0, 0] = 1
    logits = torch.zeros(1, 2, 2, 1, 2, 2)
    logits[0, :, 1] = 50.0  # class 1 everywhere: right for one slice, wrong for the other
    assert float(slices_loss(logits, labels)) == pytest.approx(0.5 * (1 - 1) + 0.5 * 1.0, abs=1e-3)


def test_cross_entropy_pulls_at_a_class_that_the_dice_loss_has_lost() -> None:
    labels = torch.randint(2, (1, 2, 3, 4, 4), generator=torch.Generator().manual_seed(1))
    lost = torch.zeros(1, 2, 2, 3, 4, 4)
    lost[:, :, 1] = -12.0
    pulls = []
    for weight in (0.0, 1.0):
        logits = lost.clone().requires_grad_()
        slices_loss(logits, labels, weight).backward()
        pulls.append(float(-logits.grad[:, :, 1][labels == 1].mean()))
    assert pulls[1] > 100 * abs(pulls[0])
    plain, entropy = slices_loss(lost, labels), functional.cross_entropy(lost.flatten(0, 1), labels.flatten(0, 1))
    torch.testing.assert_close(slices_loss(lost, labels, 0.3), plain + 0.3 * entropy)


def test_positive_cases_weigh_more() -> None:
    logits = torch.zeros(2, 3)
    sick, well = torch.ones(2, 3), torch.zeros(2, 3)
    assert float(classification_loss(logits, sick)) == pytest.approx(2 * float(classification_loss(logits, well)))


def test_earlier_stages_of_kgin_weigh_less() -> None:
    target = torch.ones(1, 4, 2)
    good, bad = torch.ones(1, 1, 4, 2), torch.zeros(1, 1, 4, 2)
    early = kgin_loss(torch.cat((bad, good, good), 1), target)
    late = kgin_loss(torch.cat((good, good, bad), 1), target)
    assert float(early) == pytest.approx(0.36 * float(late))
    assert float(late) == pytest.approx(1 + (1 / 0.5) ** 2)


def test_class_dice_and_its_empty_classes() -> None:
    truth = np.array([[1, 1, 2, 0]])
    found = class_dice(np.array([[1, 0, 2, 2]]), truth, 4)
    np.testing.assert_allclose(found, [2 / 3, 2 / 3, np.nan])
    with pytest.raises(ShapeError):
        class_dice(truth, truth[:, :2], 3)


def test_hausdorff_is_that_of_scipy() -> None:
    rng = np.random.default_rng(1)
    for _ in range(5):
        a, b = rng.random((2, 13, 17)) > 0.9
        points = [np.argwhere(x) * (1.5, 0.7) for x in (a, b)]
        expected = max(directed_hausdorff(points[0], points[1])[0], directed_hausdorff(points[1], points[0])[0])
        assert hausdorff(a, b, (1.5, 0.7)) == pytest.approx(expected)
    assert np.isnan(hausdorff(a, np.zeros_like(a), (1.0, 1.0)))
    labels = rng.integers(0, 3, (2, 9, 9))
    np.testing.assert_array_equal(class_hausdorff(labels, labels, 4, (1.0, 1.0)), [0.0, 0.0, np.nan])


def test_area_under_the_curve_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(2)
    truth = rng.random(60) < 0.3
    chance = np.round(rng.random(60) + 0.4 * truth, 1)  # with ties
    pairs = [(p > n) + 0.5 * (p == n) for p in chance[truth] for n in chance[~truth]]
    score = classification_score(chance, truth, 0.7)
    assert score.auc == pytest.approx(np.mean(pairs))
    hits = ((chance > 0.7) & truth).sum()
    assert score.recall == pytest.approx(hits / truth.sum())
    assert score.precision == pytest.approx(hits / (chance > 0.7).sum())
    assert score.f1 == pytest.approx(2 * score.precision * score.recall / (score.precision + score.recall))


def test_average_precision_by_hand() -> None:
    truth = np.array([True, False, True, False, True])
    chance = np.array([0.9, 0.8, 0.7, 0.7, 0.1])
    # thresholds 0.9: P 1, R 1/3; 0.8: P 1/2, R 1/3; 0.7: P 2/4, R 2/3; 0.1: P 3/5, R 1
    assert classification_score(chance, truth).average_precision == pytest.approx(1 / 3 + 0.5 / 3 + 0.6 / 3)
    assert np.isnan(classification_score(chance, np.ones(5, bool)).auc)


def rows_of(found: list[float], true: list[float]) -> list[dict[str, float]]:
    """Rows of two phenotypes' worth of numbers: every phenotype gets the same."""
    return [
        {**{f"found_{n}": f for n in PHENOTYPES}, **{f"true_{n}": t for n in PHENOTYPES}}
        for f, t in zip(found, true, strict=True)
    ]


def test_errors_of_phenotypes_skip_what_is_not_known() -> None:
    told = measure_errors(rows_of([1.0, 4.0, np.nan, 9.0], [0.0, 2.0, 5.0, 10.0]))["LVEDV_mL"]
    assert (told["mae"], told["bias"], told["n"]) == (pytest.approx(4 / 3), pytest.approx(2 / 3), 3)
    assert told["mae_sd"] == pytest.approx(np.std([1, 2, 1]))
    assert told["sd"] == pytest.approx(np.std([1, 2, -1]))
    assert told["r"] == pytest.approx(np.corrcoef([1, 4, 9], [0, 2, 10])[0, 1])


def test_a_summary_compares_phenotypes_with_the_mean_guess() -> None:
    rows = [(4.0, row) for row in rows_of([1.0, 5.0], [0.0, 4.0])]
    made = summary(rows, np.full(18, 2.0))
    assert made.metrics == {"phenotype_error_over_mean_guess": pytest.approx(0.5)}
    assert made.score == pytest.approx(-0.5)


def test_psnr_is_in_decibels_and_blind_to_brightness() -> None:
    truth = np.full((5, 5), 2.0)
    assert peak_signal_to_noise_db(truth + 0.02, truth) == pytest.approx(40.0)
    rng = np.random.default_rng(3)
    images = rng.random((1, 2, 7, 9), np.float32) + 0j
    subject = Subject(1, images, np.zeros(images.shape, np.uint8), np.zeros(18, np.float32), np.zeros(3, bool))
    near = np.abs(images) + 0.05 * rng.standard_normal(images.shape)
    first, second = (case_row(Answers(image=gain * near), subject, ("background",))["psnr_db"] for gain in (1, 40))
    assert first == pytest.approx(second)
    assert 20 < first < 40
