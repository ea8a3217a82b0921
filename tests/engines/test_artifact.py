"""Compiled engines on disk, with the quickest real library there is: ONNX Runtime."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from kstream.engines import artifact, build, load_engine, machine
from kstream.engines.artifact import MANIFEST, Manifest
from kstream.engines.gate import Reference
from kstream.engines.torch_engine import TorchEngine
from kstream.errors import ModelError, ShapeError
from kstream.models.bundle import Bundle
from tests.engines.toys import HYBRID, SPACE, toy

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


def edit(folder: Path, *path: str, value: object, is_signed: bool = True) -> None:
    """Change a value of the manifest, and its hash of itself, as if the engine had been built so."""
    manifest = json.loads((folder / MANIFEST).read_text())
    inner = manifest
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    if is_signed:
        manifest["digest"] = Manifest.from_json(manifest).digest
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
    assert not list(folder.parent.glob(f"{build.BUILDING}*"))


def test_of_several_engines_in_the_cache_each_runs_its_shape_and_a_damaged_one_is_passed_over(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSTREAM_CACHE", str(tmp_path / "cache"))
    other, digests = (4, 12, 12), {}
    for shape in (SPACE, other):
        plan = build.plan_for(bundle, "onnxruntime", "fp32", "cpu", (shape,), (1,), "gemm")
        folder, manifest = build.compile_engine(bundle, plan)
        digests[shape] = manifest.digest
    engine, eager = load_engine(bundle, engine="onnxruntime"), TorchEngine(bundle.build(), {})
    for shape in (SPACE, other, SPACE):
        batch = np.random.default_rng(2).standard_normal((2, 2, *shape)).astype(np.float32)
        np.testing.assert_allclose(engine.run(batch), eager.run(batch), atol=1e-3)
        assert engine.describe()["engine_sha256"] == digests[shape]
    engine.prove()
    assert (engine.name, engine.precision) == ("onnxruntime-cpu", "fp32")
    with pytest.raises(ShapeError, match="compiled for patches of 3x12x10") as caught:
        engine.run(np.zeros((1, 2, 3, 12, 10), np.float32))
    assert "4x12x10 and 4x12x12" in caught.value.hint or "4x12x12 and 4x12x10" in caught.value.hint
    (folder / artifact.PROOF).write_bytes(b"")
    assert load_engine(bundle, engine="onnxruntime").describe()["engine_sha256"] == digests[SPACE]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("key", "machine"), "x86_64 AVX2", "machine: built for x86_64 AVX2, here"),
        (("key", "sha256"), "f" * 64, "weights: built for ffffffffffff, here"),
        (("key", "description"), "e" * 64, "architecture, arguments or example: built for eeeeeeeeeeee, here"),
        (("key", "kstream"), "0.0.1", "kstream: built for 0.0.1, here"),
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


def test_an_engine_does_not_outlive_a_change_of_the_description_that_leaves_the_weights(
    bundle: Bundle, compiled: Path
) -> None:
    """A residual has no weights of its own: the same file, another network."""
    changed = dataclasses.replace(bundle.info, arguments={**HYBRID, "k_residual": True})
    with pytest.raises(ModelError, match="architecture, arguments or example") as caught:
        load_engine(dataclasses.replace(bundle, info=changed), engine=str(compiled))
    assert caught.value.code == "engine_stale"


def test_an_engine_is_proved_with_the_example_of_the_bundle_too(bundle: Bundle, compiled: Path, tmp_path: Path) -> None:
    """Its own proof cannot tell that it is that of another network."""
    other = dataclasses.replace(bundle, folder=toy(tmp_path / "other", bias=1.0).folder)
    with pytest.raises(ModelError, match="toy does not reproduce its example"):
        artifact.open_folder(other, compiled, Manifest.read(compiled))


FINDING = {"batch": 1, "shape": [4, 12, 10], "rms": 0.0, "dice": None, "variant_dice": None}
"""On one of the three batches that the engine was built for."""


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("verdict", "precision"), "bf16"),
        (("verdict", "findings"), []),
        (("verdict", "findings"), [FINDING]),
        (("verdict", "findings"), [{**FINDING, "batch": "1"}]),
        (("plan", "profile", "batches"), []),
        (("plan", "precision"), "int4"),
        (("plan", "engine"), "os"),
        (("files",), {"../proof.safetensors": "0"}),
        (("files",), {}),
        (("key", "machine"), "edited"),
    ],
)
def test_a_manifest_that_no_build_writes_is_refused(
    bundle: Bundle, copy: Path, path: tuple[str, ...], value: object
) -> None:
    edit(copy, *path, value=value, is_signed=False)
    with pytest.raises(ModelError) as caught:
        load_engine(bundle, engine=str(copy))
    assert caught.value.code == "engine_damaged"


def test_files_that_the_manifest_does_not_list_are_never_opened(bundle: Bundle, copy: Path) -> None:
    shutil.copy(next(copy.glob("*.onnx")), copy / "another.onnx")
    with pytest.raises(ModelError, match=r"another.onnx is not one of its files"):
        load_engine(bundle, engine=str(copy))


def test_the_hash_that_images_carry_depends_on_the_files(compiled: Path) -> None:
    manifest = Manifest.read(compiled)
    other = dataclasses.replace(manifest, files={**manifest.files, artifact.PROOF: "0" * 64})
    assert other.digest != manifest.digest
    assert other.slot == manifest.slot


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
            edit(copy, "format", value=99, is_signed=False)
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


def test_an_engine_with_somebodys_file_beside_it_is_left_alone(bundle: Bundle, copy: Path) -> None:
    (copy / "notes.txt").write_text("mine")
    plan = build.plan_for(bundle, "onnxruntime", "fp32", "cpu", (), (1,), "gemm")
    with pytest.raises(ModelError, match=r"something else than a compiled engine: notes.txt"):
        build.compile_engine(bundle, plan, copy)
    assert (copy / "notes.txt").read_text() == "mine"


def test_an_engine_stays_until_the_new_one_is_in_its_place(copy: Path, tmp_path: Path) -> None:
    before = Manifest.read(copy)
    with pytest.raises(OSError, match="gone"):
        build._replace(copy, tmp_path / "gone", tmp_path / "old")
    assert Manifest.read(copy) == before
    new = Path(shutil.copytree(copy, tmp_path / "new"))
    edit(new, "build_s", value=7.5)
    build._replace(copy, new, tmp_path / "old")
    assert Manifest.read(copy).build_s == 7.5
    assert Manifest.read(tmp_path / "old") == before


def test_whoever_puts_an_engine_in_its_place_waits_for_the_other(copy: Path, tmp_path: Path) -> None:
    new = Path(shutil.copytree(copy, tmp_path / "new"))
    thread = threading.Thread(target=build._replace, args=(copy, new, tmp_path / "old"))
    with machine.locked(copy.parent):
        thread.start()
        thread.join(0.05)
        assert new.exists()
    thread.join(20)
    assert not new.exists()
    assert copy.exists()


def test_what_a_killed_build_left_is_never_opened_and_the_next_build_removes_it(
    bundle: Bundle, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two renames: the old engine and the new one are both in the folder of the build."""
    monkeypatch.setenv("KSTREAM_CACHE", str(tmp_path / "cache"))
    home = artifact.folder_of(bundle)
    left, held = home / f"{build.BUILDING}left", home / f"{build.BUILDING}held"
    for folder in (left / "old", left / "onnxruntime-fp32-0123456789ab", held):
        shutil.copytree(compiled, folder)
    with pytest.raises(ModelError, match="no engine onnxruntime was compiled"):
        load_engine(bundle, engine="onnxruntime")
    with machine.locked(held), build._workshop(home) as made:  # the one that is held belongs to a build that goes on
        assert set(home.iterdir()) == {held, made}
    with build._workshop(home) as made:
        assert set(home.iterdir()) == {made}
    assert not list(home.iterdir())


def test_a_cache_that_cannot_be_written_is_told_with_the_place_and_a_way_on(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KSTREAM_CACHE", str(tmp_path / "file"))
    plan = build.plan_for(bundle, "onnxruntime", "fp32", "cpu", (), (1,), "gemm")
    with pytest.raises(ModelError, match="the compiled engine cannot be kept") as caught:
        build.compile_engine(bundle, plan)
    assert str(tmp_path / "file") in caught.value.where
    assert "KSTREAM_CACHE" in caught.value.hint


def test_a_disk_that_runs_full_in_the_middle_leaves_the_engine_that_was_there(
    bundle: Bundle, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = Manifest.read(copy)
    monkeypatch.setattr(build, "save_file", full)
    plan = build.plan_for(bundle, "onnxruntime", "fp32", "cpu", (), (1,), "gemm")
    with pytest.raises(ModelError, match=r"cannot be kept: .*No space left on device"):
        build.compile_engine(bundle, plan, copy)
    assert Manifest.read(copy) == before
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


SIGNALLED = """
import faulthandler, gc, os, signal, sys
faulthandler.enable()
import numpy as np, openvino
from openvino import opset13 as op
from kstream.engines.openvino_engine import compile_file
given = op.parameter([1, 4], np.float32)
openvino.save_model(openvino.Model([op.relu(given)], [given], "m"), sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: print("handled", flush=True))
first, second = (compile_file(sys.argv[1], (1, 4), "fp32") for _ in range(2))
assert second(np.float32([[-1, 2, -3, 4]])).tolist() == [[0, 2, 0, 4]]
del first; gc.collect()
del second; gc.collect()
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.skipif(find_spec("openvino") is None, reason="needs kstream[openvino]")
def test_signals_are_handled_after_openvino_models_are_gone(tmp_path: Path) -> None:
    """Two cores, freed in the order of their making, left a signal stack that was freed too: the process died of it."""
    command = [sys.executable, "-c", SIGNALLED, str(tmp_path / "m.xml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


@pytest.mark.skipif(find_spec("openvino") is None, reason="needs kstream[openvino]")
def test_code_that_a_library_makes_when_it_loads_is_examined_then_at_every_size(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What openvino compiled when the engine was built was right; what it compiles now is wrong for three patches."""
    from kstream.engines import openvino_engine

    plan = build.plan_for(bundle, "openvino", "fp32", "cpu", (), (1, 3), "gemm")
    folder, _ = build.compile_engine(bundle, plan, tmp_path / "engine")
    compiles, sizes = openvino_engine.compile_file, []

    def spoilt(path: Path, size: tuple[int, ...], precision: str) -> Callable[[np.ndarray], np.ndarray]:
        run, scale = compiles(path, size, precision), 1.01 if size[0] == 3 else 1.0
        sizes.append(size[0])
        return lambda batch: run(batch) * np.float32(scale)

    monkeypatch.setattr(openvino_engine, "compile_file", spoilt)
    with pytest.raises(ModelError, match="with 3 patches of 4x12x10"):
        load_engine(bundle, engine=str(folder))
    assert sizes == [1, 3], "each was compiled once, before the first frame"


def test_plans_that_make_no_sense_are_refused(bundle: Bundle) -> None:
    with pytest.raises(ModelError, match="no precision 'bf16'"):
        build.plan_for(bundle, "onnxruntime", "bf16", "cpu", (), (1,))
    for engine in ("aot", "compiled"):
        with pytest.raises(ModelError, match=f"engine {engine} has no transform 'gemm'"):
            build.plan_for(bundle, engine, "fp32", "cpu", (), (1,), "gemm")
    for engine in ("openvino", "onnxruntime"):
        with pytest.raises(ModelError, match=f"engine {engine} has no choice between frozen weights") as caught:
            build.plan_for(bundle, engine, "fp32", "cpu", (), (1,), is_frozen=False)
        assert "--no-freeze" in caught.value.hint
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
