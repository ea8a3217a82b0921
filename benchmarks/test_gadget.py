"""First images and labels of a scan in a process that Gadgetron starts for it: with a resident worker, and without."""

from __future__ import annotations

import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kstream.benchmarks.turns import Turns, Way
from kstream.mrd.codec import encode
from kstream.simulate.breast.exam import simulate_breast_exam
from kstream.simulate.breast.protocol import BreastProtocol

spec = pytest.importorskip("tests.gadgets.specification", reason="Gadgetron's double is among the checkout's tests")
double = pytest.importorskip("tests.gadgets.gadgetron_double")

MODEL = "breast-gate-small"
PROTOCOL = BreastProtocol(matrix=64, n_slices=16, n_spokes=34, n_coils=4, n_lesions=1)
TINY = BreastProtocol(matrix=16, n_slices=16, n_spokes=13, n_coils=4, n_lesions=1)
Scan = tuple[bytes, bytes]


@pytest.fixture(scope="module")
def scan(is_quick: bool) -> Scan:
    """Header, and all acquisitions as they lie on the wire."""
    exam = simulate_breast_exam(TINY if is_quick else PROTOCOL, 5)
    return exam.scan.xml, b"".join(encode(acquisition) for acquisition in exam.acquisitions)


@pytest.fixture(scope="module")
def worker() -> Iterator[str]:
    """A resident worker that has segmented once."""
    from kstream.config import SegmentConfig
    from kstream.serve.workers import ModelWorkers, WorkerSettings

    with tempfile.TemporaryDirectory() as folder:
        address = f"ipc://{Path(folder) / 'worker'}"
        command = [sys.executable, "-m", "kstream", "worker", "--address", address, "--model", MODEL]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        ready = ModelWorkers(WorkerSettings(addresses=(address,)))
        ready.start()
        assert ready.wait_ready(120)
        assert ready.segment_stage(SegmentConfig(model=MODEL, frames=(), on_failure="stop")) is not None
        ready.stop()
        yield address
        process.terminate()
        process.wait()


MAGNITUDE, LABELS = 5, 1
"""Pixel types: float32 and uint16."""


def first(scan: Scan, target: str, data_type: int, **properties: str) -> Way:
    """From the start of the process to the first image of a kind; the scan is all there and waits to be read."""

    def way() -> None:
        xml, acquisitions = scan
        gadgetron = double.Launch(target).accept()
        gadgetron.open(xml, **properties)
        sender = threading.Thread(target=gadgetron.send, args=(acquisitions, spec.CLOSE))
        sender.start()
        with gadgetron.socket.makefile("rb") as stream:
            while True:
                message = spec.read_message(stream)
                assert message.id == 1022
                if struct.unpack_from("<H", message.body, 2)[0] == data_type:
                    break
            sender.join(60)
        gadgetron.close()

    return way


def test_first_image(turns: Turns, scan: Scan, worker: str) -> None:
    """A process of Gadgetron's that finds a resident worker need not load a network before it may answer."""
    ways = {
        "with a worker": first(scan, "segment", MAGNITUDE, preset="breast-dce", worker=worker),
        "without a worker": first(scan, "segment", MAGNITUDE, preset="breast-dce"),
        "without a network": first(scan, "reconstruct", MAGNITUDE, preset="breast-dce-recon"),
    }
    what = "start of Gadgetron's process to its first image, with a resident worker"
    ours = ways.pop("with a worker")
    turns(what, ours, turns.pick(ways, {}), rounds=3, budgets={"without a worker": 1.0})


def test_first_labels(turns: Turns, scan: Scan, worker: str) -> None:
    ways = {
        "with a worker": first(scan, "segment", LABELS, preset="breast-dce", worker=worker),
        "without a worker": first(scan, "segment", LABELS, preset="breast-dce"),
    }
    what = "start of Gadgetron's process to its first labels, with a resident worker"
    ours = ways.pop("with a worker")
    turns(what, ours, turns.pick(ways, {}), rounds=3, budgets={"without a worker": 1.0})
