"""The heart's task as a recipe (papers 001 and 003): what the commands and the studies do with one experiment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import ConfigError
from ...models.registry import build
from ...output.phenotypes import SLICE_MEASURES
from ..distributed import World
from ..experiment import write_experiment
from ..fit import BEST, METRICS, Report, Stage, Validation
from ..recipes import Evaluation, Recipe
from ..scores import Row, write_rows
from ..study import Study
from .data import Subject, build_cache
from .experiment import HeartExperiment, heart_experiment
from .judge import measure_errors
from .nnunet import NnUNet
from .plan import check_settings, heart_stages, judge, stages_of, task_subjects, trained
from .scenarios import Scenario, score_run
from .tasks import networks


class HeartRecipe(Recipe[HeartExperiment]):
    """An experiment of the heart's task."""

    metrics = ("dice", "hausdorff_px", "psnr_db")

    @staticmethod
    def read(content: Mapping[str, Any], path: Path) -> HeartExperiment:
        return heart_experiment(content, path)

    def prepare(self, cache: Path, workers: int) -> Iterator[tuple[str, int, int]]:
        return build_cache(self.experiment, cache, workers)

    def stages(self, cache: Path) -> Sequence[Stage]:
        train, validation = (self._subjects(cohort, cache) for cohort in ("train", "validation"))
        return heart_stages(self.experiment, train, validation)

    def fit(
        self, cache: Path, run: Path, report: Callable[[Sequence[Stage]], Report], device: str, world: World
    ) -> str:
        if not self.experiment.is_external:
            return super().fit(cache, run, report, device, world)
        nnunet = NnUNet(self.experiment, run)
        if world.is_first and not nnunet.is_trained():
            nnunet.train(self._subjects("train", cache), device)
        world.wait()
        return f"trained by nnU-Net: {nnunet.weights}"

    def check_weights(self, run: Path) -> None:
        super().check_weights(run)
        if self.experiment.is_external:
            NnUNet(self.experiment, run).is_trained()  # raises if they are of another experiment

    def is_fitted(self, run: Path) -> bool:
        return NnUNet(self.experiment, run).is_trained() if self.experiment.is_external else super().is_fitted(run)

    def weights(self, run: Path) -> Path:
        if self.experiment.is_external:
            return NnUNet(self.experiment, run).weights
        return run / list(stages_of(self.experiment))[-1] / BEST

    def evaluate(self, cache: Path, run: Path, cohorts: Sequence[str]) -> str:
        summaries = []
        for cohort in self.test_cohorts(cohorts):
            if self.experiment.is_external:
                summaries.append(self._evaluate_external(cache, run, cohort))
                continue
            validation, rows = self._judge(cache, run, cohort)
            write_rows(rows, run / f"evaluation-{cohort}.csv")
            summaries.append(f"{cohort}: " + ", ".join(f"{k} {v:.4g}" for k, v in validation.metrics.items()))
        return "\n".join(summaries)

    def export(self, cache: Path, run: Path, bundle: Path) -> str:
        from .export import STREAMED, export_bundle

        experiment = self.experiment
        if experiment.method not in STREAMED:
            raise ConfigError(f"{experiment.method} is a baseline, and no stream runs it", where="method")
        metrics: dict[str, Any] = {}
        for cohort in experiment.test_cohorts:
            validation, rows = self._judge(cache, run, cohort)
            write_rows(rows, run / f"evaluation-{cohort}.csv")
            metrics[cohort] = dict(validation.metrics) | {"subjects": len(experiment.cohorts[cohort].seeds)}
            if "regression" in experiment.network.heads and experiment.method != "disk":
                metrics[cohort]["phenotype_errors"] = measure_errors(rows)
            if "dice" in rows[0]:
                names = [f"swapped-{factor:g}" for factor in experiment.data.accelerations]
                swapped = [row["dice"] for row in score_run(experiment, run, cache, names, cohort)]
                metrics[cohort]["dice_swapped"] = float(np.nanmean(np.asarray(swapped, np.float64)))
            if f"found_{SLICE_MEASURES[0]}" in rows[0]:
                metrics[cohort]["area_errors"] = measure_errors(rows, SLICE_MEASURES)
        subjects = self._subjects("train", cache)
        _, network = trained(experiment, subjects, subjects, self.weights(run))
        written = export_bundle(experiment, network, bundle, metrics)
        write_experiment(experiment, bundle / f"{experiment.name}.toml")
        steps = self.weights(run).with_name(METRICS).read_text("utf-8")
        (bundle / "training.jsonl").write_text(steps, encoding="utf-8")
        return f"{bundle}: sha256 {written[:12]}"

    def check(self, evaluation: Evaluation) -> None:
        check_settings(self.experiment)
        for name in evaluation.scenarios:
            Scenario.of(name)

    def score(self, cache: Path, run: Path, evaluation: Evaluation, device: str) -> Iterator[Sequence[Row]]:
        for name in evaluation.scenarios:
            yield score_run(self.experiment, run, cache, (name,), evaluation.cohort, device)

    def facts(self) -> dict[str, str]:
        experiment = self.experiment
        if experiment.is_external:
            return {
                "method": experiment.method,
                "parameters of the last stage": "-",
                "steps x subjects": f"{experiment.nnunet.trainer}, frames by {experiment.nnunet.batch or 'plan'}",
            }
        made, batch = networks(experiment), experiment.schedule.batch
        with torch.device("meta"):
            n = [sum(p.numel() for p in build(name, arguments).parameters()) for name, arguments in made.items()]
        return {
            "method": experiment.method,
            "parameters of the last stage": f"{n[-1]:,}" if n else "-",
            "steps x subjects": " + ".join(f"{s.steps} x {batch}" for s in stages_of(experiment).values()),
        }

    @staticmethod
    def write_report(study: Study, cache: Path) -> Path:
        from .study_report import write_report

        return write_report(study, cache)

    def _evaluate_external(self, cache: Path, run: Path, cohort: str) -> str:
        """Scores of nnU-Net."""
        names = [f"lines-{acceleration:g}" for acceleration in self.experiment.data.accelerations]
        rows = score_run(self.experiment, run, cache, names, cohort)
        write_rows(rows, run / f"evaluation-{cohort}.csv")
        means = {n: np.nanmean([float(row["dice"]) for row in rows if row["scenario"] == n]) for n in names}
        return f"{cohort}: " + ", ".join(f"dice {name} {value:.4g}" for name, value in means.items())

    def _judge(self, cache: Path, run: Path, cohort: str) -> tuple[Validation, list[Row]]:
        return judge(self.experiment, self._subjects("train", cache), self._subjects(cohort, cache), self.weights(run))

    def _subjects(self, cohort: str, cache: Path) -> list[Subject]:
        return task_subjects(self.experiment, cohort, cache)
