"""Brain tissues from undersampled k-space (paper 004): slices, losses and validation as tasks for `fit`.

Networks that are pre-trained have several tasks, one after the other (`brain_losses.STEPS`). Every slice is drawn with
a pattern of lines and noise of its own; those of validation and test depend on the head alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import ConfigError
from ...models.fourier import channels_to_image
from ...models.frames import sampled
from ...models.linet import LINet
from ...models.registry import build
from ...recon.fourier import to_image
from ...segment.metrics import dice
from ...segment.volume import to_channels
from ...simulate.brain.scanner import LABELS
from ..fit import BEST, Picture, Task, Validation, load_weights
from .experiment import BrainExperiment, BrainSchedule
from .heads import HeadExam, draw_lines
from .losses import brain_losses, frozen_parts, one_hot, reconstructed, steps_of

N_PICTURES = 2
SLICES_AT_ONCE = 4

Batch = dict[str, Tensor]
Labels = NDArray[np.uint8]


class SliceSampler:
    """Random slices of random heads, each with a pattern of lines, a level of noise and noise of its own.

    Raises
    ------
    ConfigError : if there is no head.
    """

    def __init__(self, heads: Sequence[HeadExam], experiment: BrainExperiment, batch: int) -> None:
        if not heads:
            raise ConfigError("the training cohort has no head", hint="add seeds to cohorts.train")
        self._heads, self._experiment, self._batch = heads, experiment, batch
        rng = np.random.default_rng([experiment.seed, 2**31])
        n_lines = heads[0].samples.shape[1]
        self._patterns = [draw_lines(experiment, n_lines, rng) for _ in range(experiment.data.n_patterns)]

    def batch(self, number: int) -> Batch:
        """Float32 `kspace` and `full` ``(batch, 2, y, x)`` and int64 `labels` ``(batch, y, x)`` of a number."""
        rng = np.random.default_rng([self._experiment.seed, number])
        return to_batch([self._slice(rng) for _ in range(self._batch)])

    def _slice(self, rng: np.random.Generator) -> Slice:
        head = self._heads[int(rng.integers(len(self._heads)))]
        z = int(rng.integers(len(head.samples)))
        noise = float(rng.choice(self._experiment.data.noise))
        if self._patterns:
            lines = self._patterns[int(rng.integers(len(self._patterns)))]
        else:
            lines = draw_lines(self._experiment, head.samples.shape[1], rng)
        return Slice(*head.measured(z, lines, noise, rng), head.labels[z])


@dataclass(frozen=True)
class Slice:
    """Undersampled and fully sampled k-space ``(y, x)`` of one slice, and its truth."""

    under: NDArray[np.complex64]
    full: NDArray[np.complex64]
    labels: Labels


def to_batch(slices: Sequence[Slice]) -> Batch:
    """Slices as the losses take them (see `SliceSampler.batch`)."""
    under, full = (np.stack([getattr(s, name) for s in slices]) for name in ("under", "full"))
    labels = np.stack([s.labels for s in slices]).astype(np.int64)
    kspace, whole = (torch.from_numpy(to_channels(k).swapaxes(0, 1).copy()) for k in (under, full))
    return {"kspace": kspace, "full": whole, "labels": torch.from_numpy(labels)}


def measured_head(head: HeadExam, experiment: BrainExperiment, noise: float) -> list[Slice]:
    """All slices of a head of validation or test: one pattern of lines and noise that follow from the head's seed."""
    rng = np.random.default_rng([head.seed, 7])
    lines = draw_lines(experiment, head.samples.shape[1], rng)
    rng = np.random.default_rng([head.seed, 8, round(1e6 * noise)])
    return [Slice(*head.measured(z, lines, noise, rng), head.labels[z]) for z in range(len(head.samples))]


class BrainTask(Task[Batch]):
    """One training step of one network of the registry.

    The score is the mean Dice of CSF, grey and white matter over the validation heads, or of a reconstruction minus
    its mean squared error.

    Parameters
    ----------
    step : one of `steps_of` the network.
    before : weights of the step before.
    """

    def __init__(
        self,
        experiment: BrainExperiment,
        train: Sequence[HeadExam],
        validation: Sequence[HeadExam],
        step: str,
        schedule: BrainSchedule,
        before: Path | None = None,
    ) -> None:
        if not validation:
            raise ConfigError("the validation cohort has no head", hint="add seeds to cohorts.validation")
        self._experiment, self._validation, self._step = experiment, validation, step
        self._sampler = SliceSampler(train, experiment, schedule.batch)
        self._batch_size = schedule.batch
        self.name, self.seed = f"{experiment.name} {step}", experiment.seed
        torch.manual_seed(experiment.seed)
        self.network = _build(experiment)
        self._teacher: LINet | None = None
        if before is not None:
            load_weights(self.network, before)
            teacher = load_weights(_build(experiment), before)
            if isinstance(teacher, LINet) and step == "undersampled":
                self._teacher = teacher.eval()
        for part in frozen_parts(self.network, step):
            part.requires_grad_(False)

    def identity(self) -> str:
        settings = self._experiment.model_dump_json(exclude={"schedule", "pretraining"}, exclude_defaults=True)
        return f"{self._step} {self._batch_size} {settings}"

    def batch(self, number: int) -> Batch:
        return self._sampler.batch(number)

    def loss(self, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        if self._teacher is not None:
            self._teacher.to(batch["kspace"].device)
        return brain_losses(network, batch, self._step, self._experiment.loss, self._teacher)

    def validate(self, network: nn.Module) -> Validation:
        noise = self._experiment.data.noise
        if self._step == "reconstruction":
            errors = [
                _image_error(network, head, self._experiment, level) for head in self._validation for level in noise
            ]
            return Validation(-float(np.mean(errors)), {"mean_squared_error": float(np.mean(errors))})
        scores = score_heads(self._experiment, self._validation, network, self._step)
        return Validation(float(np.mean([score.mean for score in scores])), summarise(scores))

    def pictures(self, network: nn.Module) -> Mapping[str, Picture]:
        if self._step in ("reconstruction", "labels"):
            return {}
        shown = {}
        for head in self._validation[:N_PICTURES]:
            middle = measured_head(head, self._experiment, self._experiment.data.noise[0])[len(head.samples) // 2]
            predicted = predict(network, [middle], self._step)[0]
            shown[f"head-{head.seed}"] = side_by_side(middle, predicted)
        return shown


def _build(experiment: BrainExperiment) -> nn.Module:
    return build(experiment.network.architecture, experiment.network.arguments)


@torch.no_grad()
def predict(network: nn.Module, slices: Sequence[Slice], step: str = "undersampled") -> Labels:
    """Label maps ``(slices, y, x)`` where the network is; `step` says which of its inputs it sees."""
    device = next(network.parameters()).device
    made = []
    for start in range(0, len(slices), SLICES_AT_ONCE):
        batch = to_batch(slices[start : start + SLICES_AT_ONCE])
        if step == "labels" and isinstance(network, LINet):
            logits = network.autoencode(one_hot(batch["labels"], network).to(device))
        else:
            logits = network(batch["full" if step == "full" else "kspace"].to(device))
        made.append(logits.argmax(dim=1).to(torch.uint8).cpu().numpy())
    return np.concatenate(made)


@torch.no_grad()
def _image_error(network: nn.Module, head: HeadExam, experiment: BrainExperiment, noise: float) -> float:
    """Mean squared error of a network's reconstruction of a head, in the units of its input."""
    device = next(network.parameters()).device
    errors = []
    for one in measured_head(head, experiment, noise):
        batch = {name: tensor.to(device) for name, tensor in to_batch([one]).items()}
        image = reconstructed(network, batch["kspace"], sampled(batch["kspace"]))
        errors.append(float((image - channels_to_image(batch["full"])).square().mean()))
    return float(np.mean(errors))


@dataclass(frozen=True)
class HeadScore:
    """Dice of every class but the background of one head at one level of noise, over all its voxels."""

    seed: int
    noise: float
    dice: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the classes that the head has."""
        return float(np.nanmean(self.dice))


def score_heads(
    experiment: BrainExperiment,
    heads: Sequence[HeadExam],
    network: nn.Module,
    step: str = "undersampled",
    noise: Sequence[float] = (),
) -> list[HeadScore]:
    """Segment and score heads at some levels of noise (none named: every level of the experiment)."""
    scores = []
    for head in heads:
        for level in noise or experiment.data.noise:
            predicted = predict(network, measured_head(head, experiment, level), step)
            values = [
                dice((predicted == c).astype(np.uint8), (head.labels == c).astype(np.uint8))
                for c in range(1, len(LABELS.names))
            ]
            scores.append(HeadScore(head.seed, level, tuple(values)))
    return scores


def summarise(scores: Sequence[HeadScore]) -> dict[str, float]:
    """Mean Dice by class and level of noise, and over all."""
    summary = {"mean_dice": float(np.mean([score.mean for score in scores]))}
    levels = sorted({score.noise for score in scores})
    for noise in levels:
        rows = np.array([score.dice for score in scores if score.noise == noise])
        suffix = f"_noise_{100 * noise:g}" if len(levels) > 1 else ""
        for name, value in zip(LABELS.names[1:], np.nanmean(rows, axis=0), strict=True):
            summary[f"dice_{name}{suffix}"] = float(value)
    return summary


def to_csv(scores: Sequence[HeadScore]) -> str:
    """One line for each head and level of noise."""
    lines = ["head,noise," + ",".join(LABELS.names[1:]) + ",mean"]
    for score in scores:
        values = ",".join(f"{value:.4f}" for value in (*score.dice, score.mean))
        lines.append(f"{score.seed},{score.noise:g},{values}")
    return "\n".join(lines) + "\n"


def to_markdown(scores: Sequence[HeadScore]) -> str:
    """Mean over heads, one row for each level of noise, as in the paper's tables."""
    rows = ["| noise | heads | " + " | ".join(LABELS.names[1:]) + " | mean |", "|---|---|---|---|---|---|"]
    for noise in sorted({score.noise for score in scores}):
        chosen = [score for score in scores if score.noise == noise]
        values = [*np.nanmean([score.dice for score in chosen], axis=0), np.mean([score.mean for score in chosen])]
        rows.append(f"| {100 * noise:g} % | {len(chosen)} | " + " | ".join(f"{value:.4f}" for value in values) + " |")
    return "\n".join(rows) + "\n"


def side_by_side(one: Slice, predicted: Labels) -> Picture:
    """Zero-filled image, truth and prediction."""
    image = np.clip(np.abs(to_image(one.under)) * 200, 0, 255).astype(np.uint8)
    colours = np.array(LABELS.colours, np.uint8)
    return np.concatenate([np.repeat(image[..., None], 3, axis=-1), colours[one.labels], colours[predicted]], axis=1)


def best_weights(experiment: BrainExperiment, run: Path) -> Path:
    """The weights that a run ends with."""
    steps = steps_of(experiment.network.architecture)
    return run / BEST if len(steps) == 1 else run / steps[-1] / BEST


def load_best(experiment: BrainExperiment, run: Path) -> nn.Module:
    """The network of a run with its best weights, on the CPU, ready to predict.

    Raises
    ------
    ModelError : if the run has no validated weights, or those of another architecture.
    """
    return load_weights(_build(experiment), best_weights(experiment, run)).eval()
