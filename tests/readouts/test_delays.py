"""Gradient delays put into exact k-space of a phantom, found again, and corrected in the stream."""

from dataclasses import replace

import numpy as np
import pytest

from kstream.errors import ScanError
from kstream.readouts.delays import CorrectDelays, _spread, fit_delays, shift_of
from kstream.readouts.trajectory import PlacedAcquisition
from kstream.types import GOLDEN_ANGLE_RAD, Acquisition, AcquisitionFlag, EncodingLimit, Float, Notice, Scan
from tests import phantom
from tests.scans import StackOfStars

MATRIX, FOV = (48, 36), (320.0, 240.0)
ASPECT = FOV[1] / FOV[0]
DELAYS = np.array([[0.6, -0.2], [-0.2, -0.35]])
GOLDEN = np.arange(17) * GOLDEN_ANGLE_RAD


def delayed(angles: np.ndarray, delays: np.ndarray, sign: float = 1.0) -> tuple[np.ndarray, Float]:
    """Samples ``(spokes, coils, samples)`` where delayed gradients took them, and the nominal trajectory."""
    k = phantom.spokes(angles, MATRIX, ASPECT)
    direction = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    shift = sign * direction @ delays * 0.5 * (1.0, ASPECT)
    true = k[..., :2] - shift[:, None, :]
    return phantom.coil_kspace(true, MATRIX, 5).transpose(1, 0, 2), k


@pytest.mark.parametrize("angles", [GOLDEN, 2 * np.pi * np.arange(15) / 15, np.arange(16) * (np.pi / 16 + np.pi)])
def test_delays_are_found_with_golden_full_circle_and_alternating_spokes(angles: np.ndarray) -> None:
    data, k = delayed(angles, DELAYS)
    fit = fit_delays(data, k, FOV)
    np.testing.assert_allclose(fit.matrix, DELAYS, atol=0.03)
    assert fit.is_significant(0.05)
    assert fit.residual < 0.3 * fit.residual_before


def test_readouts_of_reversed_gradients_are_delayed_the_other_way() -> None:
    forward, k = delayed(GOLDEN, DELAYS)
    backward, _ = delayed(GOLDEN, DELAYS, sign=-1.0)
    data = np.where(np.arange(17)[:, None, None] % 2 == 0, forward, backward)
    fit = fit_delays(data, k, FOV, np.where(np.arange(17) % 2 == 0, 1.0, -1.0))
    np.testing.assert_allclose(fit.matrix, DELAYS, atol=0.05)


def test_true_trajectories_and_noise_have_no_significant_delays() -> None:
    data, k = delayed(GOLDEN, np.zeros((2, 2)))
    assert not fit_delays(data, k, FOV).is_significant(0.05)
    rng = np.random.default_rng(3)
    noise = (rng.standard_normal(data.shape) + 1j * rng.standard_normal(data.shape)).astype(np.complex64)
    assert not fit_delays(noise, k, FOV).is_significant(0.05)


def test_decaying_signal_does_not_look_like_a_delay() -> None:
    data, k = delayed(GOLDEN, DELAYS)
    decay = np.exp(-np.arange(17) / 6)[:, None, None]
    np.testing.assert_allclose(fit_delays(data * decay, k, FOV).matrix, DELAYS, atol=0.03)


@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize("first", [0.0, 0.7, 1.6])
@pytest.mark.parametrize("true", [np.zeros((2, 2)), DELAYS, np.array([[1.7, 0.3], [0.3, 1.5]])])
def test_half_a_circle_all_one_way_has_no_bias(true: np.ndarray, first: float, decays: bool) -> None:
    data, k = delayed(first + np.arange(24) * np.pi / 24, true)
    strength = np.exp(-np.arange(24) / 6) if decays else np.ones(24)
    fit = fit_delays(data * strength[:, None, None], k, FOV)
    np.testing.assert_allclose(fit.matrix, true, atol=0.02)
    assert fit.is_significant(0.05) == bool(true.any())


def test_noise_over_half_a_circle_is_no_delay() -> None:
    """White noise of 2 % of the largest sample: errors and their estimates grow alike."""
    rng = np.random.default_rng(4)
    for first in (0.0, 1.6):
        data, k = delayed(first + np.arange(24) * np.pi / 24, np.zeros((2, 2)))
        noise = rng.standard_normal(data.shape) + 1j * rng.standard_normal(data.shape)
        noisy = data + (0.02 * np.abs(data).max() * noise).astype(np.complex64)
        assert not fit_delays(noisy, k, FOV).is_significant(0.05)


def coarse(n_spokes: int, step_rad: float = GOLDEN_ANGLE_RAD) -> Float:
    """Spokes without readout oversampling."""
    radius, angles = np.arange(MATRIX[0]) - MATRIX[0] // 2, np.arange(n_spokes) * step_rad
    x, y = np.outer(np.cos(angles), radius), ASPECT * np.outer(np.sin(angles), radius)
    return np.stack([x, y, 0 * x], axis=-1).astype(np.float32)


def white(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


@pytest.mark.parametrize("n_spokes", [16, 24])
@pytest.mark.parametrize("seed", range(3))
def test_noise_without_oversampling_has_no_delays(n_spokes: int, seed: int) -> None:
    """An image of the centre has then nearly as many degrees of freedom as there are samples, and explains them."""
    noise = white(np.random.default_rng(seed), (n_spokes, 5, MATRIX[0])).astype(np.complex64)
    assert not fit_delays(noise, coarse(n_spokes), FOV).is_significant(0.05)


@pytest.mark.parametrize("seed", [1, 2, 4, 5])
@pytest.mark.parametrize("step", [GOLDEN_ANGLE_RAD, np.pi / 16])
def test_spokes_of_noise_among_good_ones_are_no_delay(step: float, seed: int) -> None:
    """Blobs with 1 % noise, and two of sixteen spokes that hold noise only."""
    rng, k = np.random.default_rng(seed), coarse(16, step)
    places, widths = np.array([[0.1, -0.15], [-0.2, 0.1], [0.0, 0.2]]), np.array([0.05, 0.08, 0.11])
    wave = np.exp(-2j * np.pi * k[..., :2] @ places.T - (np.pi * np.linalg.norm(k, axis=-1)[..., None] * widths) ** 2)
    data = (wave @ white(rng, (3, 5))).transpose(0, 2, 1)
    data += 0.01 * np.abs(data).max() * white(rng, data.shape)
    bad = rng.permutation(16)[:2]
    data[bad] = 0.01 * np.abs(data).max() * white(rng, data[bad].shape)
    assert not fit_delays(data.astype(np.complex64), k, FOV).is_significant(0.05)


def test_delays_without_oversampling_are_found() -> None:
    k = coarse(24)
    angles = np.arange(24) * GOLDEN_ANGLE_RAD
    direction = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    true = k[..., :2] - (direction @ DELAYS * (1.0, ASPECT))[:, None, :]
    fit = fit_delays(phantom.coil_kspace(true, MATRIX, 5).transpose(1, 0, 2), k, FOV)
    np.testing.assert_allclose(fit.matrix, DELAYS, atol=0.03)
    assert fit.is_significant(0.05)


def test_asymmetric_echoes_are_not_corrected_and_end_nothing() -> None:
    """Their centre lies too near the first sample for the fit."""
    items = stream(DELAYS)
    for item in items:
        item.trajectory = item.trajectory[43:]
        item.acquisition.data = item.acquisition.data[:, 43:]
    moved, told = through(CorrectDelays(scan(), "estimate", 17, 51), items)
    assert len(told) == 1
    assert "delays not sought: spokes do not pass the centre" in told[0]
    assert all(m is i for m, i in zip(moved, items, strict=True))


def test_too_few_or_curved_readouts_are_refused() -> None:
    data, k = delayed(GOLDEN, DELAYS)
    with pytest.raises(ScanError, match="7 spokes are too few"):
        fit_delays(data[:7], k[:7], FOV)
    curved = k.copy()
    curved[:, 20:] += 2
    with pytest.raises(ScanError, match="not straight"):
        fit_delays(data, curved, FOV)


def test_shift_takes_the_nominal_trajectory_to_the_true_one() -> None:
    data, k = delayed(GOLDEN, DELAYS)
    fit = fit_delays(data, k, FOV)
    moved = k[3] + shift_of(fit, k[3], FOV)
    expected = k[3, :, :2] - np.array([np.cos(GOLDEN[3]), np.sin(GOLDEN[3])]) @ DELAYS * 0.5 * (1.0, ASPECT)
    np.testing.assert_allclose(moved[:, :2], expected, atol=0.03)


STARS = StackOfStars()


def scan(trajectory: str = "goldenangle", n_slices: int = 1) -> Scan:
    limits = {
        "kspace_encode_step_1": EncodingLimit(0, 16, 0),
        "kspace_encode_step_2": EncodingLimit(0, 2, 1),
        "slice": EncodingLimit(0, n_slices - 1, 0),
    }
    return replace(STARS.scan(), recon_fov_mm=(*FOV, 50.0), trajectory=trajectory, limits=limits)


def stream(delays: np.ndarray, n_slices: int = 1) -> list[PlacedAcquisition]:
    """Spokes of three partitions; those off the centre hold noise, and must not be asked."""
    data, k = delayed(GOLDEN, delays)
    rng = np.random.default_rng(0)
    placed = []
    for spoke in range(17):
        for partition in range(3):
            for slice_ in range(n_slices):
                samples = data[spoke] if partition == 1 else rng.standard_normal(data[spoke].shape).astype(np.complex64)
                acquisition = STARS.acquisition(samples, k[spoke, :, :0], spoke, partition)
                acquisition.header["idx"]["slice"] = slice_
                placed.append(PlacedAcquisition(acquisition, k[spoke]))
    return placed


def through(stage: CorrectDelays, items: list[PlacedAcquisition]) -> tuple[list[PlacedAcquisition], list[str]]:
    out = [made for item in items for made in stage.push(item)] + stage.finish()
    return [i for i in out if isinstance(i, PlacedAcquisition)], [i.text for i in out if isinstance(i, Notice)]


def test_first_spokes_are_held_until_the_delays_are_known_and_none_is_lost() -> None:
    items = stream(DELAYS)
    stage = CorrectDelays(scan(), "estimate", 12, 51)
    counts = [len(stage.push(item)) for item in items]
    released = next(i for i, n in enumerate(counts) if n)
    assert released == 11 * 3 + 1  # the twelfth spoke of the central partition
    assert counts[released] == released + 2  # all that was held, and the notice
    assert counts[released + 1 :] == [1] * (len(items) - released - 1)
    assert stage.finish() == []


def test_every_spoke_of_every_partition_is_moved_and_the_figures_are_told() -> None:
    items = stream(DELAYS)
    moved, told = through(CorrectDelays(scan(), "estimate", 12, 51), items)
    shifts = np.array([m.trajectory[5, :2] - i.trajectory[5, :2] for m, i in zip(moved, items, strict=True)])
    expected = -np.stack([np.cos(GOLDEN), np.sin(GOLDEN)], axis=1) @ DELAYS * 0.5 * (1.0, ASPECT)
    np.testing.assert_allclose(shifts, np.repeat(expected, 3, axis=0), atol=0.03)
    assert len(told) == 1
    assert "gradient delays corrected: Sx = 0.6" in told[0]


def test_spokes_without_delays_are_not_moved() -> None:
    items = stream(np.zeros((2, 2)))
    moved, told = through(CorrectDelays(scan(), "estimate", 12, 51), items)
    assert all(m.trajectory is i.trajectory for m, i in zip(moved, items, strict=True))
    assert "no significant gradient delays" in told[0]


def test_each_slice_has_its_own_delays() -> None:
    items = stream(DELAYS, n_slices=2)
    for item in items:
        if item.acquisition.counter("slice") == 1:
            item.trajectory = item.trajectory + np.float32(0)
    moved, told = through(CorrectDelays(scan(n_slices=2), "estimate", 12, 51), items)
    assert len(moved) == len(items)
    assert [text[:8] for text in told] == ["slice 0:", "slice 1:"]


def test_holding_is_bounded_by_a_frame_and_by_the_end_of_the_scan() -> None:
    items = stream(DELAYS)
    moved, told = through(CorrectDelays(scan(), "estimate", 12, 20), items)
    assert len(moved) == len(items)
    assert "do not suffice" in told[0]
    moved, told = through(CorrectDelays(scan(), "estimate", 12, 51), items[:10])
    assert len(moved) == 10
    assert "3 spokes do not suffice" in told[0]


def test_narrow_fan_of_spokes_waits_for_wider_ones() -> None:
    data, k = delayed(np.arange(34) * np.pi / 34, DELAYS)
    items = [
        PlacedAcquisition(STARS.acquisition(d, t[:, :0], i, 1), t) for i, (d, t) in enumerate(zip(data, k, strict=True))
    ]
    stage = CorrectDelays(scan("radial"), "estimate", 10, 34)
    counts = [len(stage.push(item)) for item in items]
    assert counts.index(max(counts)) > 20


def test_known_delays_need_no_waiting_and_reversed_readouts_move_the_other_way() -> None:
    items = stream(DELAYS)[:2]
    items[1].acquisition.header["flags"] = np.uint64(AcquisitionFlag.IS_REVERSE)
    stage = CorrectDelays(scan(), (0.5, 0.5, 0.0), 12, 51)
    notice, first = stage.push(items[0])
    (second,) = stage.push(items[1])
    assert "as set" in notice.text
    for moved, item, sign in ((first, items[0], 1), (second, items[1], -1)):
        np.testing.assert_allclose(moved.trajectory[:, 0] - item.trajectory[:, 0], -sign * 0.25, atol=1e-5)


@pytest.mark.parametrize("trajectory", ["cartesian", "epi", "spiral"])
def test_other_trajectories_pass_untouched(trajectory: str) -> None:
    items = stream(DELAYS)[:3]
    stage = CorrectDelays(scan(trajectory), "estimate", 12, 51)
    assert [stage.push(item) for item in items] == [[item] for item in items]


def test_curved_readouts_of_another_trajectory_pass_untouched() -> None:
    turns = np.linspace(0, 9, 96, dtype=np.float32)
    spiral = np.stack([turns * np.cos(turns), turns * np.sin(turns), 0 * turns], axis=1)
    acquisition: Acquisition = stream(DELAYS)[0].acquisition
    item = PlacedAcquisition(acquisition, spiral)
    assert CorrectDelays(scan("other"), "estimate", 12, 51).push(item) == [item]


def central(angles: np.ndarray, delays: np.ndarray) -> list[PlacedAcquisition]:
    """Spokes of the central partition."""
    data, k = delayed(angles, delays)
    return [
        PlacedAcquisition(STARS.acquisition(d, t[:, :0], i, 1), t) for i, (d, t) in enumerate(zip(data, k, strict=True))
    ]


@pytest.mark.parametrize(
    ("angles", "tolerance"),
    [
        (np.arange(48) * np.pi / 48, 0.02),
        (np.arange(96) * np.pi / 96, 0.02),
        (np.arange(96) * np.pi / 48, 0.02),
        (np.arange(96) * (np.pi / 96 + np.pi), 0.02),
    ],
    ids=["48 over half a turn", "96 over half a turn", "96 over a turn", "96 to and fro"],
)
def test_delays_of_uniform_scans_are_found_whatever_the_first_spokes_span(angles: np.ndarray, tolerance: float) -> None:
    """The first 24 of 96 spokes span an eighth or a quarter of a turn only: more must be waited for."""
    true = np.diag([0.7, 0.7])
    items = central(angles, true)
    moved, told = through(CorrectDelays(scan("radial"), "estimate", 24, len(items)), items)
    assert "gradient delays corrected" in told[0]
    assert "(24 spokes)" in told[0]
    shifts = np.array([m.trajectory[5, :2] - i.trajectory[5, :2] for m, i in zip(moved, items, strict=True)])
    expected = -np.stack([np.cos(angles), np.sin(angles)], axis=1) @ true
    np.testing.assert_allclose(shifts / (0.5, 0.5 * ASPECT), expected, atol=tolerance)


@pytest.mark.parametrize("first", [0.0, 1.6])
def test_uniform_half_circle_without_delays_is_left_alone(first: float) -> None:
    """An ellipse has spokes of different energy: taken for equal, they would have 0.45 samples from 1.6 rad on."""
    items = central(first + np.arange(48) * np.pi / 48, np.zeros((2, 2)))
    moved, told = through(CorrectDelays(scan("radial"), "estimate", 24, 48), items)
    assert "no significant gradient delays" in told[0]
    assert all(m is i for m, i in zip(moved, items, strict=True))


def test_full_circle_is_not_waited_for_to_its_end_and_half_a_circle_is() -> None:
    for turn, earliest in ((2 * np.pi, 0.75), (np.pi, 1.0)):
        items = central(np.arange(40) * turn / 40, np.zeros((2, 2)))
        stage = CorrectDelays(scan("radial"), "estimate", 12, 40)
        counts = [len(stage.push(item)) for item in items]
        assert counts.index(max(counts)) + 1 == pytest.approx(earliest * 40, abs=1)


def test_spokes_for_the_fit_are_spread_over_all_directions_that_came() -> None:
    """Ten at nearly one angle, then a fan that leads past 0: the fit must not be made of the ten."""
    angles = np.concatenate([np.full(10, 0.2) + 1e-3 * np.arange(10), 5.0 + np.arange(40) * np.pi / 60])
    items = central(angles, DELAYS)
    few = _spread(items, 12)
    numbers = [item.acquisition.counter("kspace_encode_step_1") for item in few]
    assert len(numbers) == 12
    assert numbers == sorted(set(numbers))
    assert sum(number < 10 for number in numbers) <= 2
    assert {10, 49} <= set(numbers)
    assert _spread(items[:12], 12) == items[:12]
    assert len(_spread(items[:3] * 9, 12)) == 12  # the same few directions over and over
