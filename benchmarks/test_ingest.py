"""From bytes to acquisitions: in memory, through the loopback socket, and in a real server.

The peer is the serializer and deserializer of the ``ismrmrd`` package, by itself and in front of the same queue; the
limit is the bare socket. One acquisition of 16 coils x 640 samples is 87 382 bytes on the wire.
"""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ismrmrd
import pytest

from kstream.benchmarks.client import serving
from kstream.benchmarks.far_end import far_end, listening, read_line
from kstream.benchmarks.scans import REFERENCE, Size, header_of, random_acquisition
from kstream.benchmarks.turns import Turns, Way
from kstream.mrd.codec import Decoder, encode, encode_parts
from kstream.mrd.messages import Close, ConfigFile, Header
from kstream.stream.runners import ThreadRunner
from kstream.stream.stage import Pipeline
from kstream.types import Acquisition

CLOSE = (4).to_bytes(2, "little")
PIECE = 1 << 16
Put = Callable[[Any], None]
Read = Callable[[socket.socket, Put], int]


def test_decode(turns: Turns) -> None:
    """As a socket does: one copy, from the system's buffer to where the samples stay."""
    n = turns.pick(256, 2)
    stream = encode(random_acquisition()) * n
    view = memoryview(stream)

    def ours() -> None:
        decoder, at, found = Decoder(), 0, 0
        while at < len(view):
            space = decoder.space()
            piece = view[at : at + len(space)]
            space[: len(piece)] = piece
            at, found = at + len(piece), found + len(decoder.filled(len(piece)))
        assert found == n

    def pieces() -> None:
        decoder = Decoder()
        assert sum(len(decoder.receive(stream[i : i + PIECE])) for i in range(0, len(stream), PIECE)) == n

    def theirs() -> None:
        reader = ismrmrd.ProtocolDeserializer(io.BytesIO(stream + CLOSE))
        assert sum(1 for _ in reader.deserialize()) == n

    peers: dict[str, Way] = {"pieces of 64 KiB": pieces, "ismrmrd": theirs}
    turns(f"decode acquisitions of {_size(REFERENCE)}", ours, peers, rounds=15, n_items=n, budgets={"ismrmrd": 1.5})


def test_encode(turns: Turns) -> None:
    """Ours looks whether the header tells the truth about the arrays; the peer writes what it is given."""
    n = turns.pick(256, 2)
    acquisition = random_acquisition()
    theirs = ismrmrd.Acquisition.from_array(acquisition.data, acquisition.trajectory)
    n_bytes = len(encode(acquisition))

    def ours() -> None:
        for _ in range(n):
            assert sum(map(len, encode_parts(acquisition))) == n_bytes

    def copied() -> None:
        for _ in range(n):
            encode(acquisition)

    def with_ismrmrd() -> None:
        for _ in range(n):
            stream = io.BytesIO()
            ismrmrd.ProtocolSerializer(stream).serialize(theirs)
            assert stream.tell() == n_bytes

    peers: dict[str, Way] = {"one block of bytes": copied, "ismrmrd": with_ismrmrd}
    turns(f"encode acquisitions of {_size(REFERENCE)}", ours, peers, rounds=15, n_items=n, budgets={"ismrmrd": 0.5})


def raw(connection: socket.socket, put: Put) -> int:
    buffer, total = bytearray(1 << 18), 0
    while got := connection.recv_into(buffer):
        total += got
    return total


def decoded(connection: socket.socket, put: Put) -> int:
    decoder, total = Decoder(), 0
    while got := connection.recv_into(decoder.space()):
        for message in decoder.filled(got):
            if isinstance(message, Acquisition):
                put(message)
                total += 1
    return total


def by_ismrmrd(connection: socket.socket, put: Put) -> int:
    total = 0
    with connection.makefile("rb", buffering=1 << 18) as stream:
        for acquisition in ismrmrd.ProtocolDeserializer(stream).deserialize():
            put(acquisition)
            total += 1
    return total


def queued(read: Read, n_bytes: int) -> Read:
    """Into the queue of a session; the pipeline behind it has no stages: what is measured is the way there."""

    def read_into_queue(connection: socket.socket, put: Put) -> int:
        passed: list[None] = []
        runner = ThreadRunner(Pipeline(source=(Acquisition,)), lambda item: passed.append(None), 512)
        total = read(connection, lambda message: runner.put(message, n_bytes))
        runner.finish()
        assert len(passed) == total
        return total

    return read_into_queue


def from_socket(read: Read, n_coils: int, n_samples: int, n: int, expected: int) -> Way:
    """Take `n` acquisitions from a process of its own; the clock runs from its connection to its end."""

    def way() -> float:
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            far_end("send", listener.getsockname()[1], n_coils, n_samples, n),
        ):
            connection, _ = listener.accept()
            with connection:
                begin = time.perf_counter()
                assert read(connection, lambda message: None) == expected
                return time.perf_counter() - begin

    return way


@pytest.mark.parametrize(
    ("n_coils", "n_samples", "n", "slowest"), [(*REFERENCE, 10_000, 0.5), (2, 8, 100_000, 0.0)], ids=["16x640", "2x8"]
)
def test_loopback(turns: Turns, n_coils: int, n_samples: int, n: int, slowest: float) -> None:
    """Decoder and bounded queue: at least half of the bare socket where samples are what takes the time."""
    n = turns.pick(n, 20)
    n_bytes = len(encode(random_acquisition(n_coils, n_samples)))
    ways = {
        "ours": (queued(decoded, n_bytes), n),
        "decoder without queue": (decoded, n),
        "raw socket": (raw, n * n_bytes + len(encode(Close()))),
        "ismrmrd and queue": (queued(by_ismrmrd, n_bytes), n),
    }
    ready = {name: from_socket(read, n_coils, n_samples, n, expected) for name, (read, expected) in ways.items()}
    turns(
        f"loopback socket to queue, acquisitions of {_size((n_coils, n_samples))}",
        ready.pop("ours"),
        ready,
        n_items=n,
        budgets={"raw socket": slowest, "ismrmrd and queue": 1.0},
        bytes_per_item=n_bytes,
        readme=n_coils == REFERENCE[0],
    )


def sent(port: int, n: int, head: Path | None = None) -> Way:
    """Send to a listening process; by the clock of the sender, from its first byte to the end of the connection."""

    def way() -> float:
        with far_end("send", port, *REFERENCE, n, *([] if head is None else [head])) as process:
            return float(read_line(process))

    return way


def test_server(turns: Turns, tmp_path: Path) -> None:
    """The whole server but the reconstruction: socket, codec, session, queue, pipeline thread and routing."""
    n = turns.pick(20_000, 50)
    head = tmp_path / "head"
    size = Size(n_slices=5, n_partitions=5)
    head.write_bytes(encode(ConfigFile("recon-radial")) + encode(Header(header_of(size))))
    journals = tmp_path / "journals"
    with (
        listening("count") as port,
        serving("--warm-up", "") as server,
        serving("--warm-up", "", "--record", str(journals)) as recording,
    ):

        def recorded() -> float | None:
            seconds = sent(recording.port, n, head)()
            for journal in journals.iterdir():
                journal.unlink()
            return seconds

        turns(
            f"server takes acquisitions of {_size(REFERENCE)}",
            sent(server.port, n, head),
            {"raw socket": sent(port, n), "the same with --record": recorded},
            rounds=3,
            n_items=n,
            budgets={"raw socket": 0.4},
            readme=True,
        )


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} coils x {size[1]} samples"
