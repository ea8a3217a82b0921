"""The gate, and the three silent failures that it is there for, made with the libraries themselves."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kstream.engines import aot, onnx_export
from kstream.engines.engine import MAX_BATCH
from kstream.engines.gate import LIMITS, Finding, ProvenEngine, Reference, Verdict, examine, fit, relative_rms
from kstream.engines.profile import Profile, ProfiledEngine
from kstream.engines.stages import lower, split
from kstream.engines.torch_engine import TorchEngine
from kstream.errors import ModelError
from kstream.models.bundle import Bundle
from kstream.models.registry import ARCHITECTURES
from tests.engines.toys import HYBRID, SPACE, toy

EVERY = range(1, MAX_BATCH + 1)

pytestmark = [  # of torch about itself
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy(tmp_path_factory.mktemp("bundle") / "toy")


@pytest.fixture(scope="module")
def reference(bundle: Bundle) -> Reference:
    return Reference(bundle)


def engine_of(forward: Callable[[np.ndarray], np.ndarray], precision: str = "fp32") -> ProfiledEngine:
    return ProfiledEngine("under-test", precision, Profile(tuple(EVERY), (SPACE,)), forward, {"model": "toy"})


def exact(bundle: Bundle) -> Callable[[np.ndarray], np.ndarray]:
    return TorchEngine(bundle.build(), {}).run


def test_the_eager_network_passes_at_every_batch(bundle: Bundle, reference: Reference) -> None:
    verdict = examine(engine_of(exact(bundle)), reference, EVERY)
    assert [finding.batch for finding in verdict.findings] == list(EVERY)
    assert verdict.has_passed
    assert verdict.rms < 1e-5
    assert verdict.dice == 1
    verdict.demand("under-test")


def test_patches_of_a_batch_differ_so_that_a_mixed_up_batch_is_found(bundle: Bundle, reference: Reference) -> None:
    right = exact(bundle)
    verdict = examine(engine_of(lambda batch: np.roll(right(batch), 1, axis=0)), reference, EVERY)
    assert [finding.batch for finding in verdict.findings if finding.rms < 1e-3] == [1]


@pytest.mark.parametrize("wrong_at", [1, 3, MAX_BATCH])
def test_one_wrong_batch_size_is_enough(bundle: Bundle, reference: Reference, wrong_at: int) -> None:
    right = exact(bundle)
    verdict = examine(engine_of(lambda b: right(b) * (1.01 if len(b) == wrong_at else 1)), reference, EVERY)
    assert len(verdict.failures) == 1
    with pytest.raises(ModelError, match=f"with {wrong_at} patches of 4x12x10") as caught:
        verdict.demand("under-test")
    assert caught.value.code == "gate"


def test_one_wrong_patch_does_not_drown_in_its_batch(bundle: Bundle, reference: Reference) -> None:
    right = exact(bundle)

    def wrong_at_last(batch: np.ndarray) -> np.ndarray:
        logits = right(batch).copy()
        logits[-1] *= 1 + 2.0 * LIMITS["fp32"]
        return logits

    verdict = examine(engine_of(wrong_at_last), reference, [MAX_BATCH])
    pooled = relative_rms(wrong_at_last(reference.batch(MAX_BATCH, SPACE)[0]), reference.batch(MAX_BATCH, SPACE)[1])
    assert pooled < LIMITS["fp32"] < verdict.rms
    assert not verdict.has_passed


def test_labels_count_in_every_patch(bundle: Bundle, reference: Reference) -> None:
    """Patch 1 of a batch is not the example itself, but a variant of it."""
    right = exact(bundle)

    def swapped(batch: np.ndarray) -> np.ndarray:
        logits = right(batch).copy()
        logits[1] = logits[1, ::-1]
        return logits

    (_, said) = examine(engine_of(swapped), reference, [2]).failures
    assert "labels of a variant differ, Dice 0.0000 with 2 patches" in said


def test_labels_count_beside_logits(bundle: Bundle, reference: Reference) -> None:
    """A shift of the logits within the limit of half precision, that moves voxels over the border."""
    right = exact(bundle)
    expected = right(reference.example)
    margin = float(np.quantile(np.abs(expected[:, 1] - expected[:, 0]), 0.01))
    assert margin / np.sqrt(np.mean(expected**2)) < 2e-2

    def shifted(batch: np.ndarray) -> np.ndarray:
        logits = right(batch).copy()
        logits[:, 1] += margin
        return logits

    verdict = examine(engine_of(shifted, "bf16"), reference, [1])
    assert verdict.rms < LIMITS["bf16"]
    assert "labels differ, Dice" in verdict.failures[0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_fail(bundle: Bundle, reference: Reference, value: float) -> None:
    right = exact(bundle)

    def broken(batch: np.ndarray) -> np.ndarray:
        logits = right(batch).copy()
        logits[-1, 0, 0, 0, 0] = value
        return logits

    assert not examine(engine_of(broken), reference, [1]).has_passed


def test_another_shape_of_logits_fails(bundle: Bundle, reference: Reference) -> None:
    right = exact(bundle)
    assert not examine(engine_of(lambda batch: right(batch)[:, :, 1:]), reference, [1, 2]).has_passed


def test_an_engine_that_cannot_run_is_a_model_error(reference: Reference) -> None:
    def full(batch: np.ndarray) -> np.ndarray:
        raise RuntimeError("no memory")

    with pytest.raises(ModelError, match="cannot run the example of its model: no memory"):
        examine(engine_of(full), reference, [1])


def test_an_example_without_foreground_lets_only_float32_pass(tmp_path: Path) -> None:
    empty = Reference(toy(tmp_path / "empty", bias=1e3))
    right = exact(toy(tmp_path / "again", bias=1e3))
    assert examine(engine_of(right), empty, [1]).has_passed
    assert "no foreground" in examine(engine_of(right, "bf16"), empty, [1]).failures[0]
    invented = examine(engine_of(lambda b: right(b)[:, ::-1]), empty, [1])
    assert invented.dice == 0


def test_a_verdict_survives_its_text() -> None:
    verdict = Verdict("bf16", (Finding(3, (4, 12, 10), 0.0123, None), Finding(1, (4, 12, 10), 0.001, 0.999)))
    assert Verdict.from_json(verdict.to_json()) == verdict
    assert not Verdict("fp32", ()).has_passed, "nothing was looked at"


GOOD = {"batch": 1, "shape": [4, 12, 10], "rms": 0.0, "dice": 1.0, "variant_dice": None}


@pytest.mark.parametrize(
    "plain",
    [
        None,
        [],
        {},
        {"precision": "fp32", "findings": []},
        {"precision": "int4", "findings": [GOOD]},
        {"precision": ["fp32"], "findings": [GOOD]},
        *(
            {"precision": "fp32", "findings": [{**GOOD, **change}]}
            for change in (
                {"batch": "1"},
                {"batch": 0},
                {"batch": True},
                {"shape": []},
                {"shape": 4},
                {"shape": [4.0, 12, 10]},
                {"rms": "0"},
                {"rms": None},
                {"rms": -1.0},
                {"rms": float("nan")},
                {"dice": 2},
                {"dice": "1"},
            )
        ),
    ],
)
def test_a_verdict_that_no_gate_gives_is_a_model_error(plain: Any) -> None:
    with pytest.raises(ModelError, match="verdict"):
        Verdict.from_json(plain)


PLANE: Mapping[str, Any] = {
    "channels": (6, 8),
    "image_channels": (6, 8),
    "k_channels": (4, 6),
    "consistency_width": 4,
    "n_blocks": 2,
    "n_latent": 6,
    "shape": SPACE[1:],
}
"""Of the arguments that networks have, those that make them small."""


@pytest.mark.parametrize(
    "name",
    [a.name for a in ARCHITECTURES.values() if len(a.inputs) == 1 and "n_classes" in a.arguments],
)
def test_every_network_of_one_input_that_labels_has_a_reference_in_double_precision(name: str, tmp_path: Path) -> None:
    arguments = {key: value for key, value in PLANE.items() if key in ARCHITECTURES[name].arguments}
    Reference(toy(tmp_path / "toy", name, arguments)).check_stored()


@pytest.mark.parametrize("shape", [(4, 12, 10), (7, 16, 8), (3, 9, 21)])
def test_an_example_in_another_size_keeps_the_centre_of_kspace(reference: Reference, shape: tuple[int, ...]) -> None:
    fitted = fit(reference.example, shape)
    assert fitted.shape == (1, 2, *shape)
    z, y, x = (n // 2 for n in shape)
    old = reference.example[:, :, z % SPACE[0], SPACE[1] // 2, SPACE[2] // 2]
    np.testing.assert_array_equal(fitted[:, :, z, y, x], old)


def test_a_proof_is_run_again_when_asked(bundle: Bundle, reference: Reference) -> None:
    right, scale = exact(bundle), [1.0]
    proven = ProvenEngine(engine_of(lambda batch: right(batch) * scale[0]), reference.example, reference.stored)
    scale[0] = 1.01
    with pytest.raises(ModelError, match="toy does not reproduce its example"):
        proven.prove()


def test_relative_rms_of_nothing() -> None:
    zeros = np.zeros(5)
    assert relative_rms(zeros, zeros) == 0
    assert relative_rms(zeros + 2, zeros) == 2
    assert relative_rms(zeros + np.nan, zeros) == np.inf


# The three silent failures


@pytest.mark.skipif(find_spec("openvino") is None or find_spec("onnx") is None, reason="needs kstream[openvino,onnx]")
def test_the_gate_catches_openvino_with_the_dft_of_onnx(bundle: Bundle, reference: Reference, tmp_path: Path) -> None:
    """The whole network with its FFT as ONNX's DFT; OpenVINO 2026.4 computes garbage and says nothing."""
    from kstream.engines.openvino_engine import compile_file

    path = tmp_path / "dft.onnx"
    onnx_export.export(split(bundle.build()), torch.from_numpy(reference.batch(2, SPACE)[0]), path)
    assert b"DFT" in path.read_bytes()

    def run(batch: np.ndarray) -> np.ndarray:
        return compile_file(path, batch.shape, "fp32")(batch)

    verdict = examine(engine_of(run), reference, EVERY)
    if verdict.has_passed:
        pytest.skip(f"openvino {version('openvino')} computes the DFT of ONNX rightly")
    assert len({finding.batch for finding in verdict.findings if finding.rms > 0.1}) == MAX_BATCH
    with pytest.raises(ModelError, match="does not reproduce the reference"):
        verdict.demand("openvino")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs g++")
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_gate_catches_frozen_weights_under_a_batch_that_varies(
    bundle: Bundle, reference: Reference, tmp_path: Path, channels_last: bool
) -> None:
    """What `aot.build` never makes: one package with frozen weights for every batch (torch 2.13: wrong at some)."""
    stages = lower(split(bundle.build()), "fp32", "sums", channels_last=channels_last)
    patches = torch.from_numpy(reference.batch(2, SPACE)[0])
    loaded = {}
    for name, stage in stages.named_children():
        if name != "transform":
            aot.package(stage, patches, tmp_path / f"{name}.pt2", is_frozen=True, is_dynamic=True)
            loaded[name] = torch._inductor.aoti_load_package(str(tmp_path / f"{name}.pt2"))
        with torch.no_grad():
            patches = stage(patches)

    def run(batch: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(batch)
        for name, stage in stages.named_children():
            x = loaded.get(name, stage)(x)
        return x.numpy()

    verdict = examine(engine_of(run), reference, EVERY)
    wrong = sorted({finding.batch for finding in verdict.findings if not finding.rms < LIMITS["fp32"]})
    if not wrong:
        pytest.skip(f"torch {torch.__version__} freezes weights rightly under a batch that varies")
    assert not verdict.has_passed
    assert len(verdict.failures) >= len(wrong)


@pytest.mark.skipif(find_spec("onnxruntime") is None or find_spec("onnx") is None, reason="needs kstream[onnx]")
def test_the_gate_catches_int8_in_the_kspace_stage(bundle: Bundle, reference: Reference, tmp_path: Path) -> None:
    """ONNX Runtime's own quantisation (QDQ, per channel), calibrated on the example itself."""
    run = quantised(bundle, reference, tmp_path)
    verdict = dataclasses.replace(examine(engine_of(run, "bf16"), reference, EVERY), precision="int8")
    assert not verdict.has_passed
    assert len({finding.batch for finding in verdict.findings if finding.rms > LIMITS["int8"]}) == MAX_BATCH


def quantised(bundle: Bundle, reference: Reference, folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The bundle's network with its k-space stage in int8, by ONNX Runtime."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    stages = split(bundle.build())
    example = reference.batch(1, SPACE)[0]
    onnx_export.export(
        stages.get_submodule("kspace"), torch.from_numpy(reference.batch(2, SPACE)[0]), folder / "k.onnx"
    )

    class Example(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"patches": example}]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    quant_pre_process(folder / "k.onnx", folder / "p.onnx", skip_symbolic_shape=True)
    quantize_static(
        folder / "p.onnx",
        folder / "q.onnx",
        Example(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )
    session = onnxruntime.InferenceSession(folder / "q.onnx", providers=["CPUExecutionProvider"])

    def run(batch: np.ndarray) -> np.ndarray:
        (features,) = session.run(None, {"patches": batch})
        with torch.inference_mode():
            return stages.get_submodule("image")(stages.get_submodule("transform")(torch.from_numpy(features))).numpy()

    return run


def test_the_toy_is_a_hybrid() -> None:
    assert set(HYBRID) == {"k_channels", "n_features", "image_channels"}
