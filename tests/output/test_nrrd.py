from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from kstream.errors import KstreamError, RecordingError, ScanError, ShapeError
from kstream.output.nifti import geometry_from_images
from kstream.output.nrrd import write_nrrd, write_seg_nrrd
from kstream.types import LabelTable
from tests.oblique import TABLE, labels_of, mrd_position_mm, oblique, slice_headers

nrrd = pytest.importorskip("nrrd", reason="needs pynrrd, an independent reader of NRRD (extra `test`)")


def test_reader_finds_values_and_voxels_where_the_mrd_headers_say(tmp_path: Path) -> None:
    headers = slice_headers(oblique())
    found, _ = geometry_from_images(headers)
    volume = np.random.default_rng(1).random(found.shape).astype(np.float32)
    data, header = nrrd.read(str(write_nrrd(tmp_path / "v.nrrd", volume, found)))
    np.testing.assert_array_equal(data.transpose(2, 1, 0), volume)
    assert header["space"] == "left-posterior-superior"
    np.testing.assert_array_equal(header["measurement frame"], np.eye(3))
    for x, y, z in product((0, 4, 10), (0, 3, 6), (0, 1, 4)):
        place = header["space origin"] + np.array([x, y, z]) @ header["space directions"]
        np.testing.assert_allclose(place, mrd_position_mm(headers[z], x, y), atol=1e-3)


def test_segments_carry_names_colours_values_and_extents(tmp_path: Path) -> None:
    geometry = oblique()
    labels = np.zeros(geometry.shape, np.uint8)
    labels[1:4, 2, 5:9] = 1
    labels[4, 6, 10] = 3
    path = write_seg_nrrd(tmp_path / "labels.seg.nrrd", labels, geometry, TABLE, provenance={"model": "tiny\nmodel"})
    data, header = nrrd.read(str(path))
    np.testing.assert_array_equal(data.transpose(2, 1, 0), labels)
    assert data.dtype == np.uint8
    assert [header[f"Segment{n}_Extent"] for n in range(3)] == ["5 8 2 2 1 3", "0 -1 0 -1 0 -1", "10 10 6 6 4 4"]
    assert [header[f"Segment{n}_LabelValue"] for n in range(3)] == ["1", "2", "3"]
    colours = [tuple(round(255 * float(c)) for c in header[f"Segment{n}_Color"].split()) for n in range(3)]
    assert colours == list(TABLE.colours[1:])
    assert [header["Segment0_Name"], header["Segment1_Name"]] == ["lesion", "fat; outer"]
    assert "Segment2_Name:=Drüse\n".encode() in path.read_bytes()  # pynrrd reads ASCII only, 3D Slicer UTF-8
    assert "Segment3_Name" not in header
    assert header["kstream_model"] == "tiny model"


def test_slicers_own_reader_takes_the_segmentation(tmp_path: Path) -> None:
    slicerio = pytest.importorskip(
        "slicerio", reason="needs slicerio, the reader of the 3D Slicer project (extra `test`)"
    )
    path = write_seg_nrrd(tmp_path / "labels.seg.nrrd", labels_of(oblique()), oblique(), TABLE)
    found = slicerio.read_segmentation(str(path))
    np.testing.assert_allclose(found["ijkToLPS"], oblique().affine_lps, atol=1e-9)
    assert slicerio.segment_names(found)[:2] == ["lesion", "fat; outer"]
    assert [segment["labelValue"] for segment in found["segments"]] == [1, 2, 3]
    np.testing.assert_array_equal(found["voxels"].transpose(2, 1, 0), labels_of(oblique()))


def test_empty_label_map_is_a_file_with_empty_segments(tmp_path: Path) -> None:
    path = write_seg_nrrd(tmp_path / "none.seg.nrrd", np.zeros((5, 7, 11), np.uint8), oblique(), TABLE)
    data, header = nrrd.read(str(path))
    assert data.max() == 0
    assert header["Segment0_Extent"] == "0 -1 0 -1 0 -1"


def test_names_cannot_add_fields_to_the_header(tmp_path: Path) -> None:
    table = LabelTable(("background", "a\nSegment7_Name:=b\n\nc\\n"), ((0, 0, 0), (1, 2, 3)))
    path = write_seg_nrrd(tmp_path / "l.seg.nrrd", np.ones((5, 7, 11), np.uint8), oblique(), table)
    data, header = nrrd.read(str(path))
    assert "Segment7_Name" not in header
    assert header["Segment0_Name"].startswith("a Segment7_Name:=b c")
    assert data.min() == 1


def test_same_volume_gives_the_same_bytes(tmp_path: Path) -> None:
    volume = np.ones((5, 7, 11), np.float32)
    first, second = (write_nrrd(tmp_path / name, volume, oblique()) for name in ("a.nrrd", "b.nrrd"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        (np.zeros((7, 5, 11), np.uint8), ShapeError),
        (np.full((5, 7, 11), 4, np.uint16), ScanError),
        (np.full((5, 7, 11), 256), ShapeError),
        (np.ones((5, 7, 11), np.float32), ShapeError),
    ],
    ids=["swapped axes", "beyond the table", "above 255", "real numbers"],
)
def test_labels_that_cannot_be_stored_are_refused(
    tmp_path: Path, labels: np.ndarray, error: type[KstreamError]
) -> None:
    with pytest.raises(error):
        write_seg_nrrd(tmp_path / "l.seg.nrrd", labels, oblique(), TABLE)
    assert not list(tmp_path.iterdir())


def test_complex_volume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="complex64"):
        write_nrrd(tmp_path / "v.nrrd", np.zeros((5, 7, 11), np.complex64), oblique())


def test_file_that_exists_is_replaced_only_when_asked(tmp_path: Path) -> None:
    volume = np.zeros((5, 7, 11), np.float32)
    path = write_nrrd(tmp_path / "v.nrrd", volume, oblique())
    with pytest.raises(RecordingError, match="exists already"):
        write_nrrd(path, volume + 1, oblique())
    write_nrrd(path, volume + 1, oblique(), overwrite=True)
    assert nrrd.read(str(path))[0].min() == 1
