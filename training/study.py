"""Studies: several arms that differ in what their tables say, several seeds, one test set, one report.

A study file is an experiment of any task without a network, and a table for each arm that is laid over it::

    [arms.magnitude-wide]
    network.arguments = { channels = [8, 16, 32, 64] }
    network.architecture = "breast-magnitude"
    augment = { lines = "wide", lines_probability = 0.7 }

Each arm with each seed is a run, made by the recipe of the task (`recipes.Recipe`). Every step can be stopped and goes
on: data that are cached, runs that are trained, scores that are written are kept.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from ..errors import ConfigError, did_you_mean
from .distributed import World
from .experiment import Section, read_experiment, validated, write_experiment
from .fit import Report, Stage
from .recipes import AnyExperiment, Recipe, recipe_class
from .scores import Row, read_rows, write_rows

TIMES = "times.json"
EXPERIMENT = "experiment.toml"
"""Each arm and seed as an experiment of its own, so that `kstream export` makes a bundle of it."""


class FamilyConfig(Section):
    """An arm that is compared with others under several scenarios; Holm's correction is within the family."""

    a: str
    b: str | tuple[str, ...] = Field(min_length=1, description="one arm, or several")
    scenarios: tuple[str, ...] = Field(min_length=1)
    b_scenarios: tuple[str, ...] = Field(
        default=(), description="where b gets other inputs than a, such as cg-sense for radial; empty: the same"
    )

    @property
    def others(self) -> tuple[str, ...]:
        """Arms that `a` is compared with."""
        return (self.b,) if isinstance(self.b, str) else self.b

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Scenario of `a` and of the others."""
        return tuple(zip(self.scenarios, self.b_scenarios or self.scenarios, strict=True))


class StudyFile(Section):
    """What a study file says besides its experiment and its evaluation."""

    name: str
    description: str
    seeds: tuple[int, ...] = Field(min_length=1)
    families: dict[str, FamilyConfig] = Field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    arm: str
    seed: int
    recipe: Recipe[Any]
    folder: Path

    @property
    def experiment(self) -> Any:
        """Of the recipe, in the words of its task."""
        return self.recipe.experiment

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
        self.recipe_class = recipe_class(content, path)
        arms = content.pop("arms", {})
        own = {key: content.pop(key) for key in tuple(content) if key in ("seeds", "families")}
        self.evaluation = validated(self.recipe_class.evaluation, content.pop("evaluation", {}), path)
        self.file = validated(
            StudyFile, {**own, "name": content.get("name"), "description": content.get("description")}, path
        )
        if not isinstance(arms, dict) or not arms or not all(isinstance(table, dict) for table in arms.values()):
            raise ConfigError("a study needs arms", where=str(path), hint="[arms.NAME] tables")
        self.arms = tuple(arms)
        self._recipes = {
            (arm, seed): self._recipe(content, arm, table, seed)
            for arm, table in arms.items()
            for seed in self.file.seeds
        }
        self._check()

    @property
    def first(self) -> Recipe[Any]:
        """Any of the recipes: data are the same for all."""
        return next(iter(self._recipes.values()))

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
            Run(arm, seed, self._recipes[arm, seed], self.folder / f"{arm}-seed{seed}")
            for seed in seeds or self.file.seeds
            for arm in arms or self.arms
        ]

    def _recipe(self, base: Mapping[str, Any], arm: str, table: Mapping[str, Any], seed: int) -> Recipe[Any]:
        content = _over(base, table)
        content |= {"name": f"{base.get('name')}-{arm}-seed{seed}", "seed": seed}
        try:
            return self.recipe_class(self.path, content)
        except ConfigError as error:
            raise error.at(f"arm {arm}") from error

    def _check(self) -> None:
        where = str(self.path)
        for arm in self.arms:
            self._recipes[arm, self.file.seeds[0]].check(self.evaluation)
        if any(each.shared != self.first.shared for each in self._recipes.values()):
            raise ConfigError(
                "arms must share their data, cohorts and folds",
                where=where,
                hint="[data], [cohorts] and [folds] belong to the study",
            )
        for cohort in self.evaluation.cohorts:
            if cohort not in self.first.experiment.test_cohorts:
                raise ConfigError(f"no test cohort {cohort!r}", where=where)
        known = set(self.evaluation.scenarios)
        for name, family in self.file.families.items():
            if missing := {family.a, *family.others} - set(self.arms):
                raise ConfigError(f"family {name} compares unknown arms {sorted(missing)}", where=where)
            if missing := {*family.scenarios, *family.b_scenarios} - known:
                raise ConfigError(f"family {name} has unknown scenarios {sorted(missing)}", where=where)
            if family.b_scenarios and len(family.b_scenarios) != len(family.scenarios):
                raise ConfigError(f"family {name}: b_scenarios must pair with scenarios", where=where)


def _over(base: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """Tables laid over tables, key by key; the arguments of a network are replaced as a whole."""
    merged = dict(base)
    for key, value in table.items():
        deeper = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) and key != "arguments"
        merged[key] = _over(merged[key], value) if deeper else value
    return merged


def train(
    cache: Path,
    runs: Sequence[Run],
    report: Callable[[Run, Sequence[Stage]], Report],
    device: str = "cpu",
    world: World | None = None,
) -> None:
    """Stage ``train``: one run after the other; those that are finished are passed over.

    Parameters
    ----------
    report : asked at the beginning of each run for what hears its records.
    """
    world = world or World()
    for run in runs:
        if not is_trained(run):
            _train_run(run, cache, report, device, world)


def _train_run(
    run: Run, cache: Path, report: Callable[[Run, Sequence[Stage]], Report], device: str, world: World
) -> None:
    """One run, whose data are let go at the end: two runs' data in memory at once may be too much."""
    begin = time.perf_counter()
    run.recipe.fit(cache, run.folder, lambda stages: report(run, stages), device, world)
    if world.is_first:
        write_experiment(run.experiment, run.folder / EXPERIMENT)
        _note_time(run, "train_s", time.perf_counter() - begin)


def is_trained(run: Run) -> bool:
    """True if a run has taken its last step.

    Raises
    ------
    ConfigError : it was trained by an experiment that differs in what decides the weights.
    """
    if "train_s" not in read_times(run) or not run.recipe.is_fitted(run.folder):
        return False
    trained = type(run.recipe)(run.folder / EXPERIMENT)
    if _decisive(trained.experiment) != _decisive(run.experiment):
        raise ConfigError(
            f"the run {run.folder.name} was trained by another experiment",
            where=str(run.folder / EXPERIMENT),
            likely="the study's file changed after it",
            hint=f"delete {run.folder} to train it again, or choose another --output",
        )
    return True


def _decisive(experiment: AnyExperiment) -> dict[str, Any]:
    """What decides the weights of an experiment: not its words, nor its test cohorts."""
    content = experiment.model_dump(mode="json", exclude={"description"})
    content["cohorts"] = {name: value for name, value in content["cohorts"].items() if name in ("train", "validation")}
    return content


def _conditions(study: Study, run: Run) -> dict[str, Any]:
    """What decides the scores of a trained network."""
    cohorts = run.experiment.cohorts
    first, *others = [
        cohorts[name].model_dump(mode="json") if name in cohorts else None for name in study.evaluation.cohorts
    ]
    return {
        **study.evaluation.model_dump(mode="json"),
        "exams": first,
        **({"other_exams": others} if others else {}),
        "data": run.experiment.data.model_dump(mode="json"),
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
    wanted = _conditions(study, run)
    if wrong := [key for key in wanted if stored.get(key) != wanted[key]]:
        raise ConfigError(
            f"the scores of {run.folder.name} were taken under other conditions: {', '.join(wrong)}",
            where=str(run.conditions),
            likely="the study's file changed after its evaluation",
            hint=f"delete {run.scores} to evaluate again, or {run.folder} to train it again too",
        )
    return True


def evaluate(study: Study, cache: Path, runs: Sequence[Run], report: Callable[[Run, int], None], device: str) -> None:
    """Stage ``evaluate``: score every trained run that has no scores yet; `report` hears after each scenario.

    Each row gets the columns ``model`` and ``fold``: the arm and the seed, in the words of paper 000's tables.
    """
    for run in runs:
        if not is_trained(run) or is_scored(study, run):
            continue
        begin = time.perf_counter()
        rows: list[Row] = []
        for number, found in enumerate(run.recipe.score(cache, run.folder, study.evaluation, device), start=1):
            rows += ({"model": run.arm, "fold": run.seed, **row} for row in found)
            report(run, number)
        run.conditions.write_text(json.dumps(_conditions(study, run), indent=2) + "\n", encoding="utf-8")
        write_rows(rows, run.scores)
        _note_time(run, "evaluate_s", time.perf_counter() - begin)


def scored_runs(study: Study) -> list[Run]:
    """All runs that have been evaluated.

    Raises
    ------
    ConfigError : if none has, or a run was trained or scored as another study's file says.
    """
    found = [run for run in study.runs() if is_trained(run) and is_scored(study, run)]
    if not found:
        raise ConfigError("no run of this study has scores yet", hint="kstream study FILE --stage evaluate")
    return found


def all_rows(study: Study) -> list[dict[str, str]]:
    """Scores of all runs that have been evaluated, as `scored_runs`."""
    return [row for run in scored_runs(study) for row in read_rows(run.scores)]


def read_times(run: Run) -> dict[str, float]:
    """Seconds that the steps of a run took."""
    path = run.folder / TIMES
    times: dict[str, float] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return times


def _note_time(run: Run, what: str, seconds: float) -> None:
    times = read_times(run)
    times[what] = round(times.get(what, 0.0) + seconds, 1)
    (run.folder / TIMES).write_text(json.dumps(times) + "\n", encoding="utf-8")
