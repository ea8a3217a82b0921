"""What the heart's tasks for `fit` share: subjects, sampling, networks, and how they are judged.

`slices` holds the tasks of paper 001 (DiSK and its baselines), `subjects` those of paper 003 (k-MTR and its baselines).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from ...errors import ConfigError
from ...models.registry import architecture, build
from ...output.phenotypes import HEART_LABELS
from ...simulate.heart.lines import Lines
from ..fit import BEST, Task, Validation
from .data import Labels, Subject, draw_lines, moved, received
from .experiment import HeartExperiment
from .judge import Answers, Scores, case_row, summary

Batch = dict[str, Tensor]

NETWORKS = {
    "disk": "disk", "coordinates": "disk", "syn-net": "heart-syn-net", "li-net": "heart-li-net",
    "kmtr": "kmtr", "mae": "kmtr", "k-gin": "kgin",
    "resnet50": "heart-resnet50", "resnet50u": "heart-resnet50", "resnet50k": "heart-resnet50-kspace",
}  # fmt: skip
"""Methods and the network of their last stage; those that are not named have none in the registry."""

WITHIN_STAGES = ("masking_ratio", "temperature", "form", "code_weight")
"""Settings of ``[stages]`` that are no schedule."""


def network_arguments(experiment: HeartExperiment, name: str) -> dict[str, Any]:
    """Arguments of the experiment for a network, and the sizes of the scan where the network knows them."""
    known = architecture(name).arguments
    protocol = experiment.protocol("train")
    n_views = len(protocol.views)
    sizes = {
        "n_slices": n_views,
        "n_long_axis": protocol.n_long_axis,
        "n_frames": protocol.n_frames,
        "plane": (protocol.matrix, protocol.matrix),
        "shape": (protocol.matrix, protocol.matrix),
        "n_images": n_views * protocol.n_frames,
        "n_classes": len(experiment.labels.names),
    }
    filled = {key: value for key, value in sizes.items() if key in known}
    given = {key: value for key, value in experiment.network.arguments.items() if key in known}
    return {**filled, **given}


def networks(experiment: HeartExperiment) -> dict[str, dict[str, Any]]:
    """Names and arguments of all networks of the registry that an experiment builds, in the order of its stages."""
    method = experiment.method
    before = {
        "kmtr": ("kmtr-image-mae", "kmtr-line-mae", "kmtr-alignment"),
        "mae": ("kmtr-line-mae",),
    }.get(method, ())
    last = (NETWORKS[method],) if method in NETWORKS else ()
    made = {name: network_arguments(experiment, name) for name in (*before, *last)}
    if "kmtr" in made:
        made["kmtr"] |= {"heads": list(experiment.network.heads), "n_classes": len(experiment.labels.names)}
    return made


class HeartTask(Task[Batch]):
    """What all of the heart's tasks share: subjects, sampling, and a network of the registry.

    Raises
    ------
    ModelError : for arguments that the network refuses.
    """

    def __init__(
        self, experiment: HeartExperiment, train: Sequence[Subject], validation: Sequence[Subject], name: str = ""
    ) -> None:
        self.experiment, self.name, self.seed = experiment, f"{experiment.name} {name}".strip(), experiment.seed
        self._train, self._validation = train, validation
        known = np.stack([subject.phenotypes for subject in train])
        self.phenotype_mean, self.phenotype_spread = np.nan_to_num(known.mean(axis=0)), known.std(axis=0) + 1e-6
        torch.manual_seed(experiment.seed)
        self.network = self.make_network()

    def make_network(self) -> nn.Module:
        """A fresh network."""
        name = NETWORKS[self.experiment.method]
        return build(name, self.arguments(name))

    def arguments(self, name: str) -> dict[str, Any]:
        """Arguments of the experiment, and the sizes of the scan where the network knows them."""
        return network_arguments(self.experiment, name)

    def identity(self) -> str:
        """The experiment without its schedules (`fit` adds the stage's own); what batches and losses take from them."""
        experiment = self.experiment
        plain = experiment.model_dump_json(exclude={"schedule", "stages"}, exclude_defaults=True)
        stages = experiment.stages.model_dump_json(include=set(WITHIN_STAGES))
        return f"{self.name} {plain} {stages} batch {experiment.schedule.batch}"

    def batch(self, number: int) -> Batch:
        config = self.experiment
        rng = np.random.default_rng([config.seed, number])
        acceleration = float(rng.choice(config.data.accelerations))
        picks = rng.choice(len(self._train), config.schedule.batch, replace=config.schedule.batch > len(self._train))
        chosen = [self._train[int(i)] for i in picks]
        if rng.random() < config.moved_probability:
            chosen = [moved(subject, config.data, rng) for subject in chosen]
        chosen = [received(subject, config.data, rng) for subject in chosen]
        return self.make_batch(chosen, acceleration, rng)

    def make_batch(self, subjects: Sequence[Subject], acceleration: float, rng: np.random.Generator) -> Batch:
        """Tensors of some subjects at an acceleration."""
        raise NotImplementedError

    def held_out(self) -> Iterator[tuple[float, Batch, Subject]]:
        """Validation subjects at every acceleration, always with the same lines; one at a time, so that they fit."""
        for acceleration in self.experiment.data.accelerations:
            for subject in self._validation:
                yield acceleration, self.case(subject, acceleration), subject

    def case(self, subject: Subject, acceleration: float) -> Batch:
        """The batch of one subject, whose lines and noise follow from its seed and the acceleration."""
        rng = np.random.default_rng([subject.seed, round(1000 * acceleration), 77])
        return self.make_batch([subject], acceleration, rng)

    def answers(self, network: nn.Module, batch: Batch, subject: Subject) -> Answers:
        """What a network in evaluation says about the `case` of a subject, which tells the shape of the answer."""
        raise NotImplementedError

    def validate(self, network: nn.Module) -> Validation:
        """Scores over validation subjects and accelerations (`judge.summary`)."""
        return summary(list(self.rows(network)), self.phenotype_mean)

    def rows(self, network: nn.Module) -> Iterator[tuple[float, Scores]]:
        """Acceleration and scores of every validation subject."""
        device = self._device(network)
        for acceleration, batch, subject in self.held_out():
            on_device = {name: part.to(device) for name, part in batch.items()}
            answers = self.answers(network, on_device, subject)
            yield acceleration, case_row(answers, subject, self.classes, self.pixel_mm2)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.experiment.labels.names

    @property
    def pixel_mm2(self) -> float | None:
        """Area of a pixel, where the subjects are single short-axis slices of the simulator; None elsewhere."""
        data = self.experiment.data
        known = self.classes == HEART_LABELS.names[: len(self.classes)]
        if data.source != "simulator" or len(data.views) != 1 or not data.views[0].startswith("sax") or not known:
            return None
        protocol = self.experiment.protocol("train")
        return (protocol.field_of_view_mm / protocol.matrix) ** 2

    def known_classes(self, labels: Labels) -> NDArray[np.int64]:
        """Labels as the experiment has them: classes that it does not name are background."""
        return np.where(labels < len(self.classes), labels, 0).astype(np.int64)

    def lines_of(self, subject: Subject, acceleration: float, rng: np.random.Generator) -> list[Lines]:
        """Lines of every view."""
        _, n_frames, ny, _ = subject.images.shape
        return [draw_lines(self.experiment.data, ny, n_frames, acceleration, rng) for _ in subject.images]

    def _device(self, network: nn.Module) -> torch.device:
        return next(network.parameters()).device


def load_part(part: nn.Module, weights: Path, prefix: str) -> None:
    """Put those weights of a file that begin with a prefix into a part of a network."""
    state = {key.removeprefix(prefix): value for key, value in load_file(weights).items() if key.startswith(prefix)}
    part.load_state_dict(state)


def sibling(weights: Path | None, stage: str) -> Path:
    """Best weights of another stage of the same run."""
    if weights is None:
        raise ConfigError(f"stage {stage} must come first")
    return weights.parent.parent / stage / BEST
