from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from kstream.training.breast.data import Exam
from kstream.training.breast.evaluate import score_exam, summarise, to_csv, to_markdown


def blocks() -> tuple[np.ndarray, np.ndarray]:
    truth = np.zeros((3, 5, 7), np.uint8)
    truth[1, 1:3, 1:5] = 1
    predicted = np.zeros_like(truth)
    predicted[1, 1:3, 3:6] = 1
    return predicted, truth


def test_volumes_are_in_millilitres(new_exam: Callable[..., Exam]) -> None:
    predicted, truth = blocks()
    predicted[2, 4, :3] = 1
    score = score_exam(predicted, replace(new_exam(1), labels=truth, voxel_size_mm=(10.0, 5.0, 4.0)))
    assert (score.lesion_ml, score.predicted_ml, score.false_positive_ml) == pytest.approx((1.6, 1.8, 0.6))


def test_summary_separates_exams_without_lesions(new_exam: Callable[..., Exam]) -> None:
    predicted, truth = blocks()
    exam = replace(new_exam(1), labels=truth, voxel_size_mm=(10.0, 10.0, 10.0))
    healthy = replace(exam, labels=truth * 0, seed=2)
    scores = [score_exam(predicted, exam), score_exam(truth * 0, exam), score_exam(predicted, healthy)]
    total = summarise(scores)
    assert (total.n_lesion_exams, total.n_lesion_free_exams) == (2, 1)
    assert total.mean_dice == pytest.approx((2 * 4 / 14 + 0) / 2)
    assert total.failure_rate == 0.5
    assert total.false_positive_ml_lesion_free == pytest.approx(6.0)
    assert to_csv(scores).splitlines()[1] == "1,1,0.5714,8.0000,6.0000,0.0000"
    assert "mean Dice 0.286" in to_markdown(scores)


def test_summary_of_one_kind_of_exam_leaves_the_other_undefined(new_exam: Callable[..., Exam]) -> None:
    exam = new_exam(1, has_lesion=False)
    total = summarise([score_exam(exam.labels, exam)])
    assert math.isnan(total.mean_dice)
    assert total.false_positive_ml_lesion_free == 0
