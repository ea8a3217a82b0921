"""The tasks that an experiment file can name, and what each must offer to the commands and to studies."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import Field

from ..errors import ConfigError, ModelError, did_you_mean
from .experiment import Section, read_experiment
from .fit import BEST, LAST, fit_stages
from .scores import Row

if TYPE_CHECKING:
    from .distributed import World
    from .fit import Report, Stage
    from .study import Study

RECIPES = {
    "breast": "kstream.training.breast.recipe:BreastRecipe",
    "brain": "kstream.training.brain.recipe:BrainRecipe",
    "heart": "kstream.training.heart.recipe:HeartRecipe",
}
"""Task of an experiment file (its key ``task``, ``breast`` if it has none) and the class that knows how it is done."""


class Evaluation(Section):
    """The ``[evaluation]`` of a study file: which conditions every trained network is judged under."""

    cohort: str = Field(default="test", description="whose subjects are scored")
    scenarios: tuple[str, ...] = Field(default=("full",), min_length=1, description="conditions, by the task's names")

    @property
    def cohorts(self) -> tuple[str, ...]:
        """All cohorts that are scored."""
        return (self.cohort,)


class AnyExperiment(Protocol):
    """What the experiments of all tasks have."""

    @property
    def task(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def seed(self) -> int: ...

    @property
    def data(self) -> Section: ...

    @property
    def cohorts(self) -> Mapping[str, Section]: ...

    @property
    def test_cohorts(self) -> tuple[str, ...]: ...

    def model_dump(self, *, mode: str = ..., exclude: Any = ..., exclude_defaults: bool = ...) -> dict[str, Any]: ...


ExperimentType = TypeVar("ExperimentType", bound=AnyExperiment)


class Recipe(ABC, Generic[ExperimentType]):
    """One experiment, from its data to its bundle, and one run of a study.

    A task that is only trained, evaluated and exported needs `read`, `prepare`, `stages`, `evaluate` and `export`; one
    that has studies needs `score` too, and overrides of what else differs.

    Parameters
    ----------
    path : the experiment file, or the study file that holds it.
    content : of the experiment; read from `path` if none is given.

    Raises
    ------
    ConfigError : a file that cannot be read, or an experiment that is refused.
    """

    evaluation: ClassVar[type[Evaluation]] = Evaluation
    """What a study file may say in ``[evaluation]``."""

    metrics: ClassVar[tuple[str, ...]] = ("dice",)
    """Numbers of `score` that a report shows; the first is what arms are compared by."""

    def __init__(self, path: Path, content: Mapping[str, Any] | None = None) -> None:
        self._path = path
        self.experiment: ExperimentType = self.read(read_experiment(path) if content is None else content, path)
        self.name = self.experiment.name

    @staticmethod
    @abstractmethod
    def read(content: Mapping[str, Any], path: Path) -> Any:
        """The experiment that a file's content says; raises `ConfigError` for what is unknown or impossible."""

    @abstractmethod
    def prepare(self, cache: Path, workers: int) -> Iterator[tuple[str, int, int]]:
        """Make the data that the cache lacks; gives ``(what, done, total)`` as each is finished."""

    @abstractmethod
    def stages(self, cache: Path) -> Sequence[Stage]:
        """What to train, in order; most recipes have one stage. Wrong data are refused here, before any hour."""

    def fit(
        self, cache: Path, run: Path, report: Callable[[Sequence[Stage]], Report], device: str, world: World
    ) -> str:
        """Train, or go on with what was stopped; gives a line that says what came out.

        Parameters
        ----------
        report : asked at the beginning for what hears the records of the stages.
        """
        stages = self.stages(cache)
        result = fit_stages(stages, run, report(stages), device, world)
        return f"best score {result.best_score:.3f} at step {result.best_step}: {result.weights}"

    def is_fitted(self, run: Path) -> bool:
        """True if a run has taken its last step."""
        return self.weights(run).with_name(LAST).is_file()

    @abstractmethod
    def evaluate(self, cache: Path, run: Path, cohorts: Sequence[str]) -> str:
        """Score the best weights on test cohorts (none named: all), write tables into the run's folder, summarise."""

    @abstractmethod
    def export(self, cache: Path, run: Path, bundle: Path) -> str:
        """Evaluate, and write the best weights as a bundle with card and tables; gives a line that says so."""

    def weights(self, run: Path) -> Path:
        """The best weights of the last stage of a run."""
        return run / BEST

    def check_weights(self, run: Path) -> None:
        """Refuse a run that cannot be evaluated; asked before data are made, which may take hours.

        Raises
        ------
        ModelError : if it has no weights, or those of another architecture where a task can tell that early.
        """
        if not self.weights(run).is_file():
            raise ModelError(
                "this run has no weights yet", where=str(self.weights(run)), hint="kstream train EXPERIMENT.toml"
            )

    @property
    def cohort_names(self) -> tuple[str, ...]:
        """All cohorts."""
        return tuple(self.experiment.cohorts)

    def test_cohorts(self, named: Sequence[str] = ()) -> tuple[str, ...]:
        """The cohorts that are named, or all test cohorts if none is.

        Raises
        ------
        ConfigError : for a cohort that the experiment does not have.
        """
        if unknown := set(named) - set(self.cohort_names):
            raise ConfigError(f"no cohort {', '.join(sorted(unknown))}", hint="one of: " + ", ".join(self.cohort_names))
        return tuple(named) or self.experiment.test_cohorts

    @property
    def shared(self) -> Any:
        """What all arms of a study must have in common."""
        return self.experiment.data, self.experiment.cohorts

    def check(self, evaluation: Evaluation) -> None:
        """Refuse what would fail after hours: networks that cannot be built, scenarios that do not exist.

        Raises
        ------
        ConfigError, ModelError : for the first of them.
        """

    def score(self, cache: Path, run: Path, evaluation: Evaluation, device: str) -> Iterator[Sequence[Row]]:
        """Scores of the best weights of a run, subject by subject; one answer for each scenario, in order.

        A row holds the texts ``subject`` and ``scenario`` (and ``cohort``, if there are several) and numbers by name.

        Raises
        ------
        ConfigError : if this task has no studies.
        """
        raise ConfigError(f"the task {self.experiment.task} has no studies", where=str(self._path))

    def facts(self) -> dict[str, str]:
        """What a report says of an arm besides its times: network, size, steps."""
        return {}

    @staticmethod
    def write_report(study: Study, cache: Path) -> Path:
        """Make tables, figures and the page of a study from the scores of its runs; gives the page."""
        from .study_report import write_report

        return write_report(study)


def recipe_class(content: Mapping[str, Any], path: Path) -> type[Recipe[Any]]:
    """The class for the task that a file's content names.

    Raises
    ------
    ConfigError : if there is no such task.
    """
    task = content.get("task", "breast")
    if task not in RECIPES:
        raise ConfigError(f"unknown task {task!r}", where=str(path), hint=did_you_mean(str(task), tuple(RECIPES)))
    module, _, attribute = RECIPES[task].partition(":")
    found: type[Recipe[Any]] = getattr(importlib.import_module(module), attribute)
    return found


def load_recipe(path: Path) -> Recipe[Any]:
    """The recipe of an experiment file.

    Raises
    ------
    ConfigError : if the file is wrong or names an unknown task.
    """
    content = read_experiment(path)
    return recipe_class(content, path)(path, content)
