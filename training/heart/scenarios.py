"""Conditions under which the heart's networks are judged, and their scores subject by subject under each.

A scenario has a name: ``lines-4`` (lines drawn for an acceleration of 4, as the experiment's density says), ``moved-4``
(the same, with every subject shifted and turned at random as far as `MOVED` says: an answer that only knows where
hearts usually are fails), ``swapped-4`` (the samples of the next subject, judged by this one's truth: an answer that
only knows where hearts usually are is as good as with ``lines-4``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...errors import ConfigError
from ..fit import BEST
from ..scores import Row
from .data import Subject, moved
from .experiment import HeartData, HeartExperiment
from .judge import case_row
from .nnunet import NnUNet
from .plan import stages_of, task_subjects, trained

MOVED = {"shift": 0.125, "rotate_deg": 30.0}
"""Largest shift, as a share of the image's width, and rotation of ``moved``."""


@dataclass(frozen=True)
class Scenario:
    """One condition."""

    name: str
    acceleration: float
    is_moved: bool = False
    is_swapped: bool = False

    @classmethod
    def of(cls, name: str) -> Scenario:
        """The scenario of a name.

        Raises
        ------
        ConfigError : if there is none.
        """
        found = re.fullmatch(r"(lines|moved|swapped)-(\d+(?:\.\d+)?)", name)
        if found is None or float(found[2]) < 1:
            raise ConfigError(f"unknown scenario {name!r}", hint="lines-4, lines-16, moved-4, swapped-4, ...")
        return cls(name, float(found[2]), found[1] == "moved", found[1] == "swapped")

    def seen(self, subjects: Sequence[Subject]) -> Sequence[Subject]:
        """Whose samples stand for each subject's."""
        return [*subjects[1:], subjects[0]] if self.is_swapped else subjects

    def of_subject(self, subject: Subject, data: HeartData) -> Subject:
        """What this condition makes of a subject; it follows from the subject's seed."""
        if not self.is_moved:
            return subject
        shift = round(MOVED["shift"] * subject.images.shape[-1])
        far = data.model_copy(update={"shift_voxels": shift, "rotate_deg": MOVED["rotate_deg"]})
        return moved(subject, far, np.random.default_rng([subject.seed, 79]))


def score_run(
    experiment: HeartExperiment,
    run: Path,
    cache: Path,
    scenarios: Sequence[str],
    cohort: str = "test",
    device: str = "cpu",
) -> list[Row]:
    """Scores of the best weights of a run: one row for each subject and scenario, as `judge.case_row` has them.

    Lines and movements follow from the subject's seed, so that all networks are judged on the same samples.

    Raises
    ------
    ConfigError : for an unknown scenario, or nnU-Net where it is not installed.
    ModelError : if the run has no weights.
    """
    chosen = [Scenario.of(name) for name in scenarios]
    subjects = task_subjects(experiment, cohort, cache)
    rows: list[Row] = []
    if experiment.is_external:
        for scenario in chosen:
            known = [scenario.of_subject(subject, experiment.data) for subject in subjects]
            answers = NnUNet(experiment, run).predict(scenario.seen(known), scenario.acceleration, device)
            for subject, answer in zip(known, answers, strict=True):
                scores = case_row(answer, subject, experiment.labels.names)
                rows.append({"subject": str(subject.seed), "scenario": scenario.name, **scores})
        return rows
    train = task_subjects(experiment, "train", cache)
    task, network = trained(experiment, train, subjects, run / list(stages_of(experiment))[-1] / BEST)
    network.to(device)
    with torch.inference_mode():
        for scenario in chosen:
            known = [scenario.of_subject(subject, experiment.data) for subject in subjects]
            for subject, seen in zip(known, scenario.seen(known), strict=True):
                batch = {name: part.to(device) for name, part in task.case(seen, scenario.acceleration).items()}
                scores = case_row(task.answers(network, batch, seen), subject, task.classes, task.pixel_mm2)
                rows.append({"subject": str(subject.seed), "scenario": scenario.name, **scores})
    return rows
