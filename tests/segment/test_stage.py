from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from kstream.errors import ScanError, ShapeError
from kstream.models.bundle import BundleInfo
from kstream.recon.fourier import to_image, to_kspace
from kstream.segment import Segment, segment_volume
from kstream.stream import Pipeline
from kstream.types import Difference, Geometry, LabelMap, LabelTable

TABLE = LabelTable(("background", "lesion"), ((0, 0, 0), (255, 0, 0)))
INFO = BundleInfo("toy", "for tests", "breast-complex", {}, TABLE, patch_depth=4, patch_stride=2)
GEOMETRY = Geometry((11, 7, 9), (22.0, 14.0, 18.0))


@dataclass
class Threshold:
    """An engine that labels what is bright in the image."""

    name: str = "threshold"
    precision: str = "fp32"
    shapes: list[tuple[int, ...]] = field(default_factory=list)

    def run(self, batch: np.ndarray) -> np.ndarray:
        self.shapes.append(batch.shape)
        assert batch.dtype == np.float32
        magnitude = np.abs(to_image(batch[:, 0] + 1j * batch[:, 1]))
        return np.stack([np.full_like(magnitude, 0.5), magnitude], axis=1)

    def describe(self) -> dict[str, str]:
        return {"engine": self.name}


def difference(frame: int = 2, n_slices: int = 9) -> tuple[Difference, np.ndarray]:
    truth = np.random.default_rng(n_slices).random((n_slices, 7, 11)) < 0.2
    kspace = to_kspace(truth.astype(np.complex64))
    return Difference(kspace, 3.0, frame, 0, 0, 77, GEOMETRY), truth


@pytest.mark.parametrize("n_slices", [1, 3, 4, 5, 9])
def test_a_volume_of_any_depth_is_segmented_whole(n_slices: int) -> None:
    item, truth = difference(n_slices=n_slices)
    engine = Threshold()
    labels = segment_volume(item.data, engine, patch_depth=4, patch_stride=2)
    np.testing.assert_array_equal(labels, truth)
    assert set(engine.shapes) == {(1, 2, 4, 7, 11)}


def test_the_stage_gives_a_label_map_with_time_place_and_provenance() -> None:
    item, truth = difference()
    [label_map] = Segment(Threshold(), INFO, (2,)).push(item)
    assert isinstance(label_map, LabelMap)
    np.testing.assert_array_equal(label_map.labels, truth)
    assert (label_map.frame, label_map.received_ns, label_map.geometry) == (2, 77, GEOMETRY)
    assert label_map.table == TABLE
    assert label_map.provenance == {"engine": "threshold"}


def test_only_chosen_frames_are_segmented_and_no_choice_means_all() -> None:
    item, _ = difference(frame=1)
    assert Segment(Threshold(), INFO, (2,)).push(item) == []
    assert len(Segment(Threshold(), INFO, ()).push(item)) == 1


def test_it_is_a_stage() -> None:
    pipeline = Pipeline(Segment(Threshold(), INFO, (2,)), source=[Difference])
    assert pipeline.gives == (LabelMap,)
    assert len(pipeline.push(difference()[0])) == 1
    assert pipeline.finish() == []


def test_values_that_are_not_finite_are_never_a_silent_empty_mask() -> None:
    item, _ = difference()
    item.data[3, 2, 1] = np.nan
    with pytest.raises(ScanError, match="not finite") as caught:
        Segment(Threshold(), INFO, (2,)).push(item)
    assert "frame 2" in str(caught.value)


@pytest.mark.parametrize("shape", [(7, 11), (0, 7, 11), (1, 3, 7, 11)])
def test_other_axes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"\(z, y, x\)"):
        segment_volume(np.zeros(shape, np.complex64), Threshold(), 4, 2)
