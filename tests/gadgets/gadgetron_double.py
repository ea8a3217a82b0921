"""Plays Gadgetron: listens for a gadget that it starts, or dials one, and speaks by the specification only."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gadgets import specification as spec
from tests.scans import StackOfStars

STARS = StackOfStars()
LAUNCHER = Path(__file__).parents[2] / "gadgets" / "launcher"


class Gadgetron:
    """One end of the connection with a gadget.

    Parameters
    ----------
    connection : with the gadget.
    child : the process that it is, if this Gadgetron started it.
    """

    def __init__(self, connection: socket.socket, child: subprocess.Popen[bytes] | None = None) -> None:
        self.socket, self.child = connection, child
        connection.settimeout(60)

    @classmethod
    def dial(cls, port: int) -> Gadgetron:
        """``<connect>``."""
        return cls(socket.create_connection(("127.0.0.1", port), timeout=60))

    def send(self, *messages: bytes) -> None:
        self.socket.sendall(b"".join(messages))

    def open(self, xml: bytes | None = None, **properties: str) -> None:
        """CONFIG_TEXT and HEADER, as ``Configuration::send`` writes them."""
        self.send(spec.config(spec.properties(**properties)), spec.header(STARS.scan().xml if xml is None else xml))

    def receive(self) -> list[spec.Incoming]:
        """All that comes until CLOSE, after which the gadget says nothing more."""
        with self.socket.makefile("rb") as stream:
            found = spec.read_messages(stream)
            assert stream.read() == b"", "something came after CLOSE"
        return found

    def receive_beside(self) -> tuple[threading.Thread, list[spec.Incoming]]:
        """Gadgetron reads in a thread of its own."""
        found: list[spec.Incoming] = []

        def read() -> None:
            with contextlib.suppress(OSError, ValueError):
                found.extend(self.receive())

        thread = threading.Thread(target=read, name="double-reader")
        thread.start()
        return thread, found

    def whole_scan(self, *messages: bytes) -> list[spec.Incoming]:
        """Send the messages and CLOSE, while a thread reads; gives what came."""
        reader, found = self.receive_beside()
        with contextlib.suppress(ConnectionError):  # a gadget that failed has closed
            self.send(*messages, spec.CLOSE)
        reader.join(60)
        assert not reader.is_alive()
        return found

    def close(self) -> None:
        self.socket.close()
        if self.child is not None and self.child.poll() is None:
            self.child.kill()
        if self.child is not None:
            self.child.wait(10)
            if self.child.stderr is not None:
                self.child.stderr.close()

    def reset(self) -> None:
        """Vanish: the gadget gets a reset instead of an end of the stream."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class Launch:
    """``External::open_connection(Execute)``: an ephemeral port, ``python -m gadgetron PORT MODULE [TARGET]``, accept.

    Parameters
    ----------
    with_launcher : our ``gadgetron.py`` stands before the package, as an installation puts it.
    """

    def __init__(self, target: str = "segment", *, with_launcher: bool = True, log_level: str = "WARNING") -> None:
        if not with_launcher and find_spec("gadgetron") is None:
            pytest.skip("the gadgetron package is not installed")
        self.listener = socket.create_server(("localhost", 0))
        self.listener.settimeout(60)
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment["GADGETRON_EXTERNAL_LOG_LEVEL"] = log_level
        if with_launcher:
            environment["PYTHONPATH"] = str(LAUNCHER)
        command = [sys.executable, "-W", "ignore", "-m", "gadgetron", self.port, "kstream.gadgets", target]
        self.child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)

    @property
    def port(self) -> str:
        return str(self.listener.getsockname()[1])

    def accept(self) -> Gadgetron:
        connection, _ = self.listener.accept()
        self.listener.close()
        return Gadgetron(connection, self.child)


def readouts(seed: int = 0, noise: int = 5) -> list[spec.Readout]:
    """The acquisitions of a small scan, numbered as a scanner numbers them."""
    found = STARS.acquisitions(np.random.default_rng(seed), noise)
    return [spec.readout_of(acquisition, number) for number, acquisition in enumerate(found, 1)]


def images(found: list[Any]) -> list[bytes]:
    return [message.raw for message in found if message.id == 1022]


def ids(found: list[Any]) -> list[int]:
    return [message.id for message in found]
