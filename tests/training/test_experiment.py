from __future__ import annotations

from pathlib import Path

import pytest

from kstream.errors import ConfigError
from kstream.models.registry import build
from kstream.training.experiment import load_experiment, parse_seeds

SHIPPED = sorted((Path(__file__).parents[2] / "training" / "experiments").glob("*.toml"))


def test_seed_text_is_ranges_and_numbers() -> None:
    assert parse_seeds("1000-1003, 1007") == (1000, 1001, 1002, 1003, 1007)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_experiments_are_valid_and_name_a_network_that_builds(path: Path) -> None:
    experiment = load_experiment(path)
    build(experiment.network.architecture, experiment.network.arguments)
    assert experiment.test_cohorts


def test_a_seed_in_two_cohorts_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "leak.toml"
    text = SHIPPED[0].read_text().replace('seeds = "2000-', 'seeds = "1005, 2000-')
    file.write_text(text)
    with pytest.raises(ConfigError, match="seed 1005 is in cohorts train and validation"):
        load_experiment(file)


def test_unknown_keys_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "typo.toml"
    file.write_text(SHIPPED[0].read_text().replace("batch = ", "batches = "))
    with pytest.raises(ConfigError, match=r"schedule\.batches"):
        load_experiment(file)


@pytest.mark.parametrize(("text", "message"), [("name = ", "not TOML"), (None, "cannot read")])
def test_unreadable_experiments_are_config_errors(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "bad.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_experiment(file)
