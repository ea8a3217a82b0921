"""Where each sample lies in k-space, by a declared policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import ConfigError, ScanError
from ..types import GOLDEN_ANGLE_RAD, Acquisition, AcquisitionFlag, Float, Notice, Scan

Source = Literal["auto", "acquisition", "user_float", "golden-angle", "uniform-half", "uniform-full", "cartesian"]
Units = Literal["header", "cycles_per_fov", "cycles_per_sample", "cycles_per_metre"]


@dataclass(slots=True)
class PlacedAcquisition:
    """An acquisition with its trajectory, float32 ``(samples, xyz)`` in cycles per field of view."""

    acquisition: Acquisition
    trajectory: Float


class ResolveTrajectory:
    """Gives every acquisition its trajectory from what it carries, from its angle, or from its counters.

    ``auto`` prefers a trajectory in the acquisition, then an angle in ``user_float[angle_index]`` (only if the header
    has the user parameter ``spoke_angle_rad`` = ``user_float_N``), then counters, after the header's trajectory type.
    What was chosen is told once. Units are declared in the configuration or by the header's user parameter
    ``trajectory_units``, never inferred from values.

    Parameters
    ----------
    n_spokes : of one frame; spreads ``uniform-half`` and ``uniform-full`` angles over half a turn or a whole one.
    delay_samples : shift of the true centre of k-space along the readout, in samples (gradient delay).
    """

    takes = (Acquisition,)
    gives = (PlacedAcquisition, Notice)

    def __init__(
        self, scan: Scan, source: Source, units: Units, n_spokes: int, angle_index: int, delay_samples: float
    ) -> None:
        self._scan, self._source, self._units = scan, source, units
        self._n_spokes = n_spokes
        self._angle_index, self._delay_samples = angle_index, delay_samples
        scale = np.array(scan.recon_fov_mm) / np.array(scan.encoded_fov_mm)
        self._limit = np.array(scan.encoded_matrix) / 2 * scale * 1.01 + 1
        self._told = False

    def push(self, acquisition: Acquisition) -> list[Any]:
        source = self._choose(acquisition) if self._source == "auto" else self._source
        trajectory = self._trajectory(acquisition, source)
        reach = np.abs(trajectory).max(axis=0, initial=0)
        if not (reach <= self._limit).all():  # written so that NaN is refused
            raise ScanError(
                f"trajectory reaches {_triple(reach)} cycles per field of view, beyond {_triple(self._limit)}",
                where=acquisition.place,
                likely="the trajectory is in other units than declared",
                hint="--set trajectory.units=cycles_per_sample|cycles_per_metre|cycles_per_fov",
            )
        placed = PlacedAcquisition(acquisition, trajectory)
        if self._told:
            return [placed]
        self._told = True
        return [Notice("info", f"trajectory from {source}" + (f", {self._unit()}" * (source == "acquisition"))), placed]

    def finish(self) -> list[Any]:
        return []

    def _choose(self, acquisition: Acquisition) -> Source:
        if acquisition.trajectory.shape[1] >= 2:
            return "acquisition"
        if self._scan.user_parameters.get("spoke_angle_rad") == f"user_float_{self._angle_index}":
            return "user_float"
        choices: dict[str, Source] = {
            "goldenangle": "golden-angle",
            "radial": "uniform-half",
            "cartesian": "cartesian",
            "epi": "cartesian",
        }
        if self._scan.trajectory not in choices:
            raise ScanError(
                f"acquisitions carry no trajectory, and none can be computed for '{self._scan.trajectory}'",
                where=acquisition.place,
                likely="the scanner was not asked to send it (FIRE: ParseTrajectory)",
                hint="send trajectories, or --set trajectory.source=golden-angle|uniform-half|uniform-full|cartesian",
            )
        return choices[self._scan.trajectory]

    def _trajectory(self, acquisition: Acquisition, source: Source) -> Float:
        if source == "acquisition":
            return self._carried(acquisition)
        if source == "cartesian":
            return self._cartesian(acquisition)
        if source == "user_float":
            angle = float(acquisition.header["user_float"][self._angle_index])
        else:
            angle = self._angle_from_counters(acquisition, source)
        radius = self._readout_positions(acquisition)
        aspect = self._scan.recon_fov_mm[1] / self._scan.recon_fov_mm[0]
        return np.stack([radius * np.cos(angle), aspect * radius * np.sin(angle), 0 * radius], axis=1).astype(
            np.float32
        )

    def _readout_positions(self, acquisition: Acquisition) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Positions along the readout in cycles per field of view along x; the step follows from the encoded field."""
        n_samples = acquisition.data.shape[1]
        centre = int(acquisition.header["center_sample"]) or n_samples // 2  # many senders leave it at 0
        delay = self._delay_samples
        if acquisition.has(AcquisitionFlag.IS_REVERSE):
            centre, delay = n_samples - 1 - centre, -delay
        step = self._scan.recon_fov_mm[0] / self._scan.encoded_fov_mm[0]
        return (np.arange(n_samples) - centre - delay) * step

    def _angle_from_counters(self, acquisition: Acquisition, source: Source) -> float:
        limit = self._scan.limit("kspace_encode_step_1")
        spoke = acquisition.counter("kspace_encode_step_1") - limit.minimum
        if source == "golden-angle":
            degrees = float(self._scan.user_parameters.get("golden_angle_deg", np.rad2deg(GOLDEN_ANGLE_RAD)))
            repetition = acquisition.counter("repetition") - self._scan.limit("repetition").minimum
            return float(np.deg2rad(degrees) * (repetition * limit.size + spoke))
        turn = np.pi if source == "uniform-half" else 2 * np.pi
        return float(turn * (spoke % self._n_spokes) / self._n_spokes)

    def _cartesian(self, acquisition: Acquisition) -> Float:
        kx = self._readout_positions(acquisition)
        line = acquisition.counter("kspace_encode_step_1") - self._scan.limit("kspace_encode_step_1").center
        ky = line * self._scan.recon_fov_mm[1] / self._scan.encoded_fov_mm[1]
        return np.stack([kx, np.full_like(kx, ky), np.zeros_like(kx)], axis=1).astype(np.float32)

    def _unit(self) -> str:
        return str(self._scan.user_parameters.get("trajectory_units", "")) if self._units == "header" else self._units

    def _carried(self, acquisition: Acquisition) -> Float:
        carried = acquisition.trajectory
        if carried.shape[1] not in (2, 3):
            raise ScanError(
                f"trajectory has {carried.shape[1]} dimensions, expected 2 or 3",
                where=acquisition.place,
                hint="--set trajectory.source=golden-angle to compute it from counters",
            )
        fov = np.array(self._scan.recon_fov_mm)
        per_sample = np.array(self._scan.encoded_matrix) * fov / np.array(self._scan.encoded_fov_mm)
        scales = {"cycles_per_fov": np.ones(3), "cycles_per_sample": per_sample, "cycles_per_metre": fov / 1000}
        unit = self._unit()
        if unit not in scales:
            raise ConfigError(
                f"the unit of the trajectory is not declared (header: '{unit}')",
                where=acquisition.place,
                likely="MRD does not fix the unit and this sender does not state it",
                hint=f"--set trajectory.units=one of {', '.join(scales)}",
            )
        trajectory = np.zeros((len(carried), 3), np.float32)
        trajectory[:, : carried.shape[1]] = carried * scales[unit][: carried.shape[1]]
        if self._delay_samples:
            step = np.asarray(np.gradient(trajectory, axis=0), np.float32)
            sign = -1 if acquisition.has(AcquisitionFlag.IS_REVERSE) else 1
            trajectory -= np.float32(sign * self._delay_samples) * step
        return trajectory


def _triple(values: np.ndarray[Any, np.dtype[Any]]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
