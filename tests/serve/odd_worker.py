"""A worker process with models of our making: what the first voxel of a volume says, it does.

It is the real worker (protocol, threads, limits) around a segmenter that needs no torch, so that it starts fast.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path

import numpy as np

from kstream.errors import ModelError
from kstream.segment import ModelInfo, Segmentation
from kstream.serve.worker import WorkerOptions, serve_models
from kstream.types import LabelTable

TABLE = LabelTable(("background", "lesion"), ((0, 0, 0), (255, 64, 64)))


class Ask(IntEnum):
    """What a volume asks of the worker, as the real part of its first voxel."""

    THRESHOLD = 0
    SEGFAULT = 1
    HANG = 2
    RAISE = 3
    LEAK = 4
    WRONG_SHAPE = 5
    WRONG_TYPE = 6
    WRONG_CLASS = 7
    DEFECT = 8
    SLOW = 9
    STOP = 10
    DIE_ONCE = 11
    STOP_ONCE = 12


class Odd:
    """Labels where the real part exceeds 100, unless the first voxel asks for something else."""

    def __init__(self, name: str) -> None:
        self.info = ModelInfo(name, TABLE, 4, 2, sha256=f"weights of {name}")
        self._kept: list[np.ndarray] = []

    def segment(self, difference: np.ndarray) -> Segmentation:
        request = difference.flat[0]
        labels = (difference.real > 100).astype(np.uint8)
        match int(request.real):
            case Ask.SEGFAULT:
                ctypes.string_at(0)
            case Ask.HANG:
                time.sleep(3600)
            case Ask.RAISE:
                raise ModelError("the model cannot do this", likely="a test", hint="another volume")
            case Ask.DEFECT:
                raise KeyError("a defect")
            case Ask.LEAK:
                self._kept.append(np.ones(300 << 20, np.uint8))
            case Ask.WRONG_SHAPE:
                labels = labels[:-1]
            case Ask.WRONG_TYPE:
                labels = labels.astype(np.int64)
            case Ask.WRONG_CLASS:
                labels[0, 0, 0] = 2
            case Ask.SLOW:
                if "ODD_MARK" in os.environ:
                    Path(os.environ["ODD_MARK"]).touch()
                time.sleep(float(request.imag))
            case Ask.STOP:
                os.kill(os.getpid(), signal.SIGSTOP)
            case Ask.DIE_ONCE:
                _once(signal.SIGKILL)
            case Ask.STOP_ONCE:
                _once(signal.SIGSTOP)
        return Segmentation(labels, {"engine": "odd", "pid": str(os.getpid())})


def _once(number: int) -> None:
    """The first process that meets this volume gets a signal."""
    mark = Path(os.environ["ODD_MARK"])
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), number)


class OddArrays:
    """Gives its inputs back; zeros break it for good."""

    is_broken = False

    def run_arrays(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        if not inputs[0].any():
            OddArrays.is_broken = True
            raise ModelError("the arrays are nothing but zeros")
        return tuple(inputs)

    def describe(self) -> dict[str, str]:
        return {"model": "arrays", "sha256": "weights of arrays", "pid": str(os.getpid())}


class OddSource:
    """Gives odd models; one whose name begins with ``damaged`` cannot be had, one named ``fragile`` breaks for good."""

    def segmenter(self, model: str) -> Odd:
        if model.startswith("damaged"):
            raise ModelError(f"weights of bundle {model} are damaged", where="a test", hint="fetch it again")
        if model == "defective":
            raise MemoryError("a defect that nobody foresaw")
        if model == "fatal":
            os.kill(os.getpid(), signal.SIGSEGV)
        return Odd(model)

    def takes_arrays(self, model: str) -> bool:
        return model == "arrays"

    def array_engine(self, model: str) -> OddArrays:
        return OddArrays()

    def prove(self, model: str) -> None:
        if model == "fragile" or OddArrays.is_broken:
            raise ModelError("fragile cannot run its example: the device is lost")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--device")
    parser.add_argument("--memory-gib", type=float, default=0.0)
    parser.add_argument("--curve-key", type=Path)
    parser.add_argument("--curve-clients", type=Path)
    parser.add_argument("--owned", action="store_true")
    given = parser.parse_args()
    options = WorkerOptions(
        given.address,
        tuple(given.model),
        given.memory_gib,
        given.curve_key,
        given.curve_clients,
        given.owned,
    )
    return serve_models(options, OddSource())


if __name__ == "__main__":
    sys.exit(main())
