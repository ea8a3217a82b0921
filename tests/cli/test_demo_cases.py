"""What the demo scans follows from what its model was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kstream.cli import app
from kstream.cli.demo_cases import SCENES, cine_fields, head_fields
from kstream.cli.simulate import Case
from kstream.errors import ConfigError, ModelError
from kstream.models.bundle import Bundle
from kstream.simulate.brain.protocol import BrainProtocol
from kstream.simulate.heart.protocol import CineProtocol
from tests import demo_bundles


def test_a_heart_is_scanned_as_its_model_was_trained(tmp_path: Path) -> None:
    protocol = CineProtocol(**cine_fields(Bundle.load(demo_bundles.heart(tmp_path / "disk"))))
    assert (protocol.matrix, protocol.n_frames, protocol.views) == (24, 5, ("sax0",))
    assert (protocol.acceleration, protocol.density, protocol.n_coils) == (3.0, "normal", 1)


def test_a_network_that_was_built_for_one_size_gives_it_if_nothing_else_does(tmp_path: Path) -> None:
    protocol = CineProtocol(**cine_fields(Bundle.load(demo_bundles.heart(tmp_path / "kmtr", kmtr=True))))
    assert (protocol.matrix, protocol.n_frames, protocol.views) == (24, 5, ("4ch", "sax0", "sax1"))


def test_a_head_is_scanned_as_its_model_was_trained(tmp_path: Path) -> None:
    protocol = BrainProtocol(**head_fields(Bundle.load(demo_bundles.brain(tmp_path / "head"))))
    assert (protocol.matrix, protocol.n_slices, protocol.voxel_mm) == ((40, 48), 3, (4.5, 4.5, 12.0))
    assert (protocol.fraction, protocol.n_centre, protocol.noise) == (0.4, 8, 0.05)


def test_a_bundle_without_its_experiment_is_scanned_as_in_the_paper(tmp_path: Path) -> None:
    folder = demo_bundles.brain(tmp_path / "head")
    (folder / "heads.toml").unlink()
    assert BrainProtocol(**head_fields(Bundle.load(folder))) == BrainProtocol()


@pytest.mark.parametrize(("seed", "cohort"), [(2, "train"), (11, "validation"), (9007, "")])
def test_the_title_says_if_the_model_knows_the_person(seed: int, cohort: str, tmp_path: Path) -> None:
    title = SCENES[Case.heart]({"seed": seed}, str(demo_bundles.heart(tmp_path / "disk"))).title
    assert ("own" in title, cohort in title) == (bool(cohort), True)


@pytest.mark.parametrize(("seed", "is_known"), [(17, True), (30, True), (18, False)])
def test_seeds_are_read_as_an_experiment_file_writes_them(seed: int, is_known: bool, tmp_path: Path) -> None:
    title = SCENES[Case.brain]({"seed": seed}, str(demo_bundles.brain(tmp_path / "head"))).title
    assert ("train cohort" in title) == is_known


def test_the_model_is_loaded_before_the_scan_comes(tmp_path: Path) -> None:
    folder = demo_bundles.heart(tmp_path / "disk")
    options = SCENES[Case.heart]({"preset": "cine-kmtr"}, str(folder)).server_options
    assert options == ("--warm-up", "cine-kmtr", "--set", f"cine.model={folder}")


def test_the_preset_of_a_heart_follows_from_its_model(tmp_path: Path) -> None:
    for name, preset in (("disk", "cine-disk"), ("kmtr", "cine-kmtr")):
        folder = demo_bundles.heart(tmp_path / name, kmtr=name == "kmtr")
        assert SCENES[Case.heart]({}, str(folder)).preset == preset


@pytest.mark.parametrize(
    ("case", "name"), [(Case.heart, "spokes"), (Case.brain, "matrix"), (Case.breast, "acceleration")]
)
def test_options_of_another_case_are_refused(case: Case, name: str) -> None:
    with pytest.raises(ConfigError, match=f"a demo of the {case.value} has no option --{name}"):
        SCENES[case]({name: 33}, "")


def test_a_missing_bundle_is_told_with_what_to_do() -> None:
    with pytest.raises(ModelError) as raised:
        SCENES[Case.brain]({}, "no-such-model")
    assert "the demo of the brain needs the model no-such-model" in str(raised.value)
    assert "--model FOLDER" in str(raised.value)


@pytest.mark.parametrize("case", [Case.heart, Case.brain])
def test_a_model_of_another_kind_is_refused(case: Case) -> None:
    with pytest.raises(ConfigError, match="which does not take"):
        SCENES[case]({}, "breast-hybrid-small")


def test_the_command_refuses_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = CliRunner().invoke(app, ["demo", "--case", "heart", "--model", "no-such-model", "--output", str(out)])
    assert done.exit_code != 0
    assert not out.exists()


def test_descriptions_of_the_bundles_here_are_valid(tmp_path: Path) -> None:
    told = json.loads((demo_bundles.heart(tmp_path / "disk") / "model.json").read_text())
    assert told["training"]["experiment"]["data"]["density"] == "disk"
