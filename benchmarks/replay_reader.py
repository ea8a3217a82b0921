"""A server in a process of its own that takes sessions one after another: decodes, and answers as it is told.

``python replay_reader.py decode|count|images``: `count` only counts bytes (the raw socket); `images` sends a 128 x 128
image back after every fifth acquisition. Prints its port first.
"""

from __future__ import annotations

import contextlib
import socket
import sys

import numpy as np

from kstream.mrd.codec import Decoder, encode
from kstream.mrd.messages import IMAGE_HEADER, Close, Image
from kstream.types import Acquisition

EVERY = 5


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


def main(mode: str) -> None:
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


if __name__ == "__main__":
    main(sys.argv[1])
