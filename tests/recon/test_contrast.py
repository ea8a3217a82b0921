import numpy as np
import pytest

from kstream.recon.contrast import SubtractContrast
from kstream.types import Difference, Geometry, KSpace, Notice


def frame(number: int, value: complex, slice_: int = 0) -> KSpace:
    return KSpace(np.full((2, 3, 5), value, np.complex64), number, slice_, 7, Geometry((5, 3, 2), (5.0, 3.0, 2.0)))


def test_difference_is_post_minus_pre_over_rms_of_pre() -> None:
    stage = SubtractContrast()
    stage.push(frame(0, 3 + 4j))
    kspace, difference = stage.push(frame(2, 8 + 4j))
    assert isinstance(kspace, KSpace)
    assert isinstance(difference, Difference)
    assert difference.scale == pytest.approx(5)
    np.testing.assert_allclose(difference.data, 1 + 0j, atol=1e-6)


def test_post_frames_that_come_first_wait_for_pre() -> None:
    stage = SubtractContrast()
    assert [type(i) for i in stage.push(frame(1, 2))] == [KSpace]
    assert [type(i) for i in stage.push(frame(0, 1))] == [KSpace, Difference]


def test_slices_are_subtracted_apart() -> None:
    stage = SubtractContrast()
    stage.push(frame(0, 1, slice_=0))
    assert [type(i) for i in stage.push(frame(1, 2, slice_=1))] == [KSpace]


def test_missing_pre_contrast_frame_is_told() -> None:
    stage = SubtractContrast()
    stage.push(frame(1, 2))
    (notice,) = stage.finish()
    assert isinstance(notice, Notice)
    assert notice.level == "error"


def test_empty_pre_contrast_gives_finite_values() -> None:
    stage = SubtractContrast()
    stage.push(frame(0, 0))
    *_, difference = stage.push(frame(1, 0))
    assert np.isfinite(difference.data).all()
