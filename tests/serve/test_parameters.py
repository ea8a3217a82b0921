import json

import pytest

from kstream.config import resolve
from kstream.errors import ConfigError, ProtocolError
from kstream.serve.parameters import header_parameters, json_object, parameters_of, parse_config_text, preset_of
from tests.scans import StackOfStars


def test_settings_are_found_by_their_name_and_by_letters_only() -> None:
    sent = {"version": "1.1.0", "parameters": {"coils.method": "rss", "CoilsCalibrationSize": 16, "wobble": 1}}
    found, strange = parameters_of(sent)
    assert found == {"coils.method": '"rss"', "coils.calibration_size": "16"}
    assert strange == ["wobble"]


def test_no_two_settings_share_their_letters() -> None:
    from kstream.config import Config
    from kstream.serve.parameters import _plain_names

    n_settings = sum(len(field.annotation.model_fields) for field in Config.model_fields.values())  # type: ignore[union-attr]
    assert len(_plain_names()) == n_settings


def test_a_bare_object_and_one_under_parameters_mean_the_same() -> None:
    assert parameters_of({"images.magnitude_type": "uint16"}) == parameters_of(
        {"parameters": {"images.magnitude_type": "uint16"}}
    )


@pytest.mark.parametrize(
    ("sent", "preset"),
    [
        ({"parameters": {"config": "recon-radial"}}, "recon-radial"),
        ({"parameters": {"config": "recon-radial", "customconfig": "breast-dce"}}, "breast-dce"),
        ({"parameters": {"config": "os"}}, ""),
        ({"parameters": {"config": ["recon-radial"]}}, ""),
        ({"parameters": 3}, ""),
    ],
)
def test_openrecon_may_choose_a_preset_and_nothing_else(sent: dict[str, object], preset: str) -> None:
    assert preset_of(sent) == preset


def test_config_text_is_a_name_or_json() -> None:
    assert parse_config_text("  recon-radial\n") == ("recon-radial", {})
    text = json.dumps({"preset": "recon-radial", "parameters": {"coils.method": "rss"}})
    assert parse_config_text(text) == ("recon-radial", {"coils.method": '"rss"'})
    with pytest.raises(ProtocolError, match="begins like JSON"):
        parse_config_text("{never")
    with pytest.raises(ProtocolError, match="not a JSON object"):
        parse_config_text('{"preset": "a", "parameters": []}')


def test_only_objects_are_parameters() -> None:
    assert json_object("[1]") is None
    assert json_object("[" * 100_000) is None
    assert json_object('{"a": 1}') == {"a": 1}


def test_header_may_carry_settings_under_our_prefix() -> None:
    scan = StackOfStars().scan()
    from dataclasses import replace

    with_settings = replace(
        scan, user_parameters={"kstream.coils.crop": 0.5, "other": 3, "trajectory_units": "x", "coilsMethod": "rss"}
    )
    assert header_parameters(with_settings) == {"coils.crop": "0.5", "coils.method": '"rss"'}


@pytest.mark.parametrize(
    "parameters",
    [
        {"segment.model": '"/etc/evil"'},
        {" segment.model": '"/etc/evil"'},
        {'segment.model="/etc/evil" #': "1"},
        {"segment.model": '"/etc/evil" #'},
    ],
)
def test_no_spelling_lets_a_client_name_a_folder(parameters: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"not a path|no setting"):
        resolve("breast-dce", parameters=parameters)
