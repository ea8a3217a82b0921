"""How fast acquisitions become messages and messages become bytes, beside the bare loopback and a pure-Python peer.

All rows are measured in one run, in turn; the other end is always a process of its own. The peer is the serializer and
deserializer of the ``ismrmrd`` package, by itself and in front of the same queue. The tables show medians and the best;
what is asserted are ratios of medians, so run it on a machine that does nothing else: with two busy neighbours on two
cores the second thread of the queue waits for a core. The whole server is measured in ``test_server.py``. ::

    pytest benchmarks/test_line_rate.py --benchmark-only -s
"""

from __future__ import annotations

import itertools
import multiprocessing
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from kstream.mrd.codec import Decoder, encode, encode_parts
from kstream.mrd.messages import Close, new_acquisition
from kstream.mrd.recording import Recording, write_recording
from kstream.stream.runners import ThreadRunner
from kstream.stream.stage import Pipeline
from kstream.types import Acquisition

REPEATS = 5
REPEATS_OF_A_MILLION = 3
RAW, DECODER, QUEUE = "raw socket", "decoder", "decoder and bounded queue"
PEER, PEER_QUEUE = "ismrmrd ProtocolDeserializer", "ismrmrd ProtocolDeserializer and queue"
REPLAY, PEER_REPLAY = "recording to socket", "ismrmrd Dataset and ProtocolSerializer"


def an_acquisition(n_coils: int, n_samples: int) -> Acquisition:
    rng = np.random.default_rng(0)
    parts = rng.standard_normal((n_coils, n_samples, 2)).astype(np.float32)
    return new_acquisition(parts.view(np.complex64)[..., 0], rng.standard_normal((n_samples, 2)).astype(np.float32))


def send(port: int, block: bytes, n_blocks: int, tail: bytes) -> None:
    """In a process of its own: push bytes as fast as they are taken."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(n_blocks):
            connection.sendall(block)
        connection.sendall(tail)


def take(port: int) -> None:
    """In a process of its own: take bytes as fast as they come."""
    buffer = bytearray(2**18)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        while connection.recv_into(buffer):
            pass


@contextmanager
def connected(other: Callable[..., None], *arguments: Any) -> Iterator[socket.socket]:
    """A socket whose other end is a process that runs ``other(port, *arguments)``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process = multiprocessing.get_context("fork").Process(target=other, args=(port, *arguments))
        process.start()
        connection, _ = listener.accept()
    with connection:
        yield connection
    process.join()


# ---- receiving -------------------------------------------------------------------------------------------------------


def read_raw(connection: socket.socket, n_bytes: int) -> int:
    buffer, total = bytearray(n_bytes), 0
    while got := connection.recv_into(buffer):
        total += got
    return total


def read_messages(connection: socket.socket, put: Callable[[Any], None]) -> int:
    decoder, total = Decoder(), 0
    while got := connection.recv_into(decoder.space()):
        for message in decoder.filled(got):
            put(message)
            total += isinstance(message, Acquisition)
    decoder.end()
    return total


def read_with_peer(connection: socket.socket, put: Callable[[Any], None]) -> int:
    total = 0
    with connection.makefile("rb", buffering=2**18) as stream:
        for total, acquisition in enumerate(ismrmrd.ProtocolDeserializer(stream).deserialize(), 1):  # noqa: B007
            put(acquisition)
    return total


def queued(read: Callable[[socket.socket, Callable[[Any], None]], int], n_bytes: int) -> Callable[[socket.socket], int]:
    """Read into the queue of a session; the pipeline behind it has no stages, for what is measured is the way there."""

    def read_into_queue(connection: socket.socket) -> int:
        passed: list[None] = []
        runner = ThreadRunner(Pipeline(source=(Acquisition, Close)), lambda item: passed.append(None), 512)
        total = read(connection, lambda message: runner.put(message, n_bytes))
        runner.finish()
        assert len(passed) >= total
        return total

    return read_into_queue


def unqueued(read: Callable[[socket.socket, Callable[[Any], None]], int]) -> Callable[[socket.socket], int]:
    return lambda connection: read(connection, lambda message: None)


def ingest_rates(acquisition: Acquisition, n: int, block: int, repeats: int = REPEATS) -> dict[str, list[float]]:
    """Acquisitions per second, `repeats` times."""
    data, close = encode(acquisition), encode(Close())
    buffer = max(len(data), 2**16)
    ways: dict[str, tuple[Callable[[socket.socket], int], int]] = {
        RAW: (lambda connection: read_raw(connection, buffer), n * len(data) + len(close)),
        DECODER: (unqueued(read_messages), n),
        PEER: (unqueued(read_with_peer), n),
        QUEUE: (queued(read_messages, len(data)), n),
        PEER_QUEUE: (queued(read_with_peer, len(data)), n),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _, (name, (read, expected)) in itertools.product(range(repeats), ways.items()):
        with connected(send, data * block, n // block, close) as connection:
            begin = time.perf_counter()
            assert read(connection) == expected
            rates[name].append(n / (time.perf_counter() - begin))
    return rates


# ---- sending ---------------------------------------------------------------------------------------------------------


def send_recording(connection: socket.socket, path: Path) -> int:
    n = 0
    with Recording(path) as recording:
        for n, acquisition in enumerate(recording.acquisitions(), 1):  # noqa: B007 - the count is wanted
            parts = encode_parts(acquisition)
            sent = connection.sendmsg(parts)
            if sent < sum(map(len, parts)):
                connection.sendall(b"".join(parts)[sent:])
    return n


def send_with_peer(connection: socket.socket, path: Path, n: int) -> int:
    dataset = ismrmrd.Dataset(str(path), create_if_needed=False)
    with connection.makefile("wb", buffering=2**18) as stream:
        serializer = ismrmrd.ProtocolSerializer(stream)
        for number in range(n):
            serializer.serialize(dataset.read_acquisition(number))
    dataset.close()
    return n


def replay_rates(path: Path, n: int, n_peer: int) -> dict[str, list[float]]:
    ways: dict[str, tuple[Callable[[socket.socket], int], int]] = {
        REPLAY: (lambda connection: send_recording(connection, path), n),
        PEER_REPLAY: (lambda connection: send_with_peer(connection, path, n_peer), n_peer),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _, (name, (write, expected)) in itertools.product(range(REPEATS), ways.items()):
        with connected(take) as connection:
            begin = time.perf_counter()
            assert write(connection) == expected
            rates[name].append(expected / (time.perf_counter() - begin))
    return rates


# ---- the tables ------------------------------------------------------------------------------------------------------


def show(title: str, rates: dict[str, list[float]], benchmark: BenchmarkFixture) -> dict[str, float]:
    """Print a table whose ratios are to its first row, keep it in the JSON of the benchmark, and give the medians."""
    best = {name: max(measured) for name, measured in rates.items()}
    medians = {name: statistics.median(measured) for name, measured in rates.items()}
    benchmark.extra_info.update({"median": medians, "best": best})
    first = next(iter(rates))
    print(f"\n{title}\n  {'acquisitions/s':<40} {'median':>10} {'of first':>9} {'best':>10} {'of first':>9}")
    for name in rates:
        shares = medians[name] / medians[first], best[name] / best[first]
        print(f"  {name:<40} {medians[name]:>10,.0f} {shares[0]:>9.3f} {best[name]:>10,.0f} {shares[1]:>9.3f}")
    return medians


@pytest.mark.benchmark(group="line rate")
def test_ingest_of_the_reference_scan(benchmark: BenchmarkFixture) -> None:
    acquisition = an_acquisition(16, 640)
    assert len(encode(acquisition)) == 87_382
    rates = benchmark.pedantic(ingest_rates, (acquisition, 10_000, 8), rounds=1)
    medians = show("16 coils x 640 samples x 2-D trajectory (87 382 bytes)", rates, benchmark)
    assert medians[QUEUE] >= 0.5 * medians[RAW]
    assert medians[QUEUE] > medians[PEER_QUEUE]
    assert medians[DECODER] > medians[PEER]


@pytest.mark.benchmark(group="line rate")
def test_ingest_of_a_million_small_acquisitions(benchmark: BenchmarkFixture) -> None:
    rates = benchmark.pedantic(ingest_rates, (an_acquisition(2, 8), 1_000_000, 500, REPEATS_OF_A_MILLION), rounds=1)
    medians = show("2 coils x 8 samples x 2-D trajectory (534 bytes)", rates, benchmark)
    assert medians[QUEUE] > medians[PEER_QUEUE]
    assert medians[DECODER] > medians[PEER]


@pytest.mark.benchmark(group="line rate")
def test_replay_of_the_reference_scan(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    path, n = tmp_path / "scan.h5", 3_000
    write_recording(path, b"<ismrmrdHeader/>", itertools.repeat(an_acquisition(16, 640), n))
    rates = benchmark.pedantic(replay_rates, (path, n, 200), rounds=1)
    medians = show("16 coils x 640 samples x 2-D trajectory, from HDF5", rates, benchmark)
    assert medians[REPLAY] > 5 * medians[PEER_REPLAY]
