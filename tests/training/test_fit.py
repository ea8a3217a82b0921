from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kstream.engines.torch_engine import TorchEngine
from kstream.errors import ConfigError, ModelError
from kstream.models.bundle import Bundle
from kstream.training import fit as fit_module
from kstream.training.data import Exam
from kstream.training.evaluate import evaluate
from kstream.training.experiment import Experiment, ScheduleConfig
from kstream.training.export import export
from kstream.training.fit import PatchSampler, fit, learning_rate, load_best

MakeExperiment = Callable[..., Experiment]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def test_fit_learns_the_toy_and_repeats_bit_for_bit(
    tmp_path: Path, exams: list[Exam], new_exam: Callable[..., Exam], new_experiment: MakeExperiment
) -> None:
    experiment = new_experiment(steps=90)
    first = fit(experiment, exams, [new_exam(7)], tmp_path / "a")
    second = fit(experiment, exams, [new_exam(7)], tmp_path / "b")
    history = losses(tmp_path / "a")
    assert history[-1] < 0.6 * history[0]
    assert first.best_dice == second.best_dice > 0.5
    a, b = load_file(first.weights), load_file(second.weights)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_killed_run_goes_on_to_the_same_weights(
    tmp_path: Path,
    exams: list[Exam],
    new_exam: Callable[..., Exam],
    new_experiment: MakeExperiment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment, validation = new_experiment(steps=24, validate_every=8), [new_exam(7)]
    fit(experiment, exams, validation, tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(record: dict[str, Any]) -> None:
        if record["step"] == 16 and "validation" in record:
            raise Killed

    with pytest.raises(Killed):
        fit(experiment, exams, validation, tmp_path / "cut", kill)
    fit(experiment, exams, validation, tmp_path / "cut")
    whole = torch.load(tmp_path / "whole" / fit_module.LAST, weights_only=True)
    cut = torch.load(tmp_path / "cut" / fit_module.LAST, weights_only=True)
    assert whole["counters"] == cut["counters"]
    assert all(torch.equal(whole["network"][key], cut["network"][key]) for key in whole["network"])


def test_a_folder_with_another_experiment_is_refused(
    tmp_path: Path, exams: list[Exam], new_exam: Callable[..., Exam], new_experiment: MakeExperiment
) -> None:
    fit(new_experiment(steps=1), exams, [new_exam(7)], tmp_path)
    with pytest.raises(ModelError, match="another experiment"):
        fit(new_experiment(steps=2), exams, [new_exam(7)], tmp_path)


def test_cohorts_without_lesions_are_refused_before_training(
    tmp_path: Path, exams: list[Exam], new_exam: Callable[..., Exam], new_experiment: MakeExperiment
) -> None:
    healthy = [new_exam(1, has_lesion=False)]
    with pytest.raises(ConfigError, match="training cohort"):
        fit(new_experiment(), healthy, exams, tmp_path)
    with pytest.raises(ConfigError, match="validation cohort"):
        fit(new_experiment(), exams, healthy, tmp_path)


def test_half_of_the_patches_hold_a_lesion(exams: list[Exam], new_experiment: MakeExperiment) -> None:
    sampler = PatchSampler(exams, new_experiment(batch=50))
    _, labels = sampler.batch(3)
    assert labels.flatten(1).any(dim=1).float().mean() == pytest.approx(0.5, abs=0.2)
    assert labels.shape == (50, 4, 14, 18)


def test_a_batch_depends_on_the_step_alone(exams: list[Exam], new_experiment: MakeExperiment) -> None:
    sampler = PatchSampler(exams, new_experiment())
    first, later, again = sampler.batch(2), sampler.batch(3), sampler.batch(2)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], later[0])


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
    fit(experiment, exams, [new_exam(7)], tmp_path / "run")
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
