from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
import pytest

from kstream.cli import export
from kstream.errors import ConfigError, RecordingError, ScanError
from kstream.mrd.messages import Image, new_acquisition
from kstream.mrd.recording import write_recording
from kstream.output.nifti import read_nifti
from tests.oblique import header_with_patient, labels_of, mrd_position_mm, oblique, write_images

NIFTI, NRRD, DICOM = export.Format
SCALINGS = pytest.mark.parametrize("rescale_slope", [None, 0.25], ids=["float32", "uint16"])


@pytest.fixture
def run(tmp_path: Path, rescale_slope: float | None) -> tuple[Path, list[Image]]:
    """A folder with what came back for two frames of an oblique scan, and the magnitude images of the last one."""
    return tmp_path, write_images(tmp_path / "images.h5", oblique(), rescale_slope)


def values_of(images: list[Image]) -> np.ndarray:
    return np.stack([image.data[0, 0] * float(str(image.meta.get("RescaleSlope", 1))) for image in images])


@SCALINGS
def test_nifti_has_values_and_places_of_the_mrd_images(run: tuple[Path, list[Image]]) -> None:
    folder, images = run
    export.command(folder, folder / "out", format=NIFTI)
    names = {f"{kind}_frame00{n}.nii.gz" for kind in ("magnitude", "labels") for n in (0, 1)}
    assert {path.name for path in (folder / "out").iterdir()} == names
    magnitude, to_ras = read_nifti(folder / "out" / "magnitude_frame001.nii.gz")
    np.testing.assert_allclose(magnitude, values_of(images), rtol=1e-6)
    for x, y, z in product((0, 4, 10), (0, 3, 6), (0, 1, 4)):
        expected_ras = mrd_position_mm(images[z].header, x, y) * (-1, -1, 1)
        np.testing.assert_allclose((to_ras @ (x, y, z, 1))[:3], expected_ras, atol=1e-3)
    labels = nibabel.nifti1.Nifti1Image.from_filename(folder / "out" / "labels_frame001.nii.gz")
    np.testing.assert_array_equal(np.asarray(labels.dataobj).transpose(2, 1, 0), labels_of(oblique()))
    assert b">lesion<" in labels.header.extensions[0].content


@SCALINGS
def test_nrrd_has_values_and_places_of_the_mrd_images(run: tuple[Path, list[Image]]) -> None:
    nrrd = pytest.importorskip("nrrd", reason="needs pynrrd, an independent reader of NRRD (extra `test`)")
    folder, images = run
    export.command(folder / "images.h5", folder / "out", format=NRRD, frame=1)
    names = {"magnitude_frame001.nrrd", "labels_frame001.seg.nrrd"}
    assert {path.name for path in (folder / "out").iterdir()} == names
    magnitude, header = nrrd.read(str(folder / "out" / "magnitude_frame001.nrrd"))
    np.testing.assert_allclose(magnitude.transpose(2, 1, 0), values_of(images), rtol=1e-6)
    for x, y, z in product((0, 4, 10), (0, 3, 6), (0, 1, 4)):
        place = header["space origin"] + np.array([x, y, z]) @ header["space directions"]
        np.testing.assert_allclose(place, mrd_position_mm(images[z].header, x, y), atol=1e-3)
    labels, header = nrrd.read(str(folder / "out" / "labels_frame001.seg.nrrd"))
    np.testing.assert_array_equal(labels.transpose(2, 1, 0), labels_of(oblique()))
    assert header["Segment0_Name"] == "lesion"
    assert header["kstream_model"] == "tiny"


@SCALINGS
def test_dicom_has_values_and_places_of_the_mrd_images(
    run: tuple[Path, list[Image]], rescale_slope: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    pydicom = pytest.importorskip("pydicom", reason="needs the extra `dicom`")
    highdicom = pytest.importorskip("highdicom", reason="needs the extra `dicom`")
    folder, images = run
    export.command(folder, folder / "out", format=DICOM, json=True)
    told = json.loads(capsys.readouterr().out)
    assert len(told["written"]) == 11
    assert told["notes"] == ["frame 0: no SEG, for the label map is empty and a SEG without a segment is invalid"]
    for z, image in enumerate(images):
        written = pydicom.dcmread(folder / "out" / "magnitude" / f"frame001_slice{z:03d}.dcm")
        values = pydicom.pixels.apply_modality_lut(written.pixel_array, written)
        np.testing.assert_allclose(values, values_of(images)[z], atol=float(written.RescaleSlope) * 0.5001)
        if rescale_slope:
            np.testing.assert_array_equal(written.pixel_array, image.data[0, 0])
        row_mm, column_mm = (float(spacing) for spacing in written.PixelSpacing)
        axes = np.reshape(np.array(written.ImageOrientationPatient, float), (2, 3))
        for x, y in product((0, 4, 10), (0, 3, 6)):
            place = np.array(written.ImagePositionPatient, float) + x * column_mm * axes[0] + y * row_mm * axes[1]
            np.testing.assert_allclose(place, mrd_position_mm(image.header, x, y), atol=1e-3)
    seg = highdicom.seg.segread(folder / "out" / "labels" / "frame001.dcm")
    assert seg.get_segment_description(1).segment_label == "lesion"
    assert seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "tiny"


@pytest.mark.parametrize("rescale_slope", [0.25])
def test_patient_of_the_recording_is_named_only_when_asked(run: tuple[Path, list[Image]]) -> None:
    pydicom = pytest.importorskip("pydicom", reason="needs the extra `dicom`")
    pytest.importorskip("highdicom", reason="needs the extra `dicom`")
    folder, _ = run
    recording = folder / "scan.h5"
    write_recording(recording, header_with_patient(oblique()), [new_acquisition(np.ones((3, 5), np.complex64))])
    with pytest.raises(ConfigError, match="--patient"):
        export.command(folder, folder / "none", format=DICOM, patient=True)
    found = {}
    for patient in (True, False):
        out = folder / str(patient)
        export.command(folder, out, format=DICOM, recording=recording, patient=patient, frame=1)
        found[patient] = pydicom.dcmread(out / "magnitude" / "frame001_slice002.dcm")
        assert float(found[patient].RepetitionTime) == 4.7
        assert found[patient].PatientPosition == "FFP"
    assert (found[True].PatientName, found[True].StudyInstanceUID) == ("Doe^Jörg", "1.2.840.99.5")
    written = [pydicom.dcmread(path) for path in (folder / "False").rglob("*.dcm")]
    # Any digits may turn up in pixels and in UIDs, which are random.
    told = " ".join(str(e.value) for ds in written for e in ds.iterall() if e.VR not in ("UI", "OB", "OW", "SQ"))
    assert len(written) == 6
    assert "FFP" in told
    assert not any(private in told for private in ("Doe", "4711", "19570309", "20311024"))


@pytest.mark.parametrize("rescale_slope", [None])
def test_what_cannot_be_exported_is_refused(run: tuple[Path, list[Image]]) -> None:
    folder, _ = run
    with pytest.raises(ScanError, match="series 7"):
        export.command(folder, folder / "out", magnitude_series=7)
    with pytest.raises(ScanError, match="no frame 9"):
        export.command(folder, folder / "out", frame=9)
    with pytest.raises(ScanError, match="carry no LabelTable"):
        export.command(folder, folder / "out", format=NRRD, magnitude_series=2, label_series=1)
    (folder / "empty").mkdir()
    with pytest.raises(RecordingError, match="were not found"):
        export.command(folder / "empty", folder / "out2")


@pytest.mark.parametrize("rescale_slope", [None])
def test_export_keeps_what_is_there_unless_told(run: tuple[Path, list[Image]]) -> None:
    """The command as a user types it: exit codes and the form of the error."""
    folder, _ = run
    kstream = [str(Path(sys.executable).parent / "kstream"), "export", str(folder), "--output", str(folder / "out")]
    first, again, forced = (
        subprocess.run([*kstream, *more], capture_output=True, text=True, check=False)
        for more in ([], [], ["--overwrite"])
    )
    assert (first.returncode, first.stdout) == (0, f"4 files in {folder / 'out'}\n")
    assert again.returncode == 5
    assert again.stderr.startswith("error: magnitude_frame000.nii.gz exists already")
    assert forced.returncode == 0
