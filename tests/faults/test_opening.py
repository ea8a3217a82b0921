"""Rows 1 to 13: before the first acquisition."""

from __future__ import annotations

import errno
import os
import struct
import time
from pathlib import Path

import pytest

from kstream.mrd.codec import DEPRECATED_IDS
from kstream.mrd.messages import Close, ConfigFile, ConfigText, Header, Query, Response
from kstream.serve.settings import ServerSettings
from tests.faults.harness import (
    PATIENCE_S,
    PRESET,
    STARS,
    Client,
    Oracle,
    Server,
    acquisitions,
    opening,
    running,
    scan_messages,
    wait_until,
    wire,
)

XML = STARS.scan().xml


def test_row_01_client_that_sends_nothing_is_told_and_closed_after_the_handshake_time(oracle: Oracle) -> None:
    begin = time.monotonic()
    assert "no complete header came in time: waited 2 s" in oracle.refused(outcome="handshake_timeout")
    assert 1.9 < time.monotonic() - begin < 8
    assert ServerSettings().handshake_s == 10


def test_row_01_configuration_without_header_does_not_stop_the_handshake_clock(oracle: Oracle) -> None:
    assert "no complete header" in oracle.refused(ConfigFile(PRESET), outcome="handshake_timeout")


@pytest.mark.parametrize("how", ["close", "reset"])
def test_row_02_connect_and_close_at_once_is_counted_and_quiet(oracle: Oracle, how: str) -> None:
    log_before = oracle.server.log
    for _ in range(20):
        client = Client(oracle.server.port)
        client.socket.close() if how == "close" else client.reset()
    oracle.expect("closed_before_configuration", 20)
    wait_until(lambda: oracle.counted().get("closed_before_configuration") == 20)
    assert "ERROR" not in oracle.server.log[len(log_before) :]


def test_row_03_half_an_id_is_a_truncated_id(oracle: Oracle) -> None:
    assert "truncated id" in oracle.refused(b"\x01", outcome="truncated", half_close=True)


@pytest.mark.parametrize("name", [PRESET, "breast-dce", "isalive.xml", "default_measurement_dependencies.xml"])
def test_row_04_configuration_then_close_is_a_probe_that_loads_no_model(oracle: Oracle, name: str) -> None:
    client = oracle.accepted(ConfigFile(name), Close(), outcome="probe")
    assert [type(m) for m in client.messages] == [Close]
    assert not oracle.server.maps("libtorch")
    assert oracle.server.metric("kstream_worker_requests") == 0


def test_row_05_close_first_is_answered_with_close(oracle: Oracle) -> None:
    client = oracle.accepted(Close(), outcome="probe")
    assert [type(m) for m in client.messages] == [Close]


DISORDER = {
    "header before configuration": ([Header(XML)], "HEADER came while waiting for the configuration"),
    "acquisition before configuration": ([acquisitions()[0]], "ACQUISITION came while waiting for the configuration"),
    "acquisition before header": ([ConfigFile(PRESET), acquisitions()[0]], "expected HEADER or QUERY or CLOSE"),
}


@pytest.mark.parametrize("case", DISORDER)
def test_row_06_wrong_order_is_a_protocol_error(oracle: Oracle, case: str) -> None:
    messages, words = DISORDER[case]
    assert words in oracle.refused(*messages, outcome="out_of_order")


SECOND = {
    "configuration": [ConfigFile(PRESET), ConfigFile(PRESET)],
    "configuration after the header": [*opening(), ConfigText(PRESET)],
    "header": [*opening(), Header(XML)],
    "header in mid-scan": [*opening(), *acquisitions()[:9], Header(XML)],
}


@pytest.mark.parametrize("case", SECOND)
def test_row_07_second_configuration_or_header_is_a_protocol_error(oracle: Oracle, case: str) -> None:
    assert "client" in oracle.refused(*SECOND[case], outcome="out_of_order")


@pytest.mark.parametrize("at", [0, 2, 2 + 17])
def test_row_08_unknown_id_ends_the_session_without_search_for_the_next_message(oracle: Oracle, at: int) -> None:
    messages = scan_messages()
    for number in (0, 9, 999, 4242, 65535):
        unknown = struct.pack("<H", number)
        text = oracle.refused(*messages[:at], unknown, *messages[at:], outcome="unknown_message")
        assert f"message id {number} is unknown" in text
        assert f"message {at + 1}, byte offset {len(wire(*messages[:at]))}" in text


def test_row_09_deprecated_id_is_named(oracle: Oracle) -> None:
    for number in (*range(1001, 1008), *range(1009, 1018)):
        assert number in DEPRECATED_IDS
        text = oracle.refused(*opening(), struct.pack("<H", number), outcome="deprecated_message")
        assert f"message id {number} is deprecated" in text


def config_file(name: bytes) -> bytes:
    return struct.pack("<H", 1) + name.ljust(1024, b"\0")


BAD_NAMES = {
    "1024 bytes without NUL": (b"x" * 1024, "config"),
    "invalid UTF-8": (b"\xff\xfe" * 7, "not_utf8"),
    "path upwards": (b"../../x", "config"),
    "absolute path": (b"/etc/passwd", "config"),
    "empty": (b"", "config"),
    "a module of Python": (b"os", "config"),
    "a preset's file": (b"breast-dce-recon.toml", "config"),
    "environment variable": (b"HOME", "config"),
    "control characters": (b"a\x1b[31m\r\nERR", "config"),
}


@pytest.mark.parametrize("case", BAD_NAMES)
def test_row_10_strange_configuration_name_is_an_error(oracle: Oracle, case: str) -> None:
    name, outcome = BAD_NAMES[case]
    text = oracle.refused(config_file(name), *scan_messages()[1:], outcome=outcome)
    assert "\x1b" not in text
    assert "\x1b" not in oracle.server.log


def test_row_10_garbage_behind_the_nul_is_ignored(oracle: Oracle) -> None:
    name = (PRESET.encode() + b"\0").ljust(1024, b"\xff")
    assert oracle.accepted(config_file(name), *scan_messages()[1:]).pixels


def test_row_10_names_never_import_and_never_open(tmp_path: Path, server: Server) -> None:
    """A module that leaves a trace when it is imported, and a FIFO that would hold whoever opens it."""
    (tmp_path / "canary.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\n")
    os.mkfifo(tmp_path / "fifo.toml")
    names = ["canary", "canary.py", "fifo", "fifo.toml", "./fifo.toml", str(tmp_path / "fifo.toml"), "canary:main"]
    environment = {**os.environ, "PYTHONPATH": f"{Path.cwd()}:{tmp_path}"}
    with running(tmp_path / "server", cwd=tmp_path, env=environment) as own:
        for name in names:
            for message in (ConfigFile(name), ConfigText(name)):
                assert "no preset" in Client(own.port).send(message, *scan_messages()[1:]).reason()
    assert not (tmp_path / "trace").exists()
    with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):  # nobody holds its other end
        os.open(tmp_path / "fifo.toml", os.O_WRONLY | os.O_NONBLOCK)


def test_row_10_declared_default_preset_serves_unknown_names_and_says_so(tmp_path: Path, server: Server) -> None:
    with running(tmp_path, "--default-preset", PRESET) as own:
        client = Client(own.port).send(ConfigFile("../../x"), *scan_messages()[1:]).success()
        assert client.images
        assert any(f"{PRESET} is used" in text for text in client.warnings)


LENGTHS = {
    "empty configuration": (b"\x02\0" + struct.pack("<I", 0), "bad_size"),
    "empty header": (struct.pack("<HI", 3, 0), "bad_size"),
    "largest configuration": (struct.pack("<HI", 2, 2**32 - 1), "too_large"),
    "configuration over the cap": (struct.pack("<HI", 2, 2**20 + 1), "too_large"),
    "largest header": (struct.pack("<HI", 3, 2**32 - 1), "too_large"),
    "header over the cap": (struct.pack("<HI", 3, 2**24 + 1), "too_large"),
    "query over the cap": (struct.pack("<HQQQ", 6, 0, 7, 2**63), "too_large"),
}


@pytest.mark.parametrize("case", LENGTHS)
def test_row_11_impossible_length_is_refused_before_allocation(oracle: Oracle, case: str) -> None:
    data, outcome = LENGTHS[case]
    before = oracle.server.rss_bytes
    oracle.refused(*([ConfigFile(PRESET)] if "header" in case else []), data, outcome=outcome)
    assert oracle.server.rss_bytes - before < 2**23


@pytest.mark.parametrize(("length", "outcome"), [(0, "bad_size"), (2**32 - 1, "too_large"), (2**20 + 1, "too_large")])
def test_row_11_text_of_impossible_length_is_refused_before_allocation(
    oracle: Oracle, length: int, outcome: str
) -> None:
    before = oracle.server.rss_bytes
    oracle.refused(*opening(), struct.pack("<HI", 5, length), outcome=outcome)
    assert oracle.server.rss_bytes - before < 2**23


def between(xml: bytes, name: bytes) -> bytes:
    return xml[xml.index(b"<" + name + b">") : xml.index(b"</" + name + b">") + len(name) + 3]


BAD_XML = {
    "not XML": (b"not XML at all", "line 1, column"),
    "cut short": (XML[: len(XML) // 2], "line "),
    "another namespace": (XML.replace(b"http://www.ismrm.org/ISMRMRD", b"http://example.org"), "namespace"),
    "no encoding": (XML.replace(between(XML, b"encoding"), b""), "has no encoding"),
    "bad trajectory": (XML.replace(b"goldenangle", b"zigzag"), "'zigzag', expected one of"),
    "a million encodings": (XML.replace(between(XML, b"encoding"), b"<encoding/>" * 10**6), "more than 50000 elements"),
    "matrix of letters": (XML.replace(b"<x>15</x>", b"<x>many</x>"), "where a number belongs"),
    "negative matrix": (XML.replace(b"<x>15</x>", b"<x>-15</x>"), "expected 1 to 65535"),
    "endless field of view": (XML.replace(b"<x>200.0</x>", b"<x>inf</x>"), "field of view"),
    "limits that run backwards": (XML.replace(b"<minimum>0</minimum>", b"<minimum>9999</minimum>"), "limits run from"),
    "encoding nobody knows": (b'<?xml version="1.0" encoding="klingon"?><a/>', "send UTF-8"),
}


@pytest.mark.parametrize("case", BAD_XML)
def test_row_12_bad_header_is_an_error_with_its_place(oracle: Oracle, case: str) -> None:
    xml, words = BAD_XML[case]
    assert xml != XML
    begin = time.monotonic()
    text = oracle.refused(ConfigFile(PRESET), Header(xml), *acquisitions(), Close(), outcome="header")
    assert words in text
    assert "\n  where" in text or "namespace" in text
    assert time.monotonic() - begin < 5


def test_row_12_unknown_element_is_tolerated_and_logged(oracle: Oracle) -> None:
    xml = XML.replace(b"<encoding>", b"<encoding><vendorMagic>7</vendorMagic>", 1)
    client = oracle.accepted(*opening(xml=xml), *acquisitions(), Close())
    assert len(client.images) == STARS.n_frames * STARS.nz
    assert "vendorMagic" in oracle.server.log


HOSTILE_XML = {
    "external entity": b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><ismrmrdHeader>&x;</ismrmrdHeader>',
    "external DTD": b'<!DOCTYPE a SYSTEM "http://127.0.0.1:1/x.dtd"><a/>',
    "billion laughs": b'<!DOCTYPE a [<!ENTITY a0 "ha">'
    + b"".join(b'<!ENTITY a%d "%s">' % (n, b"&a%d;" % (n - 1) * 10) for n in range(1, 10))
    + b"]><a>&a9;</a>",
    "parameter entity": b'<!DOCTYPE a [<!ENTITY % x SYSTEM "file:///etc/passwd"> %x;]><a/>',
    "deep nesting": b"<a>" * 10**5 + b"</a>" * 10**5,
}


@pytest.mark.parametrize("case", HOSTILE_XML)
def test_row_13_hostile_xml_is_refused_at_once(oracle: Oracle, case: str) -> None:
    begin, before = time.monotonic(), oracle.server.rss_bytes
    text = oracle.refused(ConfigFile(PRESET), Header(HOSTILE_XML[case]), outcome="header")
    assert ("nested deeper than 64" if case == "deep nesting" else "declares a DTD, which is refused") in text
    assert "root:" not in text
    assert time.monotonic() - begin < 2
    assert oracle.server.rss_bytes - before < 2**26


def test_row_13_entity_of_the_header_never_reaches_another_session(oracle: Oracle) -> None:
    oracle.refused(ConfigFile(PRESET), Header(HOSTILE_XML["billion laughs"]), outcome="header")
    client = Client(oracle.server.port).send(Query(3, "kstream::version"))
    client.receive_until(lambda got: any(isinstance(m, Response) for m in got))
    oracle.expect("probe")
    assert PATIENCE_S > 0
    client.send(Close()).success()
