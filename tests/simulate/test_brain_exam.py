"""Whole simulated brain exams: order, noise, lines, truth, repeatability and files."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest

from kstream.errors import ConfigError
from kstream.readouts.oversampling import cropped
from kstream.recon.fourier import to_image
from kstream.simulate.brain.exam import BrainExam, save_brain_exam, simulate_brain_exam
from kstream.simulate.brain.head import Tissue
from kstream.simulate.brain.protocol import BrainProtocol
from kstream.simulate.brain.scanner import LABELS, fold_tissues
from kstream.types import AcquisitionFlag as Flag

SMALL = BrainProtocol(
    matrix=(36, 45), n_slices=5, voxel_mm=(5.0, 4.8, 8.0), n_centre=8, n_noise_readouts=6, concatenations=2
)


@pytest.fixture(scope="module")
def exam() -> BrainExam:
    return simulate_brain_exam(SMALL, seed=3)


def images_of(samples: np.ndarray) -> np.ndarray:
    """Images ``(slices, y, x)`` of the first coil, without readout oversampling."""
    return to_image(cropped(samples[:, 0].reshape(-1, 72), 36).reshape(-1, 45, 36))


def counters(exam: BrainExam, name: str) -> list[int]:
    return [a.counter(name) for a in exam.acquisitions[6:]]


def test_noise_comes_first_then_one_line_of_every_slice_in_each_repetition(exam: BrainExam) -> None:
    assert [a.has(Flag.IS_NOISE_MEASUREMENT) for a in exam.acquisitions] == [True] * 6 + [False] * (14 * 5)
    assert counters(exam, "slice")[:6] == [0, 2, 1, 0, 2, 1]
    assert counters(exam, "slice")[14 * 3 :][:4] == [3, 4, 3, 4]
    stamps = np.array([int(a.header["acquisition_time_stamp"]) for a in exam.acquisitions[6:]])
    tr_ticks = exam.head.tr_ms / 2.5
    assert stamps[3] - stamps[0] == pytest.approx(tr_ticks, abs=1)
    assert stamps[14 * 3] - stamps[0] == pytest.approx(14 * tr_ticks, abs=1)
    assert (np.diff(stamps) > 0).all()


def test_lines_carry_their_counter_place_and_flags(exam: BrainExam) -> None:
    acquired = np.flatnonzero(exam.lines)
    assert len(acquired) == SMALL.n_lines == 14
    for number in range(5):
        mine = [a for a in exam.acquisitions[6:] if a.counter("slice") == number]
        assert [a.counter("kspace_encode_step_1") for a in mine] == acquired.tolist()
        assert [a.has(Flag.LAST_IN_SLICE) for a in mine] == [False] * 13 + [True]
        assert mine[0].header["position"][2] == pytest.approx(16 + 8 * (number - 2))
        assert np.array_equal(mine[4].data, exam.samples[number, :, acquired[4]])
    assert exam.acquisitions[-1].has(Flag.LAST_IN_MEASUREMENT)
    assert exam.acquisitions[-1].data.shape == (1, 72)


def test_the_header_says_what_a_receiver_needs(exam: BrainExam) -> None:
    scan = exam.scan
    assert (scan.trajectory, scan.recon_matrix, scan.encoded_matrix) == ("cartesian", (36, 45, 1), (72, 45, 1))
    assert scan.user_parameters["readouts_per_frame"] == 14
    assert scan.limit("slice").size == 5
    assert scan.limit("kspace_encode_step_1").center == 22
    assert scan.te_ms == pytest.approx(exam.head.te_ms, rel=1e-4)
    assert b"cartesian" in scan.xml


@pytest.mark.parametrize("level", [0.1, 0.2])
def test_noise_is_the_wanted_part_of_white_matter_in_the_image(level: float) -> None:
    protocol = replace(SMALL, noise=level, fraction=1.0)
    exam = simulate_brain_exam(protocol, seed=3)
    kept = [images_of(samples) for samples in (exam.samples, exam.head.samples)]
    noise = kept[0] - kept[1]
    assert noise.real.std() == pytest.approx(level * exam.head.white, rel=0.03)
    assert noise.imag.std() == pytest.approx(level * exam.head.white, rel=0.03)
    white = exam.head.tissues == Tissue.WHITE
    inner = white & np.roll(white, 1, 1) & np.roll(white, -1, 1) & np.roll(white, 1, 2) & np.roll(white, -1, 2)
    assert np.abs(kept[1])[inner].mean() == pytest.approx(exam.head.white, rel=0.1)


def test_echo_times_vary_within_five_percent_and_change_the_contrast() -> None:
    times = np.array([SMALL.drawn_times_ms(np.random.default_rng(seed)) for seed in range(200)])
    assert np.abs(times / (80, 3000) - 1).max() <= 0.05
    assert np.ptp(times, axis=0) == pytest.approx((8, 300), rel=0.1)
    short, long = (simulate_brain_exam(replace(SMALL, te_ms=te, n_slices=2, concatenations=1), 1) for te in (40, 120))
    assert short.head.white > 2 * long.head.white


def test_truth_is_the_tissue_at_every_voxel(exam: BrainExam) -> None:
    assert exam.truth_labels.shape == exam.geometry.shape == (5, 45, 36)
    tissues = exam.head.tissues
    for label, tissue in ((1, Tissue.CSF), (2, Tissue.GREY), (3, Tissue.WHITE)):
        assert np.array_equal(exam.truth_labels == label, tissues == tissue)
    assert np.array_equal(fold_tissues(tissues), exam.truth_labels)
    truth = exam.truth()
    assert truth["voxels"]["white_matter"] == truth["tissues"]["white"] == (exam.truth_labels == 3).sum()
    assert truth["lines"] == np.flatnonzero(exam.lines).tolist()


def test_csf_is_brighter_than_grey_and_grey_than_white_matter() -> None:
    exam = simulate_brain_exam(replace(SMALL, noise=0.0, fraction=1.0), seed=5)
    image = np.abs(images_of(exam.head.samples))
    csf, grey, white = (image[exam.truth_labels == label].mean() for label in (1, 2, 3))
    assert csf > 1.1 * grey > 1.1 * 1.1 * white


def test_equal_seeds_give_equal_bytes(exam: BrainExam) -> None:
    again, other = simulate_brain_exam(SMALL, seed=3), simulate_brain_exam(SMALL, seed=4)
    assert all(a.data.tobytes() == b.data.tobytes() for a, b in zip(exam.acquisitions, again.acquisitions, strict=True))
    assert again.scan.xml == exam.scan.xml
    assert other.samples.tobytes() != exam.samples.tobytes()


def test_partial_volume_and_slice_profile_blur_what_crisp_voxels_do_not() -> None:
    crisp = replace(SMALL, oversampling=1, texture=0.0, noise=0.0, fraction=1.0, readout_oversampling=1, n_slices=2)
    plain, through = (simulate_brain_exam(replace(crisp, concatenations=1, through_samples=n), 3) for n in (1, 3))
    levels = [np.unique(np.abs(to_image(e.head.samples[0, 0])).round(4)).size for e in (plain, through)]
    assert levels[0] <= len(Tissue) + 1  # background is not quite 0
    assert levels[1] > 3 * levels[0]


def test_imperfections_change_the_image_but_not_its_truth() -> None:
    imperfect = replace(SMALL, n_slices=2, concatenations=1, b0_hz=150.0, t2_star=True, coil_shading=0.3, noise=0.0)
    clean, bad = (simulate_brain_exam(p, 3) for p in (replace(imperfect, b0_hz=0, t2_star=False), imperfect))
    assert np.array_equal(clean.truth_labels, bad.truth_labels)
    change = np.linalg.norm(bad.samples - clean.samples) / np.linalg.norm(clean.samples)
    assert 0.05 < change < 0.9


def test_an_array_of_coils_sees_the_head_from_different_sides() -> None:
    exam = simulate_brain_exam(replace(SMALL, n_coils=4, n_slices=1, concatenations=1, noise=0.0, fraction=1.0), 3)
    assert exam.acquisitions[-1].data.shape == (4, 72)
    images = np.abs(to_image(cropped(exam.head.samples[0].reshape(-1, 72), 36).reshape(4, 45, 36)))
    y, x = np.indices((45, 36))
    centres = [((image * y).sum() / image.sum(), (image * x).sum() / image.sum()) for image in images]
    assert np.ptp(centres, axis=0).max() > 3


def test_saved_exam_has_its_truth_beside_it(exam: BrainExam, tmp_path: Path) -> None:
    path = tmp_path / "new" / "scan.h5"
    save_brain_exam(exam, path)
    with h5py.File(path) as file:
        assert len(file["dataset/data"]) == len(exam.acquisitions)
    labels = nibabel.Nifti1Image.from_filename(path.with_suffix(".truth.nii.gz"))
    assert np.bincount(labels.get_fdata().astype(int).reshape(-1), minlength=4).tolist() == [
        exam.truth()["voxels"][name] for name in LABELS.names
    ]
    assert labels.header.get_zooms()[:3] == pytest.approx((5.0, 4.8, 8.0))
    truth = json.loads(path.with_suffix(".truth.json").read_text(encoding="utf-8"))
    assert truth["seed"] == 3
    assert truth["protocol"]["fraction"] == 0.3


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"fraction": 0.0}, "fraction"),
        ({"noise": float("nan")}, "noise"),
        ({"te_ms": 4000.0}, "te_ms"),
        ({"n_centre": 99}, "n_centre"),
        ({"concatenations": 6}, "concatenations"),
        ({"bandwidth_hz_per_pixel": 5.0}, "does not fit"),
        ({"relaxation": "brainweb-2"}, "relaxation"),
    ],
)
def test_impossible_protocols_are_refused(change: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        replace(SMALL, **change)  # type: ignore[arg-type]
