"""``kstream config``: presets, origins, files of settings."""

import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kstream.cli import app
from kstream.config import Config, commented_toml, preset_names, resolve, setting_names
from kstream.errors import ConfigError


def config(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["config", *arguments])


def test_without_a_word_it_lists_presets() -> None:
    assert [line.split()[0] for line in config().stdout.splitlines()[1:]] == list(preset_names())
    assert [row["preset"] for row in json.loads(config("--json").stdout)] == list(preset_names())


def test_a_preset_alone_is_short_for_show() -> None:
    assert config("recon-radial").stdout == config("show", "recon-radial").stdout


def test_show_names_the_origin_of_every_value_and_cuts_nothing(tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text("[coils]\ncrop = 0.7\nkernel = 5\n")
    options = ("show", "breast-dce", "--file", str(file), "--set", "coils.kernel=7")
    rows = {row["setting"]: row for row in json.loads(config(*options, "--json").stdout)}
    assert set(rows) == set(setting_names())
    assert all(row["meaning"] for row in rows.values())
    found = {key: (rows[key]["value"], rows[key]["origin"]) for key in ("coils.crop", "coils.kernel", "segment.model")}
    assert found["coils.crop"] == (0.7, "file site.toml")
    assert found["coils.kernel"] == (7, "--set")
    assert found["segment.model"][1] == "preset breast-dce"
    lines = config(*options).stdout.splitlines()
    assert len(lines) == 1 + len(rows)  # off a terminal, a line for each
    for line, row in zip(lines[1:], rows.values(), strict=True):
        assert line.startswith(row["setting"])
        assert line.endswith(f"{row['origin']}".ljust(0) + line[line.index(row["origin"]) + len(row["origin"]) :])
        assert line.endswith(row["meaning"])


@pytest.mark.parametrize("preset", preset_names())
def test_init_writes_a_file_that_says_the_same_as_its_preset(preset: str, tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    assert config("init", preset, "--output", str(file)).exit_code == 0
    given = tomllib.loads(file.read_text())
    assert Config.model_validate(given) == resolve(preset).config
    done = config("validate", str(file), "--preset", preset, "--json")
    assert json.loads(done.stdout)["ok"] is True
    assert "already" in str(config("init", preset, "--output", str(file)).exception)


def test_commented_settings_can_be_uncommented() -> None:
    lines = commented_toml("recon-radial").splitlines()
    bare = [line.removeprefix("# ") if " = " in line and not line.endswith(")") else line for line in lines]
    Config.model_validate(tomllib.loads("\n".join(line for line in bare if not line.startswith("#"))))
    keys = [line.split(" = ")[0] for line in bare if " = " in line and not line.startswith("#")]
    assert keys == [name.split(".")[1] for name in setting_names()]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[coils]\nkernl = 5\n", "did you mean coils.kernel"),
        ("[coils]\nkernel = 500\n", "kstream config show breast-dce"),
        ("[coils\n", ""),
    ],
)
def test_validate_refuses_a_file_that_cannot_be_used(text: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text(text)
    done = config("validate", str(file))
    assert isinstance(done.exception, ConfigError)
    assert problem in done.exception.hint
    told = config("validate", str(file), "--json")
    assert told.exit_code == ConfigError.exit_code
    assert json.loads(told.stdout)["ok"] is False


def test_schema_knows_every_setting() -> None:
    schema = json.loads(config("schema").stdout)
    for section, reference in schema["properties"].items():
        definition = schema["$defs"][reference["$ref"].rpartition("/")[2]] if "$ref" in reference else reference
        assert definition["additionalProperties"] is False
        assert {f"{section}.{key}" for key in definition["properties"]} <= set(setting_names())
