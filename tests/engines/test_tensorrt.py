"""What can be known of torch-tensorrt without its libraries: which operators it converts, and how it fails."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kstream.engines import load_engine, tensorrt
from kstream.engines.backends import NO_ARRAYS, NO_FFT
from kstream.engines.build import plan_for
from kstream.engines.profile import Plan, Profile
from kstream.errors import ModelError
from kstream.models.bundle import Bundle, shipped
from kstream.models.registry import build
from tests.engines.test_stages import CASES
from tests.engines.toys import toy

RECORDED = Path(__file__).parent / "data" / "torch-tensorrt-2.13.0-converters.txt"
SPACE = (4, 16, 16)

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")  # of torch about itself


def converters() -> set[str]:
    """Operators with a converter: of the installed package, or those that were recorded from a wheel."""
    found = importlib.util.find_spec("torch_tensorrt")
    if found is None or found.origin is None:
        return set(RECORDED.read_text().split())
    return read_converters(Path(found.origin).parent / "dynamo" / "conversion")


def read_converters(folder: Path) -> set[str]:
    """First arguments of the decorators, without importing anything: ``aten.cat.default``, ``operator.getitem``."""
    calls = [node for path in folder.glob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    names = {
        ast.unparse(node.args[0]).removeprefix("torch.ops.")
        for node in calls
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "dynamo_tensorrt_converter" and node.args
    }
    return {name for name in names if "." in name}


def operators(stage: torch.nn.Module, patches: torch.Tensor) -> set[str]:
    exported = tensorrt.export(stage, patches, largest=8)
    return {name_of(node.target) for node in exported.graph.nodes if node.op == "call_function"}


def name_of(target: str | Callable[..., object]) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    return f"operator.{getattr(target, '__name__', target)}"


def unconverted(network: torch.nn.Module, transform: str, precision: str = "fp16") -> dict[str, set[str]]:
    """Operators without a converter, by learnt stage."""
    plan, known = Plan("tensorrt", precision, "cuda", Profile((1, 8), (SPACE,)), transform), converters()
    patches, missing = torch.randn(2, 2, *SPACE), {}
    for name, stage in tensorrt.lowered(network, plan, SPACE).named_children():
        if name != "transform":
            used = operators(stage, patches)
            missing[name] = {op for op in used if op not in known and op.rpartition(".")[0] not in known}
        with torch.no_grad():
            patches = stage(patches)
    return missing


def test_recorded_names_are_those_of_operators() -> None:
    names = RECORDED.read_text().split()
    assert len(names) == len(set(names)) > 200
    assert all(name.startswith(("aten.", "operator.", "prims.", "tensorrt.", "torch.sym_")) for name in names)


@pytest.mark.parametrize("transform", ["fft", "gemm"])
@pytest.mark.parametrize(
    ("name", "arguments"), [*(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[:-1]), CASES[-1]]
)
def test_every_operator_of_every_network_has_a_converter(
    name: str, arguments: dict[str, object], transform: str
) -> None:
    missing = unconverted(build(name, arguments).eval(), transform)
    assert missing
    assert not set().union(*missing.values())


DEFAULT = "breast-gate-small"
REFUSED = {
    "heart-disk-small": NO_ARRAYS["tensorrt"],
    "heart-kmtr-small": NO_ARRAYS["tensorrt"],
    "brain-seranet-small": NO_FFT["tensorrt"],
}
WAYS = [(transform, precision) for transform in tensorrt.TRANSFORMS for precision in tensorrt.PRECISIONS]


@pytest.mark.parametrize(
    ("name", "transform", "precision"),
    [
        pytest.param(name, *way, marks=() if name in (DEFAULT, *REFUSED) and way == WAYS[-1] else pytest.mark.slow)
        for name in shipped()
        for way in WAYS
    ],
)
def test_every_shipped_bundle_has_a_converter_for_every_operator_or_is_refused_and_told_why(
    name: str, transform: str, precision: str
) -> None:
    """By the function that `kstream compile` asks, before anything is exported."""
    bundle = Bundle.load(name)
    if name in REFUSED:
        with pytest.raises(ModelError) as caught:
            plan_for(bundle, "tensorrt", precision, "cuda", (), (1, 8), transform)
        assert REFUSED[name] in caught.value.what
        assert "--engine" in caught.value.hint
        return
    plan_for(bundle, "tensorrt", precision, "cuda", (), (1, 8), transform)
    missing = unconverted(bundle.build(), transform, precision)
    assert missing
    assert not set().union(*missing.values())


def test_the_check_sees_an_operator_without_a_converter() -> None:
    class Spectrum(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.fft2(x).real

    missing = operators(Spectrum(), torch.randn(2, 2, *SPACE)) - converters()
    assert "aten._fft_r2c.default" in missing or "aten._fft_c2c.default" in missing


def test_group_normalisation_stays_in_float32_between_half_convolutions() -> None:
    plan = Plan("tensorrt", "fp16", "cuda", Profile((1, 8), (SPACE,)), "gemm")
    name, arguments = next(case for case in CASES if case[0] == "breast-magnitude")
    (stage,) = tensorrt.lowered(build(name, arguments).eval(), plan, SPACE).children()
    exported = tensorrt.export(stage, torch.randn(2, 2, *SPACE), 8)
    types: dict[str, set[torch.dtype]] = {}
    for node in exported.graph.nodes:
        if node.op == "call_function" and hasattr(node.args[0] if node.args else None, "meta"):
            value = node.args[0].meta["val"]
            if isinstance(value, torch.Tensor):
                types.setdefault(name_of(node.target), set()).add(value.dtype)
    assert types["aten.native_group_norm.default"] == {torch.float32}
    assert types["aten.convolution.default"] == {torch.float16}
    products = types.get("aten.mm.default", set()) | types.get("aten.bmm.default", set())
    assert products == {torch.float16}, "the transform is scaled, and then in half precision"


@pytest.mark.skipif("error" not in tensorrt.probe(), reason="TensorRT is here")
def test_without_its_libraries_the_engine_is_a_model_error_and_says_where_to_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match="tensorrt cannot be had") as caught:
        tensorrt.versions()
    assert "docs/engines.md" in str(caught.value)
    with pytest.raises(ModelError):
        load_engine(toy(tmp_path / "toy"), engine="tensorrt", device="cuda")
    assert capsys.readouterr().out == "", "what the package prints must not get into our output"
    assert "Error" in tensorrt.probe()["error"]


def probe_of(package: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the probe says, in its real process, of a package ``torch_tensorrt`` that does `body` when imported."""
    package.mkdir()
    (package / "tensorrt.py").write_text("__version__ = '0'\n")
    (package / "torch_tensorrt.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(package))
    return tensorrt.probe.__wrapped__()


def test_a_package_that_prints_and_raises_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    body = "print('Unable to import the runtime')\nraise Exception('no libnvinfer')\n"
    assert probe_of(tmp_path / "p", body, monkeypatch) == {"error": "Exception: no libnvinfer"}
    assert capfd.readouterr().out == "", "what the package prints must not get into our output"


def test_a_package_that_ends_its_process_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = probe_of(tmp_path / "p", "import os\nos._exit(3)\n", monkeypatch)
    assert said == {"error": "importing torch_tensorrt ended its process with code 3"}


def test_a_package_that_can_be_imported_tells_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = probe_of(tmp_path / "p", "print('hello')\n__version__ = '2.13.0'\n", monkeypatch)
    assert said == {"torch_tensorrt": "2.13.0", "tensorrt": "0"}
