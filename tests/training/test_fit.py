from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kstream.engines.torch_engine import TorchEngine
from kstream.errors import ConfigError, ModelError, ScanError, ShapeError
from kstream.models.bundle import Bundle
from kstream.training.breast.data import Exam
from kstream.training.breast.evaluate import evaluate
from kstream.training.breast.export import export
from kstream.training.breast.task import BreastTask, PatchSampler, load_best
from kstream.training.experiment import Experiment, FoldConfig, ScheduleConfig
from kstream.training.fit import Result, fit
from kstream.training.schedule import learning_rate

MakeExperiment = Callable[..., Experiment]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(experiment: Experiment, exams: list[Exam], validation: list[Exam], folder: Path) -> Result:
    return fit(BreastTask(experiment, exams, validation), experiment.schedule, folder)


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def test_fit_learns_the_toy_and_repeats_bit_for_bit(
    tmp_path: Path, exams: list[Exam], new_exam: Callable[..., Exam], new_experiment: MakeExperiment
) -> None:
    experiment = new_experiment(steps=90)
    first = train(experiment, exams, [new_exam(7)], tmp_path / "a")
    second = train(experiment, exams, [new_exam(7)], tmp_path / "b")
    history = losses(tmp_path / "a")
    assert history[-1] < 0.6 * history[0]
    assert len(list((tmp_path / "a" / "pictures").glob("exam-7-step*.png"))) == 3
    assert first.best_score == second.best_score > 0.5
    a, b = load_file(first.weights), load_file(second.weights)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_folder_with_another_experiment_is_refused(
    tmp_path: Path, exams: list[Exam], new_exam: Callable[..., Exam], new_experiment: MakeExperiment
) -> None:
    train(new_experiment(steps=1), exams, [new_exam(7)], tmp_path)
    with pytest.raises(ModelError, match="another experiment"):
        train(new_experiment(steps=2), exams, [new_exam(7)], tmp_path)


def test_cohorts_without_lesions_are_refused_before_training(
    tmp_path: Path, exams: list[Exam], new_exam: Callable[..., Exam], new_experiment: MakeExperiment
) -> None:
    healthy = [new_exam(1, has_lesion=False)]
    with pytest.raises(ConfigError, match="training cohort"):
        train(new_experiment(), healthy, exams, tmp_path)
    with pytest.raises(ConfigError, match="validation cohort"):
        train(new_experiment(), exams, healthy, tmp_path)


def test_exams_that_would_end_a_training_later_are_refused_before_it(
    exams: list[Exam], new_exam: Callable[..., Exam], new_experiment: MakeExperiment
) -> None:
    early = replace(exams[1], differences=exams[1].differences[:1], frames=(1,))
    with pytest.raises(ScanError, match="exam 1 has no frame 2"):
        BreastTask(new_experiment(), [exams[0], early], [new_exam(7)])
    smaller = replace(exams[2], differences=exams[2].differences[..., :-2], labels=exams[2].labels[..., :-2])
    with pytest.raises(ShapeError, match=r"\(14, 16\) and \(14, 18\)"):
        BreastTask(new_experiment(), [exams[0], smaller], [new_exam(7)])


def test_half_of_the_patches_hold_a_lesion(exams: list[Exam], new_experiment: MakeExperiment) -> None:
    sampler = PatchSampler(exams, new_experiment(batch=50))
    labels = sampler.batch(3)["labels"]
    assert labels.flatten(1).any(dim=1).float().mean() == pytest.approx(0.5, abs=0.2)
    assert labels.shape == (50, 4, 14, 18)


def test_a_batch_depends_on_the_step_alone(exams: list[Exam], new_experiment: MakeExperiment) -> None:
    sampler = PatchSampler(exams, new_experiment())
    first, later, again = sampler.batch(2), sampler.batch(3), sampler.batch(2)
    assert torch.equal(first["kspace"], again["kspace"])
    assert not torch.equal(first["kspace"], later["kspace"])


def test_learning_rate_warms_up_and_falls_to_the_final_rate() -> None:
    schedule = ScheduleConfig(steps=110, learning_rate=0.1, warmup_steps=10, final_learning_rate=0.001)
    rates = [learning_rate(step, schedule) for step in range(111)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[9] == rates[10] == pytest.approx(0.1)
    assert rates[60] == pytest.approx((0.1 + 0.001) / 2)
    assert rates[110] == pytest.approx(0.001)


def test_an_exported_run_gives_the_same_labels_as_the_run(
    tmp_path: Path, exams: list[Exam], new_exam: Callable[..., Exam], new_experiment: MakeExperiment
) -> None:
    experiment, test_exams = new_experiment(steps=30), [new_exam(8), new_exam(9)]
    train(experiment, exams, [new_exam(7)], tmp_path / "run")
    scores = {"test": evaluate(test_exams, TorchEngine(load_best(experiment, tmp_path / "run"), {}), 2, 4, 3)}
    source = tmp_path / "toy.toml"
    source.write_text("# the experiment\n")
    export(experiment, source, tmp_path / "run", tmp_path / "toy-bundle", scores, test_exams[0])
    bundle = Bundle.load(tmp_path / "toy-bundle")
    again = evaluate(test_exams, TorchEngine(bundle.build(), {}), 2, bundle.info.patch_depth, bundle.info.patch_stride)
    assert again == scores["test"]
    assert bundle.info.name == "toy-bundle"
    assert bundle.info.metrics["test"]["n_lesion_exams"] == 2
    assert bundle.info.training["seeds"] == {"train": "0-3", "validation": "7", "test": "8-9"}
    kspace, logits = bundle.example()
    assert np.abs(TorchEngine(bundle.build(), {}).run(kspace) - logits).max() < 1e-4
    assert "Research use only" in (bundle.folder / "README.md").read_text()
    assert (bundle.folder / "evaluation-test.csv").read_text().startswith("seed,has_lesion,dice")


def test_the_bundle_of_patients_holds_no_patient_and_says_how_it_was_made(
    tmp_path: Path, exams: list[Exam], new_exam: Callable[..., Exam], new_experiment: MakeExperiment
) -> None:
    base = new_experiment(steps=2, validate_every=2)
    experiment = base.model_copy(update={"cohorts": {}, "folds": FoldConfig(fold=2, published=True)})
    acquired = [replace(exam, source="acquired") for exam in exams]
    fit(BreastTask(experiment, acquired, [new_exam(7)]), experiment.schedule, tmp_path / "run")
    scores = {"test": evaluate(acquired[:1], TorchEngine(load_best(experiment, tmp_path / "run"), {}), 2, 4, 3)}
    (tmp_path / "toy.toml").write_text("# the experiment\n")
    bundle = export(experiment, tmp_path / "toy.toml", tmp_path / "run", tmp_path / "toy-bundle", scores, acquired[0])
    kspace, _ = bundle.example()
    theirs = acquired[0].difference(2)
    assert kspace.shape == (1, 2, 2, *theirs.shape[1:])
    for z in range(len(theirs) - 1):
        assert abs(np.corrcoef(kspace[0, 0].ravel(), theirs.real[z : z + 2].ravel())[0, 1]) < 0.2
    card = (bundle.folder / "README.md").read_text()
    assert "simulated" not in card
    assert "Trained on patients, fold 2 of 5 (seed 123; validated on the test part, as published)." in card
    assert "the published split" in card


def test_clean_is_the_patch_before_lines_were_left_out(exams: list[Exam], new_experiment: MakeExperiment) -> None:
    experiment = new_experiment()
    experiment = experiment.model_copy(
        update={"augment": experiment.augment.model_copy(update={"lines": "wide", "lines_probability": 1.0})}
    )
    batch = PatchSampler(exams, experiment).batch(0)
    kept = batch["kspace"] != 0
    assert not kept.all()
    assert torch.equal(batch["kspace"][kept], batch["clean"][kept])
    assert (batch["clean"] != 0).float().mean() > 0.99


def test_reconstructions_from_fewer_spokes_are_drawn(exams: list[Exam], new_experiment: MakeExperiment) -> None:
    experiment = new_experiment(batch=6)
    augment = {"flip_axes": (), "shift_voxels": 0, "scale": 1.0, "phase": False, "variant_probability": 1.0}
    experiment = experiment.model_copy(update={"augment": experiment.augment.model_copy(update=augment)})
    thin = [replace(exam, variants={"radial-uniform-2": exam.difference(2) * 0 + 7}) for exam in exams]
    assert (PatchSampler(thin, experiment).batch(1)["kspace"][:, 0] == 7).all()
    assert (PatchSampler(exams, experiment).batch(1)["kspace"][:, 0] != 7).any()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("breast-magnitude", {"channels": [4, 6]}),
        ("breast-complex", {"channels": [4, 6]}),
        ("breast-native", {"channels": [4, 6]}),
        ("breast-native-per-class", {"channels": [4, 6]}),
        ("breast-hybrid", {"k_channels": [4, 6], "n_features": 2, "image_channels": [4, 6]}),
        ("breast-gate", {"n_features": 3, "hidden": 4, "image_channels": [4, 6]}),
        ("breast-reconstruct", {"n_blocks": 1, "width": 4, "channels": [4, 6]}),
    ],
)
def test_every_breast_network_trains_on_patches_with_and_without_lesions(
    tmp_path: Path,
    exams: list[Exam],
    new_exam: Callable[..., Exam],
    new_experiment: MakeExperiment,
    name: str,
    arguments: dict[str, Any],
) -> None:
    experiment = new_experiment(steps=8, validate_every=8, log_every=4, batch=1)
    network = experiment.network.model_copy(update={"architecture": name, "arguments": arguments})
    experiment = experiment.model_copy(update={"network": network})
    before = BreastTask(experiment, exams, [new_exam(7)]).network.state_dict()
    result = train(experiment, exams, [new_exam(7)], tmp_path)
    after = load_best(experiment, tmp_path).state_dict()
    assert result.steps == 8
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(before[key], after[key]) for key in before)
