from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from kstream.errors import ShapeError
from kstream.output.lesions import describe_lesions
from kstream.types import Geometry, LabelTable

GEOMETRY = Geometry((13, 11, 7), (26.0, 33.0, 28.0), (5.0, -4.0, 3.0))  # voxels of 2 x 3 x 4 mm
VOXEL_ML = 0.024
TABLE = LabelTable(("background", "lesion", "cyst"), ((0, 0, 0), (255, 0, 0), (0, 255, 0)))


def labels_of(*boxes: tuple[int, slice, slice, slice]) -> NDArray[np.uint8]:
    labels = np.zeros(GEOMETRY.shape, np.uint8)
    for label, z, y, x in boxes:
        labels[z, y, x] = label
    return labels


BOX = (1, slice(2, 5), slice(3, 8), slice(4, 9))  # 3 x 5 x 5 voxels
SPECK = (2, slice(6, 7), slice(0, 1), slice(12, 13))


def test_regions_come_with_volume_place_and_class_largest_first() -> None:
    box, speck = describe_lesions(labels_of(SPECK, BOX), [], GEOMETRY, TABLE)
    assert (box.name, box.label, box.slices, box.largest_slice) == ("lesion 1", "lesion", (3, 5), 3)
    assert box.volume_ml == pytest.approx(75 * VOXEL_ML)
    # The voxel in the middle of the box has index (x, y, z) = (6, 5, 3), the middle of the volume.
    assert box.centre_mm == pytest.approx((5.0, -4.0, 3.0))
    assert (speck.name, speck.label, speck.slices) == ("lesion 2", "cyst", (7, 7))
    assert speck.centre_mm == pytest.approx((5 + 12, -4 - 15, 3 + 12))
    assert box.enhancement_percent == ()
    assert box.touches is None


def test_volume_range_moves_the_outline_by_half_a_voxel() -> None:
    (box,) = describe_lesions(labels_of(BOX), [], GEOMETRY, TABLE)
    n_inner = 75 - 1 * 3 * 3  # all but the core
    n_outer = 2 * (25 + 15 + 15)  # a layer on each face
    assert box.inner_ml == pytest.approx((75 - n_inner / 2) * VOXEL_ML)
    assert box.outer_ml == pytest.approx((75 + n_outer / 2) * VOXEL_ML)


def test_enhancement_is_in_percent_of_the_first_frame_and_of_that_lesion_only() -> None:
    labels = labels_of(BOX, SPECK)
    inside = labels == 1
    frames = [np.full(GEOMETRY.shape, 50.0, np.float32) for _ in range(3)]
    frames[1][inside], frames[2][inside] = 125.0, 100.0
    frames[2][2, 3, 4] = 1e4  # one voxel: it moves the mean, not the quartiles
    box, speck = describe_lesions(labels, frames, GEOMETRY, TABLE)
    assert box.enhancement_percent[:2] == pytest.approx((0, 150))
    assert box.enhancement_percent[2] == pytest.approx(100 * ((74 * 100 + 1e4) / 75 / 50 - 1))
    assert box.low_percent == pytest.approx((0, 150, 100))
    assert box.high_percent == pytest.approx((0, 150, 100))
    assert speck.enhancement_percent == pytest.approx((0, 0, 0))


@pytest.mark.parametrize("before", [0.0, np.nan])
def test_no_signal_before_contrast_gives_no_curve(before: float) -> None:
    frames = [np.full(GEOMETRY.shape, before), np.ones(GEOMETRY.shape)]
    (box,) = describe_lesions(labels_of(BOX), frames, GEOMETRY, TABLE)
    assert box.enhancement_percent == box.low_percent == box.high_percent == ()


def test_regions_tell_which_true_lesion_they_touch() -> None:
    truth = labels_of((1, slice(0, 1), slice(0, 2), slice(0, 1)), (1, slice(4, 7), slice(3, 8), slice(4, 9)))
    box, speck = describe_lesions(labels_of(BOX, SPECK), [], GEOMETRY, TABLE, truth)
    assert (box.touches, speck.touches) == (("lesion 1",), ())
    (small,) = describe_lesions(labels_of((1, slice(0, 2), slice(0, 1), slice(0, 1))), [], GEOMETRY, TABLE, truth)
    assert small.touches == ("lesion 2",)


def test_a_label_at_the_border_of_the_volume_is_described() -> None:
    (whole,) = describe_lesions(np.ones(GEOMETRY.shape, np.uint8), [], GEOMETRY, TABLE)
    assert whole.volume_ml == whole.outer_ml == pytest.approx(7 * 11 * 13 * VOXEL_ML)
    assert describe_lesions(labels_of(), [], GEOMETRY, TABLE) == ()


def test_arrays_of_another_shape_are_refused() -> None:
    with pytest.raises(ShapeError, match="magnitude"):
        describe_lesions(labels_of(BOX), [np.zeros((7, 13, 11))], GEOMETRY, TABLE)
    with pytest.raises(ShapeError, match="ground truth"):
        describe_lesions(labels_of(BOX), [], GEOMETRY, TABLE, np.zeros((1, 11, 13), np.uint8))
