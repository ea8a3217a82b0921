"""Whole simulated exams: order, repeatability, noise scan, truth and files."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest

from kstream.simulate import BreastExam, BreastProtocol, save_exam, simulate_breast_exam
from kstream.types import AcquisitionFlag as Flag

SMALL = BreastProtocol(matrix=27, n_slices=11, n_coils=3, n_spokes=5, n_lesions=1, n_noise_readouts=64)


@pytest.fixture(scope="module")
def exam() -> BreastExam:
    return simulate_breast_exam(SMALL, seed=12)


def test_noise_scan_comes_first_then_every_readout(exam: BreastExam) -> None:
    kinds = [a.has(Flag.IS_NOISE_MEASUREMENT) for a in exam.acquisitions]
    assert kinds == [True] * 64 + [False] * (15 * SMALL.n_partitions)
    for acquisition in exam.acquisitions:
        assert acquisition.data.shape == (3, 54)
        assert acquisition.data.dtype == np.complex64
        assert acquisition.trajectory.dtype == np.float32
    assert exam.acquisitions[0].trajectory.shape == (54, 0)
    assert exam.acquisitions[-1].trajectory.shape == (54, 2)
    assert exam.acquisitions[-1].has(Flag.LAST_IN_MEASUREMENT)


def test_exam_carries_its_header_and_truth(exam: BreastExam) -> None:
    assert b"goldenangle" in exam.scan.xml
    assert exam.truth_labels.shape == exam.geometry.shape == (11, 27, 27)
    assert exam.truth_labels.dtype == np.uint8
    truth = exam.truth()
    assert len(truth["lesions"]) == 1
    assert truth["lesion_voxels"] == exam.truth_labels.sum()


def test_equal_seeds_give_equal_bytes(exam: BreastExam) -> None:
    again, other = simulate_breast_exam(SMALL, seed=12), simulate_breast_exam(SMALL, seed=13)
    assert all(a.data.tobytes() == b.data.tobytes() for a, b in zip(exam.acquisitions, again.acquisitions, strict=True))
    assert again.scan.xml == exam.scan.xml
    assert other.acquisitions[-1].data.tobytes() != exam.acquisitions[-1].data.tobytes()


def test_noise_of_the_readouts_is_that_of_the_noise_scan(exam: BreastExam) -> None:
    clean = simulate_breast_exam(replace(SMALL, snr=0.0), seed=12)
    pairs = list(zip(exam.acquisitions, clean.acquisitions, strict=True))
    noise = np.concatenate([a.data - b.data for a, b in pairs[64:]], axis=1)
    scan = np.concatenate([a.data for a, _ in pairs[:64]], axis=1)
    assert all(not b.data.any() for _, b in pairs[:64])
    in_data, in_scan = (n @ n.conj().T / n.shape[1] for n in (noise, scan))
    np.testing.assert_allclose(in_data, in_scan, atol=0.08 * np.abs(in_scan).max())
    assert np.abs(in_scan[0, 1]) > 0  # coils are correlated


def test_lesion_free_exam_has_an_empty_truth() -> None:
    exam = simulate_breast_exam(replace(SMALL, n_lesions=0), seed=1)
    assert exam.lesions == []
    assert not exam.truth_labels.any()


def test_progress_names_its_steps_and_reaches_the_end() -> None:
    seen: list[tuple[str, float]] = []
    simulate_breast_exam(replace(SMALL, n_coils=2), seed=1, progress=lambda step, part: seen.append((step, part)))
    assert seen == [
        ("building the phantom", 0.0),
        ("building the phantom", 1.0),
        ("sampling k-space", 0.5),
        ("sampling k-space", 1.0),
    ]


def test_saved_exam_has_its_truth_beside_it(exam: BreastExam, tmp_path: Path) -> None:
    path = tmp_path / "new" / "scan.h5"
    save_exam(exam, path)
    with h5py.File(path) as file:
        assert len(file["dataset/data"]) == len(exam.acquisitions)
    labels = nibabel.Nifti1Image.from_filename(tmp_path / "new" / "scan.truth.nii.gz").get_fdata()
    assert labels.sum() == exam.truth_labels.sum()
    truth = json.loads((tmp_path / "new" / "scan.truth.json").read_text(encoding="utf-8"))
    assert truth["seed"] == 12
    assert truth["protocol"]["matrix"] == 27
