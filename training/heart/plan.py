"""Which tasks a method trains in which order, and how its last network is judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import ConfigError
from ...models.registry import architecture, build
from ..fit import Stage, Task, Validation, load_weights
from ..schedule import Schedule
from ..scores import Row
from .data import Subject, load_cohort
from .experiment import ONE_VIEW_METHODS, SLICE_METHODS, HeartExperiment
from .judge import summary
from .slices import CoordinatesTask, FramesTask, LiNetTask, MeanShapeTask, PointsTask
from .subjects import (
    AlignmentTask,
    AnalysisTask,
    ImageMaeTask,
    KGinTask,
    LineMaeTask,
    ResNetTask,
    ZeroFilledTask,
    check_alignment,
)
from .tasks import HeartTask, networks, sibling

Cohort = Sequence[Subject]

_BEFORE: dict[str, tuple[tuple[str, ...], str]] = {
    "kmtr": (("image", "lines", "alignment"), "analysis"),
    "mae": (("lines",), "analysis"),
    "li-net": (("labels", "full"), "undersampled"),
    "syn-net": (("full",), "undersampled"),
}
"""Stages before the last one, and the name of the last; methods that are not named have one stage without a name."""

_OPTIONAL = ("syn-net",)
"""Methods that may go without what comes before; those with located tokens may, too."""

_LAST: dict[str, Callable[..., HeartTask]] = {
    "disk": PointsTask, "coordinates": CoordinatesTask, "mean-shape": MeanShapeTask, "k-gin": KGinTask,
    "zero-filled": ZeroFilledTask, "resnet50": ResNetTask, "resnet50u": ResNetTask, "resnet50k": ResNetTask,
}  # fmt: skip


def stages_of(experiment: HeartExperiment) -> dict[str, Schedule]:
    """Names and schedules of all stages, in order.

    Raises
    ------
    ConfigError : a stage has no schedule, or one that it cannot use, or the method is not trained by this package.
    """
    if experiment.is_external:
        raise ConfigError("nnU-Net has no stages: its own package trains it", where="method", hint="nnunet.NnUNet")
    names, last = _BEFORE.get(experiment.method, ((), ""))
    given: dict[str, Schedule | None] = {name: getattr(experiment.stages, name) for name in names}
    is_located = bool(experiment.network.arguments.get("located"))
    if is_located and any(given.values()):
        raise ConfigError(
            "located tokens need no stages before, and cannot begin with theirs",
            where=", ".join(f"[stages.{name}]" for name, schedule in given.items() if schedule),
            hint="leave the stages out, or network.arguments.located",
        )
    if (is_located or experiment.method in _OPTIONAL) and not any(given.values()):
        return {"": experiment.schedule}
    if missing := [name for name, schedule in given.items() if schedule is None]:
        raise ConfigError(
            f"{experiment.method} needs schedules of its stages", where=", ".join(f"[stages.{m}]" for m in missing)
        )
    return {**{name: schedule for name, schedule in given.items() if schedule}, last: experiment.schedule}


def heart_stages(experiment: HeartExperiment, train: Cohort, validation: Cohort) -> list[Stage]:
    """What to train, in order.

    Raises
    ------
    ConfigError : settings that would fail later (`check_settings`), or too few subjects.
    """
    check_settings(experiment)
    if experiment.method == "kmtr" and len(validation) < 2:
        raise ConfigError("the alignment compares subjects", where="cohorts.validation", hint="two subjects or more")

    def maker(name: str) -> Callable[[Path | None], Task[Any]]:
        return lambda before: _task(experiment, train, validation, name, before)

    return [Stage(name, maker(name), schedule) for name, schedule in stages_of(experiment).items()]


def _task(experiment: HeartExperiment, train: Cohort, validation: Cohort, stage: str, before: Path | None) -> HeartTask:
    """The task of a stage; `before` are the best weights of the stage before."""
    if stage == "image":
        return ImageMaeTask(experiment, train, validation, stage)
    if stage == "lines":
        return LineMaeTask(experiment, train, validation, stage)
    if stage == "alignment":
        return AlignmentTask(experiment, train, validation, sibling(before, "image"), sibling(before, "lines"))
    if stage in ("labels", "full"):
        return (LiNetTask if experiment.method == "li-net" else FramesTask)(
            experiment, train, validation, stage, before
        )
    return last_task(experiment, train, validation, before)


def last_task(experiment: HeartExperiment, train: Cohort, validation: Cohort, before: Path | None = None) -> HeartTask:
    """The task whose network is the result of the experiment."""
    method = experiment.method
    if method in ("kmtr", "mae"):
        return AnalysisTask(experiment, train, validation, before)
    if method in ("li-net", "syn-net"):
        frames = LiNetTask if method == "li-net" else FramesTask
        return frames(experiment, train, validation, "undersampled", before)
    return _LAST[method](experiment, train, validation)


def check_settings(experiment: HeartExperiment) -> None:
    """Refuse before any hour what would fail in a later stage.

    Raises
    ------
    ConfigError : a stage without schedule, heads that the data cannot teach, accelerations that leave no line, several
        views for a method that takes one, no pair to align, or an argument that none of the networks has.
    ModelError : arguments that a network refuses; all are built without memory.
    """
    n_lines = experiment.protocol("train").matrix
    for acceleration in experiment.data.accelerations:
        if not 1 <= acceleration <= n_lines:
            raise ConfigError(
                f"an acceleration of {acceleration:g} leaves no line, or is none",
                where="data.accelerations",
                hint=f"numbers from 1 to {n_lines}",
            )
    if experiment.method in ONE_VIEW_METHODS and len(experiment.data.views) != 1:
        raise ConfigError(
            f"{experiment.method} takes one view, but {len(experiment.data.views)} are named", where="data.views"
        )
    if experiment.method == "kmtr":
        check_alignment(experiment)
    if not experiment.is_external:
        stages_of(experiment)
    unknown = {"regression", "classification"} & set(experiment.network.heads)
    if experiment.data.source != "simulator" and (unknown or experiment.method.startswith("resnet")):
        raise ConfigError(
            "files of public data hold no phenotypes and no diseases",
            where="network.heads",
            hint="heads segmentation and reconstruction; phenotypes are measured on the labels",
        )
    made = networks(experiment)
    known = {key for name in made for key in architecture(name).arguments}
    if strange := sorted(set(experiment.network.arguments) - known):
        raise ConfigError(
            f"no network of {experiment.method} has the argument {', '.join(strange)}",
            where="network.arguments",
            hint=f"arguments are {', '.join(sorted(known))}" if known else "this method takes none",
        )
    with torch.device("meta"):
        for name, arguments in made.items():
            build(name, arguments)


def task_subjects(experiment: HeartExperiment, cohort: str, cache: Path) -> list[Subject]:
    """Subjects of a cohort; methods for slices get the views that the experiment names."""
    subjects = load_cohort(experiment, cohort, cache)
    if experiment.method not in SLICE_METHODS:
        return subjects
    names = experiment.protocol(cohort).views
    views = tuple(names.index(view) for view in experiment.data.views)
    return [subject.of_views(views) for subject in subjects]


def trained(experiment: HeartExperiment, train: Cohort, subjects: Cohort, weights: Path) -> tuple[HeartTask, nn.Module]:
    """The last task on some subjects, and its network with the weights of a run, in evaluation."""
    task = last_task(experiment, train, subjects)
    return task, load_weights(task.network, weights).eval()


def judge(experiment: HeartExperiment, train: Cohort, subjects: Cohort, weights: Path) -> tuple[Validation, list[Row]]:
    """Scores of a run's network over subjects at the accelerations of the experiment: in all, and one by one."""
    task, network = trained(experiment, train, subjects, weights)
    with torch.inference_mode():
        rows = list(task.rows(network))
    seeds = [subject.seed for _ in experiment.data.accelerations for subject in subjects]
    told: list[Row] = [
        {"subject": str(seed), "acceleration": acceleration, **row}
        for seed, (acceleration, row) in zip(seeds, rows, strict=True)
    ]
    return summary(rows, task.phenotype_mean), told
