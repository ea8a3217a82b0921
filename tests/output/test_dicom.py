from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kstream.errors import ConfigError, KstreamError, RecordingError, ScanError, ShapeError
from kstream.output.dicom import Study, new_uid, write_dicom_seg, write_dicom_series
from kstream.output.nifti import geometry_from_images
from kstream.types import Geometry, LabelTable
from tests.oblique import TABLE, labels_of, mrd_position_mm, oblique, scan_of, slice_headers

REASON = "needs pydicom and highdicom (extra `dicom`)"
pydicom = pytest.importorskip("pydicom", reason=REASON)
highdicom = pytest.importorskip("highdicom", reason=REASON)

STUDY = Study.anonymous("one measurement")
GEOMETRY = oblique()


def magnitudes(n_frames: int = 1) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(2)
    return {frame: (rng.random(GEOMETRY.shape) * 3.7e-3 * (frame + 1)).astype(np.float32) for frame in range(n_frames)}


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Path]]:
    """Two frames."""
    folder = tmp_path_factory.mktemp("series")
    return write_dicom_series(folder, magnitudes(2), GEOMETRY, study=STUDY, scan=scan_of(GEOMETRY))


def place_mm(image: Any, x: int, y: int) -> np.ndarray:
    """Centre of a voxel, LPS: equation C.7.6.2.1-1 of DICOM part 3."""
    row_mm, column_mm = image.PixelSpacing
    orientation = np.array(image.ImageOrientationPatient, dtype=float)
    position: np.ndarray = (
        np.array(image.ImagePositionPatient, dtype=float)
        + orientation[:3] * float(column_mm) * x
        + orientation[3:] * float(row_mm) * y
    )
    return position


def test_voxels_lie_where_the_mrd_headers_say(tmp_path: Path) -> None:
    headers = slice_headers(GEOMETRY)
    found, _ = geometry_from_images(headers)
    paths = write_dicom_series(tmp_path, magnitudes(), found, study=STUDY)[0]
    images = [pydicom.dcmread(path) for path in paths]
    for x, y, z in product((0, 4, 10), (0, 3, 6), (0, 1, 4)):
        np.testing.assert_allclose(place_mm(images[z], x, y), mrd_position_mm(headers[z], x, y), atol=1e-3)
    assert [float(value) for value in images[0].PixelSpacing] == pytest.approx([31.0, 30.0], rel=1e-6)
    assert float(images[0].SpacingBetweenSlices) == pytest.approx(13.0, rel=1e-6)


def test_segmentation_lies_on_its_magnitude(tmp_path: Path, series: dict[int, list[Path]]) -> None:
    labels = labels_of(GEOMETRY)
    path = write_dicom_seg(tmp_path / "seg.dcm", labels, GEOMETRY, TABLE, series[1][::-1])
    seg = highdicom.seg.segread(path)
    sources = [pydicom.dcmread(path) for path in series[1]]
    uids = [image.SOPInstanceUID for image in sources]
    found = seg.get_pixels_by_source_instance(uids, combine_segments=True)
    np.testing.assert_array_equal(found, labels)
    assert seg.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    assert seg.StudyInstanceUID == sources[0].StudyInstanceUID
    by_uid = {image.SOPInstanceUID: image for image in sources}
    for group in seg.PerFrameFunctionalGroupsSequence:
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        position = group.PlanePositionSequence[0].ImagePositionPatient
        assert list(position) == list(by_uid[source].ImagePositionPatient)
    shared = seg.SharedFunctionalGroupsSequence[0]
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    np.testing.assert_allclose(orientation, [*GEOMETRY.read_dir, *GEOMETRY.phase_dir], atol=1e-9)


def test_segments_carry_names_colours_and_what_made_them(tmp_path: Path, series: dict[int, list[Path]]) -> None:
    said = {"model": "tiny", "sha256": "ab" * 32}
    path = write_dicom_seg(tmp_path / "s.dcm", labels_of(GEOMETRY), GEOMETRY, TABLE, series[0], provenance=said)
    seg = highdicom.seg.segread(path)
    for number in (1, 2, 3):  # class 2 has no voxel and is described all the same
        segment = seg.get_segment_description(number)
        assert segment.segment_label == TABLE.names[number]
        lab = highdicom.color.CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue)
        assert np.abs(np.subtract(lab.to_rgb(), TABLE.colours[number])).max() <= 1
        assert segment.algorithm_type.value == "AUTOMATIC"
        assert segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "tiny"
    assert seg.get_segment_description(1).segmented_property_type.meaning == "Lesion"
    assert seg.ContentQualification == "RESEARCH"


def test_one_slope_serves_all_frames_and_is_exact(series: dict[int, list[Path]]) -> None:
    slopes = set()
    for frame, volume in magnitudes(2).items():
        for z, path in enumerate(series[frame]):
            image = pydicom.dcmread(path)
            slope = float(image.RescaleSlope)
            slopes.add(slope)
            values = pydicom.pixels.apply_modality_lut(image.pixel_array, image)
            assert np.abs(values - volume[z].astype(np.float64)).max() <= slope / 2 * (1 + 1e-9)
    assert len(slopes) == 1
    assert slopes.pop() == pytest.approx(7.4e-3 / 65535, rel=0.01)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.uint8])
def test_whole_numbers_are_written_as_they_are(tmp_path: Path, dtype: type) -> None:
    top = min(65535, np.iinfo(dtype).max)
    volume = np.random.default_rng(4).integers(0, top, GEOMETRY.shape, endpoint=True).astype(dtype)
    volume[0, 0, 0] = top
    paths = write_dicom_series(tmp_path, {0: volume}, GEOMETRY, study=STUDY, rescale_slope=0.01234567891)[0]
    image = pydicom.dcmread(paths[0])
    np.testing.assert_array_equal(image.pixel_array, volume[0])
    assert float(image.RescaleSlope) == 0.01234567891


def test_whole_numbers_beyond_16_bits_are_scaled(tmp_path: Path) -> None:
    volume = np.full(GEOMETRY.shape, 65536 * 3, np.int64)
    image = pydicom.dcmread(write_dicom_series(tmp_path, {0: volume}, GEOMETRY, study=STUDY, rescale_slope=0.5)[0][2])
    assert image.pixel_array.max() * float(image.RescaleSlope) == pytest.approx(65536 * 1.5, rel=1e-5)


def test_dark_volume_is_written(tmp_path: Path) -> None:
    zeros = {0: np.zeros(GEOMETRY.shape, np.float32)}
    image = pydicom.dcmread(write_dicom_series(tmp_path, zeros, GEOMETRY, study=STUDY)[0][0])
    assert image.pixel_array.max() == 0
    assert float(image.RescaleSlope) == 1


def test_frames_are_time_points_of_one_series(series: dict[int, list[Path]]) -> None:
    images = [pydicom.dcmread(path) for frame in (0, 1) for path in series[frame]]
    assert [image.TemporalPositionIdentifier for image in images] == [1] * 5 + [2] * 5
    assert {image.NumberOfTemporalPositions for image in images} == {2}
    assert [image.InstanceNumber for image in images] == list(range(1, 11))
    assert len({image.SOPInstanceUID for image in images}) == 10
    for name in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert len({getattr(image, name) for image in images}) == 1


def test_study_and_space_are_derived_while_series_are_new(tmp_path: Path) -> None:
    first, again, other = (
        pydicom.dcmread(write_dicom_series(tmp_path / name, magnitudes(), GEOMETRY, study=study)[0][0])
        for name, study in (("a", STUDY), ("b", STUDY), ("c", Study.anonymous("another measurement")))
    )
    assert first.StudyInstanceUID == again.StudyInstanceUID != other.StudyInstanceUID
    assert first.FrameOfReferenceUID == again.FrameOfReferenceUID != other.FrameOfReferenceUID
    assert first.PatientID == again.PatientID != other.PatientID
    assert first.SeriesInstanceUID != again.SeriesInstanceUID
    assert first.SOPInstanceUID != again.SOPInstanceUID
    assert len({first.StudyInstanceUID, first.FrameOfReferenceUID, first.SeriesInstanceUID, new_uid()}) == 4


def test_header_parameters_are_written_and_research_is_said(series: dict[int, list[Path]]) -> None:
    image = pydicom.dcmread(series[0][0])
    assert [float(image.RepetitionTime), float(image.EchoTime), float(image.FlipAngle)] == [4.7, 1.85, 12.5]
    assert float(image.MagneticFieldStrength) == 2.8936
    assert image.ContentQualification == "RESEARCH"
    assert "research use only" in image.SeriesDescription
    assert image.PatientIdentityRemoved == "YES"
    assert image.PatientName == "Anonymous^"


FIELDS = {
    "patientName": "Doe^Jörg",
    "patientID": "P-4711",
    "patientBirthdate": "1957-03-09",
    "patientGender": "M",
    "studyDate": "2031-10-24+01:00",
    "studyTime": "13:05:59.25",
    "studyInstanceUID": "1.2.840.99.5",
    "frameOfReferenceUID": "1.2.840.99.6",
    "patientPosition": "FFP",
}


def test_patient_is_named_only_when_asked(tmp_path: Path) -> None:
    named = write_dicom_series(tmp_path / "a", magnitudes(), GEOMETRY, study=Study.identified("m", FIELDS))[0]
    seg = write_dicom_seg(tmp_path / "seg.dcm", labels_of(GEOMETRY), GEOMETRY, TABLE, named)
    for image in (pydicom.dcmread(named[0]), pydicom.dcmread(seg)):
        assert image.PatientName == "Doe^Jörg"
        assert (image.PatientID, image.PatientBirthDate, image.PatientSex) == ("P-4711", "19570309", "M")
        assert (image.StudyDate, image.StudyTime) == ("20311024", "130559.25")
        assert (image.StudyInstanceUID, image.FrameOfReferenceUID) == ("1.2.840.99.5", "1.2.840.99.6")
        assert "PatientIdentityRemoved" not in image
    unnamed = write_dicom_series(tmp_path / "b", magnitudes(), GEOMETRY, study=Study.anonymous("m", FIELDS))[0]
    written = unnamed[0].read_bytes()
    for private in ("Doe", "4711", "19570309", "20311024", "1.2.840.99.5", "1.2.840.99.6"):
        assert private.encode() not in written
    assert pydicom.dcmread(unnamed[0]).PatientPosition == "FFP"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "names no patient"),
        (FIELDS | {"patientBirthdate": "9 March"}, "patientBirthdate of the header is no date"),
        (FIELDS | {"studyTime": "noon"}, "studyTime of the header is no time"),
        (FIELDS | {"studyInstanceUID": "1.02.3"}, "studyInstanceUID of the header is no UID"),
        (FIELDS | {"frameOfReferenceUID": "1." + "2" * 63}, "frameOfReferenceUID of the header is no UID"),
    ],
)
def test_study_that_dicom_cannot_say_is_refused_without_telling_it(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ScanError, match=message) as raised:
        Study.identified("m", fields)
    assert "March" not in str(raised.value)


def changed(**fields: Any) -> Geometry:
    return replace(GEOMETRY, **fields)


@pytest.mark.parametrize(
    ("volume", "geometry", "error"),
    [
        (np.zeros((7, 5, 11), np.float32), GEOMETRY, ShapeError),
        (np.full((5, 7, 11), -1e-3, np.float32), GEOMETRY, ScanError),
        (np.full((5, 7, 11), np.nan, np.float32), GEOMETRY, ScanError),
        (np.zeros((5, 7, 11), np.complex64), GEOMETRY, ScanError),
        (np.ones((5, 7, 11), np.float32), changed(read_dir=(0.0, 0.0, 0.0)), ScanError),
        (np.ones((5, 7, 11), np.float32), changed(phase_dir=(0.6, 0.8, 0.0)), ScanError),
    ],
    ids=["swapped axes", "negative", "not a number", "complex", "no direction", "skewed"],
)
def test_volume_that_is_no_magnitude_of_its_place_is_refused(
    tmp_path: Path, volume: np.ndarray, geometry: Geometry, error: type[KstreamError]
) -> None:
    with pytest.raises(error):
        write_dicom_series(tmp_path / "s", {0: volume}, geometry, study=STUDY)
    assert not (tmp_path / "s").exists()


def test_no_frame_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="no frame"):
        write_dicom_series(tmp_path, {}, GEOMETRY, study=STUDY)


def test_empty_label_map_is_refused_with_the_reason(tmp_path: Path, series: dict[int, list[Path]]) -> None:
    with pytest.raises(ScanError, match="without a segment is invalid") as raised:
        write_dicom_seg(tmp_path / "s.dcm", np.zeros(GEOMETRY.shape, np.uint8), GEOMETRY, TABLE, series[0])
    assert raised.value.code == "empty-labels"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        (changed(position_mm=(12.5, -83.25, 41.01)), "0.010 mm apart"),
        (changed(field_of_view_mm=(330.0, 217.1, 65.0)), "mm apart"),
        (changed(matrix=(7, 11, 5)), r"\(7, 11\) and \(11, 7\) voxels"),
        (changed(matrix=(11, 7, 4)), "4 slices, its magnitude 5"),
    ],
    ids=["moved", "stretched", "turned", "slice missing"],
)
def test_labels_that_lie_elsewhere_are_refused(
    tmp_path: Path, series: dict[int, list[Path]], geometry: Geometry, message: str
) -> None:
    with pytest.raises(ScanError, match=message):
        write_dicom_seg(tmp_path / "s.dcm", np.ones(geometry.shape, np.uint8), geometry, TABLE, series[0])
    assert not list(tmp_path.iterdir())


def test_labels_counted_from_the_other_end_lie_on_the_same_slices(
    tmp_path: Path, series: dict[int, list[Path]]
) -> None:
    labels = labels_of(GEOMETRY)
    other_end = changed(slice_dir=tuple(-d for d in GEOMETRY.slice_dir))
    seg = highdicom.seg.segread(write_dicom_seg(tmp_path / "s.dcm", labels[::-1], other_end, TABLE, series[0]))
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in series[0]]
    np.testing.assert_array_equal(seg.get_pixels_by_source_instance(uids, combine_segments=True), labels)


def test_label_beyond_the_table_is_refused(tmp_path: Path, series: dict[int, list[Path]]) -> None:
    table = LabelTable(TABLE.names[:3], TABLE.colours[:3])
    with pytest.raises(ScanError, match="class 3, but its table has 3"):
        write_dicom_seg(tmp_path / "s.dcm", labels_of(GEOMETRY), GEOMETRY, table, series[0])


def test_source_that_is_no_dicom_is_refused(tmp_path: Path, series: dict[int, list[Path]]) -> None:
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"no DICOM" * 40)
    with pytest.raises(RecordingError, match="cannot read"):
        write_dicom_seg(tmp_path / "s.dcm", labels_of(GEOMETRY), GEOMETRY, TABLE, [*series[0][:4], broken])


def test_series_and_segmentation_are_replaced_only_when_asked(tmp_path: Path) -> None:
    folder = tmp_path / "magnitude"
    paths = write_dicom_series(folder, magnitudes(2), GEOMETRY, study=STUDY)[0]
    with pytest.raises(RecordingError, match="holds a series of 10 images"):
        write_dicom_series(folder, magnitudes(), GEOMETRY, study=STUDY)
    assert len(list(folder.iterdir())) == 10
    seg = write_dicom_seg(tmp_path / "s.dcm", labels_of(GEOMETRY), GEOMETRY, TABLE, paths)
    with pytest.raises(RecordingError, match="exists already"):
        write_dicom_seg(seg, labels_of(GEOMETRY), GEOMETRY, TABLE, paths)
    (folder / "notes.txt").write_text("kept")
    paths = write_dicom_series(folder, magnitudes(), GEOMETRY, study=STUDY, overwrite=True)[0]
    assert {path.name for path in folder.iterdir()} == {*(path.name for path in paths), "notes.txt"}
    write_dicom_seg(seg, labels_of(GEOMETRY), GEOMETRY, TABLE, paths, overwrite=True)


def test_failed_series_leaves_no_half_of_it(tmp_path: Path) -> None:
    """The disk takes 400 bytes of a file, and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_dicom_series(tmp_path, magnitudes(), GEOMETRY, study=STUDY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["pydicom", "highdicom"])
def test_missing_extra_says_how_to_get_it(
    tmp_path: Path, series: dict[int, list[Path]], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    writers: dict[str, Callable[[], object]] = {
        "pydicom": lambda: write_dicom_series(tmp_path, magnitudes(), GEOMETRY, study=STUDY),
        "highdicom": lambda: write_dicom_seg(tmp_path / "s", labels_of(GEOMETRY), GEOMETRY, TABLE, series[0]),
    }
    with pytest.raises(ConfigError, match=f"needs {missing}") as raised:
        writers[missing]()
    assert "kstream[dicom]" in raised.value.hint


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="needs dciodvfy (Debian package dicom3tools)")
def test_independent_checker_finds_no_error(tmp_path: Path) -> None:
    """Every file against its IOD, and all of them against each other."""
    for study in (STUDY, Study.identified("m", FIELDS)):
        folder = tmp_path / study.patient_id
        paths = write_dicom_series(folder, magnitudes(2), GEOMETRY, study=study, scan=scan_of(GEOMETRY))
        seg = write_dicom_seg(folder / "seg.dcm", labels_of(GEOMETRY), GEOMETRY, TABLE, paths[1])
        for path, kind in ((paths[1][2], "MRImage"), (seg, "Segmentation")):
            told = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
            said = told.stdout + told.stderr
            assert kind in said.splitlines()
            assert "Error" not in said, said
            assert told.returncode == 0
        everything = [str(path) for path in (*paths[0], *paths[1], seg)]
        told = subprocess.run(["dcentvfy", *everything], capture_output=True, text=True, check=False)
        assert (told.returncode, told.stdout + told.stderr) == (0, "")
