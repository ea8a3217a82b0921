"""Image and label messages: geometry, counters, attributes, and what a reader gets back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kstream.errors import ConfigError, ScanError, ShapeError
from kstream.mrd.codec import Decoder, encode
from kstream.mrd.images import SeriesSplitter, frame_of, label_images, label_table, magnitude_images
from kstream.mrd.messages import IMAGE_HEADER, Image
from kstream.mrd.meta import meta_from_xml, meta_to_xml
from kstream.mrd.stages import MakeImages
from kstream.types import (
    Delivered,
    EncodingLimit,
    FrameImage,
    Geometry,
    KSpace,
    LabelMap,
    LabelTable,
    Notice,
    Origin,
    Scan,
)

Z, Y, X = 5, 7, 11
OBLIQUE = Geometry(
    (X, Y, Z), (110.0, 70.0, 15.0), (1.0, -2.0, 30.0), (0.0, 0.6, 0.8), (1.0, 0.0, 0.0), (0.0, 0.8, -0.6)
)
SCAN = Scan((22, 14, Z), (X, Y, Z), (220.0, 140.0, 15.0), (110.0, 70.0, 15.0), "radial", te_ms=1.5, protocol_name="dce")
TABLE = LabelTable(("background", "lesion"), ((0, 0, 0), (255, 64, 3)))


def an_image(shape: tuple[int, int, int] = (Z, Y, X)) -> Any:
    rng = np.random.default_rng(5)
    return (100 * rng.standard_normal((*shape, 2))).astype("f4").view("c8")[..., 0]


def a_kspace(geometry: Geometry = OBLIQUE, frame: int = 2, slice_index: int = 0) -> KSpace:
    return KSpace(np.zeros(geometry.shape, "c8"), frame, slice_index, 123_456_789, geometry)


def a_label_map(geometry: Geometry = OBLIQUE, **fields: Any) -> LabelMap:
    labels = np.zeros(geometry.shape, np.uint8)
    labels[:, 2, 3:6] = 1
    values: dict[str, Any] = {"provenance": {"model": "hybrid", "weights": "ab12", "engine": "torch"}} | fields
    return LabelMap(labels, TABLE, 2, 0, 123_456_789, geometry, **values)


def through_the_wire(images: list[Image]) -> list[Image]:
    decoder = Decoder()
    got = decoder.receive(b"".join(map(encode, images)))
    decoder.end()
    assert all(isinstance(image, Image) for image in got)
    return [image for image in got if isinstance(image, Image)]


# ---- magnitude images ------------------------------------------------------------------------------------------------


def test_volume_becomes_one_float_image_for_each_slice() -> None:
    images = through_the_wire(magnitude_images(a_kspace(), an_image(), SCAN, series=3))
    assert [i.data.shape for i in images] == [(1, 1, Y, X)] * Z
    assert {i.data.dtype.str for i in images} == {"<f4"}
    np.testing.assert_allclose(np.concatenate([i.data[0] for i in images]), np.abs(an_image()), rtol=1e-6)


def test_headers_carry_counters_and_geometry_of_each_slice() -> None:
    for z, image in enumerate(magnitude_images(a_kspace(), an_image(), SCAN, series=3)):
        header = image.header
        assert [int(n) for n in header["matrix_size"]] == [X, Y, 1]
        np.testing.assert_allclose(header["field_of_view"], (110.0, 70.0, 3.0))
        np.testing.assert_allclose(
            header["position"], (1.0, -2.0 + (z - 2) * 3 * 0.8, 30.0 - (z - 2) * 3 * 0.6), rtol=1e-6
        )
        np.testing.assert_allclose(header["read_dir"], (0.0, 0.6, 0.8), rtol=1e-6)
        np.testing.assert_allclose(header["slice_dir"], (0.0, 0.8, -0.6), rtol=1e-6)
        assert (int(header["slice"]), int(header["repetition"]), int(header["contrast"])) == (z, 2, 0)
        assert int(header["image_index"]) == 2 * Z + z + 1
        assert (int(header["image_series_index"]), int(header["image_type"]), int(header["data_type"])) == (3, 1, 5)


@pytest.mark.parametrize("counter", ["contrast", "phase", "set"])
def test_frame_may_travel_in_another_counter(counter: Any) -> None:
    image = magnitude_images(a_kspace(), an_image(), SCAN, 3, frame_counter=counter)[0]
    assert (int(image.header[counter]), int(image.header["repetition"])) == (2, 0)
    assert frame_of(image) == 2


def test_frame_of_a_strangers_image_is_its_repetition() -> None:
    image = a_picture(1)
    image.header["repetition"] = 6
    assert frame_of(image) == 6
    image.meta["Frame"] = ["1", "2"]
    assert frame_of(image) == 6


def test_header_hands_back_what_the_scanner_wrote() -> None:
    origin = Origin(4242, 77_000, (1, 2, 3), (0.0, -3.5, -1210.0))
    geometry = replace(OBLIQUE, origin=origin)
    assert geometry == OBLIQUE
    for image in [
        *through_the_wire(magnitude_images(a_kspace(geometry), an_image(), SCAN, 1)),
        *through_the_wire(label_images(a_label_map(geometry), SCAN, 2)),
    ]:
        header = image.header
        assert (int(header["measurement_uid"]), int(header["acquisition_time_stamp"])) == (4242, 77_000)
        assert header["physiology_time_stamp"].tolist() == [1, 2, 3]
        assert header["patient_table_position"].tolist() == [0.0, -3.5, -1210.0]


def test_single_slice_keeps_the_slice_number_of_the_scan() -> None:
    flat = Geometry((X, Y, 1), (110.0, 70.0, 3.0))
    scan = Scan((X, Y, 1), (X, Y, 1), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), "radial", {"slice": EncodingLimit(0, 2)})
    indices = []
    for frame in range(2):
        for number in range(3):
            (image,) = magnitude_images(a_kspace(flat, frame, number), an_image((1, Y, X)), scan, 1)
            assert int(image.header["slice"]) == number
            indices.append(int(image.header["image_index"]))
    assert indices == [1, 2, 3, 4, 5, 6]


def test_image_index_is_never_zero_in_a_long_scan() -> None:
    images = magnitude_images(a_kspace(frame=65535 // Z), an_image(), SCAN, 1)
    assert [int(i.header["image_index"]) for i in images] == [1, 2, 3, 4, 5]


def test_directions_are_unit_vectors_whatever_the_scan_says() -> None:
    long = Geometry((X, Y, 1), (1.0, 1.0, 1.0), read_dir=(0.0, 2.0, 0.0), phase_dir=(3.0, 0.0, 0.0))
    endless = Geometry(
        (X, Y, 1), (1.0, 1.0, 1.0), read_dir=(0.0, float("inf"), 0.0), phase_dir=(float("nan"), 0.0, 0.0)
    )
    zero = Geometry((X, Y, 1), (1.0, 1.0, 1.0), read_dir=(0.0, 0.0, 0.0), phase_dir=(0.0, 0.0, 0.0))
    (image,) = magnitude_images(a_kspace(long), an_image((1, Y, X)), SCAN, 1)
    assert [tuple(image.header[n]) for n in ("read_dir", "phase_dir", "slice_dir")] == [(0, 1, 0), (1, 0, 0), (0, 0, 1)]
    for geometry in (zero, endless):
        (image,) = magnitude_images(a_kspace(geometry), an_image((1, Y, X)), SCAN, 1)
        directions = [tuple(image.header[n]) for n in ("read_dir", "phase_dir", "slice_dir")]
        assert directions == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]


def test_unsigned_pixels_times_their_slope_are_the_magnitude() -> None:
    images = magnitude_images(a_kspace(), an_image(), SCAN, 1, rescale_slope=0.125)
    slope = float(str(images[0].meta["RescaleSlope"]))
    got = np.concatenate([i.data[0] for i in through_the_wire(images)])
    assert got.dtype == np.uint16
    assert np.abs(got * slope - np.abs(an_image())).max() <= slope / 2 * 1.001
    assert "ClippedPixels" not in images[0].meta


@pytest.mark.parametrize("slope", [1 / 3, 1e-10 / 7, 123456.7891234])
def test_pixels_are_scaled_by_the_slope_that_is_declared_and_fits_a_decimal_string(slope: float) -> None:
    image = an_image() * slope * 100
    images = magnitude_images(a_kspace(), image, SCAN, 1, rescale_slope=slope)
    declared = str(images[0].meta["RescaleSlope"])
    assert len(declared) <= 16
    got = np.concatenate([i.data[0] for i in images]).astype(float)
    np.testing.assert_array_equal(got, np.rint(np.abs(image).astype(np.float64) / float(declared)))


def test_clipped_pixels_are_counted() -> None:
    image = np.zeros((Z, Y, X), "c8")
    image[1, 2, 3], image[2, 4, 5] = 1e6, 3
    images = magnitude_images(a_kspace(), image, SCAN, 1, rescale_slope=1.0)
    assert images[0].meta["ClippedPixels"] == "1"
    assert (images[1].data[0, 0, 2, 3], images[2].data[0, 0, 4, 5]) == (65535, 3)


@pytest.mark.parametrize("slope", [0.0, -1.0, float("nan")])
def test_slope_must_be_positive(slope: float) -> None:
    with pytest.raises(ScanError, match="rescale slope"):
        magnitude_images(a_kspace(), an_image(), SCAN, 1, rescale_slope=slope)


@pytest.mark.parametrize("slope", [None, 0.5])
def test_pixels_that_are_not_finite_become_zero_and_are_counted(slope: float | None) -> None:
    image = an_image()
    image[0, 0, 0], image[1, 2, 3] = np.nan, np.inf
    images = magnitude_images(a_kspace(), image, SCAN, 1, rescale_slope=slope)
    assert images[0].meta["NonFinitePixels"] == "2"
    assert images[0].data[0, 0, 0, 0] == images[1].data[0, 0, 2, 3] == 0
    assert all(np.isfinite(i.data).all() for i in images)


def test_image_of_another_shape_than_its_geometry_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(5, 7, 11\)"):
        magnitude_images(a_kspace(), an_image((Z, X, Y)), SCAN, 1)
    labels = a_label_map()
    labels.labels = labels.labels[:, :, :-1]
    with pytest.raises(ShapeError, match=r"\(5, 7, 10\)"):
        label_images(labels, SCAN, 1)


def test_window_is_an_integer_and_left_out_for_small_units() -> None:
    meta = magnitude_images(a_kspace(), an_image(), SCAN, 1)[0].meta
    maximum = np.abs(an_image()).max()
    assert meta["WindowWidth"] == str(round(float(maximum)))
    assert "WindowCenter" not in magnitude_images(a_kspace(), an_image() / 1000, SCAN, 1)[0].meta


WHAT_A_HOST_NEEDS = {
    "DataRole",
    "ImageType",
    "ImageProcessingHistory",
    "Keep_image_geometry",
    "ImageRowDir",
    "ImageColumnDir",
    "ImageSliceNormDir",
    "SeriesDescription",
    "ImageComments",
    "ImageComment",
}
NEVER_SENT = {"IceMiniHead", "SOPInstanceUID", "SeriesInstanceUID"}


def test_every_image_says_what_a_host_needs_and_nothing_of_the_hosts_own() -> None:
    magnitude = magnitude_images(a_kspace(), an_image(), SCAN, 1)
    scaled = magnitude_images(a_kspace(), an_image(), SCAN, 1, rescale_slope=0.5)
    for image in [*magnitude, *scaled, *label_images(a_label_map(), SCAN, 2)]:
        assert image.meta.keys() >= WHAT_A_HOST_NEEDS
        assert not image.meta.keys() & NEVER_SENT
        for name in ("WindowCenter", "WindowWidth"):
            assert str(image.meta[name]).isdecimal()
        for name in ("ImageRowDir", "ImageColumnDir"):
            assert [len(str(part).partition(".")[2]) for part in image.meta[name]] == [18, 18, 18]
        meta_to_xml(image.meta).decode("ascii")
        header = image.header
        assert int(header["image_series_index"]) >= 1
        assert int(header["image_index"]) >= 1
        for name in ("read_dir", "phase_dir", "slice_dir"):
            assert np.linalg.norm(header[name]) == pytest.approx(1, abs=1e-6)


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_labels_become_unsigned_images_that_give_the_labels_back() -> None:
    labels = a_label_map()
    images = through_the_wire(label_images(labels, SCAN, series=4))
    assert {i.data.dtype.str for i in images} == {"<u2"}
    np.testing.assert_array_equal(np.concatenate([i.data[0] for i in images]), labels.labels)
    assert [int(i.header["image_series_index"]) for i in images] == [4] * Z
    assert [int(i.header["image_index"]) for i in images] == [11, 12, 13, 14, 15]
    assert all(label_table(i) == TABLE for i in images)


def test_label_attributes_say_what_a_host_and_a_reader_need() -> None:
    (first, *_) = through_the_wire(label_images(a_label_map(), SCAN, 4, description="lesion", meta={"More": "1"}))
    meta = first.meta
    assert meta["LabelTable"] == ["0;background;0,0,0", "1;lesion;255,64,3"]
    assert meta["Keep_image_geometry"] == "1"
    assert "Image" in meta["DataRole"]
    assert meta["ImageComments"] == "research use only"
    assert (meta["SeriesDescription"], meta["Frame"], meta["More"]) == ("lesion", "2", "1")
    assert (meta["WindowCenter"], meta["WindowWidth"]) == ("1", "2")
    assert meta["ImageRowDir"] == ["0.000000000000000000", "0.599999999999999978", "0.800000000000000044"]
    assert meta["ImageColumnDir"] == ["1.000000000000000000", "0.000000000000000000", "0.000000000000000000"]
    assert (meta["kstream_model"], meta["kstream_weights"], meta["kstream_engine"]) == ("hybrid", "ab12", "torch")


def test_messages_do_not_depend_on_the_clock() -> None:
    early, late = a_label_map(), a_label_map()
    late.received_ns += 1
    for one, other in zip(label_images(early, SCAN, 4), label_images(late, SCAN, 4), strict=True):
        assert encode(one) == encode(other)


def test_attributes_are_ascii_even_if_names_are_not() -> None:
    labels = a_label_map(provenance={"model": "n\N{LATIN SMALL LETTER O WITH DIAERESIS}\n"})
    labels.table = LabelTable(("background", "l\N{LATIN SMALL LETTER E WITH ACUTE}sion;x"), TABLE.colours)
    image = label_images(labels, SCAN, 4)[0]
    meta_to_xml(image.meta).decode("ascii")
    assert image.meta["kstream_model"] == "n??"
    table = label_table(image)
    assert table is not None
    assert table.names == ("background", "l?sion x")


def test_label_without_entry_in_the_table_is_refused() -> None:
    labels = a_label_map()
    labels.labels[0, 0, 0] = 2
    with pytest.raises(ScanError, match="class 2, but its table has 2 classes"):
        label_images(labels, SCAN, 4)


def test_image_without_label_table_has_none() -> None:
    assert label_table(magnitude_images(a_kspace(), an_image(), SCAN, 1)[0]) is None


# ---- series ----------------------------------------------------------------------------------------------------------


def a_picture(series: int, shape: tuple[int, ...] = (1, 1, 7, 11), dtype: str = "f4") -> Image:
    header = np.zeros(1, IMAGE_HEADER)[0]
    header["image_series_index"] = series
    return Image(header, {}, np.zeros(shape, dtype))


def test_splitter_gives_each_shape_and_type_one_series() -> None:
    splitter = SeriesSplitter()
    pictures = [a_picture(1), a_picture(1, dtype="u2"), a_picture(1), a_picture(1001), a_picture(1, (1, 1, 5, 11))]
    got = [int(splitter.split(p).header["image_series_index"]) for p in pictures]
    assert got == [1, 1001, 1, 2001, 3001]
    assert [int(p.header["image_series_index"]) for p in pictures] == [1, 1, 1, 1001, 1]


def test_splitter_stays_within_sixteen_bits() -> None:
    splitter = SeriesSplitter()
    numbers = [int(splitter.split(a_picture(65535, (1, 1, 1, n))).header["image_series_index"]) for n in range(1, 6)]
    assert numbers[0] == 65535
    assert len(set(numbers)) == 5


# ---- the stage -------------------------------------------------------------------------------------------------------


def a_frame_image(geometry: Geometry = OBLIQUE, frame: int = 0) -> FrameImage:
    return FrameImage(an_image(geometry.shape), frame, 0, 1, geometry)


def test_stage_splits_a_series_that_would_mix_shapes_and_says_so_once() -> None:
    stage = MakeImages(SCAN, 1, 2, "float32")
    small = Geometry((5, 3, 1), (50.0, 30.0, 3.0))
    wide = stage.push(a_frame_image())
    first, second = stage.push(a_frame_image(small, 1)), stage.push(a_frame_image(small, 2))
    assert {int(i.header["image_series_index"]) for i in wide if isinstance(i, Image)} == {1}
    assert [type(item) for item in first] == [Notice, Image, Delivered]
    assert [type(item) for item in second] == [Image, Delivered]
    assert first[0].level == "warning"
    assert "5 x 3 x 1 x 1 float32" in first[0].text
    assert "series 1001: series 1 has others" in first[0].text
    assert int(first[1].header["image_series_index"]) == int(second[0].header["image_series_index"]) == 1001


def test_labels_may_not_share_the_series_of_magnitudes() -> None:
    with pytest.raises(ConfigError, match="label_series are both series 7"):
        MakeImages(SCAN, 7, 7, "uint16")


@pytest.mark.parametrize(("by", "counter"), [("windows", "repetition"), ("single", "repetition"), ("phase", "phase")])
def test_stage_puts_the_frame_where_the_scan_counts_frames(by: str, counter: str) -> None:
    stage = MakeImages(SCAN, 1, 2, "uint16", by)
    for item in (a_frame_image(frame=2), a_label_map()):
        image = stage.push(item)[0]
        assert int(image.header[counter]) == 2


def test_stage_scales_all_frames_alike_even_if_a_pixel_is_not_finite() -> None:
    stage = MakeImages(SCAN, 1, 2, "uint16")
    broken = a_frame_image()
    broken.data[0, 0, 0] = np.inf
    slopes = [stage.push(item)[0].meta["RescaleSlope"] for item in (broken, a_frame_image(frame=1))]
    brightest = float(np.abs(an_image().ravel()[1:]).max())
    assert slopes[0] == slopes[1] == f"{brightest * 4 / 65535:.10g}"


# ---- meta ------------------------------------------------------------------------------------------------------------

characters = st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")) | st.sampled_from("\t\n\r<>&\"'")
words = st.text(characters, max_size=15)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.dictionaries(words, words | st.lists(words, min_size=2, max_size=3), max_size=4))
def test_meta_round_trip_is_exact_and_ascii(meta: dict[str, Any]) -> None:
    meta = {key: value for key, value in meta.items() if not any(c in "\ufffe\uffff" for c in key + "".join(value))}
    xml = meta_to_xml(meta)
    xml.decode("ascii")
    assert meta_from_xml(xml) == meta


def test_characters_that_xml_cannot_carry_become_question_marks() -> None:
    assert meta_from_xml(meta_to_xml({"a\x00": "b\x1b\ud800"})) == {"a?": "b??"}


def test_no_attributes_are_no_bytes() -> None:
    assert meta_to_xml({}) == b""
    assert meta_from_xml(b"") == meta_from_xml(b"\0") == {}


def test_repeated_names_are_gathered() -> None:
    entry = b"<meta><name>a</name><value>%d</value></meta>"
    xml = b"<ismrmrdMeta>" + entry % 1 + b"<meta><name>b</name></meta>" + entry % 2 + b"</ismrmrdMeta>\0"
    assert meta_from_xml(xml) == {"a": ["1", "2"], "b": []}
