from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from kstream.engines import Engine, machine
from kstream.engines.fallback import FallbackEngine
from kstream.engines.profile import Profile
from kstream.engines.torch_engine import find_device
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


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("can't allocate memory: 9 GB")]
)
def test_too_many_patches_at_once_are_the_callers_matter(error: Exception) -> None:
    engine = FallbackEngine(makers(Device(1, error), Device(2)))
    with pytest.raises(type(error)):
        engine.run(np.zeros((2, *BATCH.shape[1:]), np.float32))
    assert (engine.name, engine.describe()) == ("device-1", {"engine": "device-1"})
    assert engine.run(BATCH).max() == 2, "one patch is as few as there are"


def test_a_device_that_is_gone_hands_over_whatever_the_batch() -> None:
    engine = FallbackEngine(makers(Device(1, RuntimeError("device-side assert")), Device(2)))
    assert engine.run(np.zeros((2, *BATCH.shape[1:]), np.float32)).max() == 2
    assert engine.name == "device-2"


@pytest.mark.parametrize(
    "error",
    [
        ModelError("no"),
        torch.OutOfMemoryError("full"),
        MemoryError(),
        OSError("no library"),
        AssertionError("Invalid device id"),
    ],
)
def test_whatever_keeps_an_engine_from_being_made_the_next_one_is(error: Exception) -> None:
    def fails() -> Engine:
        raise error

    engine = FallbackEngine([fails, *makers(Device(2))])
    assert engine.run(BATCH).max() == 2
    assert engine.describe()["fallback"]


def test_a_size_that_one_engine_was_not_built_for_runs_on_the_next_and_only_that() -> None:
    engine = FallbackEngine([lambda: Built(1), *makers(Device(2))])
    odd = np.zeros((1, 2, 3, 5, 9), np.float32)
    assert engine.run(BATCH).max() == 1
    assert engine.run(odd).max() == 2
    assert engine.describe()["engine"] == "device-2"
    assert "3x5x9" in engine.describe()["fallback"]
    assert engine.run(BATCH).max() == 1
    assert engine.describe() == {"engine": "device-1"}
    with pytest.raises(ShapeError, match="3x5x9"):
        FallbackEngine([lambda: Built(1), lambda: Built(2)]).run(odd)


class Built(Device):
    """An engine that was built for one size."""

    def run(self, batch: np.ndarray) -> np.ndarray:
        Profile((1,), (BATCH.shape[2:],)).check(batch.shape)
        return super().run(batch)


def test_a_gpu_that_does_not_exist_is_a_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for find in (find_device, machine.capability):
        with pytest.raises(ModelError, match="'cuda:7' is not available") as caught:
            find("cuda:7")
        assert "2 GPUs" in caught.value.likely


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_then_cpu_loads_on_a_machine_without_a_gpu() -> None:
    from kstream.engines import load_engine
    from kstream.models.bundle import Bundle

    engine = load_engine(Bundle.load("breast-hybrid-small"), device="cuda,cpu")
    assert engine.name == "torch-cpu"
    assert "cuda" in engine.describe()["fallback"]
