"""How the threads of a network behave while they wait for each other."""

from __future__ import annotations

import os

SLEEPY = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
"""For OpenMP in general, for GNU's (torch on Linux) and for Intel's and LLVM's."""


def sleep_while_waiting() -> None:
    """Let OpenMP threads sleep when they wait, soon, instead of spinning; to be called before torch is imported.

    A layer ends when its last thread does. GNU's threads spin meanwhile, for milliseconds, and take the core from the
    very thread they wait for as soon as anything else runs: beside a busy server or another session, a patch of
    `breast-hybrid-small` took 1.9 to 4.4 s of time and 0.9 s of CPU on two cores with a load of 12 to 18, and 0.2 to
    0.6 s and 0.1 s of CPU with this. What the environment says already is left alone.
    """
    for name, value in SLEEPY.items():
        os.environ.setdefault(name, value)
