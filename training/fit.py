"""The one training loop: any `Task`, on one processor or several, that goes on where it was killed.

Read `Task` for what a recipe must give, then `fit` for what happens to it. Every random choice follows from the
seed and the number of the batch: no state of a random generator needs to be kept, so a run that is killed goes on
from ``last.pt`` to the same weights as one that was not, and a run on four processors draws the batches of a run on
one. A recipe of several steps (pre-training, then fine-tuning) is a sequence of tasks (`fit_stages`).

Arithmetic is float32 by default; bfloat16 is for GPUs only. With torch 2.13 on CPUs that have AVX-512 BF16, the weight
gradient of a bfloat16 ``Conv3d`` on shallow inputs (32 channels, 2 x 32 x 32) is uninitialised memory.

Why not a framework: see docs/decisions/0009-training-loop.md.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import ConfigError, ModelError
from .distributed import World
from .schedule import Schedule, learning_rate

BEST, LAST, METRICS, PICTURES = "best.safetensors", "last.pt", "metrics.jsonl", "pictures"

Batch = TypeVar("Batch")
Record = dict[str, Any]
Report = Callable[[Record], None]
Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Validation:
    """How good a network is: one score to maximise (NaN never wins), and whatever else is worth a line in the log."""

    score: float
    metrics: Mapping[str, Any] = field(default_factory=dict)


class Task(ABC, Generic[Batch]):
    """One thing to learn.

    Attributes
    ----------
    name : short, for logs.
    network : what is trained and saved; several networks go into one `nn.ModuleDict`. Build it after
        ``torch.manual_seed(seed)``, so that equal seeds begin with equal weights.
    seed : decides, with the number of the batch, every random choice.
    """

    name: str
    network: nn.Module
    seed: int

    @abstractmethod
    def identity(self) -> str:
        """Everything that decides the weights besides the schedule, as canonical text; runs of another are refused."""

    @abstractmethod
    def batch(self, number: int) -> Batch:
        """The batch of this number, on the CPU: tensors in tuples, lists, dictionaries; depends on (seed, number)."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: Batch) -> Tensor | Mapping[str, Tensor]:
        """The loss of a batch on the network's device; or its parts by name, whose sum is minimised."""

    @abstractmethod
    def validate(self, network: nn.Module) -> Validation:
        """Judge the network, which is in evaluation mode and must stay on its device."""

    def parameter_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """Groups of parameters for the optimiser; `lr_scale` multiplies the learning rate of a group.

        Parameters with ``requires_grad = False`` may be left out. Other keys are the optimiser's own.
        """
        return [{"params": [p for p in network.parameters() if p.requires_grad]}]

    def pictures(self, network: nn.Module) -> Mapping[str, Picture]:
        """Examples to look at, uint8 ``(rows, columns, 3)`` by name; they are kept beside each validation."""
        return {}


@dataclass(frozen=True)
class Result:
    """What a run gave: the weights of its best validation."""

    weights: Path
    best_step: int
    best_score: float
    steps: int


def fit(
    task: Task[Any],
    schedule: Schedule,
    folder: Path,
    report: Report = lambda record: None,
    device: str = "cpu",
    world: World | None = None,
    origin: str = "",
) -> Result:
    """Train a task; go on where a killed run stopped.

    1. Each step sums the gradients of `schedule.batches_per_step` batches (shared out among the processes of
       `world`), clips their norm, and moves the weights (AdamW or Adam; see `schedule.learning_rate`).
    2. Every `validate_every` steps and at the end: validate, keep the weights with the highest score (the first of
       equals), save the run; stop early after `patience` validations without a better one.

    Leaves in `folder`: ``best.safetensors``, ``last.pt`` (for going on), ``metrics.jsonl`` (one record for each logged
    step and each validation; `report` sees them too) and ``pictures/``. `origin` names the weights that the task began
    with, such as their hash: a run that began with others is not gone on with.

    Raises
    ------
    ConfigError : a device, precision or number of batches that cannot be had.
    ModelError : a ``last.pt`` of another task or schedule, or a loss that is not finite.
    """
    world = world or World()
    run = _Run(task, schedule, folder, device, world, origin)
    log = _Log(folder / METRICS, run.step, report if world.is_first else lambda record: None, world.is_first)
    losses: list[dict[str, float]] = []
    begin = time.perf_counter()
    while run.step < schedule.steps and not run.is_stale:
        losses.append(run.train_step())
        is_last = run.step == schedule.steps
        if run.step % schedule.log_every == 0 or is_last:
            seconds = (time.perf_counter() - begin) / len(losses)
            log.write(step=run.step, **_means(losses), learning_rate=run.rate, seconds_per_step=seconds)
            losses, begin = [], time.perf_counter()
        if run.step % schedule.validate_every == 0 or is_last:
            log.write(step=run.step, validation=run.validate())
            begin = time.perf_counter()
        elif schedule.save_every and run.step % schedule.save_every == 0:
            run.save()
    return Result(folder / BEST, run.best_step, run.best_score, run.step)


@dataclass(frozen=True)
class Stage:
    """One step of a recipe: `make` gets the best weights of the stage before (None for the first) and gives a task."""

    name: str
    make: Callable[[Path | None], Task[Any]]
    schedule: Schedule


def fit_stages(
    stages: Sequence[Stage],
    folder: Path,
    report: Report = lambda record: None,
    device: str = "cpu",
    world: World | None = None,
) -> Result:
    """Train stage after stage, each in a folder of its own name; stages that are done are passed over on going on.

    Raises
    ------
    ConfigError : if there is no stage. Else as `fit`.
    """
    if not stages:
        raise ConfigError("a recipe needs at least one stage")
    world = world or World()
    weights: Path | None = None
    for stage in stages:
        world.wait()  # until the first process has written the weights of the stage before

        def named(record: Record, name: str = stage.name) -> None:
            report({"stage": name, **record})

        task = stage.make(weights)
        result = fit(task, stage.schedule, folder / stage.name, named, device, world, _hash(weights))
        weights = result.weights
    return result


def _hash(weights: Path | None) -> str:
    """What a stage began from, as part of its identity; empty for the first."""
    return "" if weights is None else hashlib.sha256(weights.read_bytes()).hexdigest()


def load_weights(network: nn.Module, path: Path) -> nn.Module:
    """Put the weights of a file into a network.

    Raises
    ------
    ModelError : if the file is missing, damaged, or belongs to another architecture.
    """
    if not path.is_file():
        raise ModelError("this run has no weights yet", where=str(path), hint="kstream train EXPERIMENT.toml")
    try:
        network.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        raise ModelError(
            "these weights belong to another architecture, or are damaged",
            where=str(path),
            likely=str(error).splitlines()[-1].strip(),
            hint="compare the network of the experiment with the one that was trained",
        ) from error
    return network


def store_channels_last(network: nn.Module) -> None:
    """Keep 3-D convolution weights channels last: a step of the demo's network takes 0.7 of its time on two cores."""
    for parameter in network.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)


class _Run:
    """Network, optimiser and counters of one run: all that ``last.pt`` holds."""

    def __init__(
        self, task: Task[Any], schedule: Schedule, folder: Path, device: str, world: World, origin: str
    ) -> None:
        self._origin = origin
        self._task, self._schedule, self._folder, self._world = task, schedule, folder, world
        self._device = _device(device, world)
        self._autocast = _autocast(schedule.precision, self._device)
        self._share = world.share(schedule.batches_per_step)
        self._network = task.network.to(self._device)
        groups = task.parameter_groups(self._network)
        self._scales = [group.pop("lr_scale", 1.0) for group in groups]
        optimiser = torch.optim.AdamW if schedule.optimiser == "adamw" else torch.optim.Adam
        self._optimiser = optimiser(groups, lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
        self._trained = [p for group in self._optimiser.param_groups for p in group["params"]]
        self.step, self.best_step, self.best_score, self.rate = 0, 0, -math.inf, schedule.learning_rate
        self._n_worse = 0
        if world.is_first:
            folder.mkdir(parents=True, exist_ok=True)
        world.wait()
        if (folder / LAST).is_file():
            self._restore()
        world.same_weights(self._network)

    @property
    def is_stale(self) -> bool:
        """True when early stopping ends the run."""
        return 0 < self._schedule.patience <= self._n_worse

    def train_step(self) -> dict[str, float]:
        """One optimiser step; gives the loss and its parts."""
        self.rate = learning_rate(self.step, self._schedule)
        for group, scale in zip(self._optimiser.param_groups, self._scales, strict=True):
            group["lr"] = self.rate * scale
        self._network.train()
        self._optimiser.zero_grad(set_to_none=True)
        parts: list[dict[str, float]] = []
        for index in self._share:
            number = self.step * self._schedule.batches_per_step + index
            torch.manual_seed((self._task.seed * 1_000_003 + number) % 2**63)  # dropout and the like
            parts.append(self._backward(number))
        self._world.average_gradients(self._trained)
        nn.utils.clip_grad_norm_(self._trained, self._schedule.clip_norm)
        self._optimiser.step()
        self.step += 1
        return self._world.mean(_means(parts))

    def _backward(self, number: int) -> dict[str, float]:
        batch = to_device(self._task.batch(number), self._device)
        with self._autocast():
            given = self._task.loss(self._network, batch)
        parts = {} if isinstance(given, Tensor) else dict(given)
        total = given if isinstance(given, Tensor) else torch.stack(list(parts.values())).sum()
        values = {"loss": float(total.detach()), **{name: float(part.detach()) for name, part in parts.items()}}
        if not math.isfinite(values["loss"]):
            raise ModelError(
                f"the loss of batch {number} (step {self.step}) is {values['loss']}",
                where=str(self._folder),
                likely="a learning rate that is too high, or data that are not finite",
                hint="a lower schedule.learning_rate, or more schedule.warmup_steps",
            )
        torch.autograd.backward(total / len(self._share))
        return values

    def validate(self) -> dict[str, Any]:
        """Judge the network (the first process does), keep the weights if they are the best so far, save the run."""
        judged: Validation | None = None
        if self._world.is_first:
            self._network.eval()
            with torch.no_grad():
                judged = self._task.validate(self._network)
                self._draw(self._task.pictures(self._network))
        validation: Validation = self._world.from_first(judged)
        if validation.score > self.best_score:
            self.best_step, self.best_score, self._n_worse = self.step, validation.score, 0
            if self._world.is_first:
                save_weights(self._network, self._folder / BEST)
        else:
            self._n_worse += 1
        self.save()
        return {"score": validation.score, **validation.metrics}

    def _draw(self, pictures: Mapping[str, Picture]) -> None:
        from PIL import Image

        for name, picture in pictures.items():
            path = self._folder / PICTURES / f"{name}-step{self.step:07d}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(picture).save(path)

    def save(self) -> None:
        """Write ``last.pt``; an interrupted write leaves the one before."""
        if not self._world.is_first:
            return
        unfinished = self._folder / f"{LAST}.part"
        torch.save(
            {
                "identity": self._identity,
                "network": self._network.state_dict(),
                "optimiser": self._optimiser.state_dict(),
                "counters": (self.step, self.best_step, self.best_score, self._n_worse),
            },
            unfinished,
        )
        unfinished.replace(self._folder / LAST)

    @property
    def _identity(self) -> str:
        settings = self._schedule.model_dump_json(exclude={"log_every", "save_every"})
        return "\n".join([self._task.identity(), settings, *([self._origin] if self._origin else [])])

    def _restore(self) -> None:
        saved = torch.load(self._folder / LAST, weights_only=True, map_location=self._device)
        if saved.get("identity") != self._identity:
            raise ModelError(
                "this folder holds a run of another experiment",
                where=str(self._folder / LAST),
                likely="the experiment file, or the stage before, changed since the run began",
                hint="choose another folder, or delete this one to begin again",
            )
        self._network.load_state_dict(saved["network"])
        self._optimiser.load_state_dict(saved["optimiser"])
        self.step, self.best_step, self.best_score, self._n_worse = saved["counters"]


class _Log:
    """``metrics.jsonl``: records of steps that a killed run will take again are dropped first."""

    def __init__(self, path: Path, step: int, report: Report, writes: bool) -> None:
        self._path, self._report, self._writes = path, report, writes
        if writes and path.is_file():
            lines = path.read_text("utf-8").splitlines()
            path.write_text("".join(f"{line}\n" for line in lines if _step_of(line) <= step), encoding="utf-8")

    def write(self, **values: Any) -> None:
        if self._writes:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        self._report(values)


def _step_of(line: str) -> float:
    """Step of a record; a line that a kill cut short belongs to no step that is kept."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def save_weights(network: nn.Module, path: Path) -> None:
    """Write a network's weights as safetensors; an interrupted write leaves the file before."""
    unfinished = path.with_suffix(".part")
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, unfinished)
    unfinished.replace(path)


def to_device(values: Any, device: torch.device) -> Any:
    """Tensors in tuples, lists and dictionaries, moved to a device; anything else is left as it is."""
    if isinstance(values, Tensor):
        return values.to(device, non_blocking=True)
    if isinstance(values, Mapping):
        return {key: to_device(value, device) for key, value in values.items()}
    if isinstance(values, tuple | list):
        return type(values)(to_device(value, device) for value in values)
    return values


def _means(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means by name, each over the records that have it: some parts of a loss are for some batches only."""
    names = dict.fromkeys(name for record in records for name in record)
    return {name: float(np.mean([record[name] for record in records if name in record])) for name in names}


def _device(name: str, world: World) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and world.size > 1:
        name = f"cuda:{world.local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}", hint="auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r} is not available", likely="no GPU here, or a CPU build of torch")
    return device


def _autocast(precision: str, device: torch.device) -> Callable[[], torch.autocast]:
    """Arithmetic of the forward pass.

    Raises
    ------
    ConfigError : for bfloat16 on a CPU, whose gradients cannot be trusted (see the top of this file).
    """
    if precision == "bf16" and device.type == "cpu":
        raise ConfigError(
            "training in bf16 needs a GPU",
            where="schedule.precision",
            likely="on CPUs the bfloat16 gradient of shallow 3-D convolutions is wrong",
            hint="schedule.precision = 'auto' takes bf16 on a GPU and fp32 elsewhere",
        )
    is_bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())
    return lambda: torch.autocast(device.type, torch.bfloat16, enabled=is_bf16)
