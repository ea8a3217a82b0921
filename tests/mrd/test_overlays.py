"""Labels on the magnitude: colours, polygons, and when they are sent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest

from kstream.errors import ConfigError
from kstream.mrd.codec import Decoder, encode
from kstream.mrd.images import label_images, overlay_images
from kstream.mrd.messages import Image
from kstream.mrd.overlays import OPACITY, coloured, contours, outline
from kstream.mrd.stages import MakeImages, Overlay
from kstream.types import Delivered, FrameImage, Geometry, LabelMap, LabelTable, Scan

Z, Y, X = 3, 11, 17
GEOMETRY = Geometry((X, Y, Z), (170.0, 110.0, 9.0))
SCAN = Scan((X, Y, Z), (X, Y, Z), (170.0, 110.0, 9.0), (170.0, 110.0, 9.0), "cartesian", protocol_name="dce")
TABLE = LabelTable(("background", "left lesion"), ((0, 0, 0), (250, 60, 5)))


def a_frame(frame: int = 2) -> FrameImage:
    magnitude = np.linspace(0, 10, Z * Y * X).reshape(Z, Y, X)
    return FrameImage((magnitude * np.exp(1j)).astype(np.complex64), frame, 0, 1, GEOMETRY)


def a_label_map(frame: int = 2) -> LabelMap:
    labels = np.zeros((Z, Y, X), np.uint8)
    labels[1, 3:8, 4:13] = 1
    return LabelMap(labels, TABLE, frame, 0, 1, GEOMETRY, provenance={"model": "m1"})


def of(made: list[Any]) -> list[Image]:
    return [item for item in made if isinstance(item, Image)]


def back(image: Image) -> Image:
    (read,) = Decoder().receive(encode(image))
    assert isinstance(read, Image)
    return read


def test_colours_are_those_of_the_table_on_the_outline_and_blended_inside() -> None:
    labels = a_label_map()
    pixels = coloured(np.abs(a_frame().data), labels)
    assert pixels.shape == (Z, 3, Y, X)
    assert tuple(pixels[1, :, 3, 4]) == (250, 60, 5)
    grey = coloured(np.abs(a_frame().data), replace(labels, labels=np.zeros_like(labels.labels)))
    expected = grey[1, :, 5, 8] + OPACITY * (np.array((250, 60, 5)) - grey[1, :, 5, 8])
    np.testing.assert_allclose(pixels[1, :, 5, 8], expected, atol=1)
    np.testing.assert_array_equal(pixels[[0, 2]], grey[[0, 2]])
    assert np.ptp(grey, axis=1).max() == 0
    assert grey.max() == 255


def test_the_outline_is_one_voxel_wide_and_follows_the_edge_of_the_image() -> None:
    labels = np.zeros((1, 6, 7), np.uint8)
    labels[0, 0:4, 2:7] = 1
    found = outline(labels)[0]
    expected = np.zeros((6, 7), bool)
    expected[0:4, 2:7] = True
    expected[1:3, 3:6] = False
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("axes", ["xy", "yx"])
def test_a_polygon_is_closed_and_encloses_the_voxels_of_its_class(axes: Literal["xy", "yx"]) -> None:
    from matplotlib.path import Path

    labels = a_label_map().labels[1]
    ((name, values),) = contours(labels, TABLE, axes).items()
    assert name == "ROI_1_left_lesion_0"
    numbers = [float(value) for value in values]
    np.testing.assert_allclose(numbers[:3], np.array((250, 60, 5)) / 255, atol=1e-4)
    assert numbers[3:6] == [1, 0, 1]
    corners = np.array(numbers[6:]).reshape(-1, 2)[:, :: 1 if axes == "xy" else -1]
    np.testing.assert_array_equal(corners[0], corners[-1])
    y, x = np.mgrid[:Y, :X]
    inside = Path(corners).contains_points(np.stack([x.ravel(), y.ravel()], 1)).reshape(Y, X)
    np.testing.assert_array_equal(inside, labels == 1)


def test_each_region_gets_a_polygon_of_its_own_also_at_the_edge_of_the_image() -> None:
    labels = np.zeros((Y, X), np.uint8)
    labels[0:3, 0:2] = labels[6:9, 12:] = 1
    found = contours(labels, TABLE)
    assert sorted(found) == ["ROI_1_left_lesion_0", "ROI_1_left_lesion_1"]
    assert all(values[6:8] == values[-2:] for values in found.values())
    assert contours(np.zeros((Y, X), np.uint8), TABLE) == {}


def test_classes_whose_names_differ_only_in_signs_keep_their_polygons() -> None:
    labels = np.zeros((Y, X), np.uint8)
    labels[1:4, 1:4], labels[6:9, 6:9] = 1, 2
    table = LabelTable(("background", "lesion+", "lesion-"), ((0, 0, 0), (250, 0, 0), (0, 250, 0)))
    assert sorted(contours(labels, table)) == ["ROI_1_lesion__0", "ROI_2_lesion__0"]


def test_rgb_images_are_of_the_kind_that_hosts_take() -> None:
    images = [back(i) for i in overlay_images(a_frame(), a_label_map(), SCAN, 3)]
    assert len(images) == Z
    for z, image in enumerate(images):
        assert image.data.shape == (3, 1, Y, X)
        assert image.data.dtype == np.uint16
        assert image.data.max() <= 255
        header = image.header
        assert (int(header["image_type"]), int(header["data_type"]), int(header["channels"])) == (6, 1, 3)
        assert tuple(header["matrix_size"]) == (X, Y, 1)
        assert int(header["slice"]) == z
        assert "WindowCenter" not in image.meta
        assert image.meta["Keep_image_geometry"] == "1"
        assert image.meta["kstream_model"] == "m1"


def test_contours_travel_with_the_magnitude_of_their_slice() -> None:
    images = [back(i) for i in overlay_images(a_frame(), a_label_map(), SCAN, 3, "contours")]
    assert [sum(key.startswith("ROI_") for key in image.meta) for image in images] == [0, 1, 0]
    np.testing.assert_allclose(images[1].data[0, 0], np.abs(a_frame().data[1]), rtol=1e-6)
    assert int(images[1].header["image_type"]) == 1


def test_label_images_name_the_palette_that_they_are_to_be_shown_with() -> None:
    assert label_images(a_label_map(), SCAN, 2, lut="Hot.pal")[0].meta["LUTFileName"] == "Hot.pal"
    assert "LUTFileName" not in label_images(a_label_map(), SCAN, 2)[0].meta


@pytest.mark.parametrize("labels_first", [True, False])
def test_the_overlay_of_a_frame_follows_when_both_halves_are_there(labels_first: bool) -> None:
    stage = MakeImages(SCAN, 1, 2, "float32", overlay=Overlay(3))
    first, second = (a_label_map(), a_frame()) if labels_first else (a_frame(), a_label_map())
    stage.push(a_frame(frame=1))
    assert {int(i.header["image_series_index"]) for i in of(stage.push(first))} == {2 if labels_first else 1}
    made = stage.push(second)
    assert [int(i.header["image_series_index"]) for i in of(made)] == [1 if labels_first else 2] * Z + [3] * Z
    kinds = [item.kind if isinstance(item, Delivered) else "image" for item in made]
    kind = "magnitude" if labels_first else "labels"
    assert kinds == ["image"] * Z + [kind] + ["image"] * Z + ["overlay"]  # nothing waits for the overlay
    assert {int(i.header["repetition"]) for i in of(made)} == {2}


def test_labels_of_another_frame_are_not_laid_on_a_magnitude() -> None:
    stage = MakeImages(SCAN, 1, 2, "float32", overlay=Overlay(3))
    stage.push(a_frame(frame=1))
    assert {int(i.header["image_series_index"]) for i in of(stage.push(a_label_map(frame=2)))} == {2}


def test_the_overlay_shows_final_labels_and_not_provisional_ones() -> None:
    stage = MakeImages(SCAN, 1, 2, "float32", overlay=Overlay(3), provisional_series=4)
    stage.push(a_frame())
    early = replace(a_label_map(), labels=np.ones((Z, Y, X), np.uint8), is_final=False)
    assert {int(i.header["image_series_index"]) for i in of(stage.push(early))} == {4}
    overlaid = [i for i in of(stage.push(a_label_map())) if int(i.header["image_series_index"]) == 3]
    expected = overlay_images(a_frame(), a_label_map(), SCAN, 3)
    assert [i.data.tobytes() for i in overlaid] == [i.data.tobytes() for i in expected]


def test_labels_find_their_magnitude_behind_that_of_the_next_frame_and_few_wait() -> None:
    stage = MakeImages(SCAN, 1, 2, "float32", overlay=Overlay(3))
    for frame in range(5):
        stage.push(a_frame(frame))
    assert sorted(stage._waiting) == [(0, 3), (0, 4)]
    assert {int(i.header["image_series_index"]) for i in of(stage.push(a_label_map(3)))} == {2, 3}
    assert {int(i.header["image_series_index"]) for i in of(stage.push(a_label_map(1)))} == {2}


def test_labels_that_are_not_final_may_not_share_a_series() -> None:
    with pytest.raises(ConfigError, match=r"label_series and images\.provisional_series are both series 4"):
        MakeImages(SCAN, 1, 4, "float32", provisional_series=4)
    MakeImages(SCAN, 1, 4, "float32")  # where no such labels can come


def test_an_overlay_may_not_share_a_series() -> None:
    with pytest.raises(ConfigError, match=r"label_series and images\.overlay_series are both series 2"):
        MakeImages(SCAN, 1, 2, "float32", overlay=Overlay(2))
