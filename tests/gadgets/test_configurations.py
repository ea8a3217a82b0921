"""The XML files that are installed: what they say is what Gadgetron and we understand."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import kstream.gadgets
from kstream.config import resolve
from kstream.errors import ConfigError
from kstream.gadgets.__main__ import install
from kstream.gadgets.targets import take_over, target_of
from kstream.serve.gadget_child import log_level
from kstream.serve.gadget_config import PRESETS, parse_config

FOLDER = Path(kstream.gadgets.__file__).parent
FILES = sorted((FOLDER / "config").glob("*.xml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_configuration_is_of_version_2_and_its_settings_exist(path: Path) -> None:
    root = ElementTree.parse(path).getroot()
    assert (root.tag, root.findtext("version")) == ("configuration", "2")
    (external,) = root.findall("stream/external")
    configuration = external.find("configuration")
    assert configuration is not None
    config = parse_config(ElementTree.tostring(configuration, "unicode"))
    execute, connect = external.find("execute"), external.find("connect")
    if execute is not None:
        assert (execute.get("name"), execute.get("type")) == ("kstream.gadgets", "python")
        target = target_of(execute.get("target", ""))
        assert callable(getattr(kstream.gadgets, target))
    else:
        assert connect is not None
        assert connect.get("port") == "18000"
        target = target_of(config.target)
    resolved = resolve(config.preset, settings=[f"{k}={v}" for k, v in config.settings.items()]).config
    assert bool(resolved.segment.model) == (target != "reconstruct")


def test_there_is_a_launched_and_a_connected_variant_of_everything() -> None:
    names = {path.stem for path in FILES}
    launched = {name for name in names if not name.endswith("_connect")}
    assert launched == {f"kstream_{n}" for n in (*PRESETS, "segment_bucket", "segment_buffer")}
    assert names - launched == {f"{name}_connect" for name in launched}


def test_install_copies_configurations_and_launcher_to_gadgetrons_home(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        install(tmp_path)
    (tmp_path / "share" / "gadgetron").mkdir(parents=True)
    written = install(tmp_path)
    assert {p.name for p in written} == {*(path.name for path in FILES), "gadgetron.py"}
    assert install(tmp_path) == written
    (tmp_path / "share/gadgetron/python/gadgetron.py").write_text("something else")
    with pytest.raises(ConfigError, match="not ours"):
        install(tmp_path)


def test_wrong_arguments_end_with_a_hint() -> None:
    for arguments in (["1"], ["1", "os", "system"], ["x", "kstream.gadgets"], ["1", "kstream.gadgets", "a", "b"]):
        found = subprocess.run(
            [sys.executable, "-m", "kstream.gadgets", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert found.returncode == ConfigError.exit_code
        assert "error:" in found.stderr


def test_connection_of_another_kind_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="not one of the gadgetron package"):
        take_over(object())


@pytest.mark.parametrize(("text", "level"), [("", 10), ("info", 20), ("ERROR", 40), ("nonsense", 10)])
def test_log_level_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch, text: str, level: int) -> None:
    monkeypatch.setenv("GADGETRON_EXTERNAL_LOG_LEVEL", text)
    assert log_level() == level


@pytest.mark.parametrize("name", ["worker_s", "buffer_gib"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "many"])
def test_numbers_must_be_above_0(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match="expected a number above 0"):
        parse_config(f'<configuration><property name="{name}" value="{value}"/></configuration>')
