from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kstream.errors import ConfigError, ModelError
from kstream.models.registry import build
from kstream.training.breast.data import Exam
from kstream.training.breast.losses import distillation_loss
from kstream.training.breast.task import BreastTask, PatchSampler
from kstream.training.experiment import DistillConfig, Experiment, write_experiment
from kstream.training.fit import fit, save_weights

MakeExperiment = Callable[..., Experiment]
WIDE = {"lines": "wide", "lines_probability": 1.0, "noise_probability": 0.5, "variant_probability": 0.5}


@pytest.fixture
def teacher(tmp_path: Path, new_experiment: MakeExperiment) -> DistillConfig:
    """A network that was never trained, but whose run looks like one that was; its experiment has the same cohorts."""
    experiment = new_experiment().model_copy(update={"seed": 77})
    (tmp_path / "hybrid-seed5").mkdir()
    write_experiment(experiment, tmp_path / "hybrid-seed5" / "experiment.toml")
    torch.manual_seed(experiment.seed)
    network = build(experiment.network.architecture, experiment.network.arguments)
    save_weights(network, tmp_path / "hybrid-seed5" / "best.safetensors")
    run = tmp_path / "hybrid-seed{seed}"
    return DistillConfig(experiment=str(run / "experiment.toml"), weights=str(run / "best.safetensors"))


def student(
    new_experiment: MakeExperiment,
    distill: DistillConfig | None,
    architecture: str = "breast-gate",
    arguments: dict[str, Any] | None = None,
    **schedule: Any,
) -> Experiment:
    base = new_experiment(**schedule)
    given = {"n_features": 3, "hidden": 4, "image_channels": [4, 6]} if arguments is None else arguments
    network = base.network.model_copy(update={"architecture": architecture, "arguments": given})
    augment = base.augment.model_copy(update=WIDE)
    return base.model_copy(update={"network": network, "augment": augment, "distill": distill})


def with_variants(exams: list[Exam]) -> list[Exam]:
    return [replace(exam, variants={"radial-uniform-2": exam.difference(2) * 0.5}) for exam in exams]


def test_divergence_of_two_voxels_by_hand() -> None:
    """The teacher is sure of a lesion (0.8) in the first voxel and of background (0.75) in the second."""
    given = torch.zeros((1, 2, 1, 1, 2))
    wanted = torch.zeros((1, 2, 1, 1, 2))
    wanted[0, 1, 0, 0] = torch.tensor([math.log(4.0), math.log(1 / 3)])
    first = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    second = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    weights = 0.05 * 0.2 + 0.95 * 0.8, 0.05 * 0.75 + 0.95 * 0.25
    by_hand = (weights[0] * first + weights[1] * second) / sum(weights)
    assert float(distillation_loss(given, wanted, 1.0, (0.05, 0.95))) == pytest.approx(by_hand, rel=1e-5)
    half = distillation_loss(given, 2 * wanted, 2.0, (0.5, 0.5))
    even = 4 * (first + second) / 2
    assert float(half) == pytest.approx(even, rel=1e-5)
    assert float(distillation_loss(wanted, wanted, 3.0, (0.05, 0.95))) == pytest.approx(0, abs=1e-6)


def test_a_teacher_changes_no_batch_and_adds_the_whole_scan(
    exams: list[Exam], new_experiment: MakeExperiment, teacher: DistillConfig
) -> None:
    thin = with_variants(exams)
    without = PatchSampler(thin, student(new_experiment, None, batch=9)).batch(4)
    taught = PatchSampler(thin, student(new_experiment, teacher, batch=9)).batch(4)
    assert set(without) == {"kspace", "clean", "labels"}
    assert set(taught) == {*without, "full"}
    assert all(torch.equal(without[key], taught[key]) for key in without)
    is_thin = [not torch.allclose(full, clean) for full, clean in zip(taught["full"], taught["clean"], strict=True)]
    assert 1 < sum(is_thin) < 9
    for full, clean, thinned in zip(taught["full"], taught["clean"], is_thin, strict=True):
        torch.testing.assert_close(full * (0.5 if thinned else 1.0), clean)  # moved in the same way


def test_a_student_learns_from_its_teacher_and_remembers_which(
    tmp_path: Path,
    exams: list[Exam],
    new_exam: Callable[..., Exam],
    new_experiment: MakeExperiment,
    teacher: DistillConfig,
) -> None:
    experiment = student(new_experiment, teacher.model_copy(update={"weight": 30.0}), steps=40, validate_every=40)
    task = BreastTask(experiment, exams, [new_exam(7)])
    alone = BreastTask(student(new_experiment, None), exams, [new_exam(7)])
    assert all(torch.equal(a, b) for a, b in zip(task.network.parameters(), alone.network.parameters(), strict=True))
    assert "distill" not in alone.identity()
    fit(task, experiment.schedule, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    far = [record["distillation"] for record in map(json.loads, lines) if "loss" in record]
    assert far[-1] < 0.75 * far[0]
    weights = tmp_path / "hybrid-seed5" / "best.safetensors"
    another = build(experiment.network.architecture.replace("gate", "hybrid"), new_experiment().network.arguments)
    save_weights(another, weights)
    with pytest.raises(ModelError, match="another experiment"):
        fit(BreastTask(experiment, exams, [new_exam(7)]), experiment.schedule, tmp_path / "run")


def test_teachers_that_do_not_fit_are_refused_before_training(
    tmp_path: Path,
    exams: list[Exam],
    new_exam: Callable[..., Exam],
    new_experiment: MakeExperiment,
    teacher: DistillConfig,
) -> None:
    folder = tmp_path / "hybrid-seed5"

    def begin(experiment: Experiment) -> None:
        BreastTask(experiment, exams, [new_exam(7)])

    with pytest.raises(ConfigError, match="cannot be taught"):
        begin(student(new_experiment, teacher, "breast-native", {"channels": [4, 6]}))
    taught = student(new_experiment, teacher)
    original = new_experiment()
    for cohorts in ({"train": {"seeds": "0-3, 9"}}, {"train": {"seeds": "7"}}, {"validation": {"seeds": "8"}}):
        changed = {**original.model_dump()["cohorts"], "test": {"seeds": [100]}, **cohorts}
        if cohorts == {"train": {"seeds": "7"}}:
            changed["validation"] = {"seeds": [50]}
        write_experiment(
            Experiment.model_validate({**original.model_dump(), "cohorts": changed}), folder / "experiment.toml"
        )
        with pytest.raises(ConfigError, match="judged on"):
            begin(taught)
    more = {"names": ("background", "lesion", "vessel"), "colours": ((0, 0, 0), (1, 1, 1), (2, 2, 2))}
    write_experiment(Experiment.model_validate({**original.model_dump(), "labels": more}), folder / "experiment.toml")
    with pytest.raises(ConfigError, match="the teacher knows"):
        begin(taught)
    write_experiment(original, folder / "experiment.toml")
    save_weights(torch.nn.Linear(2, 3), folder / "best.safetensors")
    with pytest.raises(ModelError, match="another architecture") as raised:
        begin(taught)
    assert raised.value.where.startswith("distill.weights")
    (folder / "best.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights yet"):
        begin(taught)
    (folder / "experiment.toml").unlink()
    with pytest.raises(ConfigError, match="cannot read the experiment"):
        begin(taught)


def test_folds_of_teacher_and_student_must_be_the_same(
    exams: list[Exam], new_exam: Callable[..., Exam], new_experiment: MakeExperiment, teacher: DistillConfig
) -> None:
    base = {**new_experiment().model_dump(), "cohorts": {}}
    path = Path(teacher.experiment.replace("{seed}", "5"))
    write_experiment(Experiment.model_validate({**base, "folds": {"fold": 2}}), path)
    for fold, is_refused in ((3, True), (2, False)):
        experiment = Experiment.model_validate({**base, "folds": {"fold": fold}, "distill": teacher.model_dump()})
        if is_refused:
            with pytest.raises(ConfigError, match="different folds"):
                BreastTask(experiment, exams, [new_exam(7)])
        else:
            assert "teacher" in BreastTask(experiment, exams, [new_exam(7)]).identity()
