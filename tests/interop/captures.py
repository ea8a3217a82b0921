"""Bytes that other programs sent, and the sessions in which they sent them (docs/interop.md says how they were caught).

Two tiny scans: ``cartesian`` (2 coils x 16 samples x 12 lines, one image) and ``stars`` (2 coils x 16 samples, one
noise readout, 2 frames of 5 spokes x 2 partitions, three slices each).
"""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

from kstream.mrd.codec import Decoder
from kstream.mrd.messages import Image, Message, Text

CAPTURED = Path(__file__).parent / "captured"

CARTESIAN = {"ConfigFile": 1, "Header": 1, "Acquisition": 12, "Close": 1}
STARS = {"ConfigFile": 1, "Header": 1, "Acquisition": 21, "Close": 1}

SCANS = {
    "gadgetron_cartesian": (CARTESIAN, 1),
    "gadgetron_waveforms": (CARTESIAN | {"Waveform": 3}, 1),
    "gadgetron_stars": (STARS, 6),
    "gadgetron_config_text": ({"ConfigText": 1, "Header": 1, "Acquisition": 12, "Close": 1}, 1),
    "hdf5_to_stream_cartesian": (CARTESIAN, 1),
    "hdf5_to_stream_stars": (STARS, 6),
    "python_client_parameters": (CARTESIAN | {"Text": 1}, 1),
    "python_client_stars": (STARS, 6),
    "ismrmrd_115_cartesian": (CARTESIAN, 1),
}
"""Whole scans that clients sent: how many messages of each kind, and how many images come back."""

PROBES = {
    "gadgetron_isalive": {"ConfigFile": 1, "Close": 1},
    "gadgetron_dependency": {"ConfigFile": 1, "Close": 1},
    "gadgetron_query_info": {"Query": 1, "Close": 1},
    "gadgetron_query_version": {"Query": 1, "Close": 1},
}
"""Sessions without a scan."""


def client_bytes(name: str) -> bytes:
    return (CAPTURED / f"{name}.client").read_bytes()


def server_bytes(name: str) -> bytes:
    return (CAPTURED / f"{name}.server").read_bytes()


def decode(stream: bytes) -> list[Message]:
    """All messages of a stream, which must be whole."""
    decoder = Decoder()
    messages = decoder.receive(stream)
    decoder.end()
    return messages


def count(messages: list[Message]) -> dict[str, int]:
    """How many messages of each kind."""
    kinds = [type(message).__name__ for message in messages]
    return {kind: kinds.count(kind) for kind in kinds}


class Answers:
    """Sends a stream to a server and keeps what comes back until the server closes."""

    def __init__(self, port: int, stream: bytes) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(stream)
            received = b""
            while data := connection.recv(1 << 16):
                received += data
        self.stream = received
        self.messages = decode(received)

    @property
    def images(self) -> list[Image]:
        return [m for m in self.messages if isinstance(m, Image)]

    @property
    def texts(self) -> list[str]:
        return [m.text for m in self.messages if isinstance(m, Text)]

    @property
    def errors(self) -> list[str]:
        return [text for text in self.texts if text.startswith("ERR")]

    def ended_well(self) -> bool:
        """No error was told, and exactly one CLOSE came, as the last message."""
        kinds = [type(m).__name__ for m in self.messages]
        return not self.errors and kinds.count("Close") == 1 and kinds[-1] == "Close"

    def pixels(self) -> list[Any]:
        return [(image.data.dtype.str, image.data.shape, image.data.tobytes()) for image in self.images]


class Player:
    """A server that reads one client to its CLOSE and then answers with a stream that another server once sent."""

    def __init__(self, stream: bytes) -> None:
        self._stream = stream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.messages: list[Message] = []
        self._thread = threading.Thread(target=self._play)

    def __enter__(self) -> Player:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(30)
        self._listener.close()

    def _play(self) -> None:
        connection, _ = self._listener.accept()
        decoder = Decoder()
        with connection:
            connection.settimeout(30)
            while not any(type(message).__name__ == "Close" for message in self.messages):
                self.messages += decoder.receive(connection.recv(1 << 16))
            connection.sendall(self._stream)
