"""One patch of the shipped model: the engine that is the default, beside eager float32 as PyTorch ships it.

Every engine has a process of its own, as in a worker, and they run in turns. `kstream compile` builds and measures
others.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from kstream.benchmarks.patch_runner import PatchProcess, patches_on
from kstream.benchmarks.turns import Turns

MODEL = "breast-gate-small"


@pytest.fixture(scope="module")
def default() -> Iterator[PatchProcess]:
    with patches_on(MODEL, "default") as process:
        yield process


@pytest.fixture(scope="module")
def eager() -> Iterator[PatchProcess]:
    with patches_on(MODEL, "eager") as process:
        yield process


@pytest.mark.parametrize("plane", [160, 320])
def test_patch(turns: Turns, default: PatchProcess, eager: PatchProcess, plane: int) -> None:
    shape = turns.pick((16, plane, plane), (4, plane // 10, plane // 10))
    turns(
        f"one patch of {' x '.join(map(str, shape))}, {MODEL}",
        partial(default.seconds, shape),
        {"eager float32": partial(eager.seconds, shape)},
        rounds=7,
        budgets={"eager float32": 1.2},
        readme=True,
        model=MODEL,
        engine=default.facts,
        shown={"precision": default.facts["precision"]},
    )
    turns.keep(peak_bytes={"kstream": default.peak_bytes(), "eager float32": eager.peak_bytes()})
