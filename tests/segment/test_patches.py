from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kstream.segment.patches import cut_patch, majority_vote, patch_starts


def test_paper_starts() -> None:
    assert patch_starts(192, 24, 16) == (*range(0, 161, 16), 168)
    assert patch_starts(32, 16, 8) == (0, 8, 16)


@given(st.integers(1, 70), st.integers(1, 30), st.data())
def test_patches_cover_every_slice_once_or_more_and_stay_inside(n_slices: int, depth: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, depth))
    starts = patch_starts(n_slices, depth, stride)
    covered = {slice_ for start in starts for slice_ in range(start, start + depth)}
    assert covered >= set(range(n_slices))
    assert len(set(starts)) == len(starts)
    assert all(start == 0 or start + depth <= n_slices for start in starts)


def test_a_shallow_volume_repeats_its_last_slice() -> None:
    volume = np.arange(3 * 5 * 7).reshape(3, 5, 7)
    patch = cut_patch(volume, 0, 5)
    np.testing.assert_array_equal(patch, volume[[0, 1, 2, 2, 2]])


def test_a_cut_is_the_slices_it_names() -> None:
    volume = np.arange(9 * 5 * 7).reshape(9, 5, 7)
    np.testing.assert_array_equal(cut_patch(volume, 3, 4), volume[3:7])


def ones(value: int, depth: int = 2) -> np.ndarray:
    return np.full((depth, 1, 1), value, np.uint8)


@pytest.mark.parametrize(
    ("votes", "winner"),
    [((1,), 1), ((1, 0), 0), ((1, 1), 1), ((1, 1, 0), 1), ((1, 0, 0), 0), ((2, 1), 0), ((2, 2, 1), 2), ((1, 2, 3), 0)],
)
def test_more_than_half_of_the_patches_must_agree(votes: tuple[int, ...], winner: int) -> None:
    result = majority_vote([(0, ones(vote)) for vote in votes], (2, 1, 1))
    assert (result == winner).all()
    assert result.dtype == np.uint8


def test_votes_count_per_slice_and_replicas_do_not_vote() -> None:
    result = majority_vote([(0, ones(1)), (1, ones(0)), (2, ones(1, 4))], (4, 1, 1))
    assert result.ravel().tolist() == [1, 0, 0, 1]


def test_binary_vote_is_the_papers_rule() -> None:
    rng = np.random.default_rng(3)
    starts = patch_starts(11, 5, 2)
    patches = [rng.integers(0, 2, (5, 3, 7), np.uint8) for _ in starts]
    total, count = np.zeros((11, 3, 7)), np.zeros((11, 1, 1))
    for start, patch in zip(starts, patches, strict=True):
        total[start : start + 5] += patch
        count[start : start + 5] += 1
    np.testing.assert_array_equal(majority_vote(list(zip(starts, patches, strict=True)), (11, 3, 7)), 2 * total > count)
