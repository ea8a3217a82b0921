"""Contrast kinetics against published values, closed forms and brute-force integration."""

import numpy as np
import pytest

from kstream.errors import ConfigError
from kstream.simulate.breast.kinetics import (
    Bolus,
    TissueCurves,
    exponential_convolution,
    extended_tofts,
    parker_aif,
    spoiled_gradient_echo,
    temporal_basis,
)
from kstream.simulate.breast.lesions import Kinetics, random_kinetics


def test_population_aif_has_the_published_peak_and_washout() -> None:
    # Table 1 of Parker et al. by hand: first pass 5.733, recirculation 0.337, washout switched off.
    assert parker_aif(0.17046) == pytest.approx(5.733 + 0.337, abs=5e-3)
    assert parker_aif(5.0) == pytest.approx(1.050 * np.exp(-0.1685 * 5.0), rel=1e-6)
    minutes = np.linspace(0, 5, 5001)
    assert minutes[np.argmax(parker_aif(minutes))] == pytest.approx(0.17, abs=0.01)


def test_nothing_flows_before_the_bolus_arrives() -> None:
    assert np.all(parker_aif(np.array([-1.0, -1e-9])) == 0)
    assert np.all(Bolus(arrival_s=20.0).plasma_mm([0.0, 19.9]) == 0)


def test_plasma_is_blood_without_cells() -> None:
    bolus = Bolus(arrival_s=0.0, dose=2.0, haematocrit=0.4)
    assert bolus.plasma_mm(60.0) == pytest.approx(2.0 * parker_aif(1.0) / 0.6)


def test_tofts_with_plasma_only_follows_plasma() -> None:
    times = np.arange(0.0, 60.0, 0.5)
    plasma = parker_aif(times / 60)
    np.testing.assert_allclose(extended_tofts(times, plasma, 0.0, 0.3, 0.07)[:, 0], 0.07 * plasma)


def test_tofts_answers_a_step_with_a_saturating_exponential() -> None:
    times = np.arange(0.0, 300.0, 0.7)
    ktrans, ve = np.array([0.1, 0.8]), np.array([0.5, 0.2])
    got = extended_tofts(times, np.full(times.size, 1.5), ktrans, ve, 0.0)
    expected = 1.5 * ve * (1 - np.exp(-ktrans / ve * times[:, None] / 60))
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_zero_rate_integrates_the_plasma_curve() -> None:
    times = np.arange(0.0, 60.0, 0.5)
    plasma = parker_aif(times / 60)
    trapezoid = np.concatenate([[0], np.cumsum(0.5 * (plasma[1:] + plasma[:-1]))]) * 0.5 / 60
    got = exponential_convolution(times, plasma, np.array([0.0, 1e-9]))
    np.testing.assert_allclose(got, np.stack([trapezoid, trapezoid], axis=1), rtol=1e-8)


def test_table_of_curves_agrees_with_direct_integration() -> None:
    bolus = Bolus(arrival_s=13.0)
    ktrans, ve, vp = np.array([0.04, 0.3, 0.9]), np.array([0.4, 0.3, 0.25]), np.array([0.0, 0.02, 0.05])
    fine = np.arange(0.0, 120.0, 0.01)
    direct = extended_tofts(fine, bolus.plasma_mm(fine), ktrans, ve, vp)
    curves = TissueCurves(bolus, 119.0)
    for time_s in (5.0, 21.37, 30.0, 77.77, 119.0):
        got = curves.concentration_mm(time_s, ktrans, ve, vp)
        np.testing.assert_allclose(got, direct[round(time_s / 0.01)], rtol=1e-3, atol=1e-4)


def test_signal_peaks_at_the_ernst_angle() -> None:
    angles = np.linspace(0.01, 1.0, 4000)
    signal = spoiled_gradient_echo(1 / 1.4, 0.0, tr_ms=6.0, te_ms=0.0, flip_rad=angles)
    assert angles[np.argmax(signal)] == pytest.approx(np.arccos(np.exp(-6e-3 / 1.4)), abs=5e-4)


def test_long_repetition_gives_full_magnetisation_and_echo_time_decays_it() -> None:
    signal = spoiled_gradient_echo(1.0, 50.0, tr_ms=1e5, te_ms=20.0, flip_rad=0.7)
    assert float(signal) == pytest.approx(np.sin(0.7) * np.exp(-1.0), rel=1e-6)


@pytest.mark.parametrize(
    ("kinetics", "low", "high"), [("washout", 0, 0.9), ("plateau", 0.9, 1.1), ("persistent", 1.09, 2)]
)
def test_kinetic_classes_keep_their_clinical_meaning(kinetics: Kinetics, low: float, high: float) -> None:
    """Second over first post-contrast enhancement at 79 s and 154 s: below 0.9, within 10 %, above."""
    rng = np.random.default_rng(3)
    for _ in range(30):
        ktrans, ve, vp = (np.array([v]) for v in random_kinetics(rng, kinetics))
        curves = TissueCurves(Bolus(10 + rng.uniform(12, 20)), 160.0)
        signal = [
            float(spoiled_gradient_echo(1 / 1.45 + 4.5 * c, 26.0 + 6.0 * c, tr_ms=6, te_ms=2.5, flip_rad=0.21)[0])
            for c in (curves.concentration_mm(t, ktrans, ve, vp) for t in (0.0, 79.0, 154.0))
        ]
        assert low < (signal[2] - signal[0]) / (signal[1] - signal[0]) < high


def test_temporal_basis_carries_unseen_voxels_at_unseen_times() -> None:
    rng = np.random.default_rng(5)
    curves = TissueCurves(Bolus(20.0), 200.0)
    ktrans, ve, vp = rng.uniform(0.01, 0.9, 1500), rng.uniform(0.15, 0.5, 1500), rng.uniform(0, 0.1, 1500)
    times = np.concatenate([np.linspace(75, 83, 331), np.linspace(150, 158, 331)])
    basis = temporal_basis(lambda t: curves.concentration_mm(t, ktrans[:900], ve[:900], vp[:900]), times)
    unseen = [a[900:] for a in (ktrans, ve, vp)]
    nodes = np.stack([curves.concentration_mm(float(t), *unseen) for t in basis.node_times_s])
    got = basis.functions.T @ (basis.from_nodes @ nodes)
    exact = np.stack([curves.concentration_mm(float(t), *unseen) for t in times])
    assert basis.rank <= 6
    assert np.linalg.norm(got - exact) < 2e-4 * np.linalg.norm(exact)


def test_temporal_basis_of_nothing_is_nothing() -> None:
    basis = temporal_basis(lambda _t: np.zeros(7), np.linspace(0, 1, 11))
    assert np.all(basis.functions == 0)
    assert basis.functions.shape == (1, 11)


def test_temporal_basis_needs_times() -> None:
    with pytest.raises(ConfigError, match="no readout times"):
        temporal_basis(lambda _t: np.zeros(3), np.zeros(0))
