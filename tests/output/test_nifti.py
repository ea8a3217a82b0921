from __future__ import annotations

import gzip
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import nibabel
import numpy as np
import pytest

from kstream.errors import RecordingError, ScanError, ShapeError
from kstream.mrd.messages import IMAGE_HEADER
from kstream.output.nifti import geometry_from_images, read_nifti, write_nifti
from kstream.types import LabelTable
from tests.oblique import TABLE, labels_of, mrd_position_mm, oblique, slice_headers


@pytest.mark.parametrize("name", ["volume.nii", "volume.nii.gz"])
def test_every_voxel_centre_lies_where_the_geometry_says(tmp_path: Path, name: str) -> None:
    geometry = oblique()
    volume = np.random.default_rng(3).random(geometry.shape).astype(np.float32)
    loaded, affine_ras = read_nifti(write_nifti(tmp_path / name, volume, geometry))
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, volume)
    for index in np.ndindex(*geometry.matrix):
        left, posterior, superior, _ = geometry.affine_lps @ (*index, 1)
        expected_ras = (-left, -posterior, superior)
        np.testing.assert_allclose((affine_ras @ (*index, 1))[:3], expected_ras, atol=1e-4)


def test_nibabel_puts_voxels_where_the_mrd_headers_say(tmp_path: Path) -> None:
    headers = slice_headers(oblique())
    found, order = geometry_from_images(headers)
    path = write_nifti(tmp_path / "v.nii.gz", np.zeros(found.shape, np.float32), found)
    to_ras = nibabel.nifti1.Nifti1Image.from_filename(path).affine
    assert order == [0, 1, 2, 3, 4]
    for x, y, z in product((0, 4, 10), (0, 3, 6), (0, 1, 4)):
        left, posterior, superior = mrd_position_mm(headers[z], x, y)
        np.testing.assert_allclose((to_ras @ (x, y, z, 1))[:3], (-left, -posterior, superior), atol=1e-3)


def test_label_names_and_colours_are_in_the_header_extension(tmp_path: Path) -> None:
    labels = labels_of(oblique())
    path = write_nifti(tmp_path / "labels.nii.gz", labels, oblique(), table=TABLE)
    image = nibabel.nifti1.Nifti1Image.from_filename(path)
    (extension,) = image.header.extensions
    entries = ElementTree.fromstring(extension.content).findall("VolumeInformation/LabelTable/Label")
    assert extension.get_code() == 30
    assert tuple(entry.text for entry in entries) == TABLE.names
    assert [int(entry.attrib["Key"]) for entry in entries] == [0, 1, 2, 3]
    colours = tuple(tuple(round(255 * float(e.attrib[c])) for c in ("Red", "Green", "Blue")) for e in entries)
    assert colours == TABLE.colours
    np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), labels)


def test_label_beyond_the_table_is_refused(tmp_path: Path) -> None:
    table = LabelTable(TABLE.names[:3], TABLE.colours[:3])
    with pytest.raises(ScanError, match="class 3, but its table has 3"):
        write_nifti(tmp_path / "labels.nii", labels_of(oblique()), oblique(), table=table)


def test_file_that_exists_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "v.nii", np.zeros((5, 7, 11), np.float32), oblique())
    with pytest.raises(RecordingError, match="exists already"):
        write_nifti(path, np.ones((5, 7, 11), np.float32), oblique())
    assert read_nifti(path)[0].max() == 0
    write_nifti(path, np.ones((5, 7, 11), np.float32), oblique(), overwrite=True)
    assert read_nifti(path)[0].max() == 1


def test_file_stores_x_fastest_with_both_forms_in_mm(tmp_path: Path) -> None:
    geometry = oblique()
    write_nifti(tmp_path / "v.nii", np.zeros(geometry.shape, np.float32), geometry)
    image = nibabel.nifti1.Nifti1Image.from_filename(tmp_path / "v.nii")
    assert image.shape == geometry.matrix
    assert image.header.get_xyzt_units() == ("mm", "sec")
    assert int(image.header["qform_code"]) == int(image.header["sform_code"]) == 1
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)
    np.testing.assert_allclose(image.header.get_zooms(), geometry.voxel_size_mm, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint16, np.int64, np.bool_])
def test_whole_numbers_are_stored_as_uint8_labels(tmp_path: Path, dtype: type) -> None:
    geometry = oblique()
    labels = (np.indices(geometry.shape).sum(axis=0) % 2).astype(dtype)
    loaded, _ = read_nifti(write_nifti(tmp_path / "labels.nii.gz", labels, geometry))
    assert loaded.dtype == np.uint8
    np.testing.assert_array_equal(loaded, labels)


def test_double_precision_magnitude_is_stored_as_float32(tmp_path: Path) -> None:
    geometry = oblique()
    loaded, _ = read_nifti(write_nifti(tmp_path / "m.nii", np.full(geometry.shape, 0.1), geometry))
    assert loaded.dtype == np.float32


@pytest.mark.parametrize(
    "volume",
    [
        np.zeros((7, 5, 11), np.float32),
        np.full((5, 7, 11), 256),
        np.full((5, 7, 11), -1),
        np.zeros((5, 7, 11), np.complex64),
    ],
    ids=["swapped axes", "label above 255", "negative label", "complex"],
)
def test_volume_that_cannot_be_stored_is_refused(tmp_path: Path, volume: np.ndarray) -> None:
    with pytest.raises(ShapeError):
        write_nifti(tmp_path / "v.nii", volume, oblique())
    assert not (tmp_path / "v.nii").exists()


@pytest.mark.parametrize(
    "content",
    [None, b"", b"not a volume", b"\x1f\x8b\x08\x00cut", b"n" * 400, gzip.compress(b"n" * 400, mtime=0)],
    ids=["missing", "empty", "text", "cut gzip", "nonsense", "nonsense in gzip"],
)
def test_file_that_is_no_nifti_volume_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "v.nii.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecordingError):
        read_nifti(path)


def test_truncated_nifti_is_refused(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "v.nii", np.ones((5, 7, 11), np.float32), oblique())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RecordingError):
        read_nifti(path)


def test_stack_of_images_gives_back_the_geometry_in_any_order() -> None:
    geometry = oblique()
    headers = slice_headers(geometry)
    arrival = [3, 0, 4, 2, 1]
    found, order = geometry_from_images([headers[z] for z in arrival])
    assert [arrival[i] for i in order] == [0, 1, 2, 3, 4]
    assert found.matrix == geometry.matrix
    np.testing.assert_allclose(found.affine_lps, geometry.affine_lps, atol=1e-4)


def test_gap_between_slices_counts_into_the_slice_distance() -> None:
    headers = slice_headers(oblique())
    for header in headers:
        header["field_of_view"][2] = 9.0
    found, _ = geometry_from_images(headers)
    assert found.voxel_size_mm[2] == pytest.approx(13.0, abs=1e-4)


def test_single_image_takes_its_own_thickness() -> None:
    found, order = geometry_from_images(slice_headers(oblique((11, 7, 1))))
    assert order == [0]
    assert found.matrix == (11, 7, 1)
    assert found.field_of_view_mm[2] == pytest.approx(65.0)


def test_single_volume_image_keeps_its_slices() -> None:
    (header,) = slice_headers(oblique((11, 7, 1)))
    header["matrix_size"] = (11, 7, 5)
    found, _ = geometry_from_images([header])
    assert found.shape == (5, 7, 11)


def change(headers: list[np.void], name: str, value: object) -> list[np.void]:
    headers[1][name] = value
    return headers


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ([], "no image"),
        (slice_headers(oblique())[:2] + slice_headers(oblique())[3:], "slice distances"),
        (slice_headers(oblique()) * 2, "slice distances"),
        (change(slice_headers(oblique()), "matrix_size", (7, 11, 1)), "matrix_size"),
        (change(slice_headers(oblique()), "slice_dir", (1, 0, 0)), "slice_dir"),
        ([np.zeros(1, IMAGE_HEADER)[0]], "length 0"),
    ],
    ids=["none", "missing slice", "two frames", "other matrix", "other direction", "no directions"],
)
def test_images_that_do_not_stack_are_refused(headers: list[np.void], message: str) -> None:
    with pytest.raises(ScanError, match=message):
        geometry_from_images(headers)
