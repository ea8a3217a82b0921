"""Which message may follow which, in both directions."""

from __future__ import annotations

import numpy as np
import pytest

from kstream.errors import ProtocolError
from kstream.mrd.messages import (
    IMAGE_HEADER,
    WAVEFORM_HEADER,
    Close,
    ConfigFile,
    ConfigText,
    Error,
    Header,
    Image,
    Message,
    Query,
    Response,
    Text,
    Waveform,
    new_acquisition,
)
from kstream.mrd.session import RULES, WIRE_NAMES, Role, Session, State

NAME, TEXT_CONFIG, HEADER, CLOSE = ConfigFile("a"), ConfigText("a"), Header(b"<a/>"), Close()
TEXT, QUERY, RESPONSE, ERROR = Text("a"), Query(1, "a"), Response(1, "a"), Error("a")
ACQUISITION = new_acquisition(np.ones((3, 7), "c8"))
IMAGE = Image(np.zeros(1, IMAGE_HEADER)[0], {}, np.zeros((1, 1, 7, 11), "f4"))
WAVEFORM = Waveform(np.zeros(1, WAVEFORM_HEADER)[0])

LEGAL: list[tuple[Role, list[Message]]] = [
    ("server", [NAME, HEADER, ACQUISITION, ACQUISITION, CLOSE]),
    ("server", [TEXT_CONFIG, HEADER, TEXT, ACQUISITION, WAVEFORM, IMAGE, ACQUISITION, QUERY, CLOSE]),
    ("server", [QUERY, NAME, QUERY, HEADER, CLOSE]),
    ("server", [NAME, CLOSE]),
    ("server", [CLOSE]),
    ("client", [CLOSE]),
    ("client", [TEXT, IMAGE, RESPONSE, IMAGE, HEADER, ACQUISITION, WAVEFORM, TEXT, CLOSE]),
    ("client", [IMAGE, ERROR, CLOSE]),
]

ILLEGAL: list[tuple[Role, list[Message], str]] = [
    ("server", [HEADER], "HEADER came while waiting for the configuration, expected CONFIG_FILE or CONFIG_TEXT"),
    ("server", [ACQUISITION], "ACQUISITION came while waiting for the configuration"),
    ("server", [TEXT], "TEXT came while waiting for the configuration"),
    ("server", [NAME, ACQUISITION], "ACQUISITION came while waiting for the header, expected HEADER"),
    ("server", [NAME, TEXT_CONFIG], "CONFIG_TEXT came while waiting for the header"),
    ("server", [NAME, HEADER, NAME], "CONFIG_FILE came while receiving data"),
    ("server", [NAME, HEADER, HEADER], "HEADER came while receiving data"),
    ("server", [NAME, HEADER, RESPONSE], "RESPONSE came while receiving data"),
    ("server", [NAME, HEADER, ERROR], "ERROR came while receiving data"),
    ("server", [NAME, HEADER, CLOSE, ACQUISITION], "ACQUISITION came while closed, expected nothing more"),
    ("server", [CLOSE, CLOSE], "CLOSE came while closed"),
    ("client", [NAME], "CONFIG_FILE came while receiving data"),
    ("client", [QUERY], "QUERY came while receiving data"),
    ("client", [ERROR, IMAGE], "IMAGE came while waiting for CLOSE after an ERROR, expected CLOSE"),
    ("client", [CLOSE, TEXT], "TEXT came while closed"),
]


@pytest.mark.parametrize(("role", "messages"), LEGAL)
def test_legal_order_is_accepted(role: Role, messages: list[Message]) -> None:
    session = Session(role)
    for message in messages:
        assert not session.is_closed
        session.check(message)
    assert session.is_closed


@pytest.mark.parametrize(("role", "messages", "what"), ILLEGAL)
def test_illegal_order_is_refused_at_the_last_message(role: Role, messages: list[Message], what: str) -> None:
    session = Session(role)
    for message in messages[:-1]:
        session.check(message)
    state = session.state
    with pytest.raises(ProtocolError) as caught:
        session.check(messages[-1])
    assert what in caught.value.what
    assert f"message {len(messages)} (" in caught.value.where
    assert f"by the {role}" in caught.value.where
    assert caught.value.likely
    assert session.state is state


def test_every_rule_leads_to_a_state_of_its_table() -> None:
    for table in RULES.values():
        for allowed in table.values():
            assert set(allowed) <= set(WIRE_NAMES)
            assert set(allowed.values()) <= set(table)
        assert table[State.CLOSED] == {}
