import numpy as np
import pytest

from kstream.recon.density import angle_step_rad, polar_weights


def test_weights_of_spokes_fill_the_disc() -> None:
    """Weights are areas: those of all spokes add up to the disc that they cover."""
    n_samples, n_spokes = 64, 21
    radius = (np.arange(n_samples) - n_samples // 2) / 2
    k = np.stack([radius, 0 * radius, 0 * radius], 1).astype(np.float32)
    total = n_spokes * polar_weights(k, np.pi / n_spokes).sum()
    assert total == pytest.approx(np.pi * (n_samples / 4) ** 2, rel=0.02)


def test_weights_of_spiral_interleaves_fill_the_disc() -> None:
    t = np.linspace(0, 1, 4000)
    radius, turns, n_interleaves = 20 * t, 6, 11
    k = np.stack([radius * np.cos(2 * np.pi * turns * t), radius * np.sin(2 * np.pi * turns * t), 0 * t], 1)
    total = n_interleaves * polar_weights(k.astype(np.float32), 2 * np.pi / n_interleaves).sum()
    assert total == pytest.approx(np.pi * 20**2, rel=0.02)


def test_centre_sample_is_a_disc_shared_by_all_spokes() -> None:
    radius = np.arange(-4, 4) * 0.5
    k = np.stack([radius, 0 * radius, 0 * radius], 1).astype(np.float32)
    assert polar_weights(k, np.pi / 7)[4] * 7 == pytest.approx(np.pi * 0.5**2 / 4)


def test_spoke_serves_two_directions_and_an_interleave_one() -> None:
    radius = np.arange(-8, 8, dtype=np.float32)
    spoke = np.stack([radius, radius, 0 * radius], 1)
    assert angle_step_rad(spoke, 10) == pytest.approx(np.pi / 10)
    assert angle_step_rad(spoke[8:] + 0.5, 10) == pytest.approx(2 * np.pi / 10)
