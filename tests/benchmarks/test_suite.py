"""The benchmarks run, from any folder, each once and tiny: a suite that nobody runs rots."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from kstream.benchmarks.results import Run, compared, markdown

GROUPS = {"engines", "espirit", "gridding", "ingest", "latency", "recording", "whole_frame", "worker"}


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command: Sequence[str] = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    # what a test run around this one says of itself (xdist) is not said of the run in the folder
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_every_benchmark_runs_once_in_an_empty_folder(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "--benchmark", "--benchmark-quick")
    assert done.returncode == 0, done.stdout[-5000:]
    run = Run.load(tmp_path / "kstream-benchmark.json")
    assert {row.group for row in run.rows.values()} >= GROUPS
    for row in run.rows.values():
        assert all(len(times) == 1 and times[0] > 0 for times in row.seconds.values()), row
        assert row.what in done.stdout
    (frame,) = [row.facts["found"] for row in run.rows.values() if row.group == "whole_frame"]
    assert frame["labels_by"].keys() >= {"model", "engine", "precision", "sha256"}
    assert "p99" in done.stdout
    assert markdown(run).count("\n|") > 8
    assert " 1.00 " in compared(run, run)


def test_settings_of_the_folder_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --benchmark-skip\nfilterwarnings = error\n")
    (tmp_path / "test_other.py").write_text("def test_other(): assert False\n")
    done = run_pytest(tmp_path, "--benchmark", "--benchmark-quick", "--benchmark-json=my.json", "-k", "test_encode")
    assert done.returncode == 0, done.stdout
    assert [row.name for row in Run.load(tmp_path / "my.json").rows.values()] == ["test_encode"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["test_mine.py"], "choose among them with -k"), (["-n", "2"], "leave out -n"), (["-p", "no:benchmark"], "needs")],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, arguments: list[str], word: str) -> None:
    (tmp_path / "test_mine.py").write_text("def test_mine(): pass\n")
    done = run_pytest(tmp_path, "--benchmark", *arguments)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert word in done.stdout + done.stderr


def test_without_the_option_nothing_of_kstream_is_imported(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "import sys\n"
        "def test_mine():\n"
        "    ours = {name for name in sys.modules if name.startswith('kstream')}\n"
        "    assert ours <= {'kstream', 'kstream.benchmarks', 'kstream.benchmarks.plugin'}\n"
        "    assert 'torch' not in sys.modules\n"
    )
    done = run_pytest(tmp_path, "test_mine.py")
    assert done.returncode == 0, done.stdout
