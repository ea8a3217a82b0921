"""The XML header, against our own words, against the schema classes of `ismrmrd`, and against hostile input."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kstream.errors import KstreamError, ProtocolError, ScanError
from kstream.mrd.header import TRAJECTORIES, build_header, parse_header
from kstream.types import EncodingLimit, Scan

with warnings.catch_warnings():
    import ismrmrd.xsd as xsd

SCAN = Scan(
    encoded_matrix=(22, 14, 5),
    recon_matrix=(11, 7, 5),
    encoded_fov_mm=(220.0, 141.5, 55.0),
    recon_fov_mm=(110.0, 70.75, 55.0),
    trajectory="goldenangle",
    limits={
        "kspace_encode_step_1": EncodingLimit(0, 32, 16),
        "kspace_encode_step_2": EncodingLimit(1, 4, 2),
        "repetition": EncodingLimit(0, 2, 0),
        "user_3": EncodingLimit(0, 1, 0),
    },
    n_coils=3,
    h1_frequency_hz=63_500_000,
    field_strength_t=1.494,
    tr_ms=4.25,
    te_ms=1.5,
    flip_angle_deg=12.0,
    protocol_name="breast <DCE> & co \N{MICRO SIGN}",
    user_parameters={"window": 55, "delay_us": 1.25, "note": "a < b"},
)
XML = build_header(SCAN)


def test_header_round_trip_keeps_every_field() -> None:
    scan = parse_header(XML)
    assert scan.xml == XML
    assert replace(scan, xml=b"") == SCAN
    assert [type(v) for v in scan.user_parameters.values()] == [int, float, str]


def test_header_is_valid_for_the_schema_classes() -> None:
    header = xsd.CreateFromDocument(XML)
    encoding = header.encoding[0]
    assert (encoding.encodedSpace.matrixSize.x, encoding.reconSpace.matrixSize.y) == (22, 7)
    assert encoding.encodingLimits.kspace_encoding_step_1.maximum == 32
    assert encoding.encodingLimits.kspace_encoding_step_2.center == 2
    assert encoding.trajectory is xsd.trajectoryType.GOLDENANGLE
    assert header.acquisitionSystemInformation.receiverChannels == 3
    assert header.sequenceParameters.TR == [4.25]
    assert header.userParameters.userParameterLong[0].value == 55
    assert header.subjectInformation is None


def test_numpy_numbers_become_numbers_of_the_header() -> None:
    parameters: dict[str, Any] = {"a": np.int32(7), "b": np.float32(0.5)}
    scan = replace(SCAN, user_parameters=parameters, tr_ms=float(np.float32(2.5)))
    got = parse_header(build_header(scan))
    assert got.user_parameters == {"a": 7, "b": 0.5}
    assert got.tr_ms == 2.5


def test_a_bare_scan_gives_a_header_that_others_can_read() -> None:
    bare = Scan((5, 3, 1), (5, 3, 1), (5.0, 3.0, 1.0), (5.0, 3.0, 1.0), "radial")
    xml = build_header(bare)
    assert xsd.CreateFromDocument(xml).acquisitionSystemInformation is not None
    assert replace(parse_header(xml), xml=b"") == bare


def with_patient(xml: bytes) -> bytes:
    subject = b"<subjectInformation><patientName>Doe</patientName></subjectInformation><measurementInformation>"
    return xml.replace(b"<measurementInformation>", subject, 1)


def test_patient_is_left_out_unless_asked_for() -> None:
    scan = parse_header(with_patient(XML))
    assert b"Doe" not in build_header(scan)
    assert xsd.CreateFromDocument(build_header(scan, patient_free=False)).subjectInformation.patientName == "Doe"


def test_patient_of_a_header_that_breaks_the_schema_is_not_copied() -> None:
    broken = with_patient(XML).replace(b"<patientPosition>HFS</patientPosition>", b"")
    with pytest.raises(ScanError, match="cannot be copied"):
        build_header(parse_header(broken), patient_free=False)


@pytest.mark.parametrize("nuls", [1, 4])
def test_trailing_nuls_are_stripped(nuls: int) -> None:
    assert parse_header(XML + bytes(nuls)) == parse_header(XML)


@pytest.mark.parametrize("trajectory", TRAJECTORIES)
def test_every_trajectory_of_the_schema_round_trips(trajectory: str) -> None:
    assert parse_header(build_header(replace(SCAN, trajectory=trajectory))).trajectory == trajectory


def test_unknown_elements_are_skipped_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        scan = parse_header(XML.replace(b"<encoding>", b"<vendorSecret>1</vendorSecret><encoding><more/>", 1))
    assert replace(scan, xml=b"") == SCAN
    assert "ismrmrdHeader/vendorSecret" in caplog.text
    assert "encoding/more" in caplog.text


def test_first_of_several_encodings_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    start, end = XML.index(b"<encoding>"), XML.index(b"</encoding>") + len(b"</encoding>")
    second = XML[start:end].replace(b"<x>22</x>", b"<x>99</x>")
    assert parse_header(XML[:end] + second + XML[end:]).encoded_matrix == (22, 14, 5)
    assert "2 encodings" in caplog.text


def test_long_that_is_no_number_is_kept_as_text() -> None:
    scan = parse_header(XML.replace(b"<value>55</value>", b"<value>true</value>"))
    assert scan.user_parameters["window"] == "true"


def test_protocol_name_is_safe_to_log() -> None:
    name = "a\nb" + "x" * 2**20
    got = parse_header(build_header(replace(SCAN, protocol_name=name))).protocol_name
    assert got.startswith("a b")
    assert len(got) == 256


def test_characters_that_xml_cannot_carry_are_replaced() -> None:
    scan = replace(SCAN, protocol_name="a\x01b", user_parameters={"k": "\x1b[31m"})
    got = parse_header(build_header(scan))
    assert (got.protocol_name, got.user_parameters["k"]) == ("a?b", "?[31m")


NS = b'xmlns="http://www.ismrm.org/ISMRMRD"'


@pytest.mark.parametrize(
    ("xml", "kind", "what"),
    [
        (b"", ProtocolError, "empty"),
        (b"\0\0", ProtocolError, "empty"),
        (b"hello", ProtocolError, "not XML"),
        (XML[:-30], ProtocolError, "not XML"),
        (b"<!DOCTYPE a><a/>", ProtocolError, "DTD"),
        (b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>', ProtocolError, "DTD"),
        ('<?xml version="1.0"?><!DOCTYPE a []><a/>'.encode("utf-16"), ProtocolError, "DTD"),
        (b'<?xml version="1.0" encoding="nonsense"?><a/>', ProtocolError, "encoding that cannot be read"),
        (b"<ismrmrdHeader/>", ProtocolError, "expected '{http://www.ismrm.org/ISMRMRD}ismrmrdHeader'"),
        (b"<ismrmrdHeader " + NS + b"/>", ScanError, "no encoding"),
        (b"<a>" * 65 + b"</a>" * 65, ProtocolError, "nested deeper than 64"),
        (b"<a>" + b"<b/>" * 50_000 + b"</a>", ProtocolError, "more than 50000 elements"),
        (XML.replace(b"<x>22</x>", b"<x>two</x>"), ScanError, "'two' where a number belongs"),
        (XML.replace(b"<x>22</x>", b"<x>0</x>"), ScanError, "the matrix is 0 x 14 x 5"),
        (XML.replace(b"<x>22</x>", b"<x>65536</x>"), ScanError, "the matrix is 65536"),
        (XML.replace(b"<x>22</x>", b""), ScanError, "lacks an element"),
        (XML.replace(b"<x>220.0</x>", b"<x>NaN</x>"), ScanError, "field of view is nan"),
        (XML.replace(b"<x>220.0</x>", b"<x>-1</x>"), ScanError, "field of view is -1.0"),
        (XML.replace(b">goldenangle<", b">rosette<"), ScanError, "'rosette', expected one of cartesian"),
        (XML.replace(b"<maximum>32</maximum>", b"<maximum>65536</maximum>"), ScanError, "limits run from 0 to 65536"),
        (XML.replace(b"<minimum>1</minimum>", b"<minimum>9</minimum>"), ScanError, "limits run from 9 to 4"),
    ],
)
def test_bad_header_is_refused_with_the_reason(xml: bytes, kind: type[KstreamError], what: str) -> None:
    with pytest.raises(kind) as caught:
        parse_header(xml)
    assert what in caught.value.what
    assert type(caught.value) is kind


def test_error_in_the_xml_names_the_line() -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_header(XML.replace(b"</encoding>", b"</encodin>"))
    line = XML[: XML.index(b"</encoding>")].count(b"\n") + 1
    assert caught.value.where.startswith(f"line {line}, column")


def test_error_in_an_element_names_the_element() -> None:
    with pytest.raises(ScanError) as caught:
        parse_header(XML.replace(b"<x>22</x>", b"<x>two</x>"))
    assert caught.value.where == "encoding/encodedSpace/matrixSize/x"


@pytest.mark.parametrize(
    "scan", [replace(SCAN, trajectory="rosette"), replace(SCAN, limits={"kspace_encode_step_9": EncodingLimit()})]
)
def test_scan_that_the_schema_cannot_say_is_refused(scan: Scan) -> None:
    with pytest.raises(ScanError):
        build_header(scan)


def test_writing_a_header_leaves_the_warning_filters_alone() -> None:
    """`ismrmrd` resets them when it is imported, so this needs a fresh interpreter; reading does not import it."""
    code = """
import sys, warnings
from kstream.mrd.header import build_header, parse_header
from kstream.types import Scan
scan = Scan((5, 3, 1), (5, 3, 1), (5.0, 3.0, 1.0), (5.0, 3.0, 1.0), "radial")
assert "ismrmrd" not in sys.modules
before = list(warnings.filters)
parse_header(build_header(scan))
assert "ismrmrd" in sys.modules
assert list(warnings.filters) == before, warnings.filters
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).parents[2])


def test_sources_of_this_room_name_ismrmrd_in_one_module_only() -> None:
    room = Path(parse_header.__code__.co_filename).parent
    assert [p.name for p in sorted(room.glob("*.py")) if "import ismrmrd" in p.read_text()] == ["header.py"]
