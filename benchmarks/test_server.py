"""How fast the real server takes acquisitions, beside the bare loopback and with everything recorded.

One run measures all rows: 16 coils x 640 samples with a 2-D trajectory (87 382 bytes an acquisition), sent by a process
of its own. The acquisitions are marked as navigators: they go through socket, codec, session, queue, pipeline thread
and routing, and are counted there, but are not reconstructed, so that the figure is the server's own. ::

    pytest benchmarks/test_server.py --benchmark-only -s
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pytest_benchmark.fixture import BenchmarkFixture

from kstream.mrd.codec import Decoder, encode
from kstream.mrd.messages import Close, ConfigFile, Header, Text
from kstream.types import AcquisitionFlag
from tests.scans import StackOfStars

STARS = StackOfStars(nx=320, ny=320, nz=5, n_coils=16)
N_ACQUISITIONS, REPEATS, BLOCK = 40_000, 3, 50
RAW = "raw loopback"


def navigator() -> bytes:
    shape = (STARS.n_coils, STARS.n_samples)
    rng = np.random.default_rng(0)
    data = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    acquisition = STARS.acquisition(data, STARS.spoke(0), 0, 0)
    acquisition.header["flags"] = int(AcquisitionFlag.IS_NAVIGATION_DATA)
    return encode(acquisition)


def send(port: int, head: bytes, block: bytes, n_blocks: int, tail: bytes) -> None:
    """In a process of its own: push bytes as fast as they are taken, then wait until the other side closes."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head)
        for _ in range(n_blocks):
            connection.sendall(block)
        connection.sendall(tail)
        decoder = Decoder()
        while data := connection.recv(1 << 16):
            for message in decoder.receive(data):
                if isinstance(message, Text) and message.text.startswith("kstream summary "):
                    assert f'"received": {n_blocks * BLOCK}' in message.text, message.text[:200]


def raw_seconds(block: bytes) -> float:
    """Nothing but recv_into one buffer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = multiprocessing.get_context("spawn").Process(
            target=send, args=(listener.getsockname()[1], b"", block, N_ACQUISITIONS // BLOCK, b"")
        )
        sender.start()
        connection, _ = listener.accept()
        view, left = memoryview(bytearray(1 << 18)), N_ACQUISITIONS // BLOCK * len(block)
        begin = time.perf_counter()
        with connection:
            while left:
                left -= connection.recv_into(view)
        seconds = time.perf_counter() - begin
        sender.join(30)
        return seconds


@contextmanager
def server(*options: str) -> Iterator[tuple[int, int]]:
    """A real server; gives the ports of MRD and metrics."""
    command = [
        sys.executable,
        "-m",
        "kstream",
        "serve",
        "--port",
        "0",
        "--metrics-port",
        "0",
        "--warm-up",
        "",
        *options,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    try:
        yield tuple(int(re.findall(r"(?:port |:)(\d+)", line)[-1]) for line in (lines[0], lines[-1]))  # type: ignore[misc]
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def served_seconds(port: int, block: bytes) -> float:
    """From the first byte sent to CLOSE received, by the clock of the sending process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    head = encode(ConfigFile("recon-radial")) + encode(Header(STARS.scan().xml))
    sender = context.Process(
        target=timed_send, args=(theirs, port, head, block, N_ACQUISITIONS // BLOCK, encode(Close()))
    )
    sender.start()
    seconds = float(ours.recv())
    sender.join(30)
    return seconds


def timed_send(pipe: multiprocessing.connection.Connection, *arguments: object) -> None:
    begin = time.perf_counter()
    send(*arguments)  # type: ignore[arg-type]
    pipe.send(time.perf_counter() - begin)


def measure(block: bytes, folder: Path) -> dict[str, float]:
    """Acquisitions per second, medians."""
    rates: dict[str, list[float]] = {RAW: [], "server": [], "server --record": []}
    with server() as (port, _), server("--record", str(folder)) as (recording_port, _):
        for _ in range(REPEATS):
            rates[RAW].append(N_ACQUISITIONS / raw_seconds(block))
            rates["server"].append(N_ACQUISITIONS / served_seconds(port, block))
            rates["server --record"].append(N_ACQUISITIONS / served_seconds(recording_port, block))
            for journal in folder.iterdir():
                journal.unlink()
    return {name: statistics.median(values) for name, values in rates.items()}


def test_server_takes_acquisitions_at_line_rate(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    block = navigator() * BLOCK
    medians = benchmark.pedantic(measure, (block, tmp_path), rounds=1)
    benchmark.extra_info.update(medians)
    print("\nrow              acquisitions/s   MB/s   of raw")
    for name, rate in medians.items():
        print(f"{name:<16} {rate:>14.0f} {rate * len(block) / BLOCK / 1e6:>6.0f} {rate / medians[RAW]:>8.2f}")
    assert medians["server"] > 0.5 * medians[RAW]
    assert medians["server --record"] > 0.1 * medians[RAW]
