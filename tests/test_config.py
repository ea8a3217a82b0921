from pathlib import Path

import pytest

from kstream.config import preset_names, resolve
from kstream.errors import ConfigError


def test_later_layers_win_and_origins_are_remembered(tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text("[coils]\ncalibration_size = 28\nkernel = 5\n")
    found = resolve("breast-dce", file=file, settings=["coils.kernel=7"], parameters={"coils.crop": "0.9"})
    assert (found.config.coils.calibration_size, found.config.coils.kernel, found.config.coils.crop) == (28, 7, 0.9)
    assert found.overruled == ()
    rows = {key: origin for key, _, origin in found.rows()}
    assert rows["coils.calibration_size"] == "file site.toml"
    assert rows["coils.kernel"] == "--set"
    assert rows["coils.crop"] == "client"
    assert rows["contrast.subtract"] == "preset breast-dce"
    assert rows["coils.threshold"] == "default"


def test_the_server_has_the_last_word_on_what_a_client_asks_for(tmp_path: Path) -> None:
    """Default < preset < file < client < --set; what --set took away from the client is named."""
    file = tmp_path / "site.toml"
    file.write_text("[coils]\ncrop = 0.7\nkernel = 5\n")
    sent = {"coils.crop": 0.9, "coils.kernel": 8, "coils.method": "rss"}
    found = resolve("breast-dce", file=file, settings=["coils.kernel=7", "coils.method=rss"], parameters=sent)
    assert (found.config.coils.crop, found.config.coils.kernel, found.config.coils.method) == (0.9, 7, "rss")
    assert (found.origins["coils.crop"], found.origins["coils.kernel"]) == ("client", "--set")
    assert found.overruled == ("coils.kernel",)


@pytest.mark.parametrize("name", preset_names())
def test_every_shipped_preset_resolves(name: str) -> None:
    assert resolve(name).preset == name


@pytest.mark.parametrize("name", ["os", "../../etc/passwd", "/etc/passwd", "", "breast-dce.toml", "x" * 2000])
def test_only_names_of_the_allow_list_resolve(name: str) -> None:
    with pytest.raises(ConfigError, match="there is no preset") as raised:
        resolve(name)
    assert "breast-dce" in raised.value.hint
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("coils.kernel=99", "coils.kernel"),
        ("coils.colour=1", "coils.colour"),
        ("nonsense=1", "cannot understand"),
        ("coils.kernel", "cannot understand"),
        ("coils.method=magic", "coils.method"),
    ],
)
def test_wrong_settings_name_the_key(setting: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        resolve("breast-dce", settings=[setting])


def test_values_of_a_client_are_read_as_those_of_the_server() -> None:
    for sent in ('""', '"\\"\\""'):
        assert resolve("breast-dce", parameters={"segment.model": sent}).config.segment.model in ("", '""')
    with pytest.raises(ConfigError, match="not a path"):
        resolve("breast-dce", parameters={"segment.model": '"/etc"'})


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read configuration"):
        resolve("breast-dce", file=tmp_path / "missing.toml")


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("coils.methd=rss", "did you mean coils.method"),
        ("segement.model=x", "did you mean segment.model"),
        ("zzz.qqq=1", "kstream config show PRESET"),
    ],
)
def test_misspelt_settings_are_told_what_they_may_mean(setting: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="there is no setting") as raised:
        resolve("breast-dce", settings=[setting])
    assert raised.value.hint.startswith(hint)


def test_a_misspelt_preset_is_told_what_it_may_mean() -> None:
    with pytest.raises(ConfigError) as raised:
        resolve("brest-dce")
    assert raised.value.hint.startswith("did you mean breast-dce")
