"""Compiled engines on disk, with the quickest real library there is: ONNX Runtime."""

from __future__ import annotations

import dataclasses
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from kstream.engines import artifact, build, load_engine
from kstream.engines.artifact import MANIFEST, Manifest
from kstream.engines.gate import Reference
from kstream.engines.torch_engine import TorchEngine
from kstream.errors import ModelError, ShapeError
from kstream.models.bundle import Bundle
from tests.engines.toys import SPACE, toy

pytestmark = [
    pytest.mark.skipif(find_spec("onnxruntime") is None or find_spec("onnx") is None, reason="needs kstream[onnx]"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # of torch about itself
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy(tmp_path_factory.mktemp("bundle") / "toy")


@pytest.fixture(scope="module")
def compiled(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine in a folder of its own, for batches of 1 and 3."""
    plan = build.plan_for(bundle, "onnxruntime", "fp32", "cpu", (), (1, 3), "gemm")
    return build.compile_engine(bundle, plan, tmp_path_factory.mktemp("engine") / "toy-engine")[0]


@pytest.fixture
def copy(compiled: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    return Path(shutil.copytree(compiled, tmp_path / "copy"))


def edit(folder: Path, *path: str, value: object) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    inner = manifest
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_a_compiled_engine_gives_the_networks_logits_and_says_what_it_is(bundle: Bundle, compiled: Path) -> None:
    engine = load_engine(bundle, engine=str(compiled))
    batch = np.random.default_rng(2).standard_normal((5, 2, *SPACE)).astype(np.float32)
    np.testing.assert_allclose(engine.run(batch), TorchEngine(bundle.build(), {}).run(batch), atol=1e-3)
    told = engine.describe()
    assert (told["engine"], told["precision"], told["model"]) == ("onnxruntime-cpu", "fp32", "toy")
    assert told["sha256"] == bundle.info.sha256
    assert told["engine_sha256"] == Manifest.read(compiled).digest
    assert "onnxruntime" in told
    engine.prove()


def test_the_gate_looked_at_every_batch_that_may_be_asked_for(compiled: Path) -> None:
    manifest = Manifest.read(compiled)
    assert [finding.batch for finding in manifest.verdict.findings] == [1, 2, 3]
    assert {finding.shape for finding in manifest.verdict.findings} == {SPACE}
    assert set(manifest.times_ms) == {"1x4x12x10", "3x4x12x10"}
    assert manifest.build_s > 0


def test_a_shape_outside_the_profile_is_refused_and_the_allowed_ones_are_named(bundle: Bundle, compiled: Path) -> None:
    with pytest.raises(ShapeError, match="does not take patches of 4x12x12") as caught:
        load_engine(bundle, engine=str(compiled)).run(np.zeros((1, 2, 4, 12, 12), np.float32))
    assert "4x12x10" in caught.value.hint


def test_an_engine_in_the_cache_is_found_by_its_name(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSTREAM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError, match="no engine onnxruntime was compiled for toy") as caught:
        load_engine(bundle, engine="onnxruntime")
    assert "kstream compile toy --engine onnxruntime" in caught.value.hint
    plan = build.plan_for(bundle, "onnxruntime", "auto", "cpu", (), (1,), "gemm")
    assert plan.precision == "fp32"
    folder, manifest = build.compile_engine(bundle, plan)
    assert folder.parent.parent == tmp_path / "cache" / "engines"
    assert load_engine(bundle, engine="onnxruntime").describe()["engine_sha256"] == manifest.digest
    assert not list(folder.parent.glob(".building-*"))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("key", "machine"), "x86_64 AVX2", "machine: built for x86_64 AVX2, here"),
        (("key", "sha256"), "f" * 64, "weights: built for ffffffffffff, here"),
        (("key", "versions", "onnxruntime"), "1.2.3", "onnxruntime: built for 1.2.3, here"),
        (("key", "versions", "torch"), "1.0", "torch: built for 1.0, here"),
        (("plan", "device"), "cuda", "device: built for cuda, asked for cpu"),
    ],
)
def test_a_stale_or_foreign_engine_is_refused_and_says_why(
    bundle: Bundle, copy: Path, path: tuple[str, ...], value: str, said: str
) -> None:
    edit(copy, *path, value=value)
    with pytest.raises(ModelError, match=said) as caught:
        load_engine(bundle, engine=str(copy))
    assert caught.value.code == "engine_stale"


def test_an_engine_of_another_precision_than_asked_for_is_refused(bundle: Bundle, compiled: Path) -> None:
    with pytest.raises(ModelError, match="precision: built for fp32, asked for bf16"):
        load_engine(bundle, engine=str(compiled), precision="bf16")


@pytest.mark.parametrize("damage", ["cut", "gone", "noise", "manifest", "proof", "format"])
def test_a_corrupt_engine_says_so_and_how_to_build_it_again(bundle: Bundle, copy: Path, damage: str) -> None:
    file = next(copy.glob("*.onnx"))
    match damage:
        case "cut":
            file.write_bytes(file.read_bytes()[:1000])
        case "gone":
            file.unlink()
        case "noise":
            file.write_bytes(np.random.default_rng(0).bytes(file.stat().st_size))
        case "manifest":
            (copy / MANIFEST).write_text('{"format": 1}')
        case "proof":
            (copy / artifact.PROOF).write_bytes(b"")
        case "format":
            edit(copy, "format", value=99)
    with pytest.raises(ModelError) as caught:
        load_engine(bundle, engine=str(copy))
    assert caught.value.code == "engine_damaged"
    assert "kstream compile" in caught.value.hint


def test_an_engine_whose_verdict_is_bad_serves_nobody(bundle: Bundle, copy: Path) -> None:
    findings = json.loads((copy / MANIFEST).read_text())["verdict"]["findings"]
    findings[1]["rms"] = 0.5
    edit(copy, "verdict", "findings", value=findings)
    with pytest.raises(ModelError, match="does not reproduce the reference"):
        load_engine(bundle, engine=str(copy))


def test_an_engine_that_fails_the_gate_is_not_kept(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stages of other weights, so that the library itself works."""
    other = toy(tmp_path / "other", bias=1.0)
    wrong = dataclasses.replace(bundle, folder=other.folder)
    right = Reference(bundle)
    monkeypatch.setattr(build, "Reference", lambda _: right)
    plan = build.plan_for(bundle, "onnxruntime", "fp32", "cpu", (), (1,), "gemm")
    with pytest.raises(ModelError, match="does not reproduce the reference"):
        build.compile_engine(wrong, plan, tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


def test_a_folder_with_something_else_is_left_alone(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    plan = build.plan_for(bundle, "onnxruntime", "fp32", "cpu", (), (1,), "gemm")
    with pytest.raises(ModelError, match="holds something else"):
        build.compile_engine(bundle, plan, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_plans_that_make_no_sense_are_refused(bundle: Bundle) -> None:
    with pytest.raises(ModelError, match="no precision 'bf16'"):
        build.plan_for(bundle, "onnxruntime", "bf16", "cpu", (), (1,))
    with pytest.raises(ModelError, match="no device 'cuda'"):
        build.plan_for(bundle, "openvino", "fp32", "cuda", (), (1,))
    with pytest.raises(ShapeError, match="a patch of 320x320 does not suit toy"):
        build.plan_for(bundle, "aot", "fp32", "cpu", ((320, 320),), (1,))


def test_an_unknown_engine_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ModelError, match="there is no engine 'openvin'") as caught:
        load_engine(bundle, engine="openvin")
    assert "openvino" in caught.value.hint


def test_the_next_engine_takes_over_from_one_that_cannot_be_had(bundle: Bundle, compiled: Path) -> None:
    engine = load_engine(bundle, engine=f"tensorrt,{compiled}", device="cpu")
    assert engine.name == "onnxruntime-cpu"
    assert "tensorrt" in engine.describe()["fallback"]
