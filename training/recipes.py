"""The tasks that an experiment file can name, and what each must offer to the commands."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import ConfigError, did_you_mean
from .experiment import read_experiment

if TYPE_CHECKING:
    from .fit import Stage

RECIPES = {
    "breast": "kstream.training.breast.task:BreastRecipe",
    "brain": "kstream.training.brain.task:BrainRecipe",
    "heart": "kstream.training.heart.recipe:HeartRecipe",
}
"""Task of an experiment file (its key ``task``, ``breast`` if it has none) and the class that knows how it is done."""


class Recipe(Protocol):
    """One experiment, from its data to its bundle; made from the path of its file.

    Attributes
    ----------
    name : of the experiment; runs go to ``runs/NAME`` if nothing else is said.
    """

    name: str

    def prepare(self, cache: Path, workers: int) -> Iterator[tuple[str, int, int]]:
        """Make the data that the cache lacks; gives ``(what, done, total)`` as each is finished."""

    def stages(self, cache: Path) -> Sequence[Stage]:
        """What to train, in order; most recipes have one stage. Wrong data are refused here, before any hour."""

    def evaluate(self, cache: Path, run: Path, cohorts: Sequence[str]) -> str:
        """Score the best weights on test cohorts (none named: all), write tables into the run's folder, summarise."""

    def export(self, cache: Path, run: Path, bundle: Path) -> str:
        """Evaluate, and write the best weights as a bundle with card and tables; gives a line that says so."""


def load_recipe(path: Path) -> Recipe:
    """The recipe of an experiment file.

    Raises
    ------
    ConfigError : if the file is wrong or names an unknown task.
    """
    task = read_experiment(path).get("task", "breast")
    if task not in RECIPES:
        raise ConfigError(f"unknown task {task!r}", where=str(path), hint=did_you_mean(str(task), tuple(RECIPES)))
    module, _, attribute = RECIPES[task].partition(":")
    recipe_class: Any = getattr(importlib.import_module(module), attribute)
    recipe: Recipe = recipe_class(path)
    return recipe
