"""The digital head: tissues, sizes, variation, and where things are."""

import numpy as np
import pytest

from kstream.simulate.brain.head import Head, Tissue
from kstream.types import Geometry

COARSE = Geometry((60, 72, 14), (180.0, 216.0, 56.0), (0.0, 0.0, 16.0))


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return Head(3).labels(COARSE)


def shares(labels: np.ndarray) -> np.ndarray:
    """Shares of CSF, grey and white matter in the brain."""
    counts = np.bincount(labels.reshape(-1), minlength=len(Tissue))[1:4]
    return counts / counts.sum()


def test_all_twelve_tissues_are_there(labels: np.ndarray) -> None:
    assert labels.dtype == np.uint8
    assert labels.shape == COARSE.shape
    assert set(np.unique(labels)) == {int(tissue) for tissue in Tissue}


@pytest.mark.parametrize("seed", [0, 5, 9])
def test_tissues_have_the_shares_of_a_brain(seed: int) -> None:
    """BrainWeb's normal brain has 14 % CSF, 43 % grey and 44 % white matter in these slices."""
    csf, grey, white = shares(Head(seed).labels(COARSE))
    assert 0.09 < csf < 0.2
    assert 0.35 < grey < 0.55
    assert 0.33 < white < 0.52


def test_a_head_fits_its_field_of_view_and_is_as_large_as_a_head(labels: np.ndarray) -> None:
    inside = labels[5] > 0
    width, length = (3.0 * np.count_nonzero(inside.any(axis=axis)) for axis in (0, 1))
    assert 140 < width <= 180
    assert 175 < length <= 216
    assert not labels[:, :, 0].any() or not labels[:, :, -1].any()


def test_layers_come_in_their_order_from_the_outside_inwards() -> None:
    line = Head(3).labels(Geometry((1, 240, 1), (1.0, 120.0, 1.0), (20.0, -60.0, 30.0)))[0, :, 0].tolist()
    wanted = (Tissue.BACKGROUND, Tissue.SKIN, Tissue.FAT, Tissue.CONNECTIVE, Tissue.SKULL, Tissue.DURA, Tissue.GREY)
    places = [line.index(tissue) for tissue in wanted]
    assert places == sorted(places)


def test_grey_matter_lies_between_csf_and_white_matter() -> None:
    fine = Head(3).labels(Geometry((150, 180, 1), (150.0, 180.0, 1.0), (0.0, 0.0, 40.0)))[0]
    beside = dict.fromkeys((Tissue.CSF, Tissue.GREY), 0)
    white = fine == Tissue.WHITE
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        neighbour = np.roll(fine, step, axis)[white]
        for tissue in beside:
            beside[tissue] += int((neighbour == tissue).sum())
    assert beside[Tissue.GREY] > 20 * beside[Tissue.CSF]


def test_ventricles_are_in_the_middle_and_filled_with_csf() -> None:
    middle = Head(3).labels(Geometry((60, 80, 1), (60.0, 80.0, 1.0), (0.0, -8.0, 20.0)))[0]
    left, right = middle[35:45, 32:45], middle[35:45, 15:28]
    assert (left == Tissue.CSF).mean() > 0.2
    assert (right == Tissue.CSF).mean() > 0.2


def test_subjects_differ_and_equal_seeds_do_not() -> None:
    slice_ = Geometry((60, 72, 1), (180.0, 216.0, 1.0), (0.0, 0.0, 20.0))
    first, again, other = (Head(seed).labels(slice_) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    brain = (first > 0) & (first < 4) & (other > 0) & (other < 4)
    assert 0.2 < (first[brain] != other[brain]).mean() < 0.7
    assert ((first > 0) == (other > 0)).mean() > 0.9


def test_a_finer_grid_shows_the_same_head() -> None:
    slice_ = Geometry((30, 36, 1), (180.0, 216.0, 3.0), (0.0, 0.0, 20.0))
    head = Head(4)
    coarse, fine = head.labels(slice_), head.labels(slice_, (3, 2, 1))
    assert fine.shape == (1, 72, 90)
    assert np.array_equal(fine[:, ::2, ::3], coarse)


def test_the_head_ends_above_and_below() -> None:
    head = Head(1)
    assert not head.labels(Geometry((45, 54, 1), (180.0, 216.0, 1.0), (0.0, 0.0, 110.0))).any()
    assert head.labels(Geometry((45, 54, 1), (180.0, 216.0, 1.0), (0.0, 0.0, -30.0))).any()
