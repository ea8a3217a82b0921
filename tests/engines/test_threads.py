from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kstream.engines.memory import keep_large_blocks
from kstream.engines.threads import SLEEPY, sleep_while_waiting


def test_waiting_threads_sleep_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SLEEPY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    sleep_while_waiting()
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    assert os.environ["GOMP_SPINCOUNT"] == SLEEPY["GOMP_SPINCOUNT"]


PLACE_OF_A_BLOCK = """
import contextlib, pathlib, sys
import numpy
from kstream.cli.worker import command
from kstream.errors import ConfigError

if "worker" in sys.argv:
    with contextlib.suppress(ConfigError):  # it ends where it would listen, as far as it can go in this process
        command(address="nowhere://", model=[])
block = numpy.ones(64 << 20, numpy.uint8).ctypes.data
heaps = [line.split()[0] for line in pathlib.Path("/proc/self/maps").read_text().splitlines() if "[heap]" in line]
print(any(int(low, 16) <= block < int(high, 16) for low, high in (heap.split("-") for heap in heaps)))
"""


@pytest.mark.skipif(not keep_large_blocks(), reason="needs glibc")
@pytest.mark.parametrize(("who", "is_kept"), [("worker", "True"), ("nobody", "False")])
def test_a_workers_large_blocks_are_in_the_heap_which_is_kept_and_not_mapped_one_by_one(who: str, is_kept: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PLACE_OF_A_BLOCK, who], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == is_kept, done.stderr


def test_a_worker_says_so_before_torch_reads_it() -> None:
    """libgomp reads its environment once, when torch loads it."""
    code = (
        "import sys, kstream.cli.worker, kstream.engines.memory, kstream.engines.threads;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
