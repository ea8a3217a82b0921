"""Loop fields against Biot and Savart's law, symmetry of sensitivities, statistics of receiver noise."""

import numpy as np
import pytest

from kstream.errors import ConfigError
from kstream.simulate.breast.protocol import BreastProtocol
from kstream.simulate.breast.scanner import receive_array
from kstream.simulate.coils import (
    Loop,
    breast_array,
    correlated_noise,
    loop_field,
    noise_covariance,
    receive_sensitivity,
)


def _loop(normal: tuple[float, float, float] = (0.0, 0.6, 0.8), radius: float = 50.0) -> Loop:
    return Loop(np.array([3.0, -7.0, 11.0]), np.array(normal), radius)


def test_field_on_the_axis_is_the_textbook_value() -> None:
    loop = _loop()
    for distance in (-80.0, 0.0, 35.0, 120.0):
        field = loop_field(loop, loop.centre_mm + distance * loop.normal)
        expected = 50.0**3 / (50.0**2 + distance**2) ** 1.5
        np.testing.assert_allclose(field, expected * loop.normal, atol=1e-9)


def test_field_off_the_axis_is_the_sum_over_wire_elements() -> None:
    loop = _loop()
    first = np.cross(loop.normal, [1.0, 0.0, 0.0])
    first /= np.linalg.norm(first)
    second = np.cross(loop.normal, first)
    angle = (np.arange(4000) + 0.5) * 2 * np.pi / 4000
    wire = loop.centre_mm + 50.0 * (np.cos(angle)[:, None] * first + np.sin(angle)[:, None] * second)
    element = 50.0 * (2 * np.pi / 4000) * (np.cos(angle)[:, None] * second - np.sin(angle)[:, None] * first)
    points = np.random.default_rng(1).uniform(-150, 150, (23, 3))
    points = points[np.min(np.linalg.norm(points[:, None] - wire, axis=-1), axis=1) > 20]
    offset = points[:, None] - wire
    summed = (np.cross(element, offset) / np.linalg.norm(offset, axis=-1, keepdims=True) ** 3).sum(axis=1)
    np.testing.assert_allclose(loop_field(loop, points), summed / (2 * np.pi / 50.0), atol=1e-5)


def test_field_stays_finite_at_the_wire() -> None:
    loop = Loop(np.zeros(3), np.array([0.0, 1.0, 0.0]), 40.0)
    assert np.linalg.norm(loop_field(loop, np.array([40.0, 0.0, 0.0]))) < 100


def test_flux_along_the_main_field_is_not_received() -> None:
    loop = Loop(np.zeros(3), np.array([0.0, 0.0, 1.0]), 40.0)
    assert abs(receive_sensitivity(loop_field(loop, np.array([0.0, 0.0, 30.0])))) < 1e-12


def test_turning_a_loop_about_the_main_field_turns_its_phase() -> None:
    turn = 0.7
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    loop = Loop(np.array([90.0, 10.0, 5.0]), np.array([-1.0, 0.0, 0.0]), 50.0)
    turned = Loop(rotation @ loop.centre_mm, rotation @ loop.normal, 50.0)
    points = np.random.default_rng(2).uniform(-60, 60, (11, 3))
    before = receive_sensitivity(loop_field(loop, points))
    after = receive_sensitivity(loop_field(turned, points @ rotation.T))
    np.testing.assert_allclose(after, before * np.exp(-1j * turn), atol=1e-12)


@pytest.mark.parametrize("n_coils", [1, 3, 8, 17])
def test_array_has_the_asked_number_of_loops_outside_the_breasts(n_coils: int) -> None:
    loops = breast_array(n_coils)
    assert len(loops) == n_coils
    for loop in loops:
        assert np.linalg.norm(loop.normal) == pytest.approx(1)
        assert loop.centre_mm[1] < 0
        assert loop.normal @ (loop.centre_mm - [0, 5, 0]) < 0


def test_array_without_coils_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one coil"):
        breast_array(0)


def test_interpolated_sensitivities_equal_the_field_itself() -> None:
    protocol = BreastProtocol(matrix=21, n_slices=9, n_coils=3)
    coils = receive_array(protocol, np.random.default_rng(4))
    geometry = protocol.geometry
    sensitivity = np.stack([np.abs(coils.sensitivity(c)) for c in range(3)])
    z, y, x = 8, 24, 17  # fine indices, factor 2
    position = geometry.affine_lps @ [x / 2, y / 2, z / 2, 1]
    field = [abs(receive_sensitivity(loop_field(loop, position[:3]))) for loop in breast_array(3)]
    np.testing.assert_allclose(sensitivity[:, z, y, x], field, rtol=2e-3)


def test_noise_covariance_is_a_covariance_with_correlations() -> None:
    rng = np.random.default_rng(6)
    maps = np.asarray(rng.standard_normal((5, 400)) + 1j * rng.standard_normal((5, 400)) + 1.0, dtype=np.complex128)
    covariance = noise_covariance(maps, rng)
    np.testing.assert_allclose(covariance, covariance.conj().T)
    assert np.linalg.eigvalsh(covariance).min() > 0
    assert np.trace(covariance).real == pytest.approx(5)
    assert np.abs(covariance[~np.eye(5, dtype=bool)]).max() > 0.05


def test_noise_has_the_covariance_it_was_asked_for() -> None:
    rng = np.random.default_rng(7)
    root = rng.standard_normal((3, 3)) + 1j * rng.standard_normal((3, 3))
    covariance = np.asarray(root @ root.conj().T + np.eye(3), dtype=np.complex128)
    noise = correlated_noise(covariance, (301, 257), rng)
    assert noise.shape == (301, 3, 257)
    assert noise.dtype == np.complex64
    flat = noise.transpose(1, 0, 2).reshape(3, -1).astype(np.complex128)
    scale = np.abs(covariance).max()
    np.testing.assert_allclose(flat @ flat.conj().T / flat.shape[1], covariance, atol=0.02 * scale)
    np.testing.assert_allclose(flat @ flat.T / flat.shape[1], 0, atol=0.02 * scale)  # circular
