"""The teacher of a distillation: another run of the breast task, which never saw what the student is judged on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import ConfigError, ModelError
from ...models.registry import build
from ..experiment import DistillConfig, Experiment, load_experiment
from ..fit import load_weights


class Teacher:
    """A trained network that is no longer changed.

    Raises
    ------
    ConfigError : an experiment that cannot be read, has other classes, or was trained or selected on exams that the
        student is selected or tested on.
    ModelError : weights that are missing, damaged, or of another architecture.
    """

    def __init__(self, config: DistillConfig, student: Experiment) -> None:
        path, weights = (
            Path(text.replace("{seed}", str(student.seed))) for text in (config.experiment, config.weights)
        )
        experiment = load_experiment(path)
        check_teacher(experiment, student, path)
        network = build(experiment.network.architecture, experiment.network.arguments)
        try:
            self._network: nn.Module = load_weights(network, weights).eval().requires_grad_(False)
        except ModelError as error:
            raise error.at("distill.weights") from error
        self.sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()

    @torch.no_grad()
    def __call__(self, kspace: Tensor) -> Tensor:
        """Logits ``(batch, classes, z, y, x)`` of k-space ``(batch, 2, z, y, x)``, on the device of the k-space."""
        logits: Tensor = self._network.to(kspace.device)(kspace)
        return logits


def check_teacher(teacher: Experiment, student: Experiment, path: Path) -> None:
    """Refuse a teacher of other classes, or one through which the student would see what it is judged on.

    Raises
    ------
    ConfigError : for the first of them.
    """
    if teacher.labels.names != student.labels.names:
        raise ConfigError(
            f"the teacher knows {teacher.labels.names}, the student {student.labels.names}", where=str(path)
        )
    if teacher.folds and student.folds and teacher.folds != student.folds:
        raise ConfigError(
            f"teacher and student have different folds: {teacher.folds}, {student.folds}",
            where=str(path),
            likely="test patients would be seen through the teacher",
        )
    order = ("train", "validation")
    for name, cohort in teacher.cohorts.items():
        if name not in order:
            continue
        judged = [key for key in student.cohorts if key not in order[: order.index(name) + 1]]
        seen = sorted(set(cohort.seeds) & {seed for key in judged for seed in student.cohorts[key].seeds})
        if seen:
            raise ConfigError(
                f"the teacher's {name} cohort holds exams that the student is judged on, such as {seen[0]}",
                where=str(path),
                likely="test exams would be seen through the teacher",
                hint="teach with a network that was trained on the same cohorts",
            )


def _path(text: str, student: Experiment) -> Path:
    return Path(text.replace("{seed}", str(student.seed)))
