"""The brain task as a recipe: what the commands and the studies do with one experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...models.registry import architecture, build, cost
from ...simulate.brain.scanner import LABELS
from ..fit import Stage, Task
from ..recipes import Evaluation, Recipe
from ..scores import Row
from ..study import Study
from .experiment import BrainExperiment, brain_experiment
from .heads import build_heads, load_heads
from .losses import steps_of
from .scenarios import BrainEvaluation, noise_of, score_run
from .task import BrainTask, HeadScore, best_weights, load_best, score_heads, to_csv, to_markdown


class BrainRecipe(Recipe[BrainExperiment]):
    """An experiment of the brain task."""

    evaluation = BrainEvaluation
    metrics = ("dice", *LABELS.names[1:])

    @staticmethod
    def read(content: Mapping[str, Any], path: Path) -> BrainExperiment:
        return brain_experiment(content, path)

    def prepare(self, cache: Path, workers: int) -> Iterator[tuple[str, int, int]]:
        for path, done, total in build_heads(self.experiment, cache, workers):
            yield path.stem, done, total

    def stages(self, cache: Path) -> Sequence[Stage]:
        experiment = self.experiment
        train, validation = (load_heads(experiment, cohort, cache) for cohort in ("train", "validation"))
        steps = steps_of(experiment.network.architecture)

        def stage(step: str) -> Stage:
            is_last = step == steps[-1]
            schedule = experiment.schedule if is_last else experiment.pretraining or experiment.schedule

            def make(before: Path | None) -> Task[Any]:
                return BrainTask(experiment, train, validation, step, schedule, before)

            return Stage(step if len(steps) > 1 else "", make, schedule)

        return [stage(step) for step in steps]

    def evaluate(self, cache: Path, run: Path, cohorts: Sequence[str]) -> str:
        scores = self._scores(cache, run, cohorts)
        for name, rows in scores.items():
            (run / f"evaluation-{name}.csv").write_text(to_csv(rows), encoding="utf-8")
            (run / f"evaluation-{name}.md").write_text(to_markdown(rows), encoding="utf-8")
        return "\n".join(f"{name}\n{to_markdown(rows)}" for name, rows in scores.items())

    def export(self, cache: Path, run: Path, bundle: Path) -> str:
        from .export import export

        scores = self._scores(cache, run, ())
        example = load_heads(self.experiment, "validation", cache)[0]
        written = export(self.experiment, self._path, run, bundle, scores, example)
        return f"{written.folder}: sha256 {written.info.sha256[:12]}"

    def _scores(self, cache: Path, run: Path, cohorts: Sequence[str]) -> dict[str, list[HeadScore]]:
        experiment = self.experiment
        named = self.test_cohorts(cohorts)
        network = load_best(experiment, run)
        return {cohort: score_heads(experiment, load_heads(experiment, cohort, cache), network) for cohort in named}

    def weights(self, run: Path) -> Path:
        return best_weights(self.experiment, run)

    @property
    def shared(self) -> Any:
        """Heads, and how they are undersampled; arms may be trained at other levels of noise."""
        return self.experiment.data.model_dump(exclude={"noise", "n_patterns"}), self.experiment.cohorts

    def check(self, evaluation: Evaluation) -> None:
        network = self.experiment.network
        with torch.device("meta"):
            build(network.architecture, network.arguments)
        for scenario in evaluation.scenarios:
            noise_of(scenario)

    def score(self, cache: Path, run: Path, evaluation: Evaluation, device: str) -> Iterator[Sequence[Row]]:
        yield from score_run(self.experiment, run, cache, evaluation, device)

    def facts(self) -> dict[str, str]:
        experiment, network = self.experiment, self.experiment.network
        x, y = experiment.protocol("train").matrix
        counted = cost(network.architecture, network.arguments, ((1, 2, 1, y, x),))
        before = experiment.pretraining or experiment.schedule
        steps = steps_of(network.architecture)
        taken = [*((step, before) for step in steps[:-1]), (steps[-1], experiment.schedule)]
        arguments = {**architecture(network.architecture).arguments, **network.arguments}
        return {
            "network": network.architecture,
            "parameters": f"{counted.parameters:,}",
            f"GMACs of a slice of {x} x {y}": f"{counted.macs / 1e9:.2f}",
            "loss": experiment.loss.form,
            "noise in training": ", ".join(f"{100 * level:g} %" for level in experiment.data.noise),
            "steps x slices": ", ".join(f"{name} {each.steps} x {each.batch}" for name, each in taken),
            "arguments": ", ".join(f"{key} {value}" for key, value in arguments.items()),
        }

    @staticmethod
    def write_report(study: Study, cache: Path) -> Path:
        from .study_report import write_report

        return write_report(study, cache)
