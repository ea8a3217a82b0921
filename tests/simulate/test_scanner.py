"""The scanner: every readout at its own time and place, counters, flags, trajectory modes and noise."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kstream.errors import ConfigError
from kstream.simulate.breast.acquisitions import imaging_headers, noise_headers
from kstream.simulate.breast.anatomy import BreastPhantom
from kstream.simulate.breast.protocol import GOLDEN_ANGLE_DEG, BreastProtocol
from kstream.simulate.breast.scanner import noise_level, receive_array, sample_kspace, signal_components
from kstream.types import AcquisitionFlag as Flag

TINY = BreastProtocol(matrix=15, n_slices=7, n_coils=3, n_spokes=5, n_lesions=1, frame_starts_s=(0.0, 40.0, 60.0))


def _flags(headers: Any, flag: Flag) -> np.ndarray:
    return np.flatnonzero(headers["flags"] & np.uint64(int(flag)))


def test_defaults_are_the_agreed_protocol() -> None:
    protocol = BreastProtocol()
    assert (protocol.n_partitions, protocol.center_partition) == (24, 8)
    assert protocol.n_samples == 256
    assert protocol.n_frames * protocol.n_spokes * protocol.n_partitions == 3960
    k = protocol.sample_positions
    assert (k[0], k[128], k[-1]) == (-64.0, 0.0, 63.5)
    spacing = np.diff(np.sort(np.mod(protocol.spoke_angles_rad[:55], np.pi)))
    assert spacing.max() / spacing.min() < 2.7  # a Fibonacci number of golden angles has two near spacings


@pytest.mark.parametrize("n_slices", [1, 2, 7, 8, 32])
@pytest.mark.parametrize("partial_fourier", [0.55, 0.75, 1.0])
def test_partial_fourier_keeps_the_centre_of_kz(n_slices: int, partial_fourier: float) -> None:
    protocol = replace(TINY, n_slices=n_slices, partial_fourier=partial_fourier)
    kz = np.arange(protocol.n_partitions) - protocol.center_partition
    assert 0 in kz
    assert kz.min() >= -(n_slices // 2)
    assert kz.max() == (n_slices - 1) // 2


def test_counters_run_over_the_whole_scan_by_default() -> None:
    idx = imaging_headers(TINY)["idx"]
    np.testing.assert_array_equal(idx["kspace_encode_step_1"], np.repeat(np.arange(15), TINY.n_partitions))
    np.testing.assert_array_equal(idx["kspace_encode_step_2"], np.tile(np.arange(TINY.n_partitions), 15))
    assert not idx["repetition"].any()
    assert TINY.scan().limit("kspace_encode_step_1").maximum == 14


def test_counters_restart_with_each_repetition_on_request() -> None:
    protocol = replace(TINY, framing="repetition")
    idx = imaging_headers(protocol)["idx"]
    per_frame = 5 * protocol.n_partitions
    np.testing.assert_array_equal(idx["repetition"], np.repeat([0, 1, 2], per_frame))
    np.testing.assert_array_equal(
        idx["kspace_encode_step_1"], np.tile(np.repeat(np.arange(5), protocol.n_partitions), 3)
    )
    headers = imaging_headers(protocol)
    np.testing.assert_array_equal(_flags(headers, Flag.LAST_IN_REPETITION), per_frame * np.arange(1, 4) - 1)
    np.testing.assert_array_equal(_flags(headers, Flag.FIRST_IN_REPETITION), per_frame * np.arange(3))
    limits = protocol.scan().limits
    assert limits["kspace_encode_step_1"].maximum == 4
    assert limits["repetition"].maximum == 2


def test_flags_close_angles_and_the_measurement() -> None:
    headers = imaging_headers(TINY)
    count, p = len(headers), TINY.n_partitions
    np.testing.assert_array_equal(_flags(headers, Flag.FIRST_IN_ENCODE_STEP2), np.arange(0, count, p))
    np.testing.assert_array_equal(_flags(headers, Flag.LAST_IN_ENCODE_STEP2), np.arange(p - 1, count, p))
    np.testing.assert_array_equal(_flags(headers, Flag.LAST_IN_MEASUREMENT), [count - 1])
    np.testing.assert_array_equal(_flags(headers, Flag.LAST_IN_REPETITION), [count - 1])
    assert _flags(headers, Flag.IS_NOISE_MEASUREMENT).size == 0


def test_header_describes_the_readout() -> None:
    protocol = replace(TINY, position_mm=(1.0, -2.0, 3.0), rotation_deg=(0.0, 0.0, 90.0))
    header = imaging_headers(protocol)[4]
    assert header["number_of_samples"] == 30
    assert header["center_sample"] == 15
    assert header["active_channels"] == header["available_channels"] == 3
    assert header["channel_mask"][0] == 0b111
    assert header["sample_time_us"] == pytest.approx(1e6 / (488.0 * 30))
    np.testing.assert_allclose(header["position"], [1, -2, 3])
    np.testing.assert_allclose(header["read_dir"], [0, 1, 0], atol=1e-7)
    np.testing.assert_allclose(header["phase_dir"], [-1, 0, 0], atol=1e-7)
    np.testing.assert_allclose(header["slice_dir"], [0, 0, 1], atol=1e-7)
    assert TINY.scan().trajectory == "goldenangle"
    assert TINY.scan().encoded_matrix == (30, 30, 7)
    assert TINY.scan().recon_matrix == (15, 15, 7)


def test_many_coils_fill_more_than_one_word_of_the_mask() -> None:
    mask = imaging_headers(replace(TINY, n_coils=70))[0]["channel_mask"]
    assert mask[0] == 2**64 - 1
    assert mask[1] == 0b111111


def test_time_stamps_tick_with_the_frames() -> None:
    stamps = imaging_headers(TINY)["acquisition_time_stamp"].astype(np.int64)
    frame = 5 * TINY.n_partitions
    assert (stamps[frame] - stamps[0]) * 2.5e-3 == pytest.approx(40.0)
    assert (stamps[2 * frame] - stamps[0]) * 2.5e-3 == pytest.approx(60.0)
    assert np.all(np.diff(stamps) >= 0)
    assert noise_headers(TINY)["acquisition_time_stamp"].max() < stamps[0]
    counters = np.concatenate([noise_headers(TINY)["scan_counter"], imaging_headers(TINY)["scan_counter"]])
    np.testing.assert_array_equal(counters, np.arange(len(counters)))


@pytest.mark.parametrize("mode", ["present", "absent", "user_float"])
def test_trajectory_mode_decides_what_the_header_carries(mode: str) -> None:
    protocol = replace(TINY, trajectory=mode)  # type: ignore[arg-type]
    headers = imaging_headers(protocol)
    angles = np.repeat(protocol.spoke_angles_rad, protocol.n_partitions)
    assert np.all(headers["trajectory_dimensions"] == (2 if mode == "present" else 0))
    np.testing.assert_allclose(headers["user_float"][:, 0], angles if mode == "user_float" else 0, rtol=1e-6)
    units = protocol.scan().user_parameters.get("trajectory_units")
    assert units == ("cycles_per_fov" if mode == "present" else None)


def test_spokes_advance_by_the_golden_angle() -> None:
    xy = TINY.trajectory_xy().astype(np.float64)
    angle = np.arctan2(xy[:, -1, 1], xy[:, -1, 0])
    step = np.mod(np.diff(angle), 2 * np.pi)
    np.testing.assert_allclose(np.rad2deg(step), GOLDEN_ANGLE_DEG, atol=1e-4)
    np.testing.assert_allclose(xy[:, 15], 0, atol=1e-7)


def test_gradient_delay_shifts_each_physical_axis() -> None:
    delayed = replace(TINY, gradient_delays_samples=(0.5, -0.25, 0.0))
    angle = TINY.spoke_angles_rad[:, None]
    (kx0, ky0), (kx1, ky1) = TINY.sampled_xy(), delayed.sampled_xy()
    np.testing.assert_allclose(kx0 - kx1, np.broadcast_to(0.25 * np.cos(angle), kx0.shape), atol=1e-12)
    np.testing.assert_allclose(ky0 - ky1, np.broadcast_to(-0.125 * np.sin(angle), ky0.shape), atol=1e-12)
    np.testing.assert_array_equal(delayed.trajectory_xy(), TINY.trajectory_xy())
    # With the volume turned by 90 degrees, read runs along the physical y axis.
    kx2, _ = replace(delayed, rotation_deg=(0.0, 0.0, 90.0)).sampled_xy()
    np.testing.assert_allclose(kx0 - kx2, np.broadcast_to(-0.125 * np.cos(angle), kx0.shape), atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"partial_fourier": 0.4}, "partial_fourier"),
        ({"frame_starts_s": (0.0, 0.05)}, "a frame lasts"),
        ({"te_ms": 7.0}, "te_ms"),
        ({"bandwidth_hz_per_pixel": 150.0}, "does not fit"),
        ({"trajectory": "maybe"}, "trajectory"),
        ({"framing": "never"}, "framing"),
        ({"snr": -1.0}, "snr"),
        ({"n_coils": 0}, "n_coils"),
    ],
)
def test_impossible_protocol_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)


@pytest.fixture(scope="module")
def sampled() -> tuple[BreastPhantom, Any, Any, np.ndarray]:
    phantom = BreastPhantom(3, TINY.n_lesions)
    maps = phantom.rasterise(TINY.geometry, TINY.oversampling)
    coils = receive_array(TINY, np.random.default_rng(1))
    return phantom, maps, coils, sample_kspace(TINY, phantom, maps, coils)


@pytest.mark.parametrize(("spoke", "partition"), [(2, 3), (5, 0), (9, 4), (14, 1)])
def test_each_readout_sees_the_object_at_its_own_time(sampled: Any, spoke: int, partition: int) -> None:
    """A readout equals the slow Fourier sum of the coil-weighted object at that readout's time."""
    phantom, maps, coils, samples = sampled
    time_s = float(TINY.readout_times_s[spoke, partition])
    is_before = time_s < TINY.injection_s + phantom.arrival_delay_s
    times = np.zeros(0) if is_before else np.array([time_s])
    now = signal_components(phantom, maps, TINY, times)
    image = now.static.copy()
    if now.basis is not None:
        image += np.einsum("r,rzc->zc", now.basis.functions[:, 0], now.dynamic)
    nz, ny, nx = maps.shape
    volume = np.zeros((nz, ny * nx))
    volume[:, now.columns] = image
    volume = volume.reshape(nz, ny, nx)
    x, z = np.arange(30) / 2 - 7, np.arange(14) / 2 - 3
    kx, ky = (k[spoke] for k in TINY.sampled_xy())
    wx, wy = (np.exp(-2j * np.pi * k[:, None] * x / 15) for k in (kx, ky))
    wz = np.exp(-2j * np.pi * (partition - TINY.center_partition) * z / 7)
    for coil in range(3):
        weighted = coils.sensitivity(coil) * volume
        exact = np.einsum("kx,ky,z,zyx->k", wx, wy, wz, weighted, optimize=True) / np.sqrt(15 * 15 * 7) / 8
        got = samples[spoke, partition, coil]
        assert np.linalg.norm(got - exact) < 2e-4 * np.linalg.norm(exact)


def test_centre_of_kspace_rises_with_the_contrast_agent(sampled: Any) -> None:
    samples = sampled[3]
    centre = np.abs(samples[:, TINY.center_partition, :, 15]).sum(axis=1)
    assert np.ptp(centre[:5]) < 1e-4 * centre[0]  # before contrast nothing moves
    assert centre[5:].min() > 1.05 * centre[0]
    assert np.all(np.diff(centre[5:10]) != 0)


def test_noise_level_gives_the_asked_image_snr() -> None:
    """The closed form of the noise gain equals the sum of squared ramp weights."""
    protocol = replace(TINY, matrix=64, snr=10.0)
    coils = receive_array(protocol, np.random.default_rng(2))
    sigma = noise_level(protocol, coils)
    weights = np.pi * np.abs(protocol.sample_positions) * 0.5 / protocol.n_spokes
    gain = protocol.n_spokes * np.sum(weights**2) / 64**2 * protocol.n_partitions / protocol.n_slices
    quiet = replace(protocol, snr=20.0)
    assert noise_level(quiet, coils) == pytest.approx(sigma / 2)
    assert noise_level(replace(protocol, snr=0.0), coils) == 0.0
    closed = np.pi**2 * 64 / (24.0 * protocol.n_spokes) * protocol.n_partitions / protocol.n_slices
    assert gain == pytest.approx(closed, rel=2e-3)
    double = replace(protocol, n_spokes=2 * protocol.n_spokes)
    assert noise_level(double, coils) == pytest.approx(sigma * np.sqrt(2))
