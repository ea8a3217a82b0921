"""Takes noise-free samples, gives the acquisitions that a scanner would write: headers, counters, flags, noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...mrd.messages import ACQUISITION_HEADER
from ...types import Acquisition, AcquisitionFlag, Complex
from ..coils import correlated_noise
from .protocol import TICK_S, BreastProtocol

_FIRST_TICK = 14_400_000  # ten o'clock, so that only differences of time stamps mean anything


def _blank_headers(protocol: BreastProtocol, count: int) -> NDArray[np.void]:
    headers = np.zeros(count, dtype=ACQUISITION_HEADER)
    headers["version"] = 1
    headers["measurement_uid"] = 1
    headers["number_of_samples"] = protocol.n_samples
    headers["available_channels"] = headers["active_channels"] = protocol.n_coils
    for coil in range(protocol.n_coils):
        headers["channel_mask"][:, coil // 64] |= np.uint64(1 << (coil % 64))
    headers["center_sample"] = protocol.n_samples // 2
    headers["sample_time_us"] = protocol.dwell_us
    headers["position"] = protocol.position_mm
    headers["read_dir"], headers["phase_dir"], headers["slice_dir"] = protocol.directions
    return headers


def _flag(headers: NDArray[np.void], where: NDArray[np.bool_], flag: AcquisitionFlag) -> None:
    headers["flags"][where] |= np.uint64(int(flag))


def imaging_headers(protocol: BreastProtocol) -> NDArray[np.void]:
    """Headers of all imaging readouts in the order of acquisition (partitions innermost)."""
    n_spokes, n_partitions = protocol.n_frames * protocol.n_spokes, protocol.n_partitions
    headers = _blank_headers(protocol, n_spokes * n_partitions)
    spoke, partition = (a.reshape(-1) for a in np.indices((n_spokes, n_partitions)))
    frame, within = np.divmod(spoke, protocol.n_spokes)
    per_repetition = protocol.framing == "repetition"
    headers["scan_counter"] = protocol.n_noise_readouts + np.arange(len(headers))
    ticks = np.round(protocol.readout_times_s.reshape(-1) / TICK_S)
    headers["acquisition_time_stamp"] = _FIRST_TICK + ticks
    headers["idx"]["kspace_encode_step_1"] = within if per_repetition else spoke
    headers["idx"]["kspace_encode_step_2"] = partition
    headers["idx"]["repetition"] = frame if per_repetition else 0
    if protocol.trajectory == "present":
        headers["trajectory_dimensions"] = 2
    if protocol.trajectory == "user_float":
        headers["user_float"][:, 0] = protocol.spoke_angles_rad[spoke]
    last_spoke = protocol.n_spokes - 1 if per_repetition else n_spokes - 1
    counter = within if per_repetition else spoke
    first_p, last_p = partition == 0, partition == n_partitions - 1
    first_s, last_s = counter == 0, counter == last_spoke
    _flag(headers, first_s, AcquisitionFlag.FIRST_IN_ENCODE_STEP1)
    _flag(headers, last_s, AcquisitionFlag.LAST_IN_ENCODE_STEP1)
    _flag(headers, first_p, AcquisitionFlag.FIRST_IN_ENCODE_STEP2)
    _flag(headers, last_p, AcquisitionFlag.LAST_IN_ENCODE_STEP2)
    first = AcquisitionFlag.FIRST_IN_SLICE | AcquisitionFlag.FIRST_IN_REPETITION
    last = AcquisitionFlag.LAST_IN_SLICE | AcquisitionFlag.LAST_IN_REPETITION
    _flag(headers, first_s & first_p, first)
    _flag(headers, last_s & last_p, last)
    headers["flags"][-1] |= np.uint64(int(AcquisitionFlag.LAST_IN_MEASUREMENT))
    return headers


def noise_headers(protocol: BreastProtocol) -> NDArray[np.void]:
    """Headers of the noise scan, one second before the first spoke."""
    headers = _blank_headers(protocol, protocol.n_noise_readouts)
    count = np.arange(protocol.n_noise_readouts)
    headers["scan_counter"] = count
    early = round(1.0 / TICK_S)
    headers["acquisition_time_stamp"] = _FIRST_TICK - early + np.round(count * protocol.tr_ms * 1e-3 / TICK_S)
    headers["flags"] = np.uint64(int(AcquisitionFlag.IS_NOISE_MEASUREMENT))
    return headers


def assemble(
    protocol: BreastProtocol, samples: Complex, covariance: NDArray[np.complex128], rng: np.random.Generator
) -> list[Acquisition]:
    """Put receiver noise, headers and trajectories around the samples; the noise scan comes first.

    Parameters
    ----------
    samples : ``(spokes, partitions, coils, samples)``, noise is added in place.
    covariance : of one sample at this dwell time.
    """
    data = samples.reshape(-1, protocol.n_coils, protocol.n_samples)
    silent = not covariance.any()
    shape = (protocol.n_noise_readouts, protocol.n_samples)
    noise = (
        np.zeros((shape[0], protocol.n_coils, shape[1]), np.complex64)
        if silent
        else correlated_noise(covariance, shape, rng)
    )
    if not silent:
        data += correlated_noise(covariance, (len(data), protocol.n_samples), rng)
    empty = np.zeros((protocol.n_samples, 0), dtype=np.float32)
    acquisitions = [Acquisition(h, d, empty) for h, d in zip(noise_headers(protocol), noise, strict=True)]
    trajectory = protocol.trajectory_xy() if protocol.trajectory == "present" else None
    for number, (header, readout) in enumerate(zip(imaging_headers(protocol), data, strict=True)):
        spoke = number // protocol.n_partitions
        acquisitions.append(Acquisition(header, readout, empty if trajectory is None else trajectory[spoke]))
    return acquisitions
