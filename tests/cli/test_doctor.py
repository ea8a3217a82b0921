"""``kstream doctor``, its checks one by one, and the failures that they must find."""

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from kstream.cli import app
from kstream.errors import ConfigError, ModelError, PeerError, ScanError
from kstream.models import bundle
from kstream.serve import checkup
from kstream.serve.checkup import Check, Finding, Passed, all_checks, check_port, run_checks

NAMES = [
    *("python", "packages", "cpu", "memory", "disk", "limits", "port", "presets"),
    *("model bundles", "self test", "model workers"),
]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def checks() -> dict[str, Check]:
    return {check.name: check for check in all_checks(free_port(), Path())}


@pytest.mark.slow  # the default suite has it too, from the commands of README.md and docs/how-to/validate.md
def test_the_command_finds_this_installation_well() -> None:
    command = [sys.executable, "-m", "kstream", "doctor", "--json", "--port", str(free_port())]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    account = json.loads(found.stdout)
    assert found.returncode == 0, account
    assert account["ok"] is True
    assert [row["check"] for row in account["checks"]] == NAMES
    assert all(set(row) == {"check", "ok", "detail", "fix", "seconds"} for row in account["checks"])


def test_a_failure_ends_the_command_with_1_and_names_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("no-such-folder")
    monkeypatch.setattr(
        checkup, "all_checks", lambda port, _: [c for c in all_checks(port, folder) if c.name == "disk"]
    )
    found = CliRunner().invoke(app, ["doctor"])
    assert found.exit_code == 1
    assert found.stdout.startswith("FAIL  disk")
    assert "no-such-folder" in found.stdout
    assert "fix: name another folder" in found.stdout


def run_check(check: Check) -> Finding:
    (finding,) = run_checks([check])
    return finding


def test_a_free_port_is_free() -> None:
    port = free_port()
    assert check_port(port) == Passed(f"port {port} is free")


def test_a_kstream_on_the_port_tells_its_version(port: int) -> None:
    assert check_port(port).detail.startswith("kstream 0.")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_something_else_on_the_port_is_found(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def speak() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=speak)
        thread.start()
        with pytest.raises(PeerError, match="not kstream") as raised:
            check_port(listener.getsockname()[1])
        thread.join(10)
    assert "kstream serve --port" in raised.value.hint


def test_a_check_that_hangs_is_left_behind_in_time() -> None:
    released = threading.Event()

    def hang() -> Passed:
        released.wait(30)
        return Passed("")

    begin = time.monotonic()
    finding = run_check(Check("stuck", hang, 0.1, "wake it"))
    assert time.monotonic() - begin < 10
    assert checkup.still_running()
    released.set()
    for thread in threading.enumerate():
        if thread.name.endswith("stuck"):
            thread.join(10)
    assert not checkup.still_running()
    assert (finding.ok, finding.detail, finding.fix) == (False, "no result within 0.1 s", "wake it")


def test_a_check_that_hangs_inside_a_library_does_not_abort_the_command() -> None:
    program = """
import torch
from kstream.cli import main
from kstream.serve import checkup

def compute():
    while True:
        torch.ones(300, 300) @ torch.ones(300, 300)

checkup.all_checks = lambda port, folder: [checkup.Check("stuck", compute, 0.3)]
main()
"""
    command = [sys.executable, "-c", program, "doctor"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (found.returncode, found.stderr) == (1, "")
    assert found.stdout.startswith("FAIL  stuck          no result within 0.3 s")


def test_the_hint_of_an_error_is_the_fix() -> None:
    def fail() -> Passed:
        raise ConfigError("a is not b", where="c", hint="try d")

    def break_() -> Passed:
        raise RuntimeError("unforeseen")

    finding = run_check(Check("x", fail, fix="other"))
    assert (finding.ok, finding.detail, finding.fix) == (False, "a is not b (c)", "try d")
    finding = run_check(Check("x", break_, fix="other"))
    assert (finding.detail, finding.fix) == ("RuntimeError: unforeseen", "other")


def test_damaged_weights_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (name, *_) = bundle.shipped()
    shutil.copytree(bundle.SHIPPED / name, tmp_path / name)
    weights = tmp_path / name / bundle.WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    monkeypatch.setattr(bundle, "SHIPPED", tmp_path)
    with pytest.raises(ModelError, match="damaged"):
        checks()["model bundles"].run()


def test_a_package_that_is_too_old_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "requires", lambda _: ["numpy>=99", "no-such-package>=1", "h5py; extra == 'other'"])
    finding = run_check(checks()["packages"])
    assert not finding.ok
    assert "expected >=99" in finding.detail
    assert "no-such-package is missing" in finding.detail
    assert "pip install" in finding.fix


def test_little_memory_and_few_descriptors_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "_available_gib", lambda: 0.5)
    monkeypatch.setattr(checkup.resource, "getrlimit", lambda _: (100, 4096))
    findings = {name: run_check(checks()[name]) for name in ("memory", "limits")}
    assert not any(finding.ok for finding in findings.values())
    assert findings["limits"].fix.startswith("ulimit -n 4096")


def test_an_image_that_shows_something_else_fails_the_self_test() -> None:
    image = np.zeros((checkup.MATRIX, checkup.MATRIX), np.float32)
    for x, y, brightness in checkup.POINTS:
        image[checkup.MATRIX // 2 + y, checkup.MATRIX // 2 + x] = brightness
    checkup._check_points(image)
    for wrong in (image.T, image[::-1], np.roll(image, 1, 0), np.sqrt(image)):
        with pytest.raises(ScanError, match="brightness"):
            checkup._check_points(np.ascontiguousarray(wrong))
