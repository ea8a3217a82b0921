from __future__ import annotations

import numpy as np
import pytest

from kstream.engines.build import buckets, space
from kstream.engines.profile import Profile, ProfiledEngine
from kstream.errors import ConfigError, ShapeError

PROFILE = Profile((1, 2, 4), ((3, 5, 7), (3, 6, 8)))


def engine(seen: list[int]) -> ProfiledEngine:
    def forward(batch: np.ndarray) -> np.ndarray:
        seen.append(len(batch))
        assert batch.dtype == np.float32
        assert batch.flags.c_contiguous
        return batch * 2

    return ProfiledEngine("toy-cpu", "fp32", PROFILE, forward, {"model": "toy"})


@pytest.mark.parametrize(("n", "runs"), [(1, [1]), (2, [2]), (3, [4]), (4, [4]), (5, [4, 1]), (7, [4, 4])])
def test_batches_are_padded_up_and_cut(n: int, runs: list[int]) -> None:
    seen: list[int] = []
    batch = np.random.default_rng(0).standard_normal((n, 2, 3, 5, 7)).astype(np.float32)
    np.testing.assert_array_equal(engine(seen).run(batch), batch * 2)
    assert seen == runs


@pytest.mark.parametrize(
    "shape", [(1, 2, 3, 5, 8), (1, 2, 3, 7, 5), (1, 3, 3, 5, 7), (0, 2, 3, 5, 7), (1, 2, 5, 7), (2, 2)]
)
def test_other_sizes_are_refused_and_those_that_are_not_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError) as caught:
        engine([]).run(np.zeros(shape, np.float32))
    if len(shape) > 2:
        assert "3x5x7 or 3x6x8" in str(caught.value)
        assert caught.value.code == "profile"


@pytest.mark.parametrize(
    ("text", "sizes"),
    [("1:8", (1, 2, 4, 8)), ("1", (1,)), ("1,3,6", (1, 3, 6)), ("2:6", (2, 4, 6)), ("4:4", (4,)), ("6,1", (1, 6))],
)
def test_batches_as_they_are_written(text: str, sizes: tuple[int, ...]) -> None:
    assert buckets(text) == sizes


@pytest.mark.parametrize("text", ["", "0", "9", "1:9", "a", "1:2:3", "-1", "8:0"])
def test_other_batches_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot understand batch"):
        buckets(text)


def test_shapes_as_they_are_written() -> None:
    assert space("24x320X300") == (24, 320, 300)
    with pytest.raises(ConfigError, match="cannot understand shape"):
        space("24 by 320")
