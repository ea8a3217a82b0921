"""A session as a Siemens host runs it (FIRE, OpenRecon): parameters, probes, and what makes a host show an image."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kstream.mrd.codec import encode
from kstream.mrd.header import build_header, parse_header
from kstream.mrd.messages import Close, ConfigFile, ConfigText, Header, Message, Text
from kstream.types import Acquisition
from tests.interop.captures import Answers, client_bytes, decode
from tests.mrd.test_images import NEVER_SENT, WHAT_A_HOST_NEEDS

CARTESIAN = decode(client_bytes("gadgetron_cartesian"))
STARS = decode(client_bytes("gadgetron_stars"))
UINT16, FLOAT32 = np.dtype("<u2"), np.dtype("<f4")

NOISE_QUERY = """<?xml version="1.0" encoding="UTF-8"?>
<gadgetronStreamConfiguration xmlns="http://gadgetron.sf.net/gadgetron">
  <gadget><name>NoiseSummary</name><dll>gadgetron_mricore</dll><classname>NoiseSummaryGadget</classname></gadget>
</gadgetronStreamConfiguration>
"""


def session(port: int, config: Message, parameters: Any = None, header: Header | None = None) -> Answers:
    """The Cartesian scan with a configuration and parameters as TEXT right after the header."""
    _, own_header, *rest = CARTESIAN
    texts = [] if parameters is None else [Text(parameters if isinstance(parameters, str) else json.dumps(parameters))]
    return Answers(port, b"".join(encode(m) for m in [config, header or own_header, *texts, *rest]))


def openrecon(**parameters: Any) -> dict[str, Any]:
    return {"version": "1.1.0", "parameters": parameters}


def header_with(**parameters: Any) -> Header:
    scan = parse_header(next(m for m in CARTESIAN if isinstance(m, Header)).xml)
    return Header(build_header(replace(scan, user_parameters=parameters)))


def pixel_types(answers: Answers) -> set[Any]:
    assert answers.ended_well(), answers.errors
    assert answers.images
    return {image.data.dtype for image in answers.images}


# ---- parameters ------------------------------------------------------------------------------------------------------


def test_the_python_clients_parameters_choose_the_pixel_type(port: int) -> None:
    answers = Answers(port, client_bytes("python_client_parameters"))
    assert pixel_types(answers) == {UINT16}
    (warning,) = [text for text in answers.texts if text.startswith("WRN")]
    assert "options" in warning


@pytest.mark.parametrize("name", ["images.magnitude_type", "imagesMagnitudeType", "imagesmagnitudetype"])
def test_a_setting_is_known_by_its_name_or_by_an_identifier_that_openrecon_allows(port: int, name: str) -> None:
    sent = {"version": "1.1.0", "parameters": {name: "uint16"}}
    assert pixel_types(session(port, ConfigFile("recon-cartesian"), sent)) == {UINT16}


def test_values_may_come_as_strings_as_openrecon_forms_send_them(port: int) -> None:
    sent = openrecon(imagesMagnitudeType="uint16", coilsCalibrationSize="16", noisePrewhiten="False", coilsCrop="0.5")
    assert pixel_types(session(port, ConfigFile("recon-cartesian"), sent)) == {UINT16}


def test_a_value_out_of_range_is_told_by_name(port: int) -> None:
    answers = session(port, ConfigFile("recon-cartesian"), openrecon(coilsCrop=7))
    (error,) = answers.errors
    assert "coils.crop" in error
    assert not answers.images


@pytest.mark.parametrize(
    "chosen",
    [
        {"config": "recon-cartesian"},
        {"config": "recon-radial", "customconfig": "recon-cartesian"},
        {"config": "recon-cartesian", "customconfig": ""},
    ],
)
@pytest.mark.parametrize("config", ["recon-radial", "openrecon"])
def test_parameters_choose_the_preset_whatever_the_configuration_was_called(
    port: int, config: str, chosen: dict[str, str]
) -> None:
    assert pixel_types(session(port, ConfigFile(config), openrecon(**chosen))) == {FLOAT32}


def test_a_configuration_that_nobody_knows_is_told_when_nothing_chooses_another(port: int) -> None:
    for parameters in (None, openrecon(config="os"), openrecon(sendOriginal="False")):
        answers = session(port, ConfigFile("openrecon"), parameters)
        (error,) = answers.errors
        assert "openrecon" in error
        assert "recon-cartesian" in error


@pytest.mark.parametrize("name", ["kstream.images.magnitude_type", "imagesMagnitudeType"])
def test_the_header_may_carry_parameters(port: int, name: str) -> None:
    assert pixel_types(session(port, ConfigFile("recon-cartesian"), None, header_with(**{name: "uint16"}))) == {UINT16}


@pytest.mark.parametrize("name", ["kstream.images.magnitude_type", "imagesMagnitudeType"])
def test_text_wins_over_the_header(port: int, name: str) -> None:
    header = header_with(**{name: "uint16"})
    sent = openrecon(imagesMagnitudeType="float32")
    assert pixel_types(session(port, ConfigFile("recon-cartesian"), sent, header)) == {FLOAT32}


def test_parameters_with_the_configuration_are_kept_unless_sent_again(port: int) -> None:
    config = ConfigText(json.dumps({"preset": "recon-cartesian", "parameters": {"images.magnitude_type": "uint16"}}))
    assert pixel_types(session(port, config)) == {UINT16}
    assert pixel_types(session(port, config, openrecon(imagesMagnitudeType="float32"))) == {FLOAT32}


@pytest.mark.parametrize("text", ["scan was started", "{not json", "[1, 2]", "3"])
def test_a_text_that_is_no_object_is_a_remark(port: int, text: str) -> None:
    assert pixel_types(session(port, ConfigFile("recon-cartesian"), text)) == {FLOAT32}


# ---- probes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        ConfigFile("isalive.xml"),
        ConfigFile("default_measurement_dependencies.xml"),
        ConfigFile("recon-cartesian"),
        ConfigText(NOISE_QUERY),
    ],
)
def test_a_configuration_and_close_is_a_probe_that_succeeds(port: int, config: Message) -> None:
    answers = Answers(port, encode(config) + encode(Close()))
    assert answers.stream == encode(Close())


# ---- texts -----------------------------------------------------------------------------------------------------------


def test_texts_are_lines_for_clients_print_them_as_they_come(port: int) -> None:
    good = session(port, ConfigFile("recon-cartesian"))
    bad = session(port, ConfigFile("openrecon"))
    assert good.texts
    assert bad.errors
    for text in good.texts + bad.texts:
        assert text.endswith("\n")
        assert not text.endswith("\n\n")


def test_nothing_comes_that_the_cpp_client_dies_of(port: int) -> None:
    for scan in (CARTESIAN, STARS):
        answers = Answers(port, b"".join(encode(m) for m in scan))
        assert {type(m).__name__ for m in answers.messages} == {"Text", "Image", "Close"}


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stars(port: int) -> Answers:
    answers = Answers(port, client_bytes("gadgetron_stars"))
    assert answers.ended_well(), answers.errors
    return answers


def test_every_image_carries_what_makes_a_host_show_it(stars: Answers) -> None:
    for image in stars.images:
        assert image.meta.keys() >= WHAT_A_HOST_NEEDS
        assert not image.meta.keys() & NEVER_SENT
        assert image.meta["DataRole"] == "Image"
        assert image.meta["Keep_image_geometry"] == "1"
        assert all(str(image.meta.get(name, "1")).isdecimal() for name in ("WindowCenter", "WindowWidth"))
        np.testing.assert_allclose([float(v) for v in image.meta["ImageRowDir"]], image.header["read_dir"], atol=1e-7)
        np.testing.assert_allclose(
            [float(v) for v in image.meta["ImageColumnDir"]], image.header["phase_dir"], atol=1e-7
        )
        assert (int(image.header["image_type"]), int(image.header["channels"])) == (1, 1)


def test_an_index_is_used_once_in_its_series_and_never_zero(stars: Answers) -> None:
    places = [(int(i.header["image_series_index"]), int(i.header["image_index"])) for i in stars.images]
    assert len(set(places)) == len(places) == 6
    assert min(min(place) for place in places) >= 1


def test_images_say_when_and_where_their_frame_was_measured(stars: Answers) -> None:
    lines = [m for m in STARS if isinstance(m, Acquisition)][1:]  # the first is noise
    last = [lines[9], lines[19]]
    for image in stars.images:
        header, readout = image.header, last[int(image.header["repetition"])].header
        assert int(header["measurement_uid"]) == 78
        assert int(header["acquisition_time_stamp"]) == int(readout["acquisition_time_stamp"])
        np.testing.assert_array_equal(header["patient_table_position"], (0, 0, -1200))
        np.testing.assert_allclose(header["field_of_view"], (200, 200, 50 / 3), rtol=1e-6)
        offset = (int(header["slice"]) - 1) * 50 / 3
        np.testing.assert_allclose(header["position"], (0, 0, offset), atol=1e-4)
