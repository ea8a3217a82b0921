"""A model in a worker process, beside the same model in this one; a warm worker, beside a process that starts cold."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from kstream.config import SegmentConfig
from kstream.engines.memory import keep_large_blocks
from kstream.segment import Segment
from kstream.serve.store import ModelStore
from kstream.serve.workers import ModelWorkers, WorkerSettings
from kstream.types import Difference, Geometry, LabelMap

MODEL = "breast-hybrid-small"
SHAPE = (32, 128, 128)
CONFIG = SegmentConfig(model=MODEL, frames=(), on_failure="stop")
IDLE = (sys.executable, str(Path(__file__).parents[1] / "tests" / "serve" / "odd_worker.py"))
COLD = f"""
import numpy as np
from kstream.engines.memory import keep_large_blocks
keep_large_blocks()
from kstream.serve.store import ModelStore
made = ModelStore().segmenter({MODEL!r}).segment(np.ones({SHAPE}, np.complex64))
assert made.labels.shape == {SHAPE}
"""

keep_large_blocks()  # as every worker does


@pytest.fixture(scope="module")
def volume() -> Difference:
    rng = np.random.default_rng(0)
    data = (rng.standard_normal(SHAPE) + 1j * rng.standard_normal(SHAPE)).astype(np.complex64)
    return Difference(data, 1.0, 2, 0, 0, 0, Geometry((128, 128, 32), (256.0, 256.0, 64.0)))


def _remote(settings: WorkerSettings) -> Iterator[Segment]:
    workers = ModelWorkers(settings)
    workers.start()
    stage = workers.segment_stage(CONFIG)
    assert stage is not None
    yield stage
    workers.stop()


@pytest.fixture(scope="module")
def remote() -> Iterator[Segment]:
    yield from _remote(WorkerSettings(n_processes=1, models=(MODEL,)))


@pytest.fixture(scope="module")
def idle() -> Iterator[Segment]:
    yield from _remote(WorkerSettings(n_processes=1, command=IDLE))


@pytest.fixture(scope="module")
def local() -> Segment:
    stage = ModelStore().segment_stage(CONFIG)
    assert stage is not None
    return stage


def _segment(stage: Segment, volume: Difference) -> LabelMap:
    (label_map,) = stage.push(volume)
    assert isinstance(label_map, LabelMap)
    return label_map


@pytest.mark.benchmark(group="segment 32 x 128 x 128 with the demo's model")
def test_in_this_process(benchmark: BenchmarkFixture, local: Segment, volume: Difference) -> None:
    benchmark.pedantic(_segment, (local, volume), rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="segment 32 x 128 x 128 with the demo's model")
def test_in_a_worker(benchmark: BenchmarkFixture, remote: Segment, local: Segment, volume: Difference) -> None:
    there = benchmark.pedantic(_segment, (remote, volume), rounds=5, warmup_rounds=1)
    assert there.labels.tobytes() == _segment(local, volume).labels.tobytes()


@pytest.mark.benchmark(group="there and back: a worker whose model does nothing, 4 MiB there, 0.5 MiB back")
def test_there_and_back(benchmark: BenchmarkFixture, idle: Segment, volume: Difference) -> None:
    benchmark(_segment, idle, volume)


@pytest.mark.benchmark(group="first labels of a scan")
def test_first_labels_from_a_warm_worker(benchmark: BenchmarkFixture, remote: Segment, volume: Difference) -> None:
    benchmark.pedantic(_segment, (remote, volume), rounds=3)


@pytest.mark.benchmark(group="first labels of a scan")
def test_first_labels_from_a_cold_process(benchmark: BenchmarkFixture) -> None:
    benchmark.pedantic(subprocess.run, ([sys.executable, "-c", COLD],), {"check": True}, rounds=3)
