"""Studies: several arms that differ in what their tables say, several seeds, one test set, one report.

A study file is an experiment without a network, and a table for each arm that is laid over it::

    [arms.magnitude-wide]
    network.arguments = { channels = [8, 16, 32, 64] }
    network.architecture = "breast-magnitude"
    augment = { lines = "wide", lines_probability = 0.7 }

Every step can be stopped and goes on: exams that are cached, arms that are trained, scores that are written are kept.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from ...engines.torch_engine import TorchEngine
from ...errors import ConfigError, did_you_mean
from ...models.registry import build
from ..distributed import World
from ..experiment import (
    Experiment,
    Section,
    check_cohorts,
    load_experiment,
    read_experiment,
    validated,
    write_experiment,
)
from ..fit import LAST, Report, fit_stages
from .data import build_cache, load_cohort
from .scenarios import Scenario, Score, read_scores, score_under, write_scores
from .task import breast_stages, load_best
from .undersampling import Scope

TIMES = "times.json"
EXPERIMENT = "experiment.toml"
"""Each arm and seed as an experiment of its own, so that `kstream export` makes a bundle of it."""


class FamilyConfig(Section):
    """Two arms that are compared under several scenarios; Holm's correction is within the family."""

    a: str
    b: str
    scenarios: tuple[str, ...] = Field(min_length=1)
    b_scenarios: tuple[str, ...] = Field(
        default=(), description="where b gets other inputs than a, such as cg-sense for radial; empty: the same"
    )


class EvaluationConfig(Section):
    """Which conditions every trained network is judged under."""

    cohort: str = "test"
    scope: Scope = "exam"
    scenarios: tuple[str, ...] = ("full",)


class StudyFile(Section):
    """What a study file says besides its experiment."""

    name: str
    description: str
    seeds: tuple[int, ...] = Field(min_length=1)
    evaluation: EvaluationConfig = EvaluationConfig()
    families: dict[str, FamilyConfig] = Field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    arm: str
    seed: int
    experiment: Experiment
    folder: Path

    @property
    def scores(self) -> Path:
        return self.folder / "scores.csv"

    @property
    def conditions(self) -> Path:
        """Under what `scores` were taken."""
        return self.folder / "scores.json"


class Study:
    """A study file.

    Raises
    ------
    ConfigError : unknown or impossible values, arms, scenarios or variants; all before anything is computed.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        content = read_experiment(path)
        self.path, self.folder = path, folder
        arms = content.pop("arms", {})
        own = {key: content.pop(key) for key in tuple(content) if key in ("seeds", "evaluation", "families")}
        self.file = validated(
            StudyFile, {**own, "name": content.get("name"), "description": content.get("description")}, path
        )
        if not isinstance(arms, dict) or not arms:
            raise ConfigError("a study needs arms", where=str(path), hint="[arms.NAME] tables")
        self.arms = tuple(arms)
        self._experiments = {
            (arm, seed): _experiment(content, arm, table, seed, path)
            for arm, table in arms.items()
            for seed in self.file.seeds
        }
        self.scenarios = [Scenario.of(name) for name in self.file.evaluation.scenarios]
        self._check()

    @property
    def first(self) -> Experiment:
        """Any of the experiments: data are the same for all."""
        return next(iter(self._experiments.values()))

    def runs(self, arms: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Run]:
        """Runs of some arms and seeds (none named: all), seed by seed, so that an early stop leaves whole comparisons.

        Raises
        ------
        ConfigError : for an arm or a seed that the study does not have.
        """
        for name in arms:
            if name not in self.arms:
                raise ConfigError(f"no arm {name!r}", where=str(self.path), hint=did_you_mean(name, self.arms))
        if unknown := set(seeds) - set(self.file.seeds):
            raise ConfigError(f"no seed {sorted(unknown)}", where=str(self.path), hint=f"seeds = {self.file.seeds}")
        return [
            Run(arm, seed, self._experiments[arm, seed], self.folder / f"{arm}-seed{seed}")
            for seed in seeds or self.file.seeds
            for arm in arms or self.arms
        ]

    def _check(self) -> None:
        data = self.first.data
        check_cohorts(self.first, self.path)
        for arm in self.arms:
            network = self._experiments[arm, self.file.seeds[0]].network
            with torch.device("meta"):
                build(network.architecture, network.arguments)
        shared = (data, self.first.cohorts, self.first.folds)
        if any((each.data, each.cohorts, each.folds) != shared for each in self._experiments.values()):
            raise ConfigError(
                "arms must share their data, cohorts and folds",
                where=str(self.path),
                hint="[data], [cohorts] and [folds] belong to the study",
            )
        if self.file.evaluation.cohort not in self.first.test_cohorts:
            raise ConfigError(f"no test cohort {self.file.evaluation.cohort!r}", where=str(self.path))
        for scenario in self.scenarios:
            if scenario.kind in ("radial", "cg-sense") and scenario.name not in data.variants:
                raise ConfigError(f"scenario {scenario.name} needs data.variants to name it", where=str(self.path))
        known = {scenario.name for scenario in self.scenarios}
        for name, family in self.file.families.items():
            if missing := {family.a, family.b} - set(self.arms):
                raise ConfigError(f"family {name} compares unknown arms {sorted(missing)}", where=str(self.path))
            if missing := {*family.scenarios, *family.b_scenarios} - known:
                raise ConfigError(f"family {name} has unknown scenarios {sorted(missing)}", where=str(self.path))
            if family.b_scenarios and len(family.b_scenarios) != len(family.scenarios):
                raise ConfigError(f"family {name}: b_scenarios must pair with scenarios", where=str(self.path))


def _experiment(base: Mapping[str, Any], arm: str, table: Mapping[str, Any], seed: int, path: Path) -> Experiment:
    content = _over(base, table)
    content |= {"name": f"{base.get('name')}-{arm}-seed{seed}", "seed": seed}
    try:
        return validated(Experiment, content, path)
    except ConfigError as error:
        raise error.at(f"arm {arm}") from error


def _over(base: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """Tables laid over tables, key by key; the arguments of a network are replaced as a whole."""
    merged = dict(base)
    for key, value in table.items():
        deeper = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) and key != "arguments"
        merged[key] = _over(merged[key], value) if deeper else value
    return merged


def prepare(study: Study, cache: Path, workers: int) -> Iterator[tuple[str, int, int]]:
    """Stage ``data``: simulate what the cache lacks."""
    for path, done, total in build_cache(study.first, cache, workers):
        yield path.stem, done, total


def train(
    study: Study,
    cache: Path,
    runs: Sequence[Run],
    report: Callable[[Run], Report],
    device: str = "cpu",
    world: World | None = None,
) -> None:
    """Stage ``train``: one run after the other; those that are finished are passed over."""
    world = world or World()
    cohorts = {name: load_cohort(study.first, name, cache) for name in ("train", "validation")}
    for run in runs:
        if is_trained(run):
            continue
        stages = breast_stages(run.experiment, cohorts["train"], cohorts["validation"])
        begin = time.perf_counter()
        fit_stages(stages, run.folder, report(run), device, world)
        if world.is_first:
            write_experiment(run.experiment, run.folder / EXPERIMENT)
            _note_time(run, "train_s", time.perf_counter() - begin)


def is_trained(run: Run) -> bool:
    """True if a run has taken its last step.

    Raises
    ------
    ConfigError : it was trained by an experiment that differs in what decides the weights.
    """
    if "train_s" not in read_times(run) or not (run.folder / LAST).is_file():
        return False
    if _decisive(load_experiment(run.folder / EXPERIMENT)) != _decisive(run.experiment):
        raise ConfigError(
            f"the run {run.folder.name} was trained by another experiment",
            where=str(run.folder / EXPERIMENT),
            likely="the study's file changed after it",
            hint=f"delete {run.folder} to train it again, or choose another --output",
        )
    return True


def _decisive(experiment: Experiment) -> dict[str, Any]:
    """What decides the weights of an experiment: not its words, nor its test cohorts."""
    content = experiment.model_dump(mode="json", exclude={"description"})
    content["cohorts"] = {name: value for name, value in content["cohorts"].items() if name in ("train", "validation")}
    return content


def _conditions(study: Study) -> dict[str, Any]:
    """What decides the scores of a trained network."""
    evaluation, first = study.file.evaluation, study.first
    cohort = first.cohorts.get(evaluation.cohort)
    return {
        **evaluation.model_dump(mode="json"),
        "exams": None if cohort is None else cohort.model_dump(mode="json"),
        "data": first.data.model_dump(mode="json"),
    }


def is_scored(study: Study, run: Run) -> bool:
    """True if a run has scores.

    Raises
    ------
    ConfigError : they were taken under other scenarios, of another cohort or with another scope.
    """
    if not run.scores.is_file():
        return False
    stored = json.loads(run.conditions.read_text("utf-8")) if run.conditions.is_file() else {}
    wanted = _conditions(study)
    if wrong := [key for key in wanted if stored.get(key) != wanted[key]]:
        raise ConfigError(
            f"the scores of {run.folder.name} were taken under other conditions: {', '.join(wrong)}",
            where=str(run.conditions),
            likely="the study's file changed after its evaluation",
            hint=f"delete {run.scores} to evaluate again, or {run.folder} to train it again too",
        )
    return True


def evaluate(study: Study, cache: Path, runs: Sequence[Run], report: Callable[[Run, int], None], device: str) -> None:
    """Stage ``evaluate``: score every trained run that has no scores yet; `report` hears after each scenario."""
    evaluation = study.file.evaluation
    exams = load_cohort(study.first, evaluation.cohort, cache)
    for run in runs:
        if not is_trained(run) or is_scored(study, run):
            continue
        begin = time.perf_counter()
        network = run.experiment.network
        engine = TorchEngine(load_best(run.experiment, run.folder), {}, device)
        patch = (network.patch_depth, network.patch_stride)
        scores: list[Score] = []
        for number, scenario in enumerate(study.scenarios):
            frame = run.experiment.data.frame
            scores += score_under([scenario], exams, engine, run.arm, run.seed, frame, patch, evaluation.scope)
            report(run, number + 1)
        run.conditions.write_text(json.dumps(_conditions(study), indent=2) + "\n", encoding="utf-8")
        write_scores(scores, run.scores)
        _note_time(run, "evaluate_s", time.perf_counter() - begin)


def all_scores(study: Study) -> list[Score]:
    """Scores of all runs that have been evaluated.

    Raises
    ------
    ConfigError : if none has, or a run was trained or scored as another study's file says.
    """
    found = [
        row for run in study.runs() if is_trained(run) and is_scored(study, run) for row in read_scores(run.scores)
    ]
    if not found:
        raise ConfigError("no run of this study has scores yet", hint="kstream study FILE --stage evaluate")
    return found


def read_times(run: Run) -> dict[str, float]:
    """Seconds that the steps of a run took."""
    path = run.folder / TIMES
    times: dict[str, float] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return times


def _note_time(run: Run, what: str, seconds: float) -> None:
    times = read_times(run)
    times[what] = round(times.get(what, 0.0) + seconds, 1)
    (run.folder / TIMES).write_text(json.dumps(times) + "\n", encoding="utf-8")
