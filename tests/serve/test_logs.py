import io
import json
import logging
from collections.abc import Iterator

import pytest

from kstream.mrd.header import patient_words
from kstream.serve import logs

HEADER = b"""<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
 <subjectInformation><patientName>Muster^Erika</patientName><patientID>4711</patientID></subjectInformation>
 <studyInformation><accessionNumber>A-99</accessionNumber><studyTime>12:00:00</studyTime></studyInformation>
 <measurementInformation><protocolName>breast</protocolName></measurementInformation>
</ismrmrdHeader>"""


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger("kstream")
    before = root.handlers, root.level, root.propagate
    yield io.StringIO()
    root.handlers, root.level, root.propagate = before


def test_words_of_a_patient_are_found_whole_and_in_parts() -> None:
    words = patient_words(HEADER)
    assert {"Muster^Erika", "Muster", "Erika", "4711", "A-99"} <= words
    assert "12:00:00" in words
    assert "breast" not in words
    assert patient_words(b"no header") == set()


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_line_names_the_patient_while_the_scan_runs(stream: io.StringIO, form: str) -> None:
    logs.set_up(form, logging.INFO, stream)  # type: ignore[arg-type]
    words = patient_words(HEADER)
    logs.REDACTION.add(words)
    logs.REDACTION.add(words)  # a second session of the same patient
    try:
        logging.getLogger("kstream.mrd").warning("odd element %r of %s", "Erika", {"id": "4711"})
        logs.REDACTION.remove(words)
        logging.getLogger("kstream.mrd").warning("Muster again")
    finally:
        logs.REDACTION.remove(words)
    logging.getLogger("kstream.mrd").warning("Erika is free")
    written = stream.getvalue().splitlines()
    assert not any(word in line for line in written[:2] for word in words)
    assert logs.REDACTED in written[0]
    assert "Erika is free" in written[2]


def test_short_words_are_redacted_where_they_stand_alone() -> None:
    redaction = logs.Redaction()
    redaction.add({"Li", "70", "Erika"})
    assert (
        redaction.clean("Li^70 of 170 Lines, scan_Erika.h5") == "[redacted]^[redacted] of 170 Lines, scan_[redacted].h5"
    )


def test_control_characters_cannot_forge_a_line(stream: io.StringIO) -> None:
    logs.set_up("text", logging.INFO, stream)
    logging.getLogger("kstream.x").info("a\r\n2026-01-01 ERROR forged\x1b[31m")
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()


def test_json_lines_have_session_frame_and_code(stream: io.StringIO) -> None:
    logs.set_up("json", logging.INFO, stream)
    logs.SessionLog(logging.getLogger("kstream.serve"), 7).info("frame %d\n  where  here", 3, extra={"frame": 3})
    logging.getLogger("kstream.serve").error("no", extra={"session": 8, "frame": 2, "code": "busy"})
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["session"], first["frame"], first["level"]) == (7, 3, "INFO")
    assert first["message"] == "frame 3\n  where  here"
    assert (second["session"], second["frame"], second["code"]) == (8, 2, "busy")
