"""What is wrong with an experiment or a run is said before data are made for it, which may take hours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from kstream.cli import app
from kstream.errors import ConfigError, KstreamError, ModelError
from kstream.models.registry import build
from kstream.training.fit import save_weights

EXPERIMENT = """
name = "small"
description = "as small as an experiment gets"
data.protocol = { matrix = 24, n_slices = 6, n_spokes = 13, n_coils = 3, n_lesions = 2 }
cohorts = { train = { seeds = "1-2" }, validation = { seeds = "3" }, test = { seeds = "4" } }
network = { architecture = "breast-magnitude", arguments = { channels = [4, 6] }, patch_depth = 4 }
schedule = { steps = 2, validate_every = 2 }
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(EXPERIMENT)
    return path


def refused(file: Path, command: str, *options: str) -> KstreamError:
    """What a command raises; it must have made no data."""
    cache = file.parent / "cache"
    folders = ["--cache", str(cache), "--run", str(file.parent / "run")]
    done = CliRunner().invoke(app, [command, str(file), *folders, *options])
    assert isinstance(done.exception, KstreamError), (done.output, done.exception)
    assert not cache.exists()
    return done.exception


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("breast-magnitude", "breast-magnitud", "unknown architecture"),
        ("channels", "chanels", "no argument chanels"),
    ],
)
def test_networks_that_cannot_be_built(file: Path, old: str, new: str, message: str) -> None:
    file.write_text(EXPERIMENT.replace(old, new))
    for command in ("train", "evaluate"):
        error = refused(file, command)
        assert isinstance(error, ModelError)
        assert message in error.what


def test_runs_without_weights_or_with_those_of_another_architecture(file: Path) -> None:
    assert "no weights yet" in refused(file, "evaluate").what
    torch.manual_seed(0)
    (file.parent / "run").mkdir()
    save_weights(build("breast-magnitude", {"channels": [4, 8]}), file.parent / "run" / "best.safetensors")
    for command in ("train", "evaluate"):
        assert "another architecture" in refused(file, command).what


def test_cohorts_that_do_not_exist(file: Path) -> None:
    error = refused(file, "evaluate", "--cohort", "tets")
    assert isinstance(error, ConfigError)
    assert error.hint == "one of: train, validation, test"


def test_variants_of_exams_from_files(file: Path) -> None:
    text = EXPERIMENT.replace("data.protocol", 'data.variants = ["radial-uniform-2"]\ndata.protocol')
    file.write_text("\n".join(line for line in text.splitlines() if "cohorts" not in line) + "\nfolds.fold = 1\n")
    assert "no variants" in refused(file, "train").what
