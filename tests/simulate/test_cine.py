"""Cine scans: which lines, when, what they hold, and what a scanner would write about them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kstream.config import resolve
from kstream.errors import ConfigError
from kstream.mrd.header import parse_header
from kstream.mrd.messages import Image
from kstream.mrd.recording import Recording
from kstream.pipeline import build_pipeline
from kstream.recon.fourier import to_image, to_kspace
from kstream.simulate.heart.dataset import cine_subject
from kstream.simulate.heart.exam import CineExam, save_cine_exam, simulate_cine_exam
from kstream.simulate.heart.lines import disk_lines, sampled_lines
from kstream.simulate.heart.protocol import CineProtocol
from kstream.simulate.heart.scanner import cardiac_array
from kstream.simulate.phase_map import complex_image, gaussian_phase_rad
from kstream.stream.runners import run_inline
from kstream.types import Acquisition, AcquisitionFlag

TINY = CineProtocol(
    matrix=30, n_frames=4, n_short_axis=2, n_long_axis=1, acceleration=3.0, density="normal", n_coils=3, snr=25.0,
    through_samples=1,
)  # fmt: skip


def imaging(exam: CineExam) -> list[Acquisition]:
    return [a for a in exam.acquisitions if not a.has(AcquisitionFlag.IS_NOISE_MEASUREMENT)]


# ---- lines ----


@pytest.mark.parametrize("density", ["normal", "vista", "uniform"])
@pytest.mark.parametrize("acceleration", [1.0, 2.0, 4.0, 16.0, 64.0])
def test_every_frame_has_the_same_number_of_lines(density: str, acceleration: float) -> None:
    lines = sampled_lines(density, 96, 11, acceleration, np.random.default_rng(0))  # type: ignore[arg-type]
    assert lines.shape == (11, 96)
    assert set(lines.sum(axis=1)) == {max(round(96 / acceleration), 1)}


@pytest.mark.parametrize("density", ["normal", "vista"])
def test_the_centre_is_denser(density: str) -> None:
    lines = sampled_lines(density, 100, 300, 5.0, np.random.default_rng(1))  # type: ignore[arg-type]
    share = lines.mean(axis=0)
    assert share[40:60].mean() > 2.5 * np.concatenate((share[:20], share[80:])).mean()


def test_normal_lines_have_the_spread_of_disk() -> None:
    """One line a frame is a draw from the density itself: variance 80 / 0.3."""
    lines = sampled_lines("normal", 80, 4000, 80.0, np.random.default_rng(2))
    drawn = np.flatnonzero(lines) % 80 - 40
    place = np.arange(80) - 40
    density = np.exp(-0.5 * place**2 / (80 / 0.3))  # a spread of 16.3 lines, cut at the ends
    expected = np.sqrt(np.average(place**2, weights=density))
    assert drawn.mean() == pytest.approx(0, abs=1.0)
    assert drawn.std() == pytest.approx(expected, rel=0.04)


def test_vista_fills_the_gaps_of_its_neighbours() -> None:
    """Lines repel those of the next frame: fewer are repeated than with independent draws."""
    repeated = []
    for density in ("vista", "normal"):
        lines = sampled_lines(density, 90, 40, 6.0, np.random.default_rng(3))  # type: ignore[arg-type]
        repeated.append((lines[1:] & lines[:-1]).sum())
        union = lines.reshape(10, 4, 90).any(axis=1).mean()
    assert repeated[0] < 0.6 * repeated[1]
    assert union > 0


def test_uniform_lines_are_even_and_move_on() -> None:
    lines = sampled_lines("uniform", 96, 8, 4.0, np.random.default_rng(0))
    for frame in lines:
        assert set(np.diff(np.flatnonzero(frame))) == {4}
    assert lines[:4].any(axis=0).all()


def test_lines_of_disk_add_up_to_the_acceleration() -> None:
    for acceleration in (4.0, 7.0, 64.0):
        lines = disk_lines(80, 13, acceleration, np.random.default_rng(4))
        assert lines.sum() == int(80 * 13 / acceleration)


def test_impossible_accelerations_are_refused() -> None:
    with pytest.raises(ConfigError, match="acceleration"):
        sampled_lines("normal", 30, 2, 0.5, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="acceleration"):
        CineProtocol(matrix=30, acceleration=31)


# ---- phase ----


def test_the_phase_is_smooth_and_breaks_conjugate_symmetry() -> None:
    phase = gaussian_phase_rad((51, 43), np.random.default_rng(0))
    steps = np.abs(np.diff(np.unwrap(phase, axis=0), axis=0))
    assert np.percentile(steps, 95) < 0.5
    assert np.ptp(phase) > 0.3
    image = complex_image(np.random.default_rng(1).random((2, 51, 43)), np.random.default_rng(0))
    assert np.abs(image).max() == pytest.approx(np.sqrt(2), rel=1e-5)
    np.testing.assert_allclose(np.angle(image[0])[5:9, 5:9], np.angle(image[1])[5:9, 5:9], atol=1e-4)
    kspace = to_kspace(image[0])
    mirrored = np.conj(kspace[::-1, ::-1])
    assert np.abs(kspace - mirrored).max() > 0.05 * np.abs(kspace).max()


# ---- the scan ----


@pytest.fixture(scope="module")
def exam() -> CineExam:
    return simulate_cine_exam(TINY, 2)


def test_counters_cover_views_phases_and_lines(exam: CineExam) -> None:
    places = [tuple(a.counter(n) for n in ("slice", "phase", "kspace_encode_step_1")) for a in imaging(exam)]
    assert len(set(places)) == len(places) == 3 * 4 * 10
    assert {p[0] for p in places} == {0, 1, 2}
    assert {p[1] for p in places} == {0, 1, 2, 3}
    last = exam.acquisitions[-1]
    assert last.has(AcquisitionFlag.LAST_IN_MEASUREMENT)
    assert sum(a.has(AcquisitionFlag.LAST_IN_PHASE) for a in exam.acquisitions) == 12
    assert [int(a.header["scan_counter"]) for a in exam.acquisitions] == list(range(len(exam.acquisitions)))


def test_segments_share_out_over_heartbeats(exam: CineExam) -> None:
    """Time since the R wave tells the phase, and a view needs several beats."""
    rate = exam.subject.heart_rate_bpm
    protocol = replace(TINY, matrix=128, n_frames=30, acceleration=4.0)
    schedule = protocol.schedule(rate)
    phase = np.floor(schedule.since_r_s / (60 / rate) * 30 + 1e-9).astype(int)
    np.testing.assert_array_equal(phase, schedule.frame)
    assert schedule.time_s.max() > 2 * 60 / rate
    assert (np.diff(schedule.time_s) > 0).all()
    one_by_one = replace(protocol, order="frames").schedule(rate)
    assert (np.diff(one_by_one.frame) >= 0).all()
    assert (np.diff(one_by_one.time_s) > 0).all()
    angle = 2 * np.pi * one_by_one.since_r_s * rate / 60
    mean = [np.angle(np.exp(1j * angle[one_by_one.frame == f]).mean()) for f in range(30)]
    apart = np.angle(np.exp(1j * (np.array(mean) - 2 * np.pi * np.arange(30) / 30)))
    np.testing.assert_allclose(apart, 0, atol=1e-6)  # the stamps of a frame lie around the phase that it shows


def test_slices_lie_where_the_views_do(exam: CineExam) -> None:
    for acquisition in imaging(exam)[::17]:
        geometry = exam.views[acquisition.counter("slice")].geometry
        np.testing.assert_allclose(acquisition.header["position"], geometry.position_mm, atol=1e-3)
        directions = [acquisition.header[n] for n in ("read_dir", "phase_dir", "slice_dir")]
        np.testing.assert_allclose(np.array(directions) @ np.array(directions).T, np.eye(3), atol=1e-5)
    short = [v.geometry for v in exam.views if v.is_short_axis]
    np.testing.assert_allclose(short[0].slice_dir, short[1].slice_dir)


def test_the_recording_is_what_a_scanner_writes(exam: CineExam, tmp_path: Path) -> None:
    save_cine_exam(exam, tmp_path / "scan.h5")
    with Recording(tmp_path / "scan.h5") as recording:
        read = list(recording.acquisitions())
        scan = parse_header(recording.xml)
    assert len(read) == len(exam.acquisitions)
    assert scan.recon_matrix == (30, 30, 1)
    assert scan.limit("phase").maximum == 3
    assert scan.user_parameters["views"] == "4ch sax0 sax1"
    np.testing.assert_array_equal(np.load(tmp_path / "scan.truth.npz")["labels"], exam.truth_labels)


def test_one_coil_without_noise_is_the_kspace_of_the_training_images() -> None:
    protocol = replace(TINY, n_coils=1, snr=0.0, readout_oversampling=1)
    exam = simulate_cine_exam(protocol, 2)
    kspace = to_kspace(cine_subject(protocol, 2).images)
    for acquisition in imaging(exam)[::7]:
        place = tuple(acquisition.counter(n) for n in ("slice", "phase", "kspace_encode_step_1"))
        expected = kspace[place]
        assert np.abs(acquisition.data[0] - expected).max() < 1e-4 * np.abs(kspace).max()


@pytest.mark.parametrize("trajectory", ["cartesian", "radial"])
def test_fully_sampled_scans_reconstruct_to_the_heart(trajectory: str) -> None:
    protocol = replace(TINY, matrix=48, n_frames=2, acceleration=1.0, trajectory=trajectory, n_coils=4)  # type: ignore
    exam = simulate_cine_exam(protocol, 2)
    preset = "recon-cartesian" if trajectory == "cartesian" else "recon-radial"
    items = run_inline(build_pipeline(exam.scan, resolve(preset).config).pipeline, exam.acquisitions)
    images = {(int(i.header["slice"]), int(i.header["phase"])): i.data[0, 0] for i in items if isinstance(i, Image)}
    assert set(images) == {(s, f) for s in range(3) for f in range(2)}
    truth = np.abs(cine_subject(protocol, 2).images)
    middle = slice(12, 36), slice(12, 36)
    for (number, frame), image in images.items():
        found = np.corrcoef(image[middle].ravel(), truth[number, frame][middle].ravel())[0, 1]
        assert found > 0.8, (number, frame)  # the coils shade it


def test_noise_has_the_promised_level() -> None:
    silent, noisy = (simulate_cine_exam(replace(TINY, snr=snr), 2) for snr in (0.0, 25.0))
    pairs = zip(imaging(silent), imaging(noisy), strict=True)
    noise = np.concatenate([b.data - a.data for a, b in pairs], axis=1)
    recorded = np.concatenate(
        [a.data for a in noisy.acquisitions if a.has(AcquisitionFlag.IS_NOISE_MEASUREMENT)], axis=1
    )
    np.testing.assert_allclose(np.abs(noise).std(axis=1), np.abs(recorded).std(axis=1), rtol=0.15)
    assert all(not a.data.any() for a in silent.acquisitions if a.has(AcquisitionFlag.IS_NOISE_MEASUREMENT))


def test_breathing_changes_lines_but_not_the_count() -> None:
    still = simulate_cine_exam(replace(TINY, snr=0.0), 2)
    breathing = simulate_cine_exam(replace(TINY, snr=0.0, breath_mm=25.0, order="frames"), 2)
    assert len(still.acquisitions) == len(breathing.acquisitions)
    differences = [
        float(np.abs(a.data - b.data).max()) for a, b in zip(imaging(still), imaging(breathing), strict=True)
    ]
    assert max(differences) > 0
    moved = simulate_cine_exam(replace(TINY, breath_mm=25.0), 2)
    assert (moved.truth_labels != still.truth_labels).any()


def test_equal_seeds_give_equal_bytes(exam: CineExam) -> None:
    again = simulate_cine_exam(TINY, 2)
    for a, b in zip(exam.acquisitions[::9], again.acquisitions[::9], strict=True):
        np.testing.assert_array_equal(a.data, b.data)
        assert a.header == b.header


def test_loops_lie_on_both_sides_and_look_at_the_heart() -> None:
    loops = cardiac_array(7)
    assert len(loops) == 7
    assert {np.sign(loop.centre_mm[1]) for loop in loops} == {-1.0, 1.0}
    for loop in loops:
        assert loop.normal @ (np.array([25.0, -10.0, -10.0]) - loop.centre_mm) > 0


def test_training_images_are_those_of_a_band_limited_scan() -> None:
    subject = cine_subject(TINY, 2)
    assert subject.images.shape == subject.labels.shape == (3, 4, 30, 30)
    assert subject.images.dtype == np.complex64
    bright = np.abs(subject.images)[subject.labels == 1].mean()
    dark = np.abs(subject.images)[subject.labels == 2].mean()
    assert bright > 1.4 * dark
    np.testing.assert_allclose(to_image(to_kspace(subject.images)), subject.images, atol=1e-5)
