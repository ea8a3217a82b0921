"""Tasks of single slices (paper 001): DiSK, its baselines on zero-filled images, and controls of the location prior.

DiSK takes one view. The others take as many as the subjects have, each of them by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ...models.linet import LINet
from ...segment.points import frame_queries, real_values, sample_coordinates
from ...segment.scaling import scaled_samples
from ...simulate.heart.lines import Lines
from ...types import Complex, Float
from ..fit import load_weights
from .data import Subject, noisy_kspace
from .experiment import HeartExperiment
from .judge import Answers
from .losses import disk_loss, soft_dice_loss
from .tasks import Batch, HeartTask


def slice_points(kspace: Complex, lines: Lines) -> tuple[Float, Float]:
    """DiSK's tokens: coordinates ``(n, 3)`` and values ``(n, 2)`` of the sampled lines of ``(frames, y, x)``."""
    n_frames, ny, nx = kspace.shape
    coordinates, values = [], []
    for frame, line in np.argwhere(lines):
        k = np.zeros((nx, 3), np.float32)
        k[:, 0], k[:, 1] = np.arange(nx) - nx // 2, line - ny // 2
        coordinates.append(sample_coordinates(k, int(frame), n_frames, (ny, nx)))
        values.append(real_values(kspace[frame, line]))
    return np.concatenate(coordinates), np.concatenate(values)


def labels_of(logits: Tensor) -> NDArray[np.uint8]:
    """Most likely class of logits ``(batch, classes, ...)``."""
    return np.asarray(logits.argmax(dim=1).cpu().numpy(), np.uint8)


class PointsTask(HeartTask):
    """DiSK: samples of one slice in, labels of queried pixels out. The first view of the experiment is used."""

    def make_batch(self, subjects: Sequence[Subject], acceleration: float, rng: np.random.Generator) -> Batch:
        made = [self._one(subject, acceleration, rng) for subject in subjects]
        n = min(len(coordinates) for coordinates, *_ in made)
        names = ("coordinates", "values", "queries", "labels")
        columns = [[m[i][:n] if i < 2 else m[i] for m in made] for i in range(4)]
        return {name: torch.from_numpy(np.stack(parts)) for name, parts in zip(names, columns, strict=True)}

    def _one(self, subject: Subject, acceleration: float, rng: np.random.Generator) -> tuple[np.ndarray[Any, Any], ...]:
        kspace = noisy_kspace(subject.images[:1], self.experiment.data, rng)[0]
        lines = self.lines_of(subject.of_views((0,)), acceleration, rng)[0]
        coordinates, values = slice_points(kspace, lines)
        values = self.seen(scaled_samples(values))
        n_frames, ny, nx = kspace.shape
        queries = frame_queries(np.arange(n_frames), n_frames, (ny, nx))
        labels = self.known_classes(subject.labels[0]).reshape(-1)
        if self.network.training:
            asked = rng.choice(len(queries), min(self.experiment.data.queries, len(queries)), replace=False)
            queries, labels = queries[asked], labels[asked]
        order = rng.permutation(len(coordinates))  # so that cutting to one length leaves lines out at random
        return coordinates[order], values[order], queries, labels

    def loss(self, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        logits = network(batch["coordinates"], batch["values"], batch["queries"])
        return disk_loss(logits, batch["labels"], network)

    def seen(self, values: Float) -> Float:
        """What the network sees of the samples' values."""
        return values

    def answers(self, network: nn.Module, batch: Batch, subject: Subject) -> Answers:
        logits = network(*(batch[name] for name in ("coordinates", "values", "queries")))
        return Answers(labels_of(logits).reshape(subject.labels.shape))


class CoordinatesTask(PointsTask):
    """Control: DiSK that is told where samples lie, but not their values. It learns where hearts usually are."""

    def seen(self, values: Float) -> Float:
        return np.zeros_like(values)


class FramesTask(HeartTask):
    """Zero-filled k-space of slices in, labels of all their frames out: Syn-Net, and the last step of LI-Net.

    Every view is an entry of the batch.

    Parameters
    ----------
    step : ``undersampled``; ``full`` trains on fully sampled k-space (Syn-Net's warm start), ``labels`` on label maps
        alone (LI-Net's autoencoder).
    before : weights of the step before, which this one begins with.
    """

    def __init__(
        self,
        experiment: HeartExperiment,
        train: Sequence[Subject],
        validation: Sequence[Subject],
        step: str = "undersampled",
        before: Path | None = None,
    ) -> None:
        super().__init__(experiment, train, validation, "" if step == "undersampled" else step)
        self._step = step
        if before is not None:
            load_weights(self.network, before)

    def make_batch(self, subjects: Sequence[Subject], acceleration: float, rng: np.random.Generator) -> Batch:
        columns: dict[str, list[NDArray[np.float32]]] = {"kspace": [], "full": []}
        labels: list[NDArray[np.int64]] = []
        for subject in subjects:
            kspace = noisy_kspace(subject.images, self.experiment.data, rng)
            lines = np.stack(self.lines_of(subject, acceleration, rng))[..., None]
            for name, part in (("kspace", kspace * lines), ("full", kspace)):
                size = np.sqrt(np.mean(np.abs(part) ** 2, axis=(1, 2, 3), keepdims=True))
                unit = part / np.maximum(size, 1e-30)
                columns[name] += list(np.stack((unit.real, unit.imag), axis=1).astype(np.float32))
            labels += list(self.known_classes(subject.labels))
        batch = {name: torch.from_numpy(np.stack(parts)) for name, parts in columns.items()}
        return {**batch, "labels": torch.from_numpy(np.stack(labels))}

    def logits(self, network: nn.Module, batch: Batch) -> Tensor:
        """Of what this step shows the network: ``(batch, classes, frames, y, x)``."""
        made: Tensor = network(batch["full" if self._step == "full" else "kspace"])
        return made

    def loss(self, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        logits = self.logits(network, batch)
        return {"dice": soft_dice_loss(logits, batch["labels"]),
                "entropy": functional.cross_entropy(logits, batch["labels"])}  # fmt: skip

    def answers(self, network: nn.Module, batch: Batch, subject: Subject) -> Answers:
        return Answers(labels_of(self.logits(network, batch)))


class LiNetTask(FramesTask):
    """LI-Net's three steps (`models.linet`): label maps, fully sampled images, undersampled ones beside a teacher.

    The network of the step before is what this step begins with, and in the last one the teacher too.
    """

    def __init__(
        self,
        experiment: HeartExperiment,
        train: Sequence[Subject],
        validation: Sequence[Subject],
        step: str = "undersampled",
        before: Path | None = None,
    ) -> None:
        super().__init__(experiment, train, validation, step, before)
        self._teacher: nn.Module | None = None
        if step == "undersampled" and before is not None:
            self._teacher = load_weights(self.make_network(), before).eval()
        network = cast(LINet, self.network)
        if step != "labels":
            for part in (network.encoder, network.decoder):
                part.requires_grad_(False)

    def logits(self, network: nn.Module, batch: Batch) -> Tensor:
        model = cast(LINet, network)
        if self._step != "labels":
            return super().logits(network, batch)
        one_hot = functional.one_hot(batch["labels"], model.n_classes).movedim(-1, 1).float()
        return model.autoencode(one_hot)

    def loss(self, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        if self._teacher is None:
            return super().loss(network, batch)
        model, teacher = cast(LINet, network), cast(LINet, self._teacher.to(batch["kspace"].device))
        code = model.predict(batch["kspace"])
        with torch.no_grad():
            wanted = teacher.predict(batch["full"])
        logits = model.decode(code)
        return {"dice": soft_dice_loss(logits, batch["labels"]),
                "entropy": functional.cross_entropy(logits, batch["labels"]),
                "code": self.experiment.stages.code_weight * functional.mse_loss(code, wanted)}  # fmt: skip


class MeanShape(nn.Module):
    """Control: how often each class is at each place among the training subjects, and one learned bias for a class.

    Gives logits ``(batch * views, classes, frames, y, x)``, whatever was measured.

    Parameters
    ----------
    shares : ``(views, classes, frames, y, x)``, summing to 1 over the classes.
    """

    def __init__(self, shares: Tensor) -> None:
        super().__init__()
        self.register_buffer("shares", shares)
        self.bias = nn.Parameter(torch.zeros(shares.shape[1]))

    def forward(self, n_subjects: int) -> Tensor:
        logits = self.get_buffer("shares").clamp_min(1e-4).log() + self.bias[:, None, None, None]
        return logits.repeat(n_subjects, 1, 1, 1, 1)


class MeanShapeTask(HeartTask):
    """The mean segmentation of the training subjects as an answer to everybody."""

    def make_network(self) -> nn.Module:
        truth = np.stack([self.known_classes(subject.labels) for subject in self._train])
        shares = np.stack([(truth == index).mean(axis=0) for index in range(len(self.classes))], axis=1)
        return MeanShape(torch.from_numpy(shares.astype(np.float32)))

    def make_batch(self, subjects: Sequence[Subject], acceleration: float, rng: np.random.Generator) -> Batch:
        labels = np.concatenate([self.known_classes(subject.labels) for subject in subjects])
        return {"labels": torch.from_numpy(labels)}

    def loss(self, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        n_views = len(cast(MeanShape, network).get_buffer("shares"))
        logits = network(len(batch["labels"]) // n_views)
        return disk_loss(logits.flatten(2), batch["labels"].flatten(1), network, l2=0.0)

    def answers(self, network: nn.Module, batch: Batch, subject: Subject) -> Answers:
        return Answers(labels_of(network(1)))
