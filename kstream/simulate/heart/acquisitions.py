"""Takes samples of the views of a cine scan, gives the acquisitions that a scanner would write."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...mrd.messages import ACQUISITION_HEADER
from ...types import Acquisition, AcquisitionFlag, Complex, Float, Geometry
from ..breast.protocol import TICK_S
from ..coils import correlated_noise
from .lines import Lines
from .protocol import CineProtocol, Schedule

_FIRST_TICK = 14_400_000  # ten o'clock, so that only differences of time stamps mean anything


def _blank(protocol: CineProtocol, count: int, geometry: Geometry) -> NDArray[np.void]:
    headers = np.zeros(count, dtype=ACQUISITION_HEADER)
    headers["version"] = headers["measurement_uid"] = 1
    headers["number_of_samples"] = protocol.n_samples
    headers["available_channels"] = headers["active_channels"] = protocol.n_coils
    for coil in range(protocol.n_coils):
        headers["channel_mask"][:, coil // 64] |= np.uint64(1 << (coil % 64))
    headers["center_sample"] = protocol.n_samples // 2
    headers["sample_time_us"] = protocol.dwell_us
    headers["position"] = geometry.position_mm
    headers["read_dir"], headers["phase_dir"] = geometry.read_dir, geometry.phase_dir
    headers["slice_dir"] = geometry.slice_dir
    return headers


def noise_acquisitions(
    protocol: CineProtocol, geometry: Geometry, covariance: NDArray[np.complex128], rng: np.random.Generator
) -> list[Acquisition]:
    """Readouts with the transmitter off, a second before the first view."""
    n = protocol.n_noise_readouts
    headers = _blank(protocol, n, geometry)
    headers["scan_counter"] = np.arange(n)
    headers["acquisition_time_stamp"] = _FIRST_TICK - round(1.0 / TICK_S)
    headers["flags"] = np.uint64(int(AcquisitionFlag.IS_NOISE_MEASUREMENT))
    empty = np.zeros((protocol.n_samples, 0), np.float32)
    noise = _noise(covariance, (n, protocol.n_samples), rng)
    return [Acquisition(header, data, empty) for header, data in zip(headers, noise, strict=True)]


def view_acquisitions(
    protocol: CineProtocol,
    number: int,
    geometry: Geometry,
    schedule: Schedule,
    samples: Complex,
    lines: Lines | None,
    covariance: NDArray[np.complex128],
    begin_s: float,
    rng: np.random.Generator,
) -> list[Acquisition]:
    """Headers, counters, flags, trajectories and receiver noise around the samples of one view.

    Parameters
    ----------
    number : of the view, the counter ``slice``; ``phase`` counts the frames.
    samples : ``(readouts, coils, samples)`` in the order of the schedule; noise is added in place.
    begin_s : when the view begins.
    """
    count = len(samples)
    headers = _blank(protocol, count, geometry)
    index = headers["idx"]
    index["slice"], index["phase"] = number, schedule.frame
    index["kspace_encode_step_1"] = schedule.within if lines is None else _line_numbers(lines, schedule)
    headers["scan_counter"] = protocol.n_noise_readouts + number * count + np.arange(count)
    headers["acquisition_time_stamp"] = _FIRST_TICK + np.round((begin_s + schedule.time_s) / TICK_S)
    headers["physiology_time_stamp"][:, 0] = np.round(schedule.since_r_s / TICK_S)
    _flag_ends(headers, schedule, protocol, number)
    if covariance.any():
        samples += _noise(covariance, (count, protocol.n_samples), rng)
    trajectory: Float | None = None
    if lines is None:
        headers["trajectory_dimensions"] = 2
        trajectory = protocol.spokes_xy()
    empty = np.zeros((protocol.n_samples, 0), np.float32)
    return [
        Acquisition(header, data, empty if trajectory is None else trajectory[frame, within])
        for header, data, frame, within in zip(headers, samples, schedule.frame, schedule.within, strict=True)
    ]


def _line_numbers(lines: Lines, schedule: Schedule) -> NDArray[np.intp]:
    numbers = np.stack([np.flatnonzero(frame) for frame in lines])
    return np.asarray(numbers[schedule.frame, schedule.within])


def _flag_ends(headers: NDArray[np.void], schedule: Schedule, protocol: CineProtocol, number: int) -> None:
    """First and last readout of every phase and of the slice, and the end of the measurement."""
    for frame in range(protocol.n_frames):
        mine = np.flatnonzero(schedule.frame == frame)
        headers["flags"][mine[0]] |= np.uint64(int(AcquisitionFlag.FIRST_IN_PHASE))
        headers["flags"][mine[-1]] |= np.uint64(int(AcquisitionFlag.LAST_IN_PHASE))
    headers["flags"][0] |= np.uint64(int(AcquisitionFlag.FIRST_IN_SLICE))
    headers["flags"][-1] |= np.uint64(int(AcquisitionFlag.LAST_IN_SLICE))
    if number == len(protocol.views) - 1:
        headers["flags"][-1] |= np.uint64(int(AcquisitionFlag.LAST_IN_MEASUREMENT))


def _noise(covariance: NDArray[np.complex128], shape: tuple[int, int], rng: np.random.Generator) -> Complex:
    if covariance.any():
        return correlated_noise(covariance, shape, rng)
    return np.zeros((shape[0], len(covariance), shape[1]), np.complex64)
