from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kstream.engines.threads import SLEEPY, sleep_while_waiting


def test_waiting_threads_sleep_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SLEEPY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    sleep_while_waiting()
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    assert os.environ["GOMP_SPINCOUNT"] == SLEEPY["GOMP_SPINCOUNT"]


def test_a_worker_says_so_before_torch_reads_it() -> None:
    """libgomp reads its environment once, when torch loads it."""
    code = (
        "import sys, kstream.cli.worker, kstream.engines.memory, kstream.engines.threads;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
