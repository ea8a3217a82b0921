"""Numbers from label maps where a whole heart is not seen (whole ones: tests/simulate/test_heart.py)."""

from __future__ import annotations

import numpy as np
import pytest

from kstream.output.phenotypes import PHENOTYPES, SLICE_MEASURES, phenotypes, pixel_area_mm2, slice_measures
from kstream.types import Geometry

PLACE = Geometry((23, 17, 1), (46.0, 51.0, 8.0))  # pixels of 2 x 3 mm
LABELS = np.zeros((3, 17, 23), np.uint8)
LABELS[0, 3:11, 4:14], LABELS[0, 4:10, 5:13] = 2, 1  # 48 pixels of cavity, 32 of wall
LABELS[1, 5:9, 6:12] = 1  # 24
LABELS[2, 5:9, 6:9] = 1  # 12
LABELS[:, 13:16, 1:6] = 3


def test_one_slice_has_areas() -> None:
    found = slice_measures(LABELS, pixel_area_mm2(PLACE))
    assert tuple(found) == SLICE_MEASURES
    assert found == pytest.approx(
        {
            "LV_area_max_cm2": 2.88, "LV_area_min_cm2": 0.72, "LV_area_change_percent": 75.0, "LV_wall_area_cm2": 1.92,
            "RV_area_max_cm2": 0.9, "RV_area_min_cm2": 0.9, "RV_area_change_percent": 0.0,
        }
    )  # fmt: skip


def test_one_slice_has_no_volume() -> None:
    assert np.isnan(list(phenotypes(LABELS[None], [PLACE], ["sax0"], 70.0).values())).all()


def test_a_chamber_that_is_not_seen_does_not_change() -> None:
    found = slice_measures(np.zeros_like(LABELS), 6.0)
    assert np.isnan(found["LV_area_change_percent"])
    assert found["LV_area_max_cm2"] == 0
    assert set(PHENOTYPES).isdisjoint(found)
