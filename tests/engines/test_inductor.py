"""`compiled` and `aot` from the command to the logits: built, kept, found again, and refused where they are foreign."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kstream.engines import aot, build, compiled, load_engine
from kstream.engines.artifact import MANIFEST, Manifest
from kstream.engines.gate import relative_rms
from kstream.errors import ModelError, ShapeError
from kstream.models.bundle import Bundle
from tests.engines.test_artifact import edit
from tests.engines.toys import toy

pytestmark = [
    pytest.mark.timeout(1800),  # compilers, on a machine that may be busy
    pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # of torch about itself
    pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning"),
]

MAGNITUDE: dict[str, Any] = {"channels": [2, 3]}
SMALL = (2, 6, 10)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KSTREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def batch_of(n_patches: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(n_patches).standard_normal((n_patches, 2, *shape), np.float32)


def eager(bundle: Bundle, batch: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        logits: np.ndarray = bundle.build()(torch.from_numpy(batch)).numpy()
    return logits


def check_engine(
    bundle: Bundle, engine: str, precision: str, shapes: tuple[tuple[int, ...], ...], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Build, load and compare, with patches that no gate has seen; then load again, with nothing that could build."""
    plan = build.plan_for(bundle, engine, precision, "cpu", shapes, (1, 3))
    assert plan.is_frozen
    folder, manifest = build.compile_engine(bundle, plan)
    loaded = load_engine(bundle, engine=engine)
    assert (loaded.name, loaded.precision) == (f"{engine}-cpu", precision)
    limit = 1e-4 if precision == "fp32" else 3e-2
    for shape in plan.profile.shapes:
        for n_patches in (1, 2, 3, 5):  # 2 is padded up, 5 is cut in two
            batch = batch_of(n_patches, shape)
            assert relative_rms(loaded.run(batch), eager(bundle, batch)) < limit
    assert loaded.describe()["engine_sha256"] == manifest.digest
    with pytest.raises(ShapeError):
        loaded.run(batch_of(1, (5, 6, 10)))
    for library in (aot, compiled):
        monkeypatch.setattr(library, "build", None)
    again = load_engine(bundle, engine=engine)
    np.testing.assert_array_equal(
        again.run(batch_of(1, plan.profile.shapes[0])), loaded.run(batch_of(1, plan.profile.shapes[0]))
    )
    return folder


def check_refusals(bundle: Bundle, engine: str, folder: Path) -> None:
    """Of another torch, another machine, other weights, and with a file that was cut short."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for path, value, said in (
        (("key", "versions", "torch"), "1.0", "torch: built for 1.0, here"),
        (("key", "machine"), "x86_64 AVX2", "machine: built for x86_64 AVX2"),
        (("key", "sha256"), "f" * 64, "weights: built for ffffffffffff"),
    ):
        edit(folder, *path, value=value)
        with pytest.raises(ModelError, match=said) as caught:
            load_engine(bundle, engine=engine)
        assert caught.value.code == "engine_stale"
        assert f"kstream compile toy --engine {engine}" in caught.value.hint
        (folder / MANIFEST).write_text(json.dumps(manifest))
    for file in sorted(folder.glob("*.pt2")):
        whole = file.read_bytes()
        file.write_bytes(whole[:-7])
        with pytest.raises(ModelError, match=f"{file.name} is damaged"):
            load_engine(bundle, engine=engine)
        file.write_bytes(whole)


def test_a_small_aot_engine_is_built_loaded_exact_found_again_and_refused_where_it_is_foreign(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest there is, so that every run of the tests builds and loads one."""
    bundle = toy(tmp_path / "toy", "breast-magnitude", MAGNITUDE, SMALL)
    plan = build.plan_for(bundle, "aot", "fp32", "cpu", (), (1,))
    folder, manifest = build.compile_engine(bundle, plan)
    assert folder.parent.parent == cache / "engines"
    assert sorted(path.name for path in folder.glob("*.pt2")) == ["image-1x2x6x10.pt2"]
    monkeypatch.setattr(aot, "build", None)
    engine = load_engine(bundle, engine="aot")
    assert engine.describe()["engine_sha256"] == manifest.digest
    batch = batch_of(3, SMALL)
    assert relative_rms(engine.run(batch), eager(bundle, batch)) < 1e-5
    check_refusals(bundle, "aot", folder)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("engine", ["aot", "compiled"])
def test_inductor_gives_the_hybrids_logits_at_every_batch(
    engine: str, precision: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = toy(tmp_path / "toy", bias=-0.3)
    folder = check_engine(bundle, engine, precision, ((4, 12, 10),), monkeypatch)
    check_refusals(bundle, engine, folder)


@pytest.mark.slow
def test_what_inductor_compiles_at_load_is_examined_before_the_first_frame(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = toy(tmp_path / "toy", "breast-magnitude", MAGNITUDE, SMALL)
    build.compile_engine(bundle, build.plan_for(bundle, "compiled", "fp32", "cpu", (), (1, 3)))
    right = compiled.open_engine

    def wrong_for_three(*arguments: Any) -> Any:
        forward = right(*arguments)
        return lambda batch: forward(batch) * np.float32(1.01 if len(batch) == 3 else 1)

    monkeypatch.setattr(compiled, "open_engine", wrong_for_three)
    with pytest.raises(ModelError, match="with 3 patches of 2x6x10"):
        load_engine(bundle, engine="compiled")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["aot", "compiled"])
def test_the_command_builds_an_engine_that_the_next_process_finds(engine: str, cache: Path, tmp_path: Path) -> None:
    bundle = toy(tmp_path / "toy", "breast-magnitude", MAGNITUDE, SMALL)
    command = [sys.executable, "-m", "kstream", "compile", str(bundle.folder), "--engine", engine, "--shape", "2x6x10"]
    done = subprocess.run(
        [*command, "--precision", "fp32", "--json"], capture_output=True, text=True, env={**os.environ}, check=True
    )
    said = json.loads(done.stdout)
    assert (said["engine"], said["precision"], said["gate"]) == (engine, "fp32", "passed")
    assert said["times_ms"].keys() == {"1x2x6x10"}
    assert Manifest.read(Path(said["folder"])).digest == said["hash"]
    assert load_engine(bundle, engine=engine).describe()["engine_sha256"] == said["hash"]
