from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kstream.engines import load_engine, machine
from kstream.engines.calibrate import make_torch
from kstream.engines.engine import MAX_BATCH
from kstream.engines.memory import keep_large_blocks
from kstream.engines.torch_engine import TorchEngine
from kstream.errors import ModelError, ShapeError
from kstream.models.bundle import Bundle
from tests.engines.toys import toy

SHAPE = (2, 2, 3, 5, 7)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return toy(tmp_path / "toy", "breast-complex", {"channels": [4, 6]}, (3, 5, 7))


def batch() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def test_an_engine_gives_the_networks_logits(bundle: Bundle) -> None:
    engine = load_engine(bundle, precision="fp32")
    logits = engine.run(batch())
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, bundle.build()(torch.from_numpy(batch())).detach().numpy(), atol=1e-6)


def test_an_engine_says_what_it_is(bundle: Bundle) -> None:
    described = load_engine(bundle, precision="fp32").describe()
    assert described["model"] == "toy"
    assert described["sha256"] == bundle.info.sha256
    assert (described["engine"], described["precision"]) == ("torch-cpu", "fp32")


def test_bf16_is_close_to_fp32_and_not_the_same(bundle: Bundle) -> None:
    exact = TorchEngine(bundle.build(), {}).run(batch())
    rounded = TorchEngine(bundle.build(), {}, precision="bf16").run(batch())
    error = np.sqrt(np.mean((rounded - exact) ** 2) / np.mean(exact**2))
    assert 0 < error < 0.1


@pytest.mark.parametrize("name", ["brain-seranet-2", "brain-segnetmri", "heart-syn-net"])
def test_networks_with_transforms_inside_run_in_bf16_too(name: str, tmp_path: Path) -> None:
    arguments = {"channels": (6, 8)}
    bundle = toy(tmp_path / "toy", name, arguments, (3, 12, 10))
    exact, rounded = (make_torch(bundle, "cpu", precision).run(bundle.example()[0]) for precision in ("fp32", "bf16"))
    error = np.sqrt(np.mean((rounded - exact) ** 2) / np.mean(exact**2))
    assert 1e-4 < error < 2e-2


def test_a_network_with_a_layer_of_float32_only_stays_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's recurrent layers take no other type than that of their weights."""
    monkeypatch.setenv("KSTREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "has_fast_bf16", lambda device: True)
    arguments = {"channels": (4, 6), "n_latent": 6, "shape": (12, 10)}
    assert load_engine(toy(tmp_path / "toy", "heart-li-net", arguments, (3, 12, 10))).precision == "fp32"


def test_a_batch_beyond_the_largest_is_cut_and_joined(bundle: Bundle) -> None:
    engine = TorchEngine(bundle.build(), {})
    many = np.random.default_rng(1).standard_normal((MAX_BATCH + 3, *SHAPE[1:])).astype(np.float32)
    np.testing.assert_allclose(engine.run(many)[MAX_BATCH:], engine.run(many[MAX_BATCH:]), atol=1e-5)


def test_batches_do_not_influence_each_other(bundle: Bundle) -> None:
    engine, inputs = load_engine(bundle, precision="fp32"), batch()
    np.testing.assert_allclose(engine.run(inputs)[1:], engine.run(inputs[1:]), atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 3, 3, 5, 7)])
def test_other_axes_are_refused(bundle: Bundle, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="takes"):
        load_engine(bundle, precision="fp32").run(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"device": "abacus"}, "unknown device"), ({"precision": "int1"}, "unknown precision")],
)
def test_unknown_devices_and_precisions_are_refused(bundle: Bundle, options: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_engine(bundle, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_a_model_error(bundle: Bundle) -> None:
    with pytest.raises(ModelError, match="not available"):
        load_engine(bundle, device="cuda")


def test_one_run_at_a_time() -> None:
    class Watch(nn.Module):
        inside = 0
        most = 0
        gate = threading.Barrier(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Watch.inside += 1
            Watch.most = max(Watch.most, Watch.inside)
            torch.fft.fftn(torch.zeros(64, 64, 64))  # releases the interpreter lock for a while
            Watch.inside -= 1
            return x

    engine = TorchEngine(Watch(), {})

    def work() -> None:
        Watch.gate.wait(10)
        for _ in range(20):
            engine.run(np.zeros(SHAPE, np.float32))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Watch.most == 1


def test_keeping_blocks_answers_and_may_be_asked_twice() -> None:
    assert keep_large_blocks() == keep_large_blocks()
