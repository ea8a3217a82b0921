"""The specification that a scanner reads, and what its operator's choices become in a real session."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import json
import math
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from kstream.config import Config, preset_names, resolve, setting_names
from kstream.deploy.openrecon import Application, from_label, identifier_of, to_label, to_text
from kstream.deploy.ui import DEFAULT_SETTINGS, MAX_PARAMETERS, UiParameter, default_settings, ui_parameters
from kstream.errors import ConfigError
from kstream.mrd.codec import Decoder, encode
from kstream.mrd.messages import Close, ConfigFile, Header, Image, Text
from kstream.serve.parameters import parameters_of, preset_of
from kstream.serve.server import MrdServer, ServerSettings
from kstream.serve.summary import SUMMARY
from tests.deploy.openrecon_rules import problems
from tests.scans import StackOfStars

LISTS = ("segment.frames", "frames.early", "cine.views")  # have no type in a scanner's user interface
OFFERED = [name for name in setting_names() if name not in LISTS]


def application(*presets: str, settings: tuple[str, ...] = DEFAULT_SETTINGS, **changes: Any) -> Application:
    presets = presets or ("breast-dce",)
    plain = Application(
        name="Breast DCE",
        id="BreastDCE",
        vendor="Lab",
        version="1.20.3",
        presets=presets,
        parameters=ui_parameters(presets, settings),
        manufactured=datetime.date(2026, 3, 9),
    )
    return dataclasses.replace(plain, **changes)


def as_scanner(parameters: tuple[UiParameter, ...], as_text: bool = False, **changes: Any) -> dict[str, Any]:
    """What a scanner sends after the header: every parameter, changed or not."""
    values = {p.id: p.default for p in parameters} | changes
    if as_text:
        values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return {"version": "1.1.0", "parameters": values}


def resolved(sent: dict[str, Any]) -> Config:
    found, strange = parameters_of(sent)
    assert not strange
    return resolve(preset_of(sent), parameters=found).config


# ---- the specification ----


def test_specification_of_the_default_package_is_what_a_scanner_takes() -> None:
    specification = application().specification()
    assert problems(specification) == []
    assert specification["general"]["version"] == "1.20.3"
    assert specification["general"]["regulatory_information"]["manufacture_date"] == "2026/03/09"
    assert specification["reconstruction"]["emitter"] == "raw"
    assert specification["reconstruction"]["injector"] == "image"
    assert [p["id"] for p in specification["parameters"]][:3] == ["config", "noisePrewhiten", "trajectorySource"]


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("setting", OFFERED)
def test_every_setting_of_every_preset_makes_a_parameter_that_a_scanner_takes(preset: str, setting: str) -> None:
    assert problems(application(preset, settings=(setting,)).specification()) == []


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("reconstruction", "content_qualification_type"), "PRODUCT", "RESEARCH"),
        (("reconstruction", "port"), "9002", "port"),
        (("reconstruction", "injector"), "raw", "injector"),
        (("reconstruction", "min_count_required_gpus"), 1, "a GPU is required"),
        (("general", "version"), "1.0.0-rc1", "version"),
        (("general", "vendor"), "My_Lab", "vendor"),
        (("general", "more"), "x", "more"),
        (("general", "regulatory_information", "udi"), None, "udi"),
        (("parameters", 1, "id"), "noise_prewhiten", "parameters.1"),
        (("parameters", 1, "label", "en"), "x" * 33, "parameters.1"),
        (("parameters", 1, "default"), "true", "parameters.1"),
        (("parameters", 2, "id"), "NoisePrewhiten", "noiseprewhiten is there twice"),
        (("parameters", 2, "label", "en"), "Preset", "label of config is there twice"),
        (("parameters", 2, "default"), "guessed", "no choice"),
        (("parameters", 0, "id"), "preset", "no parameter chooses"),
        (("parameters", 4, "default"), 65, "out of its range"),
        (("parameters", 4, "maximum"), 2**31, "parameters.4"),
    ],
)
def test_rules_find_what_would_hurt(path: tuple[Any, ...], value: Any, expected: str) -> None:
    broken: Any = copy.deepcopy(application().specification())
    assert problems(broken) == []
    place = broken
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert any(expected in problem for problem in problems(broken)), problems(broken)


def test_label_gives_the_specification_back() -> None:
    specification = application(address="Universitätsstraße 5").specification()
    assert from_label(to_label(specification)) == specification == json.loads(to_text(specification))
    for damaged in ("%%%", "bm90IGpzb24=", "W10="):
        with pytest.raises(ConfigError, match="label is not"):
            from_label(damaged)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"version": "1.0"}, "version '1.0'"),
        ({"version": "1.0.0-rc1"}, "version '1.0.0-rc1'"),
        ({"version": "01.0.0"}, "version '01.0.0'"),
        ({"version": "1.0.0\n"}, "version"),
        ({"version": "١.٠.٠"}, "version"),
        ({"vendor": "My Lab"}, "vendor 'My Lab'"),
        ({"vendor": "../x"}, "vendor '../x'"),
        ({"vendor": "Läb"}, "vendor 'Läb'"),
        ({"vendor": "L" * 33}, "vendor"),
        ({"id": ""}, "id ''"),
        ({"id": "Breast_DCE"}, "id 'Breast_DCE'"),
        ({"name": ""}, "name ''"),
        ({"name": " Breast"}, "name ' Breast'"),
        ({"name": 'Breast "DCE"'}, "name"),
        ({"name": "B" * 33}, "name"),
        ({"address": "one\ntwo"}, "address"),
        ({"memory_mib": 0}, "0 MiB"),
        ({"n_cores": 0}, "0 cores"),
    ],
)
def test_names_that_a_scanner_would_not_take_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        application(**changes)
    assert expected in error.value.what
    assert error.value.where.startswith("--")
    assert error.value.hint


def test_id_is_the_letters_and_digits_of_the_name() -> None:
    assert identifier_of("Breast DCE (2.0)") == "BreastDCE20"
    assert identifier_of("  --  ") == ""


# ---- parameters ----


def test_parameters_beyond_the_scanners_card_are_refused() -> None:
    assert len(ui_parameters(("breast-dce",), OFFERED[:13])) == MAX_PARAMETERS
    with pytest.raises(ConfigError, match="more than the 14"):
        ui_parameters(("breast-dce",), OFFERED[:14])


@pytest.mark.parametrize(
    ("presets", "settings", "expected"),
    [
        (("no-such",), (), "there is no preset 'no-such'"),
        ((), (), "needs a preset"),
        (("breast-dce", "breast-dce"), (), "preset 'breast-dce' is named twice"),
        (("breast-dce",), ("coils.methd",), "there is no setting 'coils.methd'"),
        (("breast-dce",), ("coils.method", "coils.method"), "parameter 'coils.method' is named twice"),
        (("breast-dce",), ("segment.frames",), "segment.frames cannot be a parameter"),
        (("breast-dce", "recon-radial"), ("contrast.subtract",), "contrast.subtract is True in preset breast-dce"),
    ],
)
def test_impossible_parameters_are_refused(presets: tuple[str, ...], settings: tuple[str, ...], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        ui_parameters(presets, settings)
    assert expected in error.value.what
    assert error.value.hint


def test_default_parameters_suit_all_presets_of_a_package() -> None:
    assert default_settings(("breast-dce",)) == DEFAULT_SETTINGS
    shared = default_settings(preset_names())
    assert "trajectory.source" not in shared  # the spiral preset has one of its own
    assert "coils.method" in shared
    assert problems(application(*preset_names(), settings=shared).specification()) == []


def test_numbers_finer_than_the_schema_allows_travel_as_text() -> None:
    _, threshold, crop, first = ui_parameters(
        ("breast-dce",), ("coils.threshold", "coils.crop", "trajectory.first_angle_deg")
    )
    assert (threshold.kind, threshold.default) == ("string", "0.02")
    assert (crop.kind, crop.default, crop.minimum, crop.maximum) == ("double", 0.8, 0.0, 1.0)
    assert (first.unit, first.minimum, first.maximum) == ("°", -360.0, 360.0)


def test_ends_that_a_setting_excludes_are_not_offered() -> None:
    (_, oversampling) = ui_parameters(("breast-dce",), ("gridding.oversampling",))
    assert oversampling.minimum is not None
    assert math.isclose(oversampling.minimum, 1.1)
    assert resolve("breast-dce", parameters={"gridding.oversampling": "1.1"})
    with pytest.raises(ConfigError):
        resolve("breast-dce", parameters={"gridding.oversampling": "1.0"})


# ---- what the scanner sends ----


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("preset", preset_names())
def test_all_defaults_resolve_to_the_presets_own_configuration(preset: str, as_text: bool) -> None:
    for begin in range(0, len(OFFERED), MAX_PARAMETERS - 1):
        parameters = ui_parameters((preset,), OFFERED[begin : begin + MAX_PARAMETERS - 1])
        assert resolved(as_scanner(parameters, as_text)) == resolve(preset).config


def other_value(parameter: UiParameter) -> Any:
    match parameter.kind:
        case "boolean":
            return not parameter.default
        case "choice":
            return next(value for value, _ in parameter.choices if value != parameter.default)
        case "int" | "double":
            return parameter.minimum if parameter.minimum != parameter.default else parameter.default + 1  # type: ignore[operator]
        case _:
            return "other-model" if parameter.setting in ("segment.model", "cine.model") else "0.25"


@pytest.mark.parametrize("setting", OFFERED)
def test_a_changed_value_changes_its_setting_and_no_other(setting: str) -> None:
    parameters = ui_parameters(("breast-dce",), (setting,))
    changed = other_value(parameters[1])
    found = resolved(as_scanner(parameters, **{parameters[1].id: changed})).model_dump()
    expected = resolve("breast-dce").config.model_dump()
    section, key = setting.split(".")
    assert found[section][key] != expected[section][key]
    found[section][key] = expected[section][key]
    assert found == expected


def test_operator_chooses_among_presets() -> None:
    presets = ("breast-dce", "recon-radial")
    parameters = ui_parameters(presets, default_settings(presets))
    assert resolved(as_scanner(parameters, config="recon-radial")) == resolve("recon-radial").config


# ---- through a real server ----


class Answer(NamedTuple):
    """What came back in a session."""

    series: set[int]
    errors: list[str]
    config: dict[str, Any]


@pytest.fixture
def scan() -> Iterator[Callable[[dict[str, Any]], Answer]]:
    """A scan of random samples through a real server that was started as the package starts it."""
    stars = StackOfStars()
    acquisitions = stars.acquisitions(np.random.default_rng(5))
    server = MrdServer(port=0, settings=ServerSettings(default_preset="breast-dce-recon"))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def run(sent: dict[str, Any]) -> Answer:
        told = Text(json.dumps(sent | {"summary": True}))
        opening = [ConfigFile("openrecon"), Header(stars.scan().xml), told]
        decoder, found = Decoder(), []
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(b"".join(encode(message) for message in [*opening, *acquisitions, Close()]))
            while data := connection.recv(1 << 16):
                found += decoder.receive(data)
        texts = [message.text for message in found if isinstance(message, Text)]
        (summary,) = [json.loads(text.removeprefix(SUMMARY)) for text in texts if text.startswith(SUMMARY)]
        return Answer(
            {int(message.header["image_series_index"]) for message in found if isinstance(message, Image)},
            [text for text in texts if text.startswith("ERR")],
            {key: value for key, value, _ in summary["config"]},
        )

    yield run
    server.stop()
    thread.join(10)


def own_configuration(preset: str) -> dict[str, Any]:
    """Of a preset."""
    return {key: value for key, value, _ in resolve(preset).rows()}


def test_scanner_session_with_all_defaults_runs_the_presets_own_configuration(
    scan: Callable[[dict[str, Any]], Answer],
) -> None:
    answer = scan(as_scanner(ui_parameters(("breast-dce-recon",), DEFAULT_SETTINGS)))
    assert answer == ({1}, [], own_configuration("breast-dce-recon"))


def test_scanner_session_runs_what_the_operator_changed(scan: Callable[[dict[str, Any]], Answer]) -> None:
    presets = ("breast-dce-recon", "recon-radial")
    parameters = ui_parameters(presets, ("coils.method", "images.magnitude_series"))

    changed = scan(as_scanner(parameters, coilsMethod="rss", imagesMagnitudeSeries=7))
    own = own_configuration("breast-dce-recon")
    assert changed == ({7}, [], own | {"coils.method": '"rss"', "images.magnitude_series": "7"})

    other = scan(as_scanner(parameters, config="recon-radial"))
    assert other == ({1}, [], own_configuration("recon-radial"))


def test_scanner_session_without_parameters_runs_the_packages_preset(scan: Callable[[dict[str, Any]], Answer]) -> None:
    answer = scan({"version": "1.1.0", "parameters": {}})
    assert answer == ({1}, [], own_configuration("breast-dce-recon"))
