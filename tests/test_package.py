"""The wheel, installed into an empty environment, is a working kstream."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "constraints" / "py311-cpu.txt"


@pytest.mark.timeout(600)
def test_wheel_in_an_empty_environment_passes_its_doctor(tmp_path: Path) -> None:
    def run(*command: str | Path) -> str:
        found = subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd=tmp_path, check=False)
        assert found.returncode == 0, found.stdout + found.stderr
        return found.stdout

    run(sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--wheel-dir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("kstream-*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "empty")
    python = tmp_path / "empty" / "bin" / "python"
    lock = ["--constraint", LOCK] if sys.version_info[:2] == (3, 11) else []
    run(python, "-m", "pip", "install", "-qq", *lock, wheel)
    found = json.loads(run(tmp_path / "empty" / "bin" / "kstream", "doctor", "--json"))
    assert found["ok"]
    assert all(check["ok"] for check in found["checks"]), found
    listed = run(
        python, "-c", "import kstream.training, kstream.gadgets, kstream.deploy; print(kstream.training.__file__)"
    )
    assert str(tmp_path) in listed
    run(python, "-m", "pip", "check")
