from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kstream.cli import app
from kstream.errors import ConfigError, ModelError
from tests.engines.toys import toy

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")  # of torch about itself


@pytest.mark.skipif(find_spec("onnxruntime") is None or find_spec("onnx") is None, reason="needs kstream[onnx]")
def test_compile_builds_proves_times_and_keeps_an_engine(tmp_path: Path) -> None:
    model, output = str(toy(tmp_path / "toy").folder), tmp_path / "engine"
    options = ["--engine", "onnxruntime", "--shape", "4x12x10", "--batch", "1:2", "--transform", "gemm", "--json"]
    done = CliRunner().invoke(app, ["compile", model, *options, "--output", str(output)])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["engine"], said["precision"], said["gate"], said["checked"]) == ("onnxruntime", "fp32", "passed", 2)
    assert said["worst_rms"] < 1e-3
    assert set(said["times_ms"]) == {"1x4x12x10", "2x4x12x10"}
    assert (output / "engine.json").is_file()


@pytest.mark.skipif(find_spec("onnxruntime") is None or find_spec("onnx") is None, reason="needs kstream[onnx]")
def test_on_a_cpu_one_patch_at_once_is_the_default(tmp_path: Path) -> None:
    """Servers never ask for more there (see `Batching`)."""
    model, output = str(toy(tmp_path / "toy").folder), tmp_path / "engine"
    options = ["--engine", "onnxruntime", "--transform", "gemm", "--json", "--output", str(output)]
    done = CliRunner().invoke(app, ["compile", model, *options])
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout)["times_ms"]) == {"1x4x12x10"}


def test_the_default_engine_is_timed_again_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSTREAM_CACHE", str(tmp_path / "cache"))
    model = str(toy(tmp_path / "toy").folder)
    options = ["--engine", "torch", "--precision", "fp32", "--shape", "5x14x8", "--json"]
    done = CliRunner().invoke(app, ["compile", model, *options])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["engine"], said["precision"], said["gate"], said["checked"]) == ("torch", "fp32", "passed", 8)
    (notes,) = (tmp_path / "cache" / "calibrations").iterdir()
    assert "gate fp32 at 5x14x8" in json.loads(notes.read_text())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--engine", "openvin"], ConfigError, "unknown engine 'openvin'"),
        (["--precision", "int8"], ConfigError, "unknown precision 'int8'"),
        (["--batch", "0:9"], ConfigError, "cannot understand batch '0:9'"),
        (["--shape", "big"], ConfigError, "cannot understand shape 'big'"),
        (["--engine", "torch", "--batch", "1:8"], ConfigError, "have no meaning for it"),
        (["--engine", "aot", "--transform", "gemm"], ModelError, "engine aot has no transform 'gemm'"),
        (["--engine", "onnxruntime", "--no-freeze"], ModelError, "no choice between frozen weights"),
        (["--engine", "onnxruntime", "--precision", "bf16"], ModelError, "has no precision 'bf16'"),
        (["--engine", "openvino", "--device", "cuda"], ModelError, "has no device 'cuda'"),
    ],
)
def test_what_cannot_be_compiled_is_said_at_once(options: list[str], error: type[Exception], message: str) -> None:
    done = CliRunner().invoke(app, ["compile", "breast-hybrid-small", *options])
    assert isinstance(done.exception, error)
    assert message in str(done.exception)
