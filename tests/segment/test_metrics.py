import numpy as np
import pytest

from kstream.errors import ShapeError
from kstream.segment.metrics import dice, false_positive_voxels, lesion_scores


def volume(*boxes: tuple[slice, slice, slice]) -> np.ndarray:
    found = np.zeros((5, 9, 11), np.uint8)
    for box in boxes:
        found[box] = 1
    return found


A = np.s_[1:3, 1:4, 1:4]  # 18 voxels
B = np.s_[3:5, 6:8, 7:9]  # 8 voxels
FAR = np.s_[0:1, 7:9, 0:2]  # 4 voxels


def test_dice_by_hand() -> None:
    half = volume(np.s_[1:2, 1:4, 1:4])
    assert dice(half, volume(A)) == pytest.approx(2 * 9 / (9 + 18))
    assert dice(volume(A), volume(A)) == 1
    assert dice(volume(), volume(A)) == 0
    assert np.isnan(dice(volume(), volume()))


def test_shapes_must_agree() -> None:
    with pytest.raises(ShapeError):
        dice(np.zeros((2, 3, 5), np.uint8), np.zeros((2, 5, 3), np.uint8))


def test_lesions_are_scored_one_by_one_with_what_touches_them() -> None:
    scores = lesion_scores(volume(A, FAR), volume(A, B))
    assert [(s.n_truth, s.n_predicted) for s in scores] == [(18, 18), (8, 0)]
    assert [s.dice for s in scores] == [1, 0]


def test_prediction_that_joins_two_lesions_counts_for_each_alone() -> None:
    everything = np.ones((5, 9, 11), np.uint8)
    first, second = lesion_scores(everything, volume(A, B))
    assert first.dice == pytest.approx(2 * 18 / (18 + everything.size - 8))
    assert second.dice == pytest.approx(2 * 8 / (8 + everything.size - 18))


def test_false_positives_are_components_that_touch_no_lesion() -> None:
    assert false_positive_voxels(volume(A, FAR), volume(A)) == 4
    assert false_positive_voxels(volume(FAR), volume()) == 4
    assert false_positive_voxels(volume(A), volume(A)) == 0
