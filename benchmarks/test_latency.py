"""From the last readout of a scan to the first byte of its labels, through a real server and a real worker.

The clock is the client's: from the moment at which the last readout has been handed to its socket to the first byte of
the first label image. Before the last angle the client waits, as a scanner would: nothing else waits in the server.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from kstream.benchmarks.client import Server, measure, serving, wait_until_idle
from kstream.benchmarks.scans import Size, header_of, messages
from kstream.benchmarks.turns import OURS, Turns

MODEL = "breast-gate-small"
LABELS, MAGNITUDES = 2, 1
SMALL = Size(matrix=64, n_slices=16, n_partitions=13, n_coils=8, n_spokes=34, n_frames=2)
TINY = Size(matrix=16, n_slices=16, n_partitions=5, n_coils=4, n_spokes=13, n_frames=2)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("--set", "segment.frames=[1]") as server:
        yield server


@pytest.fixture(scope="module")
def size(is_quick: bool) -> Size:
    return TINY if is_quick else SMALL


@pytest.fixture(scope="module")
def readouts(size: Size) -> list[bytes]:
    return list(messages(size))


def latency_s(server: Server, size: Size, readouts: list[bytes], **settings: Any) -> float:
    """One scan."""
    sent = measure(
        server.port,
        header_of(size),
        readouts,
        "breast-dce",
        settings=settings,
        wait=partial(wait_until_idle, server.process.pid),
        n_before_wait=len(readouts) - size.n_partitions,
    )
    assert len(sent.answer.first_bytes_s[LABELS]) == size.n_slices
    return sent.answer.first_bytes_s[LABELS][0] - sent.last_readout_s


def test_last_readout_to_first_label_byte(turns: Turns, server: Server, size: Size, readouts: list[bytes]) -> None:
    """Enough scans for a 99th percentile."""
    seconds = turns(
        f"last readout to first label byte, {_described(size)}",
        lambda: latency_s(server, size, readouts),
        rounds=100,
        readme=True,
        model=MODEL,
    )[OURS]
    quantiles = {f"p{q}": f"{1e3 * np.quantile(seconds, q / 100):.0f} ms" for q in (50, 95, 99)}
    turns.keep(shown=quantiles)


def test_latency_beside_grids_per_coil(turns: Turns, server: Server, size: Size, readouts: list[bytes]) -> None:
    """The same server and network, but every coil is transformed after the last readout."""
    grids = {"gridding.method": "coil-grids"}
    turns(
        f"last readout to first label byte, beside a grid per coil, {_described(size)}",
        lambda: latency_s(server, size, readouts),
        {"a grid per coil": lambda: latency_s(server, size, readouts, **grids)},
        rounds=10,
        budgets={"a grid per coil": 0.95},
        model=MODEL,
    )


def test_whole_scan(turns: Turns, server: Server, is_quick: bool) -> None:
    """A scan as large as that of the demo, sent as fast as it is taken: from its first byte to its last label."""
    size = TINY if is_quick else Size(matrix=128, n_slices=32, n_partitions=24, n_coils=8, n_spokes=55, n_frames=3)
    readouts = list(messages(size))

    def scan() -> None:
        sent = measure(server.port, header_of(size), readouts, "breast-dce")
        assert len(sent.answer.first_bytes_s[LABELS]) == size.n_slices
        assert sent.answer.n_images == (size.n_frames + 1) * size.n_slices

    turns(
        f"whole scan to its labels, {_described(size)}, {size.n_frames} frames",
        scan,
        rounds=5,
        n_readouts=len(readouts),
        readme=True,
        model=MODEL,
        shown={"at TR 6 ms the scanner takes": f"{len(readouts) * 6e-3:.0f} s"},
    )


def _described(size: Size) -> str:
    return f"{size.n_slices} x {size.matrix} x {size.matrix}, {size.n_coils} coils, {size.n_spokes} spokes a frame"
