"""Which message may follow which.

A session is two one-way conversations. ``Session("server")`` judges what a server receives from its client,
``Session("client")`` what a client receives from its server, ``Session("gadget")`` what a gadget receives from
Gadgetron. The rules are the table ``RULES``: state -> message type -> next state. What the table does not list is an
error.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

from ..errors import ProtocolError
from ..types import Acquisition
from .messages import (
    Close,
    ConfigFile,
    ConfigText,
    Error,
    Header,
    Image,
    Message,
    Opaque,
    Query,
    Response,
    Text,
    Waveform,
)

Role = Literal["server", "client", "gadget"]


class State(StrEnum):
    """What a session waits for; the value reads on after "while"."""

    CONFIG = "waiting for the configuration"
    HEADER = "waiting for the header"
    DATA = "receiving data"
    FAILED = "waiting for CLOSE after an ERROR"
    CLOSED = "closed"


Table = Mapping[State, Mapping[type[Message], State]]

# A client may ask and leave at any time: CLOSE right after the configuration is how it probes for dependencies.
_SERVER: Table = {
    State.CONFIG: {
        ConfigFile: State.HEADER,
        ConfigText: State.HEADER,
        Query: State.CONFIG,
        Close: State.CLOSED,
    },
    State.HEADER: {
        Header: State.DATA,
        Query: State.HEADER,
        Close: State.CLOSED,
    },
    State.DATA: {
        Acquisition: State.DATA,
        Waveform: State.DATA,
        Image: State.DATA,
        Text: State.DATA,
        Query: State.DATA,
        Close: State.CLOSED,
    },
    State.CLOSED: {},
}

# Servers in the field send acquisitions, waveforms and headers back as well; configuration and queries they do not.
_CLIENT: Table = {
    State.DATA: {
        Image: State.DATA,
        Text: State.DATA,
        Response: State.DATA,
        Acquisition: State.DATA,
        Waveform: State.DATA,
        Header: State.DATA,
        Error: State.FAILED,
        Close: State.CLOSED,
    },
    State.FAILED: {Close: State.CLOSED},
    State.CLOSED: {},
}

# Gadgetron sends a gadget nothing else; queries and configuration files end at Gadgetron itself.
_GADGET: Table = {
    State.CONFIG: {ConfigText: State.HEADER, Close: State.CLOSED},
    State.HEADER: {Header: State.DATA, Close: State.CLOSED},
    State.DATA: {
        Acquisition: State.DATA,
        Opaque: State.DATA,
        Text: State.DATA,
        Close: State.CLOSED,
    },
    State.CLOSED: {},
}

RULES: Mapping[Role, Table] = {"server": _SERVER, "client": _CLIENT, "gadget": _GADGET}
_START: Mapping[Role, State] = {"server": State.CONFIG, "client": State.DATA, "gadget": State.CONFIG}

WIRE_NAMES: Mapping[type[Message], str] = {
    ConfigFile: "CONFIG_FILE",
    ConfigText: "CONFIG_TEXT",
    Header: "HEADER",
    Close: "CLOSE",
    Text: "TEXT",
    Query: "QUERY",
    Response: "RESPONSE",
    Error: "ERROR",
    Acquisition: "ACQUISITION",
    Image: "IMAGE",
    Waveform: "WAVEFORM",
    Opaque: "another message",
}


class Session:
    """Follows one direction of a session and refuses a message that comes at the wrong time.

    Parameters
    ----------
    role : who receives the messages.
    """

    def __init__(self, role: Role) -> None:
        self.role: Role = role
        self.state = _START[role]
        self.n_messages = 0

    @property
    def is_closed(self) -> bool:
        """True once CLOSE has come."""
        return self.state is State.CLOSED

    def check(self, message: Message) -> None:
        """Take note of the next message.

        Raises
        ------
        ProtocolError
            If it may not come now; the state stays as it was.
        """
        self.n_messages += 1
        allowed = RULES[self.role][self.state]
        following = allowed.get(type(message))
        if following is None:
            raise self._refuse(type(message), allowed)
        self.state = following

    def _refuse(self, got: type[Message], allowed: Mapping[type[Message], State]) -> ProtocolError:
        expected = " or ".join(WIRE_NAMES[kind] for kind in allowed) or "nothing more"
        return ProtocolError(
            f"{WIRE_NAMES[got]} came while {self.state}, expected {expected}",
            where=f"message {self.n_messages} ({WIRE_NAMES[got]}), received by the {self.role}",
            likely=_LIKELY.get((self.state, got), "the peer is in another state than its messages tell"),
            code="out_of_order",
        )


_LIKELY: Mapping[tuple[State, type[Message]], str] = {
    (State.CONFIG, Header): "the client left out CONFIG_FILE or CONFIG_TEXT",
    (State.CONFIG, Acquisition): "the client left out the configuration and the header",
    (State.HEADER, Acquisition): "the client left out the header, or the recording has none",
    (State.HEADER, ConfigFile): "the client sent two configurations; one session takes one",
    (State.HEADER, ConfigText): "the client sent two configurations; one session takes one",
    (State.DATA, Header): "the client sent two headers; one session takes one measurement",
    (State.DATA, ConfigFile): "the client started a second measurement in the same session",
    (State.DATA, ConfigText): "the client started a second measurement in the same session",
}
