"""Which networks an engine holds whole: where the Fourier transform runs, and who refuses it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from kstream.engines import build, load_engine
from kstream.engines.backends import NO_FFT
from kstream.engines.onnx_export import export_stages
from kstream.engines.profile import Plan, Profile
from kstream.engines.stages import holds_fft, split
from kstream.errors import ModelError
from kstream.models.bundle import Bundle
from kstream.models.registry import build as build_network
from tests.engines.test_stages import CASES
from tests.engines.toys import SPACE, toy

GATE: Mapping[str, Any] = {"image_channels": (8, 12), "bridge": "magnitude", "consistency_width": 4}


@pytest.mark.parametrize("transform", ["fft", "gemm"])
@pytest.mark.parametrize("engine", sorted(NO_FFT))
def test_an_engine_that_would_have_to_hold_the_fft_is_refused_before_anything_is_exported(
    engine: str, transform: str
) -> None:
    device = "cuda" if engine == "tensorrt" else "cpu"
    with pytest.raises(ModelError, match="Fourier transforms inside") as caught:
        build.plan_for(Bundle.load("brain-seranet-small"), engine, "fp32", device, (), (1,), transform)
    assert NO_FFT[engine] in caught.value.what
    assert caught.value.hint == "--engine torch, compiled, aot"


@pytest.mark.parametrize("engine", ["aot", "compiled"])
def test_an_engine_of_torch_holds_the_fft(engine: str) -> None:
    plan = build.plan_for(Bundle.load("brain-seranet-small"), engine, "fp32", "cpu", (), (1,))
    assert plan.engine == engine


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_breast_networks_have_the_fft_between_their_stages_and_none_as_products(
    name: str, arguments: Mapping[str, Any]
) -> None:
    network, shape = build_network(name, arguments).eval(), (1, 2, 3, 10, 14)
    assert not holds_fft(split(network), shape, with_transform=False)
    assert holds_fft(split(network), shape, with_transform=True)
    assert not holds_fft(split(network, (10, 14)), shape, with_transform=True)


@pytest.mark.parametrize("transform", ["fft", "gemm"])
@pytest.mark.parametrize("engine", sorted(NO_FFT))
def test_the_default_bundle_is_held_by_every_engine(engine: str, transform: str) -> None:
    device = "cuda" if engine == "tensorrt" else "cpu"
    plan = build.plan_for(Bundle.load("breast-gate-small"), engine, "fp32", device, (), (1, 8), transform)
    assert plan.transform == transform


@pytest.mark.skipif(find_spec("onnxruntime") is None or find_spec("onnx") is None, reason="needs kstream[onnx]")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")  # of torch about itself
def test_a_gate_in_one_onnx_file_passes_and_holds_no_transform(tmp_path: Path) -> None:
    import onnx

    bundle = toy(tmp_path / "toy", "breast-gate", GATE)
    plan = build.plan_for(bundle, "onnxruntime", "fp32", "cpu", (), (1, 3), "gemm")
    folder, manifest = build.compile_engine(bundle, plan, tmp_path / "engine")
    assert manifest.verdict.has_passed
    (file,) = folder.glob("*.onnx")
    used = {node.op_type for node in onnx.load(file).graph.node}
    assert "MatMul" in used
    assert not used & {"DFT", "STFT"}
    assert load_engine(bundle, engine=str(folder)).name == "onnxruntime-cpu"


@pytest.mark.skipif(find_spec("onnx") is None, reason="needs kstream[onnx]")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")  # of torch about itself
def test_with_the_transform_in_torch_only_the_image_stage_of_a_gate_is_a_file(tmp_path: Path) -> None:
    plan = Plan("onnxruntime", "fp32", "cpu", Profile((1,), (SPACE,)), "fft")
    export_stages(build_network("breast-gate", GATE).eval(), plan, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["image-4x12x10.onnx"]
