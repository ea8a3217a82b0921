from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kstream.errors import ConfigError, ScanError
from kstream.recon.fourier import to_image
from kstream.simulate.breast.exam import BreastExam, simulate_breast_exam
from kstream.simulate.breast.protocol import BreastProtocol
from kstream.training.breast.data import simulate_exam, stream_differences
from kstream.training.breast.radial import drop_spokes
from kstream.training.breast.variants import parse
from kstream.types import Acquisition, AcquisitionFlag

PROTOCOL = BreastProtocol(matrix=28, n_slices=6, n_spokes=21, n_coils=3, frame_starts_s=(0.0, 60.0), partial_fourier=1)
PRESET = "breast-dce-recon"


@pytest.fixture(scope="module")
def exam() -> BreastExam:
    return simulate_breast_exam(PROTOCOL, 4)


def spokes(acquisitions: list[Acquisition]) -> list[Acquisition]:
    return [a for a in acquisitions if not a.has(AcquisitionFlag.IS_NOISE_MEASUREMENT)]


def test_kept_spokes_are_a_scan_of_their_own(exam: BreastExam) -> None:
    kept = np.array([0, 5, 6, 20])
    scan, chosen = drop_spokes(exam.scan, exam.acquisitions, kept, 21)
    assert scan.limit("kspace_encode_step_1").size == 8
    readouts = spokes(chosen)
    assert len(readouts) == 2 * 4 * 6
    assert sorted({a.counter("kspace_encode_step_1") for a in readouts}) == list(range(8))
    assert len(chosen) - len(readouts) == PROTOCOL.n_noise_readouts
    source = next(a for a in spokes(exam.acquisitions) if a.counter("kspace_encode_step_1") == 21 + 5)
    moved = next(a for a in readouts if a.counter("kspace_encode_step_1") == 4 + 1)
    np.testing.assert_array_equal(moved.trajectory, source.trajectory)
    ratio = moved.data / source.data
    np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-4)
    assert source.counter("kspace_encode_step_1") == 26  # the recording itself is left as it was


def test_weights_are_the_gaps_between_kept_spokes(exam: BreastExam) -> None:
    kept = np.array([0, 1, 2])  # golden angles: 0, 111.2 and 42.5 degrees of half a turn
    _, chosen = drop_spokes(exam.scan, exam.acquisitions, kept, 21)
    weights = []
    for number in range(3):
        old = next(a for a in spokes(exam.acquisitions) if a.counter("kspace_encode_step_1") == number)
        new = next(a for a in spokes(chosen) if a.counter("kspace_encode_step_1") == number)
        weights.append(float(np.abs(new.data).sum() / np.abs(old.data).sum()))
    by_hand = np.array([(42.4922 + 68.7539) / 2, (68.7539 + 68.7539) / 2, (42.4922 + 68.7539) / 2]) / 60
    np.testing.assert_allclose(weights, by_hand, rtol=1e-4)


def test_all_spokes_and_few_of_them_show_the_same_object(exam: BreastExam) -> None:
    def image(factor: float) -> np.ndarray:
        scan, chosen, more = parse(f"radial-uniform-{factor}").of(exam.scan, exam.acquisitions, 21, 0)
        return np.abs(to_image(stream_differences(scan, chosen, PRESET, more, "test")[-1].data))

    whole = np.abs(to_image(stream_differences(exam.scan, exam.acquisitions, PRESET, (), "test")[-1].data))
    likeness = [float(np.corrcoef(image(factor).ravel(), whole.ravel())[0, 1]) for factor in (1, 3)]
    assert likeness[0] > 0.98
    assert 0.6 < likeness[1] < likeness[0]


def test_exams_carry_their_variants() -> None:
    protocol = {"matrix": 24, "n_slices": 6, "n_spokes": 13, "n_coils": 3, "frame_starts_s": (0.0, 60.0)}
    exam = simulate_exam(1, protocol, PRESET, (), ("radial-contiguous-2", "cg-sense-random-3"))
    assert exam.variants.keys() == {"radial-contiguous-2", "cg-sense-random-3"}
    for kspace in exam.variants.values():
        assert kspace.shape == exam.differences.shape[1:]
        assert np.isfinite(kspace).all()
        assert not np.allclose(kspace, exam.differences[-1])


def test_spokes_that_do_not_exist_or_have_no_angle_are_refused(exam: BreastExam) -> None:
    with pytest.raises(ScanError, match="cannot be kept"):
        drop_spokes(exam.scan, exam.acquisitions, np.array([0, 21]), 21)
    bare = [replace(a, trajectory=np.zeros((len(a.trajectory), 0), np.float32)) for a in exam.acquisitions]
    with pytest.raises(ScanError, match="carry their trajectory"):
        drop_spokes(exam.scan, bare, np.array([0, 1]), 21)


@pytest.mark.parametrize("name", ["radial-uniform", "radial-spiral-4", "cartesian-uniform-4", "radial-uniform-0.5"])
def test_unknown_variants_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown variant"):
        parse(name)
