from __future__ import annotations

from pathlib import Path

import pytest

from kstream.errors import ConfigError
from kstream.models.registry import build
from kstream.training.experiment import load_experiment, parse_seeds, write_experiment
from kstream.training.recipes import load_recipe

SHIPPED = sorted((Path(__file__).parents[2] / "training" / "experiments").glob("*.toml"))
BREAST = next(path for path in SHIPPED if path.stem == "breast-demo")


def test_seed_text_is_ranges_and_numbers() -> None:
    assert parse_seeds("1000-1003, 1007") == (1000, 1001, 1002, 1003, 1007)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_experiments_are_valid(path: Path) -> None:
    assert load_recipe(path).name


def test_the_demos_experiment_names_a_network_that_builds() -> None:
    experiment = load_experiment(BREAST)
    build(experiment.network.architecture, experiment.network.arguments)
    assert experiment.test_cohorts


def test_unknown_tasks_are_named(tmp_path: Path) -> None:
    file = tmp_path / "knee.toml"
    file.write_text('task = "breats"\n')
    with pytest.raises(ConfigError, match="unknown task 'breats'") as caught:
        load_recipe(file)
    assert "breast" in caught.value.hint


def test_an_experiment_comes_back_as_it_was_written(tmp_path: Path) -> None:
    experiment = load_experiment(BREAST)
    write_experiment(experiment, tmp_path / "again.toml")
    assert load_experiment(tmp_path / "again.toml") == experiment


def test_a_seed_in_two_cohorts_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "leak.toml"
    text = BREAST.read_text().replace('seeds = "2000-', 'seeds = "1005, 2000-')
    file.write_text(text)
    with pytest.raises(ConfigError, match="seed 1005 is in cohorts train and validation"):
        load_experiment(file)


def test_unknown_keys_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "typo.toml"
    file.write_text(BREAST.read_text().replace("batch = ", "batches = "))
    with pytest.raises(ConfigError, match=r"schedule\.batches"):
        load_experiment(file)


@pytest.mark.parametrize(("text", "message"), [("name = ", "not TOML"), (None, "cannot read")])
def test_unreadable_experiments_are_config_errors(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "bad.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_experiment(file)
