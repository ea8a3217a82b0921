"""Training: one loop, whose every random choice follows from the experiment's seed and the step number.

`fit` is plain PyTorch. A step's patches depend on (seed, step) alone and the learning rate on the step alone, so a run
that is killed goes on from ``last.pt`` to the same weights as one that was not.

Arithmetic is float32: with torch 2.13 on CPUs that have AVX-512 BF16, the weight gradient of a bfloat16 ``Conv3d`` on
shallow inputs (32 channels, 2 x 32 x 32) is uninitialised memory, and the bottom of these networks is such an input.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..engines.torch_engine import TorchEngine
from ..errors import ConfigError, ModelError
from ..models.registry import build
from ..segment.patches import cut_patch
from ..segment.volume import to_channels
from .augment import augment
from .data import Exam
from .evaluate import Summary, evaluate, summarise
from .experiment import Experiment, ScheduleConfig
from .losses import segmentation_loss

BEST, LAST, METRICS = "best.safetensors", "last.pt", "metrics.jsonl"

Record = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What a run gave: its best step by validation Dice."""

    weights: Path
    best_step: int
    best_dice: float


class PatchSampler:
    """Random patches of which a given share holds a lesion (paper 000: half of them).

    A patch with a lesion is drawn exam first, so that large lesions do not crowd out small ones.

    Raises
    ------
    ConfigError : if there are no exams, or patches with a lesion are asked for and no exam has one.
    """

    def __init__(self, exams: Sequence[Exam], experiment: Experiment) -> None:
        self._exams, self._experiment = exams, experiment
        depth = experiment.network.patch_depth
        self._positive = [_starts(exam, depth, with_lesion=True) for exam in exams]
        self._negative = [_starts(exam, depth, with_lesion=False) for exam in exams]
        share = experiment.schedule.positive_probability
        if not exams or (share > 0 and not any(map(len, self._positive))):
            raise ConfigError("the training cohort has no exam with a lesion", hint="add seeds to cohorts.train")

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Float32 ``(batch, 2, z, y, x)`` and int64 labels ``(batch, z, y, x)`` of a step."""
        rng = np.random.default_rng([self._experiment.seed, step])
        pairs = [self._patch(rng) for _ in range(self._experiment.schedule.batch)]
        inputs = torch.from_numpy(np.stack([to_channels(kspace) for kspace, _ in pairs]))
        return inputs, torch.from_numpy(np.stack([labels for _, labels in pairs]).astype(np.int64))

    def _patch(self, rng: np.random.Generator) -> tuple[NDArray[np.complex64], NDArray[np.uint8]]:
        config = self._experiment
        depth = config.network.patch_depth
        wants_lesion = rng.random() < config.schedule.positive_probability
        starts = self._positive if wants_lesion or not any(map(len, self._negative)) else self._negative
        index = int(rng.choice([i for i, choice in enumerate(starts) if len(choice)]))
        start = int(rng.choice(starts[index]))
        exam, frame = self._exams[index], config.data.frame
        if rng.random() < config.augment.other_frame_probability:
            frame = int(rng.choice(exam.frames))
        kspace = cut_patch(exam.difference(frame), start, depth)
        return augment(kspace, cut_patch(exam.labels, start, depth), config.augment, rng)


def _starts(exam: Exam, depth: int, with_lesion: bool) -> NDArray[np.int64]:
    """First slices of all patches that hold a lesion voxel, or of all that hold none."""
    marked = exam.labels.reshape(len(exam.labels), -1).max(axis=1) > 0
    n_starts = max(len(marked) - depth + 1, 1)
    return np.array([s for s in range(n_starts) if marked[s : s + depth].any() == with_lesion], np.int64)


def learning_rate(step: int, schedule: ScheduleConfig) -> float:
    """Linear warm-up, then half a cosine down to the final rate."""
    if step < schedule.warmup_steps:
        return schedule.learning_rate * (step + 1) / schedule.warmup_steps
    progress = (step - schedule.warmup_steps) / max(schedule.steps - schedule.warmup_steps, 1)
    span = schedule.learning_rate - schedule.final_learning_rate
    return schedule.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * progress))


def fit(
    experiment: Experiment,
    train: Sequence[Exam],
    validation: Sequence[Exam],
    folder: Path,
    report: Callable[[Record], None] = lambda record: None,
) -> Result:
    """Train a network; go on where a killed run stopped.

    1. AdamW on batches of augmented patches, cosine learning rate, gradient norm clipped.
    2. Every `validate_every` steps and at the end: segment the validation exams, keep the weights with the best mean
       lesion Dice (the first of equals).

    Leaves in `folder`: ``best.safetensors``, ``last.pt`` (for going on) and ``metrics.jsonl`` (one record per logged
    step and per validation; `report` sees each too).

    Raises
    ------
    ConfigError : if the training cohort has no lesion, or no validation exam has one.
    ModelError : for an unknown network, or a ``last.pt`` of another experiment.
    """
    if not any(exam.has_lesion for exam in validation):
        raise ConfigError("the validation cohort has no exam with a lesion", hint="add seeds to cohorts.validation")
    sampler = PatchSampler(train, experiment)
    torch.manual_seed(experiment.seed)
    run = _Run(experiment, folder)
    with (folder / METRICS).open("a", encoding="utf-8") as log:

        def record(**values: Any) -> None:
            log.write(json.dumps(values) + "\n")
            log.flush()
            report(values)

        schedule = experiment.schedule
        losses: list[float] = []
        begin = time.perf_counter()
        for step in range(run.step, schedule.steps):
            losses.append(run.train_step(*sampler.batch(step)))
            if run.step % schedule.log_every == 0 or run.step == schedule.steps:
                seconds = (time.perf_counter() - begin) / len(losses)
                record(step=run.step, loss=float(np.mean(losses)), seconds_per_step=seconds)
                losses, begin = [], time.perf_counter()
            if run.step % schedule.validate_every == 0 or run.step == schedule.steps:
                record(step=run.step, validation=asdict(run.validate(validation)))
                begin = time.perf_counter()
    return Result(folder / BEST, run.best_step, run.best_dice)


class _Run:
    """Network, optimiser and counters of one run: all that ``last.pt`` holds."""

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        self._experiment, self._folder = experiment, folder
        schedule = experiment.schedule
        self._network: nn.Module = build(experiment.network.architecture, experiment.network.arguments)
        _store_channels_last(self._network)
        self._optimiser = torch.optim.AdamW(self._network.parameters(), weight_decay=schedule.weight_decay)
        self.step, self.best_step, self.best_dice = 0, 0, -1.0
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / LAST).is_file():
            self._restore()

    def train_step(self, inputs: Tensor, labels: Tensor) -> float:
        """One optimiser step; gives the loss."""
        schedule = self._experiment.schedule
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate(self.step, schedule)
        self._network.train()
        loss = segmentation_loss(self._network(inputs), labels, self._experiment.loss)
        self._optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self._network.parameters(), schedule.clip_norm)
        self._optimiser.step()
        self.step += 1
        return float(loss.detach())

    def validate(self, exams: Sequence[Exam]) -> Summary:
        """Score the validation exams, keep the weights if they are the best so far, and save the run."""
        config = self._experiment
        engine = TorchEngine(self._network, {})
        patch = config.network
        summary = summarise(evaluate(exams, engine, config.data.frame, patch.patch_depth, patch.patch_stride))
        if summary.mean_dice > self.best_dice:
            self.best_step, self.best_dice = self.step, summary.mean_dice
            state = {key: value.contiguous() for key, value in self._network.state_dict().items()}
            save_file(state, self._folder / BEST)
        self._save()
        return summary

    def _save(self) -> None:
        unfinished = self._folder / f"{LAST}.part"
        torch.save(
            {
                "experiment": self._experiment.model_dump_json(),
                "network": self._network.state_dict(),
                "optimiser": self._optimiser.state_dict(),
                "counters": (self.step, self.best_step, self.best_dice),
            },
            unfinished,
        )
        unfinished.replace(self._folder / LAST)

    def _restore(self) -> None:
        saved = torch.load(self._folder / LAST, weights_only=True)
        if saved["experiment"] != self._experiment.model_dump_json():
            raise ModelError(
                "this folder holds a run of another experiment",
                where=str(self._folder / LAST),
                likely="the experiment file changed since the run began",
                hint="choose another folder, or delete this one to begin again",
            )
        self._network.load_state_dict(saved["network"])
        self._optimiser.load_state_dict(saved["optimiser"])
        self.step, self.best_step, self.best_dice = saved["counters"]


def _store_channels_last(network: nn.Module) -> None:
    """Keep convolution weights channels last: a step of the demo's network takes 0.7 of its time on two cores."""
    for parameter in network.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)


def load_best(experiment: Experiment, folder: Path) -> nn.Module:
    """The network of a run with its best weights.

    Raises
    ------
    ModelError : if the run has no validated weights.
    """
    path = folder / BEST
    if not path.is_file():
        raise ModelError(
            "this run has no weights yet", where=str(path), hint="python -m kstream.training train EXPERIMENT"
        )
    network = build(experiment.network.architecture, experiment.network.arguments)
    network.load_state_dict(load_file(path))
    return network
