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
from pytest_benchmark.fixture import BenchmarkFixture

from kstream.mrd.codec import encode
from kstream.simulate.exam import simulate_breast_exam
from kstream.simulate.protocol import BreastProtocol
from tests.gadgets import specification as spec
from tests.gadgets.gadgetron_double import Launch

MODEL = "breast-hybrid-small"
PROTOCOL = BreastProtocol(matrix=64, n_slices=16, n_spokes=34, n_coils=4, n_lesions=1)


@pytest.fixture(scope="module")
def scan() -> tuple[bytes, bytes]:
    """Header, and all acquisitions as they lie on the wire."""
    exam = simulate_breast_exam(PROTOCOL, 5)
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


def _first(scan: tuple[bytes, bytes], target: str, data_type: int, **properties: str) -> None:
    """From the start of the process to the first image of a kind; the scan is all there and waits to be read."""
    xml, acquisitions = scan
    launch = Launch(target)
    gadgetron = launch.accept()
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


GROUP = pytest.mark.benchmark(group="start of a process to its first images and labels")


@GROUP
def test_first_image_without_a_network(benchmark: BenchmarkFixture, scan: tuple[bytes, bytes]) -> None:
    benchmark.pedantic(_first, (scan, "reconstruct", MAGNITUDE), {"preset": "breast-dce-recon"}, rounds=5)


@GROUP
def test_first_image_without_a_worker(benchmark: BenchmarkFixture, scan: tuple[bytes, bytes]) -> None:
    benchmark.pedantic(_first, (scan, "segment", MAGNITUDE), {"preset": "breast-dce"}, rounds=5)


@GROUP
def test_first_image_with_a_worker(benchmark: BenchmarkFixture, scan: tuple[bytes, bytes], worker: str) -> None:
    benchmark.pedantic(_first, (scan, "segment", MAGNITUDE), {"preset": "breast-dce", "worker": worker}, rounds=5)


@GROUP
def test_first_labels_without_a_worker(benchmark: BenchmarkFixture, scan: tuple[bytes, bytes]) -> None:
    benchmark.pedantic(_first, (scan, "segment", LABELS), {"preset": "breast-dce"}, rounds=5)


@GROUP
def test_first_labels_with_a_worker(benchmark: BenchmarkFixture, scan: tuple[bytes, bytes], worker: str) -> None:
    benchmark.pedantic(_first, (scan, "segment", LABELS), {"preset": "breast-dce", "worker": worker}, rounds=5)
