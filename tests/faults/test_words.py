"""Rows 41 and 42: names of patients, and bytes that somebody made up."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path

import pytest

from kstream.mrd.messages import Close, Text
from tests.faults.harness import (
    STARS,
    Client,
    Oracle,
    Server,
    acquisitions,
    good_session,
    opening,
    reference,
    running,
    wait_until,
    wire,
)
from tests.fuzz.mutate import mutate
from tests.fuzz.seeds import seeds

SCAN = acquisitions()
XML = STARS.scan().xml

SECRETS = (
    "Xanthippe^Quagmire",
    "Xanthippe",
    "Quagmire",
    "PAT-0815-4711",
    "19031224",
    "1903-12-24",
    "Dr^Zebedee",
    "ACC77551",
)
PERSON = (
    b"<subjectInformation><patientName>Xanthippe^Quagmire</patientName><patientID>PAT-0815-4711</patientID>"
    b"<patientBirthdate>1903-12-24</patientBirthdate><patientGender>F</patientGender></subjectInformation>"
    b"<studyInformation><accessionNumber>ACC77551</accessionNumber>"
    b"<referringPhysicianName>Dr^Zebedee</referringPhysicianName></studyInformation>"
)


def header_with(person: bytes = b"", protocol: bytes = b"") -> bytes:
    """The header of `STARS` with a subject, and another name of its protocol."""
    xml = XML.replace(b"<measurementInformation>", person + b"<measurementInformation>", 1)
    assert b"<measurementInformation>" in xml
    if not protocol:
        return xml
    start = xml.index(b"<measurementInformation>") + len(b"<measurementInformation>")
    end = xml.index(b"</measurementInformation>")
    name = b"<patientPosition>HFS</patientPosition><protocolName>" + protocol + b"</protocolName>"
    return xml[:start] + name + xml[end:]


def everything_about_the_patient(server: Server) -> None:
    """Sessions of every kind whose header, texts and errors hold the patient's name."""
    xml = header_with(PERSON)
    good = [*opening(xml=xml), Text("Xanthippe^Quagmire lies well"), *SCAN, Close()]
    Client(server.port).send(*good).success()
    Client(server.port).send(*opening(xml=xml), *SCAN[:3]).half_close().reason()
    broken = xml.replace(b"<trajectory>goldenangle", b"<trajectory>Quagmire")
    Client(server.port).send(*opening(xml=broken)).reason()
    parameter = Text(json.dumps({"parameters": {"coils.Quagmire": "Xanthippe", "Xanthippe": 1}}))
    Client(server.port).send(*opening(xml=xml), parameter, *SCAN, Close()).closed()
    cut = xml[: xml.index(b"</ismrmrdHeader>")]
    Client(server.port).send(*opening(xml=cut)).reason()


@pytest.mark.parametrize("form", ["text", "json"])
def test_row_41_names_of_patients_are_in_no_log_line_and_no_file_name(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "journals"
    folder.mkdir()
    with running(tmp_path / "server", "--log-format", form, "--record", str(folder), "--verbose") as own:
        everything_about_the_patient(own)
        wait_until(lambda: own.metric("kstream_open_sessions") == 0)
        page = own.scrape()
    for secret in SECRETS:
        assert secret not in own.log
        assert secret not in page
        assert not [path for path in folder.iterdir() if secret in path.name]
    assert len(list(folder.iterdir())) == 5
    assert all((path.stat().st_mode & 0o077) == 0 for path in folder.iterdir())


NAMES = {
    "control characters": b"a&#9;&#10;&#13;\xc2\x9b31mERR fake",
    "path": b"../../../../tmp/escape/x",
    "one megabyte": b"p" * 2**20,
}


def test_row_41_strange_protocol_name_is_escaped_and_never_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "journals"
    folder.mkdir()
    with running(tmp_path / "server", "--record", str(folder), "--verbose") as own:
        for name in NAMES.values():
            xml = header_with(protocol=name)
            assert Client(own.port).send(*opening(xml=xml), *SCAN, Close()).success().images
    assert not Path("/tmp/escape").exists()
    assert len(own.log) < 2**16
    assert all(line.isprintable() for line in own.log.splitlines())
    assert not [line for line in own.log.splitlines() if line.startswith("ERR fake")]
    assert {path.parent for path in folder.rglob("*")} == {folder}


def test_row_41_texts_of_clients_are_shown_only_where_that_was_asked_for(tmp_path: Path) -> None:
    with running(tmp_path, "--show-texts") as own:
        said = Text("room 7 is \x1b[31mcold\r\n2026 ERROR fake")
        Client(own.port).send(*opening(), SCAN[0], said, *SCAN[1:], Close()).success()
    assert r"room 7 is \x1b[31mcold\r\n2026 ERROR fake" in own.log


def fuzz(server: Server, n: int, seed: int) -> int:
    """Send `n` damaged streams; each must be answered with whole messages and one CLOSE, or be a good session."""
    rng = random.Random(seed)
    starts = [s.stream for s in seeds() if s.role == "server" and s.stream]
    good = [wire(m) for m in (*opening(), *SCAN[:30], Close())]
    n_closed = 0
    for _ in range(n):
        start = good if rng.random() < 0.3 else rng.choice(starts)
        damaged, _ = mutate(start, rng, rng.randint(1, 4))
        client = Client(server.port)
        sender = threading.Thread(target=client.send, args=(b"".join(damaged),))
        sender.start()
        sender.join()
        client.half_close()
        client.receive_all()
        assert [type(m) for m in client.messages].count(Close) == 1
        n_closed += client.is_closed
    return n_closed


def test_row_42_damaged_streams_over_the_socket_harm_nobody(tmp_path: Path, server: Server) -> None:
    with running(tmp_path, "--handshake-s", "2", "--message-s", "2") as own:
        assert reference(own) == reference(server)
        rss = own.rss_bytes
        assert fuzz(own, 200, seed=1) == 200
        assert own.rss_bytes - rss < 2**28
        assert good_session(own).pixels == reference(server)
        wait_until(lambda: sum(own.outcomes().values()) >= 201)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_row_42_many_damaged_streams_over_the_socket_harm_nobody(tmp_path: Path, server: Server) -> None:
    with running(tmp_path, "--handshake-s", "2", "--message-s", "2") as own:
        reference(own)
        rss = own.rss_bytes
        assert fuzz(own, 5000, seed=2) == 5000
        assert own.rss_bytes - rss < 2**28
        assert good_session(own).pixels == reference(server)


def test_row_42_random_bytes_are_told_or_closed(oracle: Oracle) -> None:
    rng = random.Random(7)
    for _ in range(100):
        client = Client(oracle.server.port).send(rng.randbytes(rng.randint(1, 3000))).half_close()
        client.closed()
    wait_until(lambda: sum(oracle.counted().values()) == 100)
    for outcome, n in oracle.counted().items():
        oracle.expect(outcome, n)
    assert "step_failed" not in oracle.expected
