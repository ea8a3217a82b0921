from __future__ import annotations

from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest

from kstream.errors import ConfigError, RecordingError, ScanError, ShapeError
from kstream.recon.fourier import to_image, to_kspace
from kstream.simulate.breast.exam import BreastExam, simulate_breast_exam
from kstream.simulate.breast.protocol import BreastProtocol
from kstream.training.breast.data import load_cohort, load_exam, save_exam
from kstream.training.experiment import Experiment
from kstream.training.readers import fastmri_breast as fastmri
from kstream.training.readers import mama_mia
from kstream.training.readers.common import differences, read_mask, synthetic_kspace
from kstream.training.readers.convert import convert, reader_recipe
from kstream.types import AcquisitionFlag, Complex

LAYOUT = fastmri.Layout(n_frames=3, spokes_per_frame=34, n_slices=8)
PROTOCOL = BreastProtocol(matrix=48, n_slices=8, n_spokes=34, n_coils=4, partial_fourier=1, n_lesions=2, snr=80)


@pytest.fixture(scope="module")
def simulated() -> BreastExam:
    return simulate_breast_exam(PROTOCOL, 3)


@pytest.fixture(scope="module")
def raw_file(simulated: BreastExam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated exam in the exact layout of the data set."""
    readouts = [a for a in simulated.acquisitions if not a.has(AcquisitionFlag.IS_NOISE_MEASUREMENT)]
    data = np.stack([a.data for a in readouts])  # spokes x partitions, coils, samples
    data = data.reshape(3 * 34, 8, 4, 96).transpose(0, 3, 2, 1)  # spokes, samples, coils, partitions
    path = tmp_path_factory.mktemp("raw") / "fastMRI_breast_003_2.h5"
    with h5py.File(path, "w") as file:
        file["kspace"] = np.stack([data.real, data.imag]).astype(np.float32)
        file["temptv"] = np.abs(np.random.default_rng(0).standard_normal((8, 3, 48, 48))).astype(np.float32)
    return path


def as_published(volume: np.ndarray) -> np.ndarray:
    """A simulated volume in the axes of the data set: x and y change places, slices count down about the middle one."""
    n = len(volume)
    return volume.transpose(0, 2, 1)[(-np.arange(n)) % n]


def image(kspace: Complex) -> np.ndarray:
    return np.abs(to_image(kspace))


def test_raw_files_are_read_in_their_published_layout(raw_file: Path, simulated: BreastExam) -> None:
    raw = fastmri.read_raw(raw_file)
    assert raw.shape == (8, 4, 102, 96)
    first = next(a for a in simulated.acquisitions if not a.has(AcquisitionFlag.IS_NOISE_MEASUREMENT))
    np.testing.assert_allclose(raw[0, :, 0], first.data)


def test_stream_and_published_recipe_give_the_same_difference(raw_file: Path, simulated: BreastExam) -> None:
    raw = fastmri.read_raw(raw_file)
    ours, frames = fastmri.streamed(raw, LAYOUT)
    theirs = differences(fastmri.batch_recipe(raw, LAYOUT))
    assert frames == (1, 2)
    assert ours.shape == theirs.shape == (2, 8, 48, 48)
    a, b = image(ours[1]), image(theirs[1])
    central = (slice(None), slice(8, 40), slice(8, 40))  # gridding without deapodisation shades the border
    assert np.corrcoef(a[central].ravel(), b[central].ravel())[0, 1] > 0.93
    truth = as_published(simulated.truth_labels) > 0
    for volume in (a, b):
        assert volume[truth].mean() > 3 * volume[~truth].mean()


def test_exams_of_all_three_methods_fit_the_cache(raw_file: Path, simulated: BreastExam, tmp_path: Path) -> None:
    mask = as_published(simulated.truth_labels)
    path = tmp_path / "fastMRI_breast_003_mask.nii"
    nibabel.save(nibabel.Nifti1Image(mask.transpose(2, 1, 0), np.eye(4)), path)
    for method, source in (("stream", "acquired"), ("batch", "acquired"), ("synthetic", "synthetic")):
        exam = fastmri.read_exam(raw_file, path, 5, method, LAYOUT)
        assert (exam.patient, exam.source, exam.frames) == ("fastMRI_breast_003", source, (1, 2))
        assert exam.has_lesion
        save_exam(exam, tmp_path / f"{method}.h5", "{}")
        again = load_exam(tmp_path / f"{method}.h5")
        np.testing.assert_array_equal(again.differences, exam.differences)
        assert again.source == source
    assert not fastmri.read_exam(raw_file, None, 5, "synthetic", LAYOUT).has_lesion
    with pytest.raises(ConfigError, match="unknown method"):
        fastmri.read_exam(raw_file, None, 5, "magic", LAYOUT)


def test_synthetic_kspace_is_the_transform_of_real_images(raw_file: Path) -> None:
    images = fastmri.read_images(raw_file)
    assert images.shape == (3, 8, 48, 48)
    kspace = synthetic_kspace(images)
    np.testing.assert_allclose(to_image(kspace).real, images, atol=1e-5)
    mirrored = np.conj(np.roll(np.flip(kspace, (-2, -1)), 1, (-2, -1)))
    np.testing.assert_allclose(kspace, mirrored, atol=1e-3)  # Hermitian: it carries no phase
    made = differences(kspace)
    rms = np.sqrt(np.mean(np.abs(kspace[0]) ** 2))
    np.testing.assert_allclose(made[1], (kspace[2] - kspace[0]) / rms, atol=1e-5)


def test_wrong_layouts_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "combined_2.h5", "w") as file:
        file["kspace"] = np.zeros((8, 3, 48, 48), np.complex64)
    with pytest.raises(RecordingError, match="not float \\(2, spokes"):
        fastmri.read_raw(tmp_path / "combined_2.h5")
    with pytest.raises(RecordingError, match="temptv"):
        fastmri.read_images(tmp_path / "combined_2.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(RecordingError, match="cannot read"):
        fastmri.read_raw(tmp_path / "text.h5")
    with pytest.raises(ScanError, match="missing time points"):
        fastmri.as_scan(np.zeros((8, 4, 3 * 34 - 1, 96), np.complex64), LAYOUT)
    with pytest.raises(ScanError, match="missing time points"):
        fastmri.batch_recipe(np.zeros((8, 4, 3 * 34 - 1, 96), np.complex64), LAYOUT)
    with h5py.File(tmp_path / "nan_2.h5", "w") as file:
        file["kspace"] = np.full((2, 7, 6, 5, 4), np.nan, np.float32)
        file["temptv"] = np.zeros((8, 1, 6, 6), np.float32)
    with pytest.raises(ScanError, match="not finite"):
        fastmri.read_raw(tmp_path / "nan_2.h5")
    with pytest.raises(ScanError, match="1 time point"):
        fastmri.read_images(tmp_path / "nan_2.h5")


def test_missing_and_empty_time_points_are_refused() -> None:
    with pytest.raises(ScanError, match="1 time point"):
        differences(np.ones((1, 2, 3, 4), np.complex64))
    with pytest.raises(ScanError, match="RMS of 0"):
        differences(np.zeros((3, 2, 3, 4), np.complex64))
    broken = np.ones((3, 2, 3, 4), np.complex64)
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(ScanError, match="RMS of nan"):
        differences(broken)


def test_masks_must_fit(tmp_path: Path) -> None:
    mask = np.zeros((5, 4, 3), np.float32)
    mask[1, 1, 1] = 1
    nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), tmp_path / "mask.nii")
    assert read_mask(tmp_path / "mask.nii", (3, 4, 5)).sum() == 1
    with pytest.raises(ShapeError, match="different geometry"):
        read_mask(tmp_path / "mask.nii", (4, 4, 5))
    with pytest.raises(ShapeError, match="different places"):
        read_mask(tmp_path / "mask.nii", (3, 4, 5), np.diag([1.0, 1, 2, 1]))
    for value, name in ((0.5, "fraction"), (np.nan, "nan")):
        mask[2, 2, 2] = value
        nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), tmp_path / f"{name}.nii")
        with pytest.raises(ScanError, match="no classes"):
            read_mask(tmp_path / f"{name}.nii", (3, 4, 5))
    with pytest.raises(RecordingError, match="cannot read"):
        read_mask(tmp_path / "nothing.nii", (3, 4, 5))


@pytest.fixture
def duke(tmp_path: Path) -> Path:
    """One patient in MAMA-MIA's layout: 2 x 1.5 x 1 mm voxels along x, y, z; a block that enhances."""
    affine = np.diag([2.0, 1.5, 1.0, 1.0])
    volume = np.random.default_rng(0).uniform(10, 12, (11, 14, 9)).astype(np.float32)
    mask = np.zeros((11, 14, 9), np.uint8)
    mask[4:7, 5:9, 3:6] = 1
    (tmp_path / "images" / "DUKE_001").mkdir(parents=True)
    (tmp_path / "segmentations").mkdir()
    for phase, gain in enumerate((0, 30, 60)):
        image = nibabel.Nifti1Image(volume + gain * mask, affine)
        nibabel.save(image, tmp_path / "images" / "DUKE_001" / f"DUKE_001_{phase:04d}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(mask, affine), tmp_path / "segmentations" / "DUKE_001.nii.gz")
    return tmp_path


def test_mama_mia_is_resampled_padded_and_subtracted(duke: Path) -> None:
    exam = mama_mia.read_exam(duke / "images", duke / "segmentations", "DUKE_001", 2, size=(32, 20))
    assert exam.differences.shape == (2, 9, 32, 20)
    assert (exam.source, exam.frames, exam.voxel_size_mm) == ("synthetic", (1, 2), (1.0, 1.0, 1.0))
    assert exam.labels.sum() == pytest.approx(3 * 4 * 3 * 2 * 1.5, rel=0.25)
    enhanced = image(exam.differences[1])
    inside = enhanced[exam.labels > 0].mean()
    assert inside > 10 * enhanced[exam.labels == 0].mean()
    assert image(exam.differences[0])[exam.labels > 0].mean() == pytest.approx(inside / 2, rel=1e-3)


def test_mama_mia_with_missing_phases_or_another_geometry_is_refused(duke: Path) -> None:
    last = duke / "images" / "DUKE_001" / "DUKE_001_0002.nii.gz"
    kept = last.read_bytes()
    last.unlink()
    with pytest.raises(RecordingError, match="DUKE_001_0002"):
        mama_mia.read_exam(duke / "images", duke / "segmentations", "DUKE_001")
    nibabel.save(nibabel.Nifti1Image(np.ones((11, 14, 8), np.float32), np.eye(4)), last)
    with pytest.raises(ShapeError, match="phases of DUKE_001"):
        mama_mia.read_exam(duke / "images", duke / "segmentations", "DUKE_001")
    last.write_bytes(kept)
    nibabel.save(
        nibabel.Nifti1Image(np.ones((11, 14, 9), np.uint8), np.eye(4)), duke / "segmentations" / "DUKE_001.nii.gz"
    )
    with pytest.raises(ShapeError, match="different places"):
        mama_mia.read_exam(duke / "images", duke / "segmentations", "DUKE_001")


def test_padding_centres_and_cropping_undoes_it() -> None:
    volume = np.random.default_rng(1).uniform(1, 2, (3, 5, 8)).astype(np.float32)
    padded = mama_mia.pad_or_crop(volume, (9, 13))
    assert padded.shape == (3, 9, 13)
    np.testing.assert_array_equal(padded[:, 2:7, 2:10], volume)
    assert padded.sum() == pytest.approx(float(volume.sum()), rel=1e-6)
    np.testing.assert_array_equal(mama_mia.pad_or_crop(padded, (5, 8))[:, :, 1:], padded[:, 2:7, 3:10])
    np.testing.assert_allclose(mama_mia.taper(6, 2, 1), [0.25, 0.75, 1, 1, 1, 0.5], atol=1e-6)


def test_resampling_keeps_a_smooth_volume() -> None:
    z, y, x = np.indices((7, 9, 11)).astype(np.float32)
    made = mama_mia.resample(z * 2 + y * 1.5 + x, (2.0, 1.5, 1.0))
    assert made.shape == (14, 14, 11)
    zz, yy, xx = np.indices(made.shape)
    inside = (slice(2, 11), slice(2, 10), slice(2, 9))
    np.testing.assert_allclose(made[inside], (zz + yy + xx)[inside], atol=0.1)  # the spline bends near borders
    assert to_kspace(made.astype(np.complex64)).shape == made.shape


def test_a_data_set_becomes_cohorts_of_patients(duke: Path, tmp_path: Path) -> None:
    (duke / "segmentations" / "expert").mkdir()
    for number in range(2, 6):
        name = f"DUKE_{number:03d}"
        source = duke / "images" / "DUKE_001"
        target = duke / "images" / name
        target.mkdir()
        for path in source.iterdir():
            (target / path.name.replace("DUKE_001", name)).write_bytes(path.read_bytes())
        mask = (duke / "segmentations" / "DUKE_001.nii.gz").read_bytes()
        (duke / "segmentations" / "expert" / f"{name}.nii.gz").write_bytes(mask)
    (duke / "segmentations" / "expert" / "DUKE_001.nii.gz").write_bytes(mask)
    cache = tmp_path / "cache"
    done = list(convert("mama-mia", duke, cache))
    assert done[-1] == ("DUKE_005", 5, 5)
    experiment = Experiment.model_validate(
        {
            "name": "files",
            "description": "",
            "folds": {"n_folds": 3, "fold": 2},
            "network": {"architecture": "breast-magnitude"},
            "schedule": {"steps": 1},
        }
    )
    parts = [load_cohort(experiment, cohort, cache) for cohort in ("train", "validation", "test")]
    assert sorted(exam.patient for part in parts for exam in part) == [f"DUKE_{n:03d}" for n in range(1, 6)]
    assert [len(part) for part in parts] == [2, 1, 2]
    changed = nibabel.Nifti1Image(np.ones((11, 14, 9), np.uint8), np.eye(4))
    nibabel.save(changed, duke / "segmentations" / "expert" / "DUKE_001.nii.gz")
    with pytest.raises(RecordingError, match="another way"):
        list(convert("mama-mia", duke, cache))
    save_exam(parts[0][0], cache / "exam-other.h5", reader_recipe("fastmri-breast", None))
    with pytest.raises(RecordingError, match="mixes exams"):
        load_cohort(experiment, "train", cache)
    (cache / "exam-other.h5").write_bytes((cache / "exam-DUKE_002.h5").read_bytes()[:5000])
    with pytest.raises(RecordingError, match="cannot read the exam") as raised:
        load_cohort(experiment, "train", cache)
    assert raised.value.where.endswith("exam-other.h5")
    with pytest.raises(ConfigError, match="cohort is empty"):
        load_cohort(experiment, "train", tmp_path / "nothing")
    with pytest.raises(ConfigError, match="no exam was found"):
        list(convert("mama-mia", tmp_path / "nothing", cache))
    with pytest.raises(ConfigError, match="unknown data set"):
        list(convert("mama", duke, cache))


def test_all_exams_are_looked_at_before_the_first_is_read(duke: Path, tmp_path: Path) -> None:
    (duke / "segmentations").rename(duke / "expert")
    (duke / "segmentations").mkdir()
    (duke / "expert").rename(duke / "segmentations" / "expert")
    (duke / "images" / "DUKE_002").mkdir()
    with pytest.raises(RecordingError, match="time points of DUKE_002 are missing") as raised:
        list(convert("mama-mia", duke, tmp_path / "cache"))
    assert raised.value.where.startswith("exam DUKE_002")
    assert not (tmp_path / "cache").exists()


def test_masks_that_fit_no_exam_are_refused(raw_file: Path, tmp_path: Path) -> None:
    (tmp_path / "fastMRI_breast_3_mask.nii").write_bytes(b"")
    with pytest.raises(ConfigError, match="none of the exams has a mask"):
        list(convert("fastmri-breast-synthetic", raw_file.parent, tmp_path / "cache", tmp_path))
