"""Networks with several inputs through the door of the others: same gate, same files, same words."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kstream.engines import array_stages, build, calibrate, machine
from kstream.engines.array_engine import LibraryArrayEngine, load_array_engine, torch_array_engine
from kstream.engines.array_gate import ArrayReference, ProvenArrayEngine, examine_arrays, sizes_up_to
from kstream.engines.array_stages import FAMILIES, stretched
from kstream.engines.gate import relative_rms
from kstream.errors import ModelError, ShapeError
from kstream.models.bundle import Bundle
from kstream.models.registry import ARCHITECTURES
from tests.hearts import disk_bundle, kmtr_bundle

pytestmark = [
    pytest.mark.timeout(1800),  # compilers, on a machine that may be busy
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # of torch about itself
    pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning"),
]

MOST = 41
needs_onnx = pytest.mark.skipif(
    find_spec("onnxruntime") is None or find_spec("onnx") is None, reason="needs kstream[onnx]"
)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return disk_bundle(tmp_path_factory.mktemp("bundle") / "disk-test")


@pytest.fixture(scope="module")
def kmtr(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return kmtr_bundle(tmp_path_factory.mktemp("bundle") / "kmtr-test")


def located_bundle(folder: Path) -> Bundle:
    return disk_bundle(folder, located=(2, 3, 4))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KSTREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def inputs_of(bundle: Bundle, n_tokens: int, n_queries: int = 0) -> tuple[np.ndarray, ...]:
    made = stretched(bundle.tensors()[0], FAMILIES[bundle.info.architecture].counted, n_tokens)
    if n_queries:
        made = (*made[:2], np.random.default_rng(1).random((1, n_queries, 3), np.float32))
    return made


def outputs_of(bundle: Bundle, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    with torch.inference_mode():
        made = bundle.build()(*(torch.from_numpy(x) for x in inputs))
    return tuple(part.numpy() for part in (made if isinstance(made, tuple) else (made,)))


def check_engine(bundle: Bundle, engine: str, precision: str = "fp32", limit: float = 1e-4) -> None:
    """Build, load, compare at sizes that were not examined, and load again."""
    plan = build.plan_for(bundle, engine, precision, "cpu", ((MOST,),), (1, 8))
    folder, manifest = build.compile_engine(bundle, plan)
    assert manifest.plan.profile.batches == (1,), "a scan has one subject"
    assert {finding.shape for finding in manifest.verdict.findings} >= {(1,), (37,), (MOST,)}
    loaded = load_array_engine(bundle, engine=engine)
    for n_tokens in (3, 29, MOST):
        inputs = inputs_of(bundle, n_tokens)
        for made, expected in zip(loaded.run_arrays(inputs), outputs_of(bundle, inputs), strict=True):
            assert made.dtype == np.float32
            assert relative_rms(made, expected) < limit
    told = loaded.describe()
    assert (told["engine"], told["precision"]) == (f"{engine}-cpu", precision)
    assert (told["model"], told["sha256"]) == (bundle.info.name, bundle.info.sha256)
    assert told["engine_sha256"] == manifest.digest
    with pytest.raises(ShapeError, match=f"takes at most {MOST} samples or lines at once, not {MOST + 1}") as caught:
        loaded.run_arrays(inputs_of(bundle, MOST + 1))
    assert f"--shape {MOST + 1}" in caught.value.hint
    changed = dataclasses.replace(bundle.info, arguments={**bundle.info.arguments, "compand": 0.4})
    with pytest.raises(ModelError, match="architecture, arguments or example"):
        load_array_engine(dataclasses.replace(bundle, info=changed), engine=engine)
    (folder / "proof.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"proof.safetensors is damaged"):
        load_array_engine(bundle, engine=engine)


@needs_onnx
def test_disk_runs_on_onnxruntime_with_any_number_of_samples(disk: Bundle, cache: Path) -> None:
    check_engine(disk, "onnxruntime")


@needs_onnx
def test_latents_with_places_run_on_onnxruntime(cache: Path, tmp_path: Path) -> None:
    check_engine(located_bundle(tmp_path / "disk-test"), "onnxruntime")


@pytest.mark.slow
@needs_onnx
def test_kmtr_runs_on_onnxruntime_with_any_number_of_lines(kmtr: Bundle, cache: Path) -> None:
    check_engine(kmtr, "onnxruntime")


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("engine", ["aot", "compiled"])
@pytest.mark.parametrize("make", [disk_bundle, located_bundle, kmtr_bundle])
def test_inductor_holds_networks_with_several_inputs(engine: str, make: Any, cache: Path, tmp_path: Path) -> None:
    check_engine(make(tmp_path / "bundle"), engine)


def test_pixels_are_asked_for_in_parts_and_the_samples_are_read_once(
    disk: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(array_stages, "PART", 100)
    network = array_stages.ArrayNetwork.of(disk)
    asked: list[tuple[str, int]] = []

    def run(stage: array_stages.ArrayStage, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        asked.append((stage.name, inputs[1].shape[1]))
        with torch.inference_mode():
            return stage.module(*inputs)

    inputs = inputs_of(disk, 13, n_queries=250)
    (logits,) = network.forward(run, [torch.from_numpy(x) for x in inputs], lambda parts: torch.cat(parts, dim=-1))
    assert asked == [("encode", 13), ("decode", 100), ("decode", 100), ("decode", 50)]
    np.testing.assert_allclose(logits.numpy(), outputs_of(disk, inputs)[0], atol=1e-5)


@pytest.mark.parametrize("make", [disk_bundle, kmtr_bundle])
def test_torch_gives_the_networks_outputs_and_says_what_it_is(make: Any, cache: Path, tmp_path: Path) -> None:
    bundle = make(tmp_path / "bundle")
    engine = load_array_engine(bundle, precision="fp32")
    inputs = inputs_of(bundle, 19)
    for made, expected in zip(engine.run_arrays(inputs), outputs_of(bundle, inputs), strict=True):
        np.testing.assert_array_equal(made, expected)
    told = engine.describe()
    assert (engine.name, told["engine"], told["precision"]) == ("torch-cpu", "torch-cpu", "fp32")
    assert told["sha256"] == bundle.info.sha256
    engine.prove()


@pytest.mark.parametrize("make", [disk_bundle, kmtr_bundle])
def test_bf16_is_in_the_products_and_positions_keep_float32(make: Any, tmp_path: Path) -> None:
    bundle = make(tmp_path / "bundle")
    inputs = inputs_of(bundle, 19)
    made = torch_array_engine(bundle, precision="bf16").run_arrays(inputs)
    errors = [relative_rms(*pair) for pair in zip(made, outputs_of(bundle, inputs), strict=True)]
    assert all(1e-5 < error < 0.05 for error in errors)


def choose(monkeypatch: pytest.MonkeyPatch, fp32_s: float, bf16_s: float) -> None:
    monkeypatch.setattr(calibrate, "best_times", lambda runs: {"fp32": fp32_s, "bf16": bf16_s})
    monkeypatch.setattr(machine, "has_fast_bf16", lambda device: True)


def exact(bundle: Bundle, device: str = "cpu", precision: str = "fp32") -> LibraryArrayEngine:
    """An engine that says it is in some precision, and is exact."""
    engine = torch_array_engine(bundle, device)
    engine.precision = precision
    return engine


def test_the_precision_is_found_out_by_the_same_calibration(
    kmtr: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(monkeypatch, 1.0, 0.9)
    assert load_array_engine(kmtr).precision == "fp32"
    choose(monkeypatch, 1.0, 0.5)
    assert load_array_engine(kmtr).precision == "fp32", "remembered"
    monkeypatch.setattr(calibrate, "torch_array_engine", exact)
    assert calibrate.calibrate_again(kmtr, "cpu")["precision"] == "bf16"
    assert load_array_engine(kmtr).precision == "bf16"


def test_reduced_precision_is_held_to_the_gate_at_every_power_of_two_and_float32_takes_over_where_it_fails(
    kmtr: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WrongBeyond(LibraryArrayEngine):
        def run_arrays(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
            outputs = super().run_arrays(inputs)
            n = inputs[0].shape[1]
            return outputs if n <= 300 else tuple(output * np.float32(1.1) for output in outputs)

    def wrong_beyond(bundle: Bundle, device: str = "cpu", precision: str = "fp32") -> LibraryArrayEngine:
        made = torch_array_engine(bundle, device)
        kind = LibraryArrayEngine if precision == "fp32" else WrongBeyond
        return kind(made.name, precision, made._forward, made._provenance)

    choose(monkeypatch, 1.0, 0.5)
    monkeypatch.setattr(calibrate, "torch_array_engine", wrong_beyond)
    engine = load_array_engine(kmtr)
    engine.run_arrays(inputs_of(kmtr, 200))
    assert engine.describe()["precision"] == "bf16"
    assert "256 against float64" in engine.describe()["gate"]
    inputs = inputs_of(kmtr, 400)
    for made, expected in zip(engine.run_arrays(inputs), outputs_of(kmtr, inputs), strict=True):
        assert relative_rms(made, expected) < 1e-5
    assert engine.describe()["precision"] == "fp32"
    assert "does not pass the gate at 512" in engine.describe()["fallback"]
    engine.run_arrays(inputs_of(kmtr, 200))
    assert engine.describe()["precision"] == "bf16"
    with pytest.raises(ModelError, match="does not reproduce the reference") as caught:
        load_array_engine(kmtr, precision="bf16").run_arrays(inputs)
    assert caught.value.code == "gate"


def test_the_gate_looks_at_every_output_and_at_the_labels(kmtr: Bundle) -> None:
    reference = ArrayReference(kmtr)
    right = torch_array_engine(kmtr)
    sizes = sizes_up_to(reference, MOST)
    assert examine_arrays(right, "fp32", reference, sizes).has_passed
    for index in range(3):

        def forward(inputs: Sequence[np.ndarray], index: int = index) -> tuple[np.ndarray, ...]:
            return tuple(o * (1 + 2e-3 * (i == index)) for i, o in enumerate(right.run_arrays(inputs)))

        wrong = LibraryArrayEngine("under-test", "fp32", forward, {"model": "toy"})
        assert not examine_arrays(wrong, "fp32", reference, [9]).has_passed
        with pytest.raises(ModelError, match="toy does not reproduce its example"):
            ProvenArrayEngine(wrong, reference.example, reference.stored)

    def swapped(inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        labels, *others = right.run_arrays(inputs)
        return (labels[:, :, ::-1], *others)

    (finding,) = examine_arrays(LibraryArrayEngine("under-test", "fp32", swapped, {}), "fp32", reference, [9]).findings
    assert finding.dice is not None
    assert finding.dice < 0.9


def test_tokens_of_a_longer_example_all_differ() -> None:
    first, second = np.arange(3.0, dtype=np.float32), np.arange(3.0, dtype=np.float32)
    made = stretched((first.reshape(1, 3, 1), second.reshape(1, 3, 1)), (0, 1), 9)
    pairs = {(float(a), float(b)) for a, b in zip(made[0][0, :, 0], made[1][0, :, 0], strict=True)}
    assert len(pairs) == 9


@pytest.mark.parametrize(("engine", "why"), [("openvino", "fixed sizes only"), ("tensorrt", "patches of fixed sizes")])
def test_an_engine_that_cannot_hold_them_says_why(disk: Bundle, engine: str, why: str) -> None:
    with pytest.raises(ModelError, match=f"engine {engine} does not run disk-test.*{why}") as caught:
        load_array_engine(disk, engine=engine)
    assert "onnxruntime" in caught.value.hint
    with pytest.raises(ModelError, match=why):
        build.plan_for(disk, engine, "fp32", "cpu", (), (1,))


def test_a_network_of_which_nobody_knows_what_varies_runs_on_torch_only(disk: Bundle) -> None:
    strange = dataclasses.replace(disk, info=dataclasses.replace(disk.info, architecture="breast-magnitude"))
    with pytest.raises(ModelError, match="not known which of its inputs vary"):
        load_array_engine(strange, engine="aot")
    with pytest.raises(ModelError, match="not known which of its inputs vary"):
        load_array_engine(strange, precision="bf16")


def test_every_architecture_with_several_inputs_is_known() -> None:
    several = {name for name, entry in ARCHITECTURES.items() if len(entry.inputs) > 1}
    assert several == set(FAMILIES)
    for name, known in FAMILIES.items():
        n_tokens = {ARCHITECTURES[name].inputs[index][1] for index in known.counted}
        assert len(n_tokens) == 1, "the inputs that count tokens have the same number of them"


def test_sizes_that_make_no_sense_are_refused(disk: Bundle) -> None:
    assert build.plan_for(disk, "aot", "fp32", "cpu", (), (1,)).profile.shapes == ((80_000,),)
    for shapes in (((4, 4),), ((3,), (5,)), ((0,),), ((2**21,),)):
        with pytest.raises(ShapeError, match="compiled for one size, the most samples of a scan"):
            build.plan_for(disk, "aot", "fp32", "cpu", shapes, (1,))
    with pytest.raises(ModelError, match="disk-test has no transform to write as gemm"):
        build.plan_for(disk, "onnxruntime", "fp32", "cpu", (), (1,), "gemm")
