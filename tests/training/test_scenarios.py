from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kstream.errors import ConfigError, RecordingError, ScanError
from kstream.recon.fourier import to_image
from kstream.training.breast.data import Exam
from kstream.training.breast.scenarios import (
    Scenario,
    as_row,
    mask_index,
    read_scores,
    score,
    score_under,
    segment_under,
    write_published,
)
from kstream.training.breast.undersampling import undersample
from kstream.training.scores import write_rows


class Threshold:
    """An engine that calls bright voxels of the magnitude image a lesion."""

    name, precision = "threshold", "fp32"

    def __init__(self, level: float = 2.0) -> None:
        self.level, self.seen = level, []

    def run(self, batch: np.ndarray) -> np.ndarray:
        self.seen.append(batch)
        magnitude = np.abs(to_image((batch[:, 0] + 1j * batch[:, 1]).astype(np.complex64)))
        return np.stack([np.full_like(magnitude, self.level), magnitude], axis=1)

    def describe(self) -> dict[str, str]:
        return {}


def test_names_say_what_they_mean() -> None:
    assert Scenario.of("full") == Scenario("full", "full", 1)
    assert Scenario.of("cartesian-12").level == 12
    assert Scenario.of("noise--5") == Scenario("noise--5", "noise", -5.0)
    assert Scenario.of("radial-random-4").kind == "radial"
    assert Scenario.of("cg-sense-uniform-8") == Scenario("cg-sense-uniform-8", "cg-sense", 8)
    for wrong in ("cartesian-5", "noise-loud", "spiral-2", "radial-4"):
        with pytest.raises(ConfigError, match="unknown"):
            Scenario.of(wrong)


def test_public_exams_have_one_mask_in_every_fold(new_exam: Callable[..., Exam]) -> None:
    simulated, public = new_exam(17), replace(new_exam(17), source="acquired")
    assert [mask_index(simulated, place) for place in (2, 5)] == [2, 5]
    assert [mask_index(public, place) for place in (2, 5)] == [17, 17]
    first, second = (
        [row.patient_index for row in score_under([Scenario.of("cartesian-4")], exams, Threshold(), "m", 1, 2, (4, 3))]
        for exams in ([public], [simulated, public])
    )
    assert (first, second) == ([17], [0, 17])


def test_exam_scope_is_one_mask_and_patch_scope_one_for_each(new_exam: Callable[..., Exam]) -> None:
    exam, scenario = new_exam(1), Scenario.of("cartesian-4")
    engine = Threshold()
    segment_under(scenario, exam, 5, engine, 2, (4, 3), "exam")
    masks = [(batch[0, 0] != 0).any(axis=0) for batch in engine.seen]
    assert len(masks) == 3
    assert all((mask == masks[0]).all() for mask in masks)
    np.testing.assert_array_equal(masks[0], undersample(exam.difference(2), 4, 5)[0] != 0)
    engine = Threshold()
    segment_under(scenario, exam, 5, engine, 2, (4, 3), "patch")
    masks = [(batch[0, 0] != 0).any(axis=0) for batch in engine.seen]
    assert not (masks[0] == masks[1]).all()
    np.testing.assert_array_equal(masks[1], undersample(exam.difference(2), 4, 5, z_start=3)[0] != 0)


def test_variants_replace_the_kspace_and_must_be_there(new_exam: Callable[..., Exam]) -> None:
    exam, scenario = new_exam(1), Scenario.of("radial-uniform-2")
    with pytest.raises(ScanError, match="no variant radial-uniform-2"):
        segment_under(scenario, exam, 0, Threshold(), 2, (4, 3))
    thin = replace(exam, variants={"radial-uniform-2": exam.difference(2) * 0.5})
    engine = Threshold()
    segment_under(scenario, thin, 0, engine, 2, (9, 9))
    np.testing.assert_allclose(engine.seen[0][0, 0], exam.difference(2).real * 0.5, rtol=1e-6)


def test_lesions_and_false_alarms_are_counted() -> None:
    truth = np.zeros((3, 8, 9), np.uint8)
    truth[0, 1:3, 1:3] = truth[1, 5:7, 5:7] = truth[2, 0, 8] = 1
    predicted = np.zeros_like(truth)
    predicted[0, 1:3, 1:2] = predicted[1, 5:7, 5:8] = predicted[2, 6:8, 0] = 1
    exam = Exam(4, np.ones((1, *truth.shape), np.complex64), (2,), truth, (10.0, 10.0, 10.0), "p4")
    result = score(predicted, exam, "m", 2, "full", 7)
    assert (result.n_lesions, result.n_found, result.n_false) == (3, 2, 1)
    assert result.false_positive_ml == pytest.approx(2.0)
    assert result.dice == pytest.approx(2 * (2 + 4) / (10 + 9))
    assert not result.is_failure
    assert score(predicted * 0, exam, "m", 2, "full", 7).is_failure
    healthy = replace(exam, labels=truth * 0)
    assert math.isnan(score(predicted * 0, healthy, "m", 2, "full", 7).dice)
    assert not score(predicted, healthy, "m", 2, "full", 7).is_failure


def test_scores_survive_the_table_and_are_published_in_the_authors_columns(tmp_path: Path, exams: list[Exam]) -> None:
    scenarios = [Scenario.of(name) for name in ("full", "cartesian-8", "noise--5")]
    scores = list(score_under(scenarios, exams, Threshold(), "magnitude", 3, 2, (4, 3)))
    assert len(scores) == 3 * 4
    assert scores[0].dice > 0.8
    assert scores[4].dice < scores[0].dice
    write_rows([{"model": s.model, "fold": s.fold, **as_row(s)} for s in scores], tmp_path / "scores.csv")
    again = read_scores(tmp_path / "scores.csv")
    assert [(s.model, s.fold, s.scenario, s.patient_id, s.n_found) for s in again] == [
        (s.model, s.fold, s.scenario, s.patient_id, s.n_found) for s in scores
    ]
    np.testing.assert_allclose([s.dice for s in again], [s.dice for s in scores], atol=1e-6)
    cartesian, noise = write_published(again, tmp_path, n_lines=320)
    lines = cartesian.read_text().splitlines()
    assert lines[0] == "model,acceleration,center_fraction,fold,patient_index,patient_id,has_lesion,dice"
    assert lines[1].startswith("magnitude,1,1.0,3,0,")
    assert any(line.startswith("magnitude,8,0.04,3,") for line in lines)
    assert noise.read_text().splitlines()[0] == "model,snr_db,fold,patient_index,patient_id,has_lesion,dice"
    (tmp_path / "scores.csv").write_text("model\nx\n")
    with pytest.raises(RecordingError, match="cannot read the scores"):
        read_scores(tmp_path / "scores.csv")
