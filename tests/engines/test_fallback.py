from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from kstream.engines import Engine
from kstream.engines.fallback import FallbackEngine
from kstream.errors import ModelError, ShapeError

BATCH = np.zeros((1, 2, 3, 5, 7), np.float32)


class Device:
    """An engine that gives its number, until it breaks."""

    precision = "fp32"

    def __init__(self, number: int, error: Exception | None = None) -> None:
        self.number, self.error = number, error
        self.name = f"device-{number}"

    def run(self, batch: np.ndarray) -> np.ndarray:
        if self.error is not None:
            raise self.error
        return np.full_like(batch, self.number)

    def describe(self) -> dict[str, str]:
        return {"engine": self.name}


def absent() -> Engine:
    raise ModelError("device 'cuda' is not available", hint="use cpu")


def makers(*devices: Device) -> list[Callable[[], Engine]]:
    return [lambda device=device: device for device in devices]


def test_the_first_that_works_is_used_and_says_nothing_of_the_others() -> None:
    engine = FallbackEngine(makers(Device(1), Device(2)))
    assert engine.run(BATCH).max() == 1
    assert (engine.name, engine.precision, engine.describe()) == ("device-1", "fp32", {"engine": "device-1"})


def test_fault_34_a_device_that_is_not_there_is_passed_over_and_named() -> None:
    engine = FallbackEngine([absent, *makers(Device(2))])
    assert engine.run(BATCH).max() == 2
    assert engine.describe() == {"engine": "device-2", "fallback": "device 'cuda' is not available"}


def test_fault_34_a_device_that_runs_out_of_memory_hands_over_for_good() -> None:
    broken = Device(1, torch.OutOfMemoryError("out of memory"))
    engine = FallbackEngine(makers(broken, Device(2)))
    assert engine.run(BATCH).max() == 2
    broken.error = None
    assert engine.run(BATCH).max() == 2
    assert engine.describe() == {"engine": "device-2", "fallback": "OutOfMemoryError: out of memory"}


def test_the_last_ones_error_is_the_error() -> None:
    with pytest.raises(ModelError, match="not available"):
        FallbackEngine([absent, absent])
    engine = FallbackEngine([*makers(Device(1, RuntimeError("first"))), *makers(Device(2, RuntimeError("second")))])
    with pytest.raises(RuntimeError, match="second"):
        engine.run(BATCH)


def test_a_wrong_batch_is_not_the_devices_fault() -> None:
    engine = FallbackEngine(makers(Device(1, ShapeError("other axes")), Device(2)))
    with pytest.raises(ShapeError):
        engine.run(BATCH)
    assert engine.name == "device-1"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_then_cpu_loads_on_a_machine_without_a_gpu() -> None:
    from kstream.engines import load_engine
    from kstream.models.bundle import Bundle

    engine = load_engine(Bundle.load("breast-hybrid-small"), device="cuda,cpu")
    assert engine.name == "torch-cpu"
    assert "cuda" in engine.describe()["fallback"]
