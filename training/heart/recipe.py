"""Cardiac networks (papers 001 and 003) as a recipe: DiSK and Syn-Net in one stage, k-MTR in up to four."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...errors import ConfigError
from ...models.bundle import BundleInfo, TensorSpec, save_array_bundle
from ...models.registry import build
from ...segment.cine import check_scale
from ..fit import BEST, Stage, Task, Validation, load_weights
from .data import Subject, build_cache, load_cohort
from .experiment import HeartExperiment, load_heart_experiment
from .tasks import (
    AlignmentTask,
    AnalysisTask,
    FramesTask,
    HeartTask,
    ImageMaeTask,
    LineMaeTask,
    PointsTask,
    ResNetTask,
    check_alignment,
    networks,
    sibling,
)

Cohort = Sequence[Subject]


class HeartRecipe:
    """An experiment file of the heart's task, for the commands (see `recipes.Recipe`)."""

    def __init__(self, path: Path) -> None:
        self.experiment = load_heart_experiment(path)
        self.name = self.experiment.name

    def prepare(self, cache: Path, workers: int) -> Iterator[tuple[str, int, int]]:
        return build_cache(self.experiment, cache, workers)

    def stages(self, cache: Path) -> Sequence[Stage]:
        train, validation = (self._subjects(cohort, cache) for cohort in ("train", "validation"))
        return heart_stages(self.experiment, train, validation)

    def evaluate(self, cache: Path, run: Path, cohorts: Sequence[str]) -> str:
        if unknown := set(cohorts) - set(self.experiment.cohorts):
            raise ConfigError(f"no cohort {', '.join(sorted(unknown))}", hint=", ".join(self.experiment.cohorts))
        summaries = []
        for cohort in cohorts or self.experiment.test_cohorts:
            validation = self._judge(cache, run, cohort)
            (run / f"evaluation-{cohort}.csv").write_text(_csv(validation), encoding="utf-8")
            summaries.append(f"{cohort}: " + ", ".join(f"{k} {v:.4g}" for k, v in validation.metrics.items()))
        return "\n".join(summaries)

    def export(self, cache: Path, run: Path, bundle: Path) -> str:
        experiment = self.experiment
        if experiment.method not in ("disk", "kmtr", "mae"):
            raise ConfigError(f"{experiment.method} is a baseline, and no stream runs it", where="method")
        check_scale(experiment.name, experiment.network.arguments)
        metrics = {cohort: dict(self._judge(cache, run, cohort).metrics) for cohort in experiment.test_cohorts}
        task = self._last_task(self._subjects("validation", cache), self._subjects("train", cache)[:2])
        network = load_weights(task.network, self._weights(run)).eval()
        written = export_bundle(experiment, task, network, bundle, metrics)
        return f"{bundle}: sha256 {written[:12]}"

    def _judge(self, cache: Path, run: Path, cohort: str) -> Validation:
        subjects = self._subjects(cohort, cache)
        task = self._last_task(subjects, self._subjects("train", cache))
        return task.validate(load_weights(task.network, self._weights(run)).eval())

    def _last_task(self, validation: Cohort, train: Cohort) -> HeartTask:
        return last_task(self.experiment, train, validation, None)

    def _weights(self, run: Path) -> Path:
        return run / ("analysis" if self.experiment.method in ("kmtr", "mae") else "") / BEST

    def _subjects(self, cohort: str, cache: Path) -> list[Subject]:
        """Subjects of a cohort; methods that see one slice get the experiment's first view."""
        subjects = load_cohort(self.experiment, cohort, cache)
        if self.experiment.method not in ("disk", "syn-net"):
            return subjects
        view = self.experiment.protocol(cohort).views.index(self.experiment.data.views[0])
        return [subject.of_views((view,)) for subject in subjects]


def heart_stages(experiment: HeartExperiment, train: Cohort, validation: Cohort) -> list[Stage]:
    """What to train, in order.

    Raises
    ------
    ConfigError : k-MTR without the schedules of stages I and II, or settings that would fail later (`check_settings`).
    """
    check_settings(experiment, validation)
    if experiment.method not in ("kmtr", "mae"):
        task = last_task(experiment, train, validation, None)
        return [Stage("", lambda _: task, experiment.schedule)]
    settings = experiment.stages
    if settings.lines is None or (experiment.method == "kmtr" and None in (settings.image, settings.alignment)):
        raise ConfigError("k-MTR needs schedules of its stages", where="[stages.image], [stages.lines], ...")
    stages = []
    if experiment.method == "kmtr" and settings.image is not None:
        stages.append(Stage("image", lambda _: ImageMaeTask(experiment, train, validation, "image"), settings.image))
    stages.append(Stage("lines", lambda _: LineMaeTask(experiment, train, validation, "lines"), settings.lines))
    if experiment.method == "kmtr" and settings.alignment is not None:

        def align(before: Path | None) -> Task[Any]:
            image, lines = sibling(before, "image"), sibling(before, "lines")
            return AlignmentTask(experiment, train, validation, image, lines)

        stages.append(Stage("alignment", align, settings.alignment))

    def analyse(before: Path | None) -> Task[Any]:
        return last_task(experiment, train, validation, before)

    return [*stages, Stage("analysis", analyse, experiment.schedule)]


def check_settings(experiment: HeartExperiment, validation: Cohort) -> None:
    """Refuse before any hour what would fail in a later stage.

    Raises
    ------
    ConfigError : accelerations that leave no line, several views for a method that takes one, or no pair to align.
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
    if experiment.method in ("disk", "syn-net") and len(experiment.data.views) != 1:
        raise ConfigError(
            f"{experiment.method} takes one view, but {len(experiment.data.views)} are named", where="data.views"
        )
    if experiment.method == "kmtr":
        check_alignment(experiment, validation)
    with torch.device("meta"):
        for name, arguments in networks(experiment).items():
            build(name, arguments)


def last_task(experiment: HeartExperiment, train: Cohort, validation: Cohort, encoder: Path | None) -> HeartTask:
    """The task whose network is the result of the experiment."""
    if experiment.method == "disk":
        return PointsTask(experiment, train, validation)
    if experiment.method == "syn-net":
        return FramesTask(experiment, train, validation)
    if experiment.method.startswith("resnet"):
        return ResNetTask(experiment, train, validation)
    return AnalysisTask(experiment, train, validation, encoder)


_DESCRIBED = {
    "coordinates": "place of each sample along y, x, t; index over size",
    "values": "real and imaginary part of each sample, or of each line",
    "queries": "place of each pixel that is asked for",
    "places": "slice, frame and number of each line",
    "logits": "class scores of every query",
    "segmentation": "class scores (batch, slice, class, frame, y, x)",
    "regression": "the eighteen phenotypes, in their units",
    "classification": "logits of the three diseases",
    "reconstruction": "images (batch, real and imaginary, slice, frame, y, x)",
}


def export_bundle(
    experiment: HeartExperiment, task: HeartTask, network: nn.Module, folder: Path, metrics: dict[str, Any]
) -> str:
    """Write the network as a bundle with a tiny example; gives the hash of its weights."""
    rng = np.random.default_rng(0)
    if isinstance(task, PointsTask):
        shapes = {"coordinates": (1, 48, 3), "values": (1, 48, 2), "queries": (1, 32, 3)}
        example = {name: rng.random(shape, np.float32) for name, shape in shapes.items()}
        outputs: tuple[str, ...] = ("logits",)
    else:
        protocol = experiment.protocol("train")
        sizes = (len(protocol.views), protocol.n_frames, protocol.matrix)
        places = np.stack([rng.integers(0, n, 24) for n in sizes], axis=-1)[None].astype(np.float32)
        example = {"values": rng.standard_normal((1, 24, 2 * protocol.matrix), np.float32), "places": places}
        outputs = experiment.network.heads
    inputs = tuple(example)
    with torch.inference_mode():
        made = network(*(torch.from_numpy(array) for array in example.values()))
    parts = made if isinstance(made, tuple) else (made,)
    example |= {name: part.numpy() for name, part in zip(outputs, parts, strict=True)}
    name = "disk" if isinstance(task, PointsTask) else "kmtr"
    arguments = task.arguments(name) | ({} if name == "disk" else {"heads": list(outputs)})
    info = BundleInfo(
        name=experiment.name,
        description=experiment.description,
        architecture=name,
        arguments=arguments,
        labels=experiment.labels.table(),
        patch_depth=1,
        patch_stride=1,
        training={"experiment": experiment.model_dump(mode="json")},
        metrics=metrics,
        inputs=tuple(_spec(n, example[n]) for n in inputs),
        outputs=tuple(_spec(n, example[n]) for n in outputs),
    )
    state = {key: value.cpu().numpy() for key, value in network.state_dict().items()}
    card = f"# {experiment.name}\n\n{experiment.description}\n\nTrained on simulated hearts. {info.intended_use}\n"
    return save_array_bundle(folder, info, state, example, card).info.sha256


def _spec(name: str, array: np.ndarray[Any, Any]) -> TensorSpec:
    axes = ("batch", *(f"axis{i}" for i in range(1, array.ndim)))
    return TensorSpec(name, axes, "float32", "1", _DESCRIBED[name])


def _csv(validation: Validation) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("metric", "value"))
    writer.writerows(validation.metrics.items())
    return out.getvalue()
