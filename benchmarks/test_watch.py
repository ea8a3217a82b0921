"""What the live page costs the server: the same scans with a page that somebody looks at, and without any.

Two servers take turns. The one with the page has a reader that does what a browser does: it follows the events and
fetches a plane of every frame that they announce.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from kstream.benchmarks.client import Server, measure, serving, wait_until_idle
from kstream.benchmarks.far_end import far_end, read_line
from kstream.benchmarks.scans import REFERENCE, Size, header_of, messages
from kstream.benchmarks.turns import OURS, Turns
from kstream.mrd.codec import encode
from kstream.mrd.messages import ConfigFile, Header
from kstream.serve.probe import page_of

WITHOUT = "no page"
SMALL = Size(matrix=64, n_slices=16, n_partitions=13, n_coils=8, n_spokes=34, n_frames=4)
TINY = Size(matrix=16, n_slices=16, n_partitions=5, n_coils=4, n_spokes=13, n_frames=2)
MAGNITUDES = 1
BUDGET = 0.9
"""By the best rounds: with a page, the server may be so much slower."""


def look(url: str) -> None:
    """Follow a page's events for ever, in a process of its own; prints a line when the first one has come."""
    with urllib.request.urlopen(f"{url}events") as events:
        for line in events:
            if line.startswith(b"event: everything"):
                print("looking", flush=True)
            if line.startswith(b"data: ") and b'"has_image":true' in line:
                frame = json.loads(line[6:])
                if "session" in frame:
                    urllib.request.urlopen(f"{url}image/{frame['session']}/{frame['frame']}/0").read()


@contextmanager
def watched(*options: str) -> Iterator[Server]:
    """A server with a page that is looked at."""
    with serving("--watch-port", "0", *options) as server:
        command = [sys.executable, "-P", str(Path(__file__)), page_of("127.0.0.1", server.port)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
            try:
                assert read_line(reader) == "looking\n"
                yield server
                assert reader.poll() is None
            finally:
                reader.terminate()


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    """With a page, and without."""
    with ExitStack() as stack:
        yield stack.enter_context(watched("--warm-up", "")), stack.enter_context(serving("--warm-up", ""))


def test_ingest_with_a_page(turns: Turns, servers: tuple[Server, Server], tmp_path: Path) -> None:
    """Acquisitions that are counted and not reconstructed: nothing hides what the page costs."""
    n = turns.pick(20_000, 50)
    head = tmp_path / "head"
    head.write_bytes(encode(ConfigFile("recon-radial")) + encode(Header(header_of(Size(n_slices=5, n_partitions=5)))))

    def taken(server: Server) -> float:
        with far_end("send", server.port, *REFERENCE, n, head) as process:
            return float(read_line(process))

    with_page, without = servers
    turns(
        "server with a page takes acquisitions of 16 coils x 640 samples",
        partial(taken, with_page),
        {WITHOUT: partial(taken, without)},
        rounds=9,
        n_items=n,
        budgets={WITHOUT: BUDGET},
        readme=True,
    )


def test_scan_with_a_page(turns: Turns, servers: tuple[Server, Server], is_quick: bool) -> None:
    """Readouts that are reconstructed, as fast as they are taken: the tap sees every one of them."""
    size = TINY if is_quick else SMALL
    readouts = list(messages(size))

    def scan(server: Server) -> None:
        sent = measure(server.port, header_of(size), readouts, "breast-dce-recon")
        assert sent.answer.n_images == size.n_frames * size.n_slices

    with_page, without = servers
    turns(
        f"whole scan with a page, {size.n_slices} x {size.matrix} x {size.matrix}, {size.n_coils} coils",
        partial(scan, with_page),
        {WITHOUT: partial(scan, without)},
        rounds=15,
        n_readouts=len(readouts),
        budgets={WITHOUT: BUDGET},
    )


def test_latency_with_a_page(turns: Turns, servers: tuple[Server, Server], is_quick: bool) -> None:
    """From the last readout of a scan to the first byte of its last frame, as in `test_latency`."""
    size = TINY if is_quick else SMALL
    readouts = list(messages(size))

    def latency_s(server: Server) -> float:
        sent = measure(
            server.port,
            header_of(size),
            readouts,
            "breast-dce-recon",
            wait=partial(wait_until_idle, server.process.pid),
            n_before_wait=len(readouts) - size.n_partitions,
        )
        return sent.answer.first_bytes_s[MAGNITUDES][(size.n_frames - 1) * size.n_slices] - sent.last_readout_s

    with_page, without = servers
    seconds = turns(
        f"last readout to first image byte with a page, {size.n_slices} x {size.matrix} x {size.matrix}",
        partial(latency_s, with_page),
        {WITHOUT: partial(latency_s, without)},
        rounds=25,
        budgets={WITHOUT: 0.7},  # a few milliseconds, which a timer's jitter moves
        readme=True,
    )
    turns.keep(shown={f"p{q}": f"{1e3 * np.quantile(seconds[OURS], q / 100):.1f} ms" for q in (50, 95)})


if __name__ == "__main__":
    look(sys.argv[1])
