"""The rules of docs/architecture.md, read from the code itself."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"kstream": ROOT / "kstream"} | {
    f"kstream.{n}": ROOT / n for n in ("training", "gadgets", "deploy", "benchmarks")
}

# Higher number: may import lower ones. Rooms of equal number do not import each other.
RANK = {
    "errors": 0,
    "types": 1,
    **dict.fromkeys(("models", "mrd", "output", "config", "stream"), 2),
    **dict.fromkeys(("engines", "recon", "readouts"), 3),
    **dict.fromkeys(("segment", "simulate"), 4),
    "pipeline": 5,
    **dict.fromkeys(("training", "deploy"), 6),
    "serve": 7,
    **dict.fromkeys(("cli", "gadgets"), 8),
    **dict.fromkeys(("benchmarks", "__main__"), 9),
}


def modules() -> Iterator[tuple[str, Path]]:
    for prefix, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join([prefix, *(p for p in parts if p != "__init__")]), path


MODULES = dict(modules())


def imports(name: str, path: Path, top_level_only: bool = False) -> set[str]:
    """Absolute names of what a module imports."""
    tree = ast.parse(path.read_text())
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            found.add(".".join([*base, *(node.module or "").split(".")]).strip("."))
            if node.level and not node.module:
                found |= {".".join([*base, alias.name]) for alias in node.names}
    return found


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


@pytest.mark.parametrize("name", [n for n in MODULES if room(n)])
def test_rooms_import_only_lower_rooms(name: str) -> None:
    for imported in imports(name, MODULES[name]):
        if imported.startswith("kstream.") and room(imported) != room(name):
            assert RANK[room(imported)] < RANK[room(name)], f"{name} imports {imported}"


@pytest.mark.parametrize(
    ("package", "rooms"),
    [
        ("torch", {"models", "engines", "training", "recon", "benchmarks"}),
        ("ismrmrd", {"mrd", "benchmarks"}),
        ("socket", {"serve", "benchmarks"}),
        ("threading", {"serve", "stream", "engines", "cli", "benchmarks"}),
        ("subprocess", {"cli", "deploy", "engines", "serve", "training", "benchmarks"}),
        ("zmq", {"serve"}),
        ("multiprocessing", {"training"}),
        ("pickle", set()),
        ("monai", set()),
        ("sigpy", {"benchmarks"}),
    ],
)
def test_packages_stay_in_their_rooms(package: str, rooms: set[str]) -> None:
    users = {room(n) for n, p in MODULES.items() if any(i.split(".")[0] == package for i in imports(n, p))}
    assert users <= rooms


def test_reconstruction_imports_torch_in_one_module_only() -> None:
    users = {n for n, p in MODULES.items() if room(n) == "recon" and "torch" in imports(n, p)}
    assert users == {"kstream.recon.gpu"}


def test_no_other_fast_fourier_transform_than_the_one_pair() -> None:
    users = {n for n, p in MODULES.items() if re.search(r"\bfft\.|scipy\.fft|np\.fft", p.read_text())}
    assert users <= {
        "kstream.recon.fourier",
        "kstream.recon.gridding",  # cropped transforms of the oversampled grid
        "kstream.recon.gpu",  # the pair in torch, on a GPU
        "kstream.recon.iterative",  # convolution with the point spread on a doubled grid
        "kstream.readouts.oversampling",  # one-dimensional crop; readouts may not import recon
        "kstream.models.fourier",
        "kstream.simulate.fields",  # band-limited random fields
        "kstream.benchmarks.recon_gpu",
        "kstream.benchmarks.recon_peers",  # of the peers
    }


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith("kstream.cli")])
def test_commands_import_nothing_heavy_at_the_top(name: str) -> None:
    heavy = {"numpy", "scipy", "torch", "h5py", "matplotlib", "pydantic", "kstream.config", "kstream.mrd"}
    light = name in (
        "kstream.cli.results",
        "kstream.cli.stacks",
        "kstream.cli.progress",
        "kstream.cli.demo_cases",
        "kstream.cli.report_cine",
        "kstream.cli.report_classes",
        "kstream.cli.underlay",
    )  # imported inside commands only
    assert light or not heavy & {
        i if i.startswith("kstream") else i.split(".")[0] for i in imports(name, MODULES[name], True)
    }


def test_help_answers_without_torch_and_numpy() -> None:
    code = (
        "import sys; sys.argv = ['kstream', '--help']\n"
        "from kstream.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'pydantic', 'h5py'} & set(sys.modules), 'heavy import'"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    for command in (
        "demo",
        "simulate",
        "serve",
        "worker",
        "replay",
        "stream",
        "import",
        "inspect",
        "config",
        "models",
        "doctor",
    ):
        assert command in found.stdout


def test_every_package_is_declared_for_installation() -> None:
    import tomllib

    declared = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {n for n, p in MODULES.items() if p.name == "__init__.py"}
    assert declared == found
