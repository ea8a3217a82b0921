from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from kstream.errors import ModelError, ScanError, ShapeError
from kstream.models.bundle import BundleInfo
from kstream.recon.fourier import to_image, to_kspace
from kstream.segment import LocalSegmenter, MissingModel, Segment, Segmentation, segment_volume
from kstream.stream import Pipeline
from kstream.types import Difference, Geometry, LabelMap, LabelTable, Notice

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
    [label_map] = Segment(LocalSegmenter(Threshold(), INFO), (2,)).push(item)
    assert isinstance(label_map, LabelMap)
    np.testing.assert_array_equal(label_map.labels, truth)
    assert (label_map.frame, label_map.received_ns, label_map.geometry) == (2, 77, GEOMETRY)
    assert label_map.table == TABLE
    assert label_map.provenance == {"engine": "threshold"}


def test_only_chosen_frames_are_segmented_and_no_choice_means_all() -> None:
    item, _ = difference(frame=1)
    assert Segment(LocalSegmenter(Threshold(), INFO), (2,)).push(item) == []
    assert len(Segment(LocalSegmenter(Threshold(), INFO), ()).push(item)) == 1


def test_it_is_a_stage() -> None:
    pipeline = Pipeline(Segment(LocalSegmenter(Threshold(), INFO), (2,)), source=[Difference])
    assert set(pipeline.gives) == {LabelMap, Notice}
    assert len(pipeline.push(difference()[0])) == 1
    assert pipeline.finish() == []


def test_values_that_are_not_finite_are_never_a_silent_empty_mask() -> None:
    item, _ = difference()
    item.data[3, 2, 1] = np.nan
    with pytest.raises(ScanError, match="not finite") as caught:
        Segment(LocalSegmenter(Threshold(), INFO), (2,)).push(item)
    assert "frame 2" in str(caught.value)


@pytest.mark.parametrize("shape", [(7, 11), (0, 7, 11), (1, 3, 7, 11)])
def test_other_axes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"\(z, y, x\)"):
        segment_volume(np.zeros(shape, np.complex64), Threshold(), 4, 2)


class Fixed(Threshold):
    """An engine whose answer does not depend on what it is asked."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def run(self, batch: np.ndarray) -> np.ndarray:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[return-value]


def logits(shape: tuple[int, ...] = (1, 2, 4, 7, 11), value: float = 0.0) -> np.ndarray:
    return np.full(shape, value, np.float32)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
        (MemoryError(), "MemoryError"),
        (logits((1, 2, 4, 7, 10)), "expected"),
        (logits((1, 1, 4, 7, 11)), "expected"),
        (logits((2, 4, 7, 11)), "expected"),
        (logits((2, 2, 4, 7, 11)), "expected"),
        (None, "expected"),
        (logits(value=np.nan), "not finite"),
        (logits(value=np.inf), "not finite"),
        (np.arange(3)[None, :, None, None, None] * np.ones((1, 3, 4, 7, 11), np.float32), "class 2, but names 2"),
    ],
)
def test_fault_33_a_model_that_fails_is_a_model_error_and_never_an_empty_mask(answer: object, message: str) -> None:
    item, _ = difference()
    with pytest.raises(ModelError, match=message) as caught:
        Segment(LocalSegmenter(Fixed(answer), INFO)).push(item)
    assert "frame 2, slice 0" in caught.value.where


def test_fault_33_one_bad_voxel_among_the_logits_is_found() -> None:
    answer = logits()
    answer[0, 1, 3, 6, 10] = np.nan
    with pytest.raises(ModelError, match="not finite"):
        segment_volume(difference()[0].data, Fixed(answer), 4, 2)


def test_with_images_wanted_the_failure_takes_the_place_of_the_labels() -> None:
    item, _ = difference()
    [notice] = Segment(LocalSegmenter(Fixed(ValueError("no")), INFO), on_failure="images").push(item)
    assert isinstance(notice, Notice)
    assert notice.level == "error"
    assert notice.text.startswith("no labels for frame 2, slice 0: the model failed: ValueError: no\n")


def test_fault_34_a_missing_model_is_known_before_the_first_frame_and_said_at_each() -> None:
    error = ModelError("no model bundle 'x'", hint="shipped: none")
    stage = Segment(MissingModel("x", error), on_failure="images")
    assert stage.failure is error
    for _ in range(2):
        [notice] = stage.push(difference()[0])
        assert "no model bundle 'x'" in notice.text
        assert "shipped: none" in notice.text
    assert Segment(LocalSegmenter(Threshold(), INFO)).failure is None


@pytest.mark.parametrize("labels", [np.zeros((9, 7, 10), np.uint8), np.zeros((9, 7, 11), bool)])
def test_labels_of_another_shape_or_type_are_refused_whoever_made_them(labels: np.ndarray) -> None:
    class Other(MissingModel):
        def segment(self, difference: np.ndarray) -> Segmentation:
            return Segmentation(labels)

    with pytest.raises(ModelError, match="expected uint8"):
        Segment(Other("x", ModelError(""))).push(difference()[0])


def test_what_the_user_should_know_comes_before_the_labels() -> None:
    class OnTheCpu(Threshold):
        def describe(self) -> dict[str, str]:
            return {"engine": "torch-cpu", "fallback": "out of memory"}

    notice, label_map = Segment(LocalSegmenter(OnTheCpu(), INFO)).push(difference()[0])
    assert notice == Notice("warning", "frame 2, slice 0: segmented on torch-cpu, because out of memory")
    assert isinstance(label_map, LabelMap)
