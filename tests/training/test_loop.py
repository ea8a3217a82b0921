from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from kstream.errors import ConfigError, ModelError
from kstream.training.distributed import World, joined
from kstream.training.fit import BEST, LAST, Stage, Validation, fit, fit_stages, load_weights, to_device
from kstream.training.logs import Reports, scalars, tensorboard_report
from kstream.training.schedule import learning_rate

from .toy import WEIGHTS, Line, schedule

TOY = Path(__file__).parent / "toy.py"


def state(folder: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(folder / LAST, weights_only=True)
    return saved


def steps(folder: Path) -> list[int]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["step"] for record in records if "loss" in record]


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_processes_wait_for_days_until_the_first_has_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def begin(backend: str, **options: Any) -> None:
        given.update(options, backend=backend)
        raise ConnectionError

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "init_process_group", begin)
    with pytest.raises(ConnectionError), joined("cpu"):
        pass
    assert given == {"backend": "gloo", "timeout": timedelta(days=7)}


def test_a_run_that_is_killed_goes_on_to_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fit(Line(), schedule(steps=57), whole)
    command = [sys.executable, str(TOY), str(cut), "57"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 26:
                process.kill()  # SIGKILL: nothing is flushed, nothing is saved
                break
    assert process.returncode == -9
    assert state(cut)["counters"][0] in (20, 30)
    result = fit(Line(), schedule(steps=57), cut)
    assert same(state(cut)["network"], state(whole)["network"])
    assert state(cut)["counters"] == state(whole)["counters"]
    assert steps(cut) == steps(whole) == list(range(1, 58))
    assert result.steps == 57


def test_two_processes_end_with_the_weights_of_one(tmp_path: Path) -> None:
    fit(Line(), schedule(steps=12, batches_per_step=4), tmp_path / "one")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, str(TOY), str(tmp_path / "two"), "12", "4"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / "two" / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert same(first, second)
    one = state(tmp_path / "one")["network"]
    assert all(torch.allclose(first[key], one[key], atol=1e-6) for key in one)
    assert steps(tmp_path / "two") == list(range(1, 13))
    threads = [(tmp_path / "two" / f"rank-{rank}.threads").read_text() for rank in (0, 1)]
    assert not any("gloo" in each for each in threads), "threads of the group outlive it"


def test_fit_finds_the_weights_and_keeps_the_best(tmp_path: Path) -> None:
    result = fit(Line(), schedule(steps=400), tmp_path)
    network = load_weights(Line().network, tmp_path / BEST)
    assert isinstance(network[1], nn.Linear)
    assert (network[1].weight[0] - WEIGHTS).abs().max() < 0.35  # dropout shrinks it
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = [record["validation"]["score"] for record in records if "validation" in record]
    assert result.best_score == max(scores)
    assert result.best_step == 10 * (1 + scores.index(max(scores)))
    assert records[0].keys() == {"step", "loss", "square", "size", "learning_rate", "seconds_per_step"}
    assert records[0]["loss"] == pytest.approx(records[0]["square"] + records[0]["size"])


def test_batches_of_a_step_are_averaged(tmp_path: Path) -> None:
    class Noted(Line):
        def __init__(self) -> None:
            super().__init__()
            self.numbers: list[int] = []

        def batch(self, number: int) -> dict[str, Tensor]:
            self.numbers.append(number)
            return super().batch(number)

        def validate(self, network: nn.Module) -> Validation:
            return Validation(0.0)

    task = Noted()
    fit(task, schedule(steps=2, batches_per_step=3), tmp_path)
    assert task.numbers == [0, 1, 2, 3, 4, 5]
    assert World(1, 2).share(4) == range(1, 4, 2)
    with pytest.raises(ConfigError, match="3 batches per step cannot be shared out"):
        World(0, 2).share(3)


def test_parts_that_some_batches_lack_are_averaged_over_the_others(tmp_path: Path) -> None:
    class Sometimes(Line):
        def loss(self, network: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            parts = super().loss(network, batch)
            return parts if batch["x"][0, 0] > 0 else {"square": parts["square"]}

    fit(Sometimes(), schedule(steps=20, log_every=10, batches_per_step=2), tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all("size" in record and "square" in record for record in records if "loss" in record)


def test_training_stops_early_when_nothing_gets_better(tmp_path: Path) -> None:
    class Flat(Line):
        def validate(self, network: nn.Module) -> Validation:
            return Validation(math.nan if self.seed else 0.5)

    result = fit(Flat(), schedule(steps=400, patience=3), tmp_path / "nan")
    assert (result.steps, result.best_step) == (30, 0)
    task = Flat()
    task.seed = 0
    result = fit(task, schedule(steps=400, patience=3), tmp_path / "flat")
    assert (result.steps, result.best_step) == (40, 10)
    again = fit(task, schedule(steps=400, patience=3), tmp_path / "flat")
    assert again.steps == 40


def test_stages_hand_on_their_best_weights_and_are_not_repeated(tmp_path: Path) -> None:
    given: list[Path | None] = []

    class Second(Line):
        def parameter_groups(self, network: nn.Module) -> list[dict[str, Any]]:
            first, *rest = network.parameters()
            return [{"params": [first], "lr_scale": 0.0}, {"params": rest, "weight_decay": 0.0}]

    def second(weights: Path | None) -> Line:
        given.append(weights)
        task = Second()
        if weights is not None:
            load_weights(task.network, weights)
        return task

    stages = [Stage("pretrain", lambda _: Line(), schedule(steps=20)), Stage("main", second, schedule(steps=20))]
    records: list[dict[str, Any]] = []
    result = fit_stages(stages, tmp_path, records.append)
    assert given == [tmp_path / "pretrain" / BEST]
    assert result.weights == tmp_path / "main" / BEST
    assert {record["stage"] for record in records} == {"pretrain", "main"}
    before = load_weights(Line().network, tmp_path / "pretrain" / BEST).state_dict()
    after = state(tmp_path / "main")["network"]
    assert torch.equal(before["1.weight"], after["1.weight"])
    assert not torch.equal(before["1.bias"], after["1.bias"])
    fit_stages(stages, tmp_path, records.append)
    assert len(records) == 2 * 22
    with pytest.raises(ConfigError, match="at least one stage"):
        fit_stages([], tmp_path)


def test_a_run_of_something_else_is_refused(tmp_path: Path) -> None:
    fit(Line(), schedule(steps=2), tmp_path)
    for task, settings in ((Line(seed=4), schedule(steps=2)), (Line(), schedule(steps=2, clip_norm=2.0))):
        with pytest.raises(ModelError, match="another experiment"):
            fit(task, settings, tmp_path)
    fit(Line(), schedule(steps=2, log_every=7), tmp_path)


def test_a_loss_that_is_not_finite_ends_the_run_with_its_batch(tmp_path: Path) -> None:
    class Broken(Line):
        def batch(self, number: int) -> dict[str, Tensor]:
            batch = super().batch(number)
            return batch if number < 5 else {**batch, "y": batch["y"] * math.nan}

    with pytest.raises(ModelError, match=r"loss of batch 5 \(step 5\) is nan"):
        fit(Broken(), schedule(), tmp_path)


def test_pictures_are_kept_with_their_step(tmp_path: Path) -> None:
    fit(Line(), schedule(steps=20), tmp_path)
    files = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert files == ["grey-step0000010.png", "grey-step0000020.png"]
    assert np.asarray(Image.open(tmp_path / "pictures" / files[0])).shape == (3, 5, 3)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    fit(Line(), schedule(steps=2), tmp_path)
    with pytest.raises(ModelError, match="another architecture"):
        load_weights(nn.Linear(3, 2), tmp_path / BEST)
    with pytest.raises(ModelError, match="no weights yet"):
        load_weights(nn.Linear(3, 2), tmp_path / "nothing")


def test_devices_and_precisions_that_cannot_be_had_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown device"):
        fit(Line(), schedule(), tmp_path, device="abacus")
    with pytest.raises(ConfigError, match="bf16 needs a GPU"):
        fit(Line(), schedule(precision="bf16"), tmp_path)
    fit(Line(), schedule(steps=1, precision="auto"), tmp_path)


def test_learning_rate_falls_in_steps_or_stays() -> None:
    falling = schedule(decay="step", decay_every=20, decay_factor=0.5, learning_rate=0.1)
    assert [learning_rate(step, falling) for step in (0, 19, 20, 45)] == [0.1, 0.1, 0.05, 0.025]
    flat = schedule(decay="constant", learning_rate=0.1, warmup_steps=2)
    assert [learning_rate(step, flat) for step in (0, 1, 30)] == [0.05, 0.1, 0.1]


def test_tensors_move_wherever_they_hide() -> None:
    moved = to_device({"a": [torch.ones(2)], "b": (torch.ones(1), "text")}, torch.device("meta"))
    assert moved["a"][0].is_meta
    assert moved["b"][0].is_meta
    assert moved["b"][1] == "text"


def test_reports_flatten_and_reach_everyone() -> None:
    seen: list[dict[str, float]] = []
    reports = Reports([lambda record: seen.append(scalars(record))])
    reports.add(lambda record: seen.append({}))
    reports({"step": 3, "stage": "main", "validation": {"score": 0.5, "worst": "exam 3"}})
    assert seen == [{"main/validation/score": 0.5}, {}]


def test_tensorboard_is_an_extra(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(ConfigError, match="TensorBoard is not installed"):
            tensorboard_report(tmp_path)
    else:
        tensorboard_report(tmp_path)({"step": 1, "loss": 0.5})
        assert list(tmp_path.glob("events.out*"))
