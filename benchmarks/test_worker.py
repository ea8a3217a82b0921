"""A model in a worker process, beside the same model in this one; a warm worker, beside a process that starts cold."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest

from kstream.benchmarks.turns import Turns
from kstream.config import SegmentConfig
from kstream.segment import Segment
from kstream.serve.workers import ModelWorkers, WorkerSettings
from kstream.types import Difference, Geometry, LabelMap

MODEL = "breast-gate-small"
CONFIG = SegmentConfig(model=MODEL, frames=(), on_failure="stop")
IDLE = (sys.executable, "-P", "-m", "kstream.benchmarks.idle_worker")
COLD = """
import numpy as np
from kstream.engines.memory import keep_large_blocks
keep_large_blocks()
from kstream.serve.store import ModelStore
made = ModelStore().segmenter({model!r}).segment(np.ones({shape}, np.complex64))
assert made.labels.shape == {shape}
"""


@pytest.fixture(scope="module")
def volume(is_quick: bool) -> Difference:
    nz, ny, nx = (16, 32, 32) if is_quick else (32, 128, 128)
    rng = np.random.default_rng(0)
    data = (rng.standard_normal((nz, ny, nx)) + 1j * rng.standard_normal((nz, ny, nx))).astype(np.complex64)
    return Difference(data, 1.0, 2, 0, 0, 0, Geometry((nx, ny, nz), (2.0 * nx, 2.0 * ny, 2.0 * nz)))


@contextmanager
def remote(settings: WorkerSettings) -> Iterator[Segment]:
    workers = ModelWorkers(settings)
    workers.start()
    stage = workers.segment_stage(CONFIG)
    assert stage is not None
    yield stage
    workers.stop()


@pytest.fixture(scope="module")
def warm() -> Iterator[Segment]:
    with remote(WorkerSettings(n_processes=1, models=(MODEL,))) as stage:
        yield stage


def segment(stage: Segment, volume: Difference) -> None:
    (label_map,) = stage.push(volume)
    assert isinstance(label_map, LabelMap)


def test_there_and_back(turns: Turns, volume: Difference) -> None:
    """Beside a copy of the same bytes in memory."""
    n_bytes = volume.data.nbytes + volume.data.size

    def copy() -> None:
        volume.data.copy()

    with remote(WorkerSettings(n_processes=1, command=IDLE)) as idle:
        turns(
            f"to a worker and back, a volume of {_described(volume)}",
            partial(segment, idle, volume),
            {"copy": copy},
            rounds=50,
            n_bytes=n_bytes,
        )


def test_first_labels(turns: Turns, warm: Segment, volume: Difference) -> None:
    """What a worker that waits is there for."""
    shape = volume.data.shape
    code = COLD.format(model=MODEL, shape=shape)

    def cold() -> None:
        subprocess.run([sys.executable, "-P", "-c", code], check=True)

    turns(
        f"labels of {_described(volume)} from a warm worker",
        partial(segment, warm, volume),
        turns.pick({"a process that starts": cold}, {}),
        rounds=3,
        budgets={"a process that starts": 1.2},
        model=MODEL,
    )


def _described(volume: Difference) -> str:
    return " x ".join(map(str, volume.data.shape))
