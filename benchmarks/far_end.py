"""The other end of a socket, in a process of its own: ``python -m kstream.benchmarks.far_end MODE ...``.

=================================== ====================================================================================
``count``                           listens; takes bytes and counts them: the raw socket
``decode``                          listens; decodes acquisitions
``images``                          listens; decodes, and sends a 128 x 128 image back after every fifth acquisition
``take PORT``                       connects; takes bytes as fast as they come
``send PORT COILS SAMPLES N HEAD``  connects; sends the file ``HEAD``, then N acquisitions as fast as they are taken
=================================== ====================================================================================

Those that listen print their port first and take one connection after another. ``send`` prints the seconds from its
first byte to the end of the connection.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kstream.benchmarks.scans import random_acquisition
from kstream.mrd.codec import Decoder, encode
from kstream.mrd.messages import IMAGE_HEADER, Close, Image
from kstream.types import Acquisition, AcquisitionFlag

EVERY = 5
PIECE_BYTES = 1 << 20


@contextlib.contextmanager
def far_end(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Start this module; it is ended with the block if it has not ended itself."""
    command = [sys.executable, "-P", "-m", "kstream.benchmarks.far_end", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


@contextlib.contextmanager
def listening(mode: str) -> Iterator[int]:
    """The port of a far end that listens."""
    with far_end(mode) as process:
        yield int(read_line(process))


def read_line(process: subprocess.Popen[str]) -> str:
    """The next line that it prints; empty if it ended."""
    return process.stdout.readline() if process.stdout is not None else ""


def image() -> bytes:
    header = np.zeros(1, IMAGE_HEADER)[0]
    header["image_series_index"] = 1
    pixels = np.random.default_rng(0).random((1, 1, 128, 128), np.float32)
    return encode(Image(header, {"DataRole": "Image", "ImageRowDir": ["1.0", "0.0", "0.0"]}, pixels))


def count(connection: socket.socket) -> None:
    scratch = bytearray(1 << 20)
    while connection.recv_into(scratch):
        pass


def decode(connection: socket.socket, answer: bytes) -> None:
    decoder, n = Decoder(), 0
    while n_bytes := connection.recv_into(decoder.space()):
        for message in decoder.filled(n_bytes):
            if isinstance(message, Close):
                connection.sendall(encode(Close()))
                return
            if isinstance(message, Acquisition):
                n += 1
                if answer and n % EVERY == 0:
                    connection.sendall(answer)


def listen(mode: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(ConnectionError):
                if mode == "count":
                    count(connection)
                else:
                    decode(connection, image() if mode == "images" else b"")
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass


def take(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        count(connection)


def send(port: int, n_coils: int, n_samples: int, n: int, head: Path) -> None:
    """Acquisitions that a server counts and does not reconstruct: they are marked as navigators."""
    one = encode(random_acquisition(n_coils, n_samples, flags=int(AcquisitionFlag.IS_NAVIGATION_DATA)))
    n_block = max(min(PIECE_BYTES // len(one), n), 1)
    block, start = one * n_block, head.read_bytes() if head.name else b""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        begin = time.perf_counter()
        connection.sendall(start)
        for _ in range(n // n_block):
            connection.sendall(block)
        connection.sendall(one * (n % n_block) + encode(Close()))
        connection.shutdown(socket.SHUT_WR)
        count(connection)
        print(time.perf_counter() - begin, flush=True)


def main(mode: str, *arguments: str) -> None:
    if mode == "take":
        take(int(arguments[0]))
    elif mode == "send":
        port, n_coils, n_samples, n = map(int, arguments[:4])
        send(port, n_coils, n_samples, n, Path(arguments[4]) if len(arguments) > 4 else Path())
    else:
        listen(mode)


if __name__ == "__main__":
    main(*sys.argv[1:])
