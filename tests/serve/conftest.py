from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from kstream.mrd.codec import Decoder, encode
from kstream.mrd.messages import Close, Image, Text
from kstream.serve.server import MrdServer, ServerSettings
from tests.threads import assert_none_left


@dataclass
class Client:
    """A raw socket that sends what a test tells it and keeps what comes back."""

    port: int
    messages: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def send(self, *messages: Any) -> None:
        self.raw(b"".join(encode(message) for message in messages))

    def raw(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive_all(self) -> list[Any]:
        """Everything until the server closes; the stream must be whole."""
        decoder = Decoder()
        while data := self.socket.recv(1 << 16):
            self.messages += decoder.receive(data)
        decoder.end()
        self.socket.close()
        return self.messages

    @property
    def texts(self) -> list[str]:
        return [m.text for m in self.messages if isinstance(m, Text)]

    @property
    def images(self) -> list[Image]:
        return [m for m in self.messages if isinstance(m, Image)]

    @property
    def error(self) -> str:
        """The one error that the server told."""
        (text,) = [t for t in self.texts if t.startswith("ERR")]
        return text

    def ended_with_one_close(self) -> bool:
        return [isinstance(m, Close) for m in self.messages].count(True) == 1 and isinstance(self.messages[-1], Close)


@pytest.fixture
def settings() -> ServerSettings:
    return ServerSettings(handshake_s=5.0, idle_s=20.0)


@pytest.fixture
def server(settings: ServerSettings) -> Iterator[MrdServer]:
    with serving(settings) as server:
        yield server


@contextlib.contextmanager
def serving(settings: ServerSettings) -> Iterator[MrdServer]:
    """A server on a free port; at its end no thread of it may be left."""
    server = MrdServer(port=0, settings=settings)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert_none_left()
