"""MAMA-MIA from DICOM: files written here with pydicom and highdicom, oblique, rescaled, in several orders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pytest
from pydicom import Dataset, FileMetaDataset, dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from kstream.errors import RecordingError, ScanError, ShapeError
from kstream.training.breast.data import load_exam
from kstream.training.readers import mama_mia
from kstream.training.readers.common import read_mask
from kstream.training.readers.convert import convert
from kstream.training.readers.dicom_series import first_time_points, read_segmentation

SHAPE = (5, 7, 11)  # z, y, x
SPACING = (2.0, 1.5, 1.25)  # z, y, x
GAINS = (0, 300, 600, 900)

ANGLE = np.deg2rad(20)
ALONG_X = np.array([np.cos(ANGLE), np.sin(ANGLE), 0.0])
ALONG_Y = np.array([0.0, 0.0, -1.0])  # coronal: the rows run towards the feet
ALONG_Z = np.cross(ALONG_X, ALONG_Y)
ORIGIN = np.array([-30.5, 12.25, 41.0])
AFFINE = np.diag([-1.0, -1, 1, 1]) @ np.block(
    [
        [np.stack([ALONG_X * SPACING[2], ALONG_Y * SPACING[1], ALONG_Z * SPACING[0]], 1), ORIGIN[:, None]],
        [np.zeros((1, 3)), 1.0],
    ]
)


def phases() -> np.ndarray:
    """Four time points whose every voxel is another number, and a block that enhances."""
    base = np.random.default_rng(0).permutation(np.prod(SHAPE)).reshape(SHAPE).astype(np.float32) + 20
    return np.stack([base + np.float32(gain) * mask() for gain in GAINS])


def mask() -> np.ndarray:
    marked = np.zeros(SHAPE, np.uint8)
    marked[1:3, 2:5, 4:9] = 1
    return marked


def write_slice(path: Path, pixels: np.ndarray, z: int, series: str, **elements: Any) -> None:
    """One MR image with all that its storage class asks of geometry and identity; stored at slope 0.5, intercept 10."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = MRImageStorage
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    image.Modality, image.PatientID, image.PatientName, image.PatientBirthDate = "MR", "ISPY1_0001", "", ""
    image.StudyInstanceUID, image.FrameOfReferenceUID, image.SeriesInstanceUID = "1.2.3", "1.2.4", series
    image.StudyID, image.StudyDate, image.StudyTime, image.AccessionNumber = "", "", "", ""
    image.PatientSex, image.ReferringPhysicianName = "", ""
    image.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
    image.Rows, image.Columns = pixels.shape
    image.PixelSpacing = [SPACING[1], SPACING[2]]
    image.SliceThickness = SPACING[0]
    image.ImageOrientationPatient = [*map(float, ALONG_X), *map(float, ALONG_Y)]
    image.ImagePositionPatient = [round(float(v), 9) for v in ORIGIN + z * SPACING[0] * ALONG_Z]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
    image.RescaleSlope, image.RescaleIntercept = 0.5, 10
    image.PixelData = np.rint((pixels - 10) / 0.5).astype("<u2").tobytes()
    for name, value in elements.items():
        setattr(image, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)


def write_each_phase_as_a_series(folder: Path, numbers: Sequence[int] = (0, 1, 2, 3)) -> None:
    """As DUKE: series numbers do not follow time, the times of acquisition do; slices in file order of a hash."""
    for phase in numbers:
        for z in range(SHAPE[0]):
            write_slice(
                folder / f"{(phase * 7 + 3) % 5}-post" / f"{(z * 3) % 5}.dcm",
                phases()[phase][z],
                z,
                f"1.2.5.{phase}",
                SeriesNumber=9 - phase,
                SeriesDescription=f"dyn {phase}",
                AcquisitionDate="20240102",
                AcquisitionTime=f"0959{10 + phase:02d}.{phase}",
                InstanceNumber=SHAPE[0] - z,
            )


def write_one_series(folder: Path, skip: tuple[int, int] | None = None) -> None:
    """As I-SPY: one series, one time of acquisition, time points told apart by their temporal position."""
    for phase in range(4):
        for z in range(SHAPE[0]):
            if (phase, z) != skip:
                write_slice(
                    folder / f"IM{(phase * SHAPE[0] + z) * 13 % 23:03d}",
                    phases()[phase][z],
                    z,
                    "1.2.6",
                    SeriesNumber=4,
                    SeriesDescription="dynamic",
                    AcquisitionTime="095910",
                    TemporalPositionIdentifier=phase + 1,
                    InstanceNumber=phase * SHAPE[0] + z + 1,
                )


def write_segmentation(path: Path, folder: Path) -> None:
    """The mask as DICOM SEG on the first phase; slices without a lesion are left out."""
    images = [dcmread(path) for path in folder.rglob("*") if path.is_file()]
    images.sort(key=lambda i: (-i.SeriesNumber, i.get("TemporalPositionIdentifier", 0)))
    images = sorted(images[: SHAPE[0]], key=lambda i: float(np.dot(ALONG_Z, i.ImagePositionPatient)))
    described = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label="lesion",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type="MANUAL",
    )
    made = highdicom.seg.Segmentation(
        source_images=images,
        pixel_array=mask(),
        segmentation_type="BINARY",
        segment_descriptions=[described],
        series_instance_uid=generate_uid(),
        series_number=100,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="test",
        manufacturer_model_name="test",
        software_versions="1",
        device_serial_number="1",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path)


def write_nifti(root: Path, name: str) -> None:
    """The same exam as SimpleITK writes it in NIfTI."""
    folder = root / "images" / name
    folder.mkdir(parents=True)
    for phase, volume in enumerate(phases()):
        nibabel.save(nibabel.Nifti1Image(volume.transpose(2, 1, 0), AFFINE), folder / f"{name}_{phase:04d}.nii.gz")
    write_nifti_mask(root / "segmentations" / f"{name}.nii.gz")


def write_nifti_mask(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(mask().transpose(2, 1, 0), AFFINE), path)


@pytest.mark.parametrize("write", [write_each_phase_as_a_series, write_one_series])
def test_time_points_are_sorted_rescaled_and_placed(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path)
    (tmp_path / "LICENSE").write_text("no DICOM")
    found = first_time_points(tmp_path, 4)
    np.testing.assert_array_equal(np.stack([point.read() for point in found]), phases())
    for point in found:
        assert point.shape == SHAPE
        np.testing.assert_allclose(point.affine, AFFINE, atol=1e-6)


@pytest.mark.parametrize("write", [write_each_phase_as_a_series, write_one_series])
@pytest.mark.parametrize("ending", [".nii.gz", ".dcm"])
def test_an_exam_is_the_same_from_dicom_and_from_nifti(
    tmp_path: Path, write: Callable[[Path], None], ending: str
) -> None:
    write_nifti(tmp_path, "from-nifti")
    write(tmp_path / "images" / "from-dicom")
    mask_file = tmp_path / "segmentations" / f"from-dicom{ending}"
    if ending == ".dcm":
        write_segmentation(mask_file, tmp_path / "images" / "from-dicom")
    else:
        write_nifti_mask(mask_file)
    wanted, got = (
        mama_mia.read_exam(tmp_path / "images", tmp_path / "segmentations", name, 0, (24, 16))
        for name in ("from-nifti", "from-dicom")
    )
    np.testing.assert_allclose(got.differences, wanted.differences, atol=1e-5)
    np.testing.assert_array_equal(got.labels, wanted.labels)
    assert got.has_lesion
    assert got.patient == "from-dicom"


def test_the_command_reads_dicom_into_the_cache(tmp_path: Path) -> None:
    write_one_series(tmp_path / "images" / "ISPY1_0001")
    target = tmp_path / "segmentations" / "expert" / "ISPY1_0001.dcm"
    write_segmentation(target, tmp_path / "images" / "ISPY1_0001")
    assert list(convert("mama-mia", tmp_path, tmp_path / "cache")) == [("ISPY1_0001", 1, 1)]
    exam = load_exam(tmp_path / "cache" / "exam-ISPY1_0001.h5")
    assert (exam.source, exam.frames, exam.differences.shape[2:]) == ("synthetic", (1, 2), (384, 384))
    assert exam.has_lesion


def test_a_segmentation_that_leaves_slices_out_lies_where_it_was_drawn(tmp_path: Path) -> None:
    write_one_series(tmp_path / "scan")
    write_segmentation(tmp_path / "seg.dcm", tmp_path / "scan")
    stored, _ = read_segmentation(tmp_path / "seg.dcm")
    assert stored.shape[0] < SHAPE[0]
    np.testing.assert_array_equal(read_mask(tmp_path / "seg.dcm", SHAPE, AFFINE), mask())
    with pytest.raises(ShapeError, match="different places"):
        read_mask(tmp_path / "seg.dcm", SHAPE, AFFINE + np.array([[0, 0, 0, 0.5]] * 3 + [[0, 0, 0, 0]]))
    with pytest.raises(ShapeError, match="different places"):
        read_mask(tmp_path / "seg.dcm", (2, *SHAPE[1:]), AFFINE)
    (tmp_path / "text.dcm").write_text("no DICOM")
    with pytest.raises(RecordingError, match="cannot read the segmentation"):
        read_mask(tmp_path / "text.dcm", SHAPE, AFFINE)


def test_a_mask_in_another_order_of_axes_is_turned_to_the_image(tmp_path: Path) -> None:
    """Converters differ in the direction of rows and slices; the place decides, not the order in the file."""
    image = nibabel.Nifti1Image(mask().transpose(2, 1, 0), AFFINE)
    turned = image.as_reoriented(np.array([[2, 1], [0, -1], [1, -1]]))
    assert turned.shape != image.shape
    nibabel.save(turned, tmp_path / "turned.nii")
    np.testing.assert_array_equal(read_mask(tmp_path / "turned.nii", SHAPE, AFFINE), mask())
    halves = nibabel.Nifti1Image(mask().transpose(2, 1, 0) * 0.5, AFFINE)
    nibabel.save(halves, tmp_path / "halves.nii")
    with pytest.raises(ScanError, match="no classes"):
        read_mask(tmp_path / "halves.nii", SHAPE, AFFINE)


def test_missing_files_and_other_series_are_refused(tmp_path: Path) -> None:
    write_each_phase_as_a_series(tmp_path / "two", (0, 1))
    with pytest.raises(RecordingError, match="2 time points found, 3 needed"):
        first_time_points(tmp_path / "two", 3)
    write_one_series(tmp_path / "hole", skip=(2, 3))
    with pytest.raises(RecordingError, match="slices have between 3 and 4 time points"):
        first_time_points(tmp_path / "hole", 3)
    write_each_phase_as_a_series(tmp_path / "gap")
    for path in (tmp_path / "gap").rglob("4.dcm"):
        path.unlink()
    with pytest.raises(RecordingError, match="not evenly spaced"):
        first_time_points(tmp_path / "gap", 3)
    with pytest.raises(RecordingError, match="no MR image"):
        first_time_points(tmp_path / "nothing", 3)


@pytest.mark.parametrize(
    ("elements", "error", "message"),
    [
        ({"PatientID": "another"}, RecordingError, "2 patients"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SUBTRACTION"]}, RecordingError, "derived ones"),
        ({"SeriesInstanceUID": "1.2.7", "PixelSpacing": [9, 9]}, RecordingError, "at least two slices"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}, ShapeError, "different grids"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4.1"}, RecordingError, "multi-frame"),
        ({"TemporalPositionIdentifier": 4, "InstanceNumber": 16}, RecordingError, "told apart"),
    ],
)
def test_one_strange_file_is_named_not_averaged(
    tmp_path: Path, elements: dict[str, Any], error: type[Exception], message: str
) -> None:
    write_one_series(tmp_path)
    common: dict[str, Any] = {"SeriesNumber": 4, "SeriesDescription": "dynamic", "AcquisitionTime": "095910"}
    write_slice(tmp_path / "strange", phases()[0][0], 0, "1.2.6", **(common | elements))
    with pytest.raises(error, match=message):
        first_time_points(tmp_path, 3)


def test_a_file_that_was_cut_short_is_named(tmp_path: Path) -> None:
    write_one_series(tmp_path)
    path = tmp_path / "IM000"
    path.write_bytes(path.read_bytes()[:-20])
    points = first_time_points(tmp_path, 4)
    with pytest.raises(RecordingError, match="cannot read the pixels") as raised:
        [point.read() for point in points]
    assert raised.value.where == str(path)
