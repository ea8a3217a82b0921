"""Tissue values and the spin-echo signal."""

import numpy as np
import pytest

from kstream.simulate.brain.head import Tissue
from kstream.simulate.brain.spin_echo import RelaxationTable, relaxation, spin_echo, tissue_lookup


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("brainweb-1", {Tissue.CSF: 0.533, Tissue.GREY: 0.318, Tissue.WHITE: 0.245, Tissue.FAT: 0.319}),
        ("brainweb-20", {Tissue.CSF: 0.603, Tissue.GREY: 0.315, Tissue.WHITE: 0.296}),
    ],
)
def test_signals_at_the_papers_times(table: RelaxationTable, expected: dict[Tissue, float]) -> None:
    signal = relaxation(table).signal(80.0, 3000.0)
    for tissue, value in expected.items():
        assert signal[tissue] == pytest.approx(value, abs=6e-4)
    assert signal[Tissue.BACKGROUND] == 0


def test_the_signal_follows_the_magnetisation_step_by_step() -> None:
    """Bloch's equations for one voxel: 90, half an echo time, 180, half an echo time, the rest of TR."""
    t1, t2, te, tr = 900.0, 80.0, 60.0, 1200.0
    mz = 1.0
    for _ in range(30):
        echo = mz * np.exp(-te / t2)
        mz = 0.0  # after the excitation
        mz = 1 - (1 - mz) * np.exp(-te / 2 / t1)
        mz = -mz  # the refocusing pulse
        mz = 1 - (1 - mz) * np.exp(-(tr - te / 2) / t1)
    assert echo == pytest.approx(float(spin_echo(1.0, t1, t2, te, tr)), rel=1e-6)


def test_subjects_have_their_own_values_within_the_spread() -> None:
    mean = relaxation("brainweb-20")
    drawn = [relaxation("brainweb-20", np.random.default_rng(seed)) for seed in range(50)]
    white = np.array([values.t1_ms[Tissue.WHITE] for values in drawn])
    assert np.ptp(white) > 200
    assert np.abs(white - mean.t1_ms[Tissue.WHITE]).max() <= 200
    for values in drawn:
        assert (values.t2_star_ms <= values.t2_ms).all()


def test_values_are_looked_up_by_tissue() -> None:
    labels = np.array([[3, 0], [2, 1]], np.uint8)
    values = np.arange(12.0) * 10
    assert np.array_equal(tissue_lookup(values, labels), [[30, 0], [20, 10]])
