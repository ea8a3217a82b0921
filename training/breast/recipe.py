"""The breast task as a recipe: what the commands and the studies do with one experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ...engines.torch_engine import TorchEngine
from ...errors import ConfigError
from ...models.registry import architecture, cost
from ..experiment import Experiment, check_cohorts, validated
from ..fit import Stage
from ..recipes import Evaluation, Recipe
from ..scores import Row
from ..study import Study
from .data import build_cache, load_cohort
from .evaluate import ExamScore, to_csv, to_markdown
from .scenarios import Scenario, as_row, score_under
from .task import breast_stages, check_network, load_best, score_cohort
from .undersampling import Scope


class BreastEvaluation(Evaluation):
    """See `scenarios.Scenario` for the names of scenarios."""

    scope: Scope = Field(default="exam", description="masks and noise once per exam, or per patch, as published")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="of the networks, as the stream may run them"
    )


class BreastRecipe(Recipe[Experiment]):
    """An experiment of the breast task."""

    evaluation = BreastEvaluation

    @staticmethod
    def read(content: Mapping[str, Any], path: Path) -> Experiment:
        experiment = validated(Experiment, content, path)
        check_cohorts(experiment, path)
        check_network(experiment)
        return experiment

    @property
    def cohort_names(self) -> tuple[str, ...]:
        return self.experiment.cohort_names

    @property
    def shared(self) -> Any:
        return self.experiment.data, self.experiment.cohorts, self.experiment.folds

    def check_weights(self, run: Path) -> None:
        load_best(self.experiment, run)

    def prepare(self, cache: Path, workers: int) -> Iterator[tuple[str, int, int]]:
        for path, done, total in build_cache(self.experiment, cache, workers):
            yield path.stem, done, total

    def stages(self, cache: Path) -> Sequence[Stage]:
        experiment = self.experiment
        train, validation = (load_cohort(experiment, cohort, cache) for cohort in ("train", "validation"))
        return breast_stages(experiment, train, validation)

    def evaluate(self, cache: Path, run: Path, cohorts: Sequence[str]) -> str:
        scores = self._scores(cache, run, cohorts)
        for name, rows in scores.items():
            (run / f"evaluation-{name}.csv").write_text(to_csv(rows), encoding="utf-8")
            (run / f"evaluation-{name}.md").write_text(to_markdown(rows), encoding="utf-8")
        return "\n".join(f"{name}\n{to_markdown(rows)}" for name, rows in scores.items())

    def export(self, cache: Path, run: Path, bundle: Path) -> str:
        from .export import export

        scores = self._scores(cache, run, ())
        validation = load_cohort(self.experiment, "validation", cache)
        example = next((exam for exam in validation if exam.has_lesion), validation[0])
        written = export(self.experiment, self._path, run, bundle, scores, example)
        return f"{written.folder}: sha256 {written.info.sha256[:12]}"

    def _scores(self, cache: Path, run: Path, cohorts: Sequence[str]) -> dict[str, list[ExamScore]]:
        experiment = self.experiment
        named = self.test_cohorts(cohorts)
        network = load_best(experiment, run)
        return {cohort: score_cohort(experiment, load_cohort(experiment, cohort, cache), network) for cohort in named}

    def check(self, evaluation: Evaluation) -> None:
        for scenario in map(Scenario.of, evaluation.scenarios):
            if scenario.kind in ("radial", "cg-sense") and scenario.name not in self.experiment.data.variants:
                raise ConfigError(f"scenario {scenario.name} needs data.variants to name it", where=str(self._path))

    def score(self, cache: Path, run: Path, evaluation: Evaluation, device: str) -> Iterator[Sequence[Row]]:
        experiment, network = self.experiment, self.experiment.network
        exams = load_cohort(experiment, evaluation.cohort, cache)
        wanted = BreastEvaluation.model_validate(evaluation.model_dump())
        engine = TorchEngine(load_best(experiment, run), {}, device, wanted.precision)
        patch = (network.patch_depth, network.patch_stride)
        for name in evaluation.scenarios:
            scores = score_under(
                [Scenario.of(name)],
                exams,
                engine,
                self.name,
                experiment.seed,
                experiment.data.frame,
                patch,
                wanted.scope,
            )
            yield [as_row(score) for score in scores]

    def facts(self) -> dict[str, str]:
        network, schedule = self.experiment.network, self.experiment.schedule
        full_width = {k: v for k, v in network.arguments.items() if "channels" not in k and k != "width"}
        counted, paper = cost(network.architecture, network.arguments), cost(network.architecture, full_width)
        arguments = {**architecture(network.architecture).arguments, **network.arguments}
        return {
            "network": network.architecture,
            "parameters": f"{counted.parameters:,}",
            "GMACs of this width, 24x320x320": f"{counted.macs / 1e9:.2f}",
            "GMACs at full width": f"{paper.macs / 1e9:.1f}",
            "steps x patches": f"{schedule.steps} x {schedule.batch * schedule.batches_per_step}",
            "arguments": ", ".join(f"{key} {value}" for key, value in arguments.items()),
        }

    @staticmethod
    def write_report(study: Study, cache: Path) -> Path:
        from .study_report import write_report

        return write_report(study, cache)
