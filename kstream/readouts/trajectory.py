"""Where each sample lies in k-space, by a declared policy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ..errors import ConfigError, ScanError
from ..stream.telemetry import Counters
from ..types import GOLDEN_ANGLE_RAD, Acquisition, AcquisitionFlag, Float, Notice, Scan
from .routing import LostReadout

Source = Literal["auto", "acquisition", "user_float", "golden-angle", "uniform-half", "uniform-full", "cartesian"]
Units = Literal["header", "cycles_per_fov", "cycles_per_sample", "cycles_per_metre"]
AngleUnits = Literal["header", "rad", "deg"]
Outside = Literal["error", "mask"]
FRAME_COUNTERS = ("repetition", "contrast", "phase", "set")


def golden_angle_rad(order: int) -> float:
    """Tiny golden angle of an order (Wundrak et al., MRM 2016, eq. 1): pi / (tau + order - 1).

    Order 1 is the golden angle of 111.246 degrees, order 7 is 23.628 degrees.
    """
    return float(np.pi / ((1 + np.sqrt(5)) / 2 + order - 1))


@dataclass(frozen=True)
class SpokeOrder:
    """How angles follow from spoke numbers, as far as the source leaves it open.

    Parameters
    ----------
    golden_order : 1 golden, N tiny golden; 0: the header's user parameter ``golden_angle_deg``, or 1.
    first_angle_deg : angle of spoke 0.
    alternate : every second spoke runs the other way; a stored angle (``user_float``) is then that of the line.
    clockwise : angles count from x towards -y.
    """

    golden_order: int = 0
    first_angle_deg: float = 0.0
    alternate: bool = False
    clockwise: bool = False

    def angle_rad(self, number: int, step_rad: float) -> float:
        """Angle of a spoke."""
        return self.placed(number * step_rad + self.turned_rad(number))

    def turned_rad(self, number: int) -> float:
        """Half a turn for every second spoke, if they alternate."""
        return np.pi if self.alternate and number % 2 else 0.0

    def placed(self, angle_rad: float) -> float:
        """An angle of the source in the axes of the recon space."""
        return float(np.deg2rad(self.first_angle_deg) + (-angle_rad if self.clockwise else angle_rad))

    def golden_step_rad(self, scan: Scan) -> float:
        """Angle between successive golden-angle spokes."""
        if self.golden_order:
            return golden_angle_rad(self.golden_order)
        return float(np.deg2rad(float(scan.user_parameters.get("golden_angle_deg", np.rad2deg(GOLDEN_ANGLE_RAD)))))


def planned_angles_rad(
    scan: Scan, source: Source, n_spokes: int, order: SpokeOrder
) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Angles of the spokes of a frame up to a common turn, known before any has come; None if they come with the data.

    ``auto`` and ``acquisition`` plan for scans whose header says ``goldenangle``; whoever uses the plan checks it.
    """
    is_golden = scan.trajectory == "goldenangle" and source in ("auto", "acquisition", "user_float")
    if source == "golden-angle" or is_golden:
        step = order.golden_step_rad(scan)
    elif source in ("uniform-half", "uniform-full"):
        step = (np.pi if source == "uniform-half" else 2 * np.pi) / n_spokes
    else:
        return None
    return np.array([order.angle_rad(number, step) for number in range(n_spokes)])


@dataclass(slots=True)
class PlacedAcquisition:
    """An acquisition with its trajectory, float32 ``(samples, xyz)`` in cycles per field of view."""

    acquisition: Acquisition
    trajectory: Float


_WRONG = {
    "acquisition": "the trajectory is in other units than declared",
    "cartesian": "center_sample, or the counter of lines, is beyond the encoded matrix",
}
_CHOOSE = "--set trajectory.units=cycles_per_sample|cycles_per_metre|cycles_per_fov, or "


class ResolveTrajectory:
    """Gives every acquisition its trajectory from what it carries, from its angle, or from its counters.

    ``auto`` prefers a trajectory in the acquisition, then an angle in ``user_float[angle_index]`` (only if the header
    has the user parameter ``spoke_angle_rad`` or ``spoke_angle_deg`` = ``user_float_N``), then counters, after the
    header's trajectory type.
    What was chosen is told once. Units are declared in the configuration or by the header's user parameter
    ``trajectory_units``, never inferred from values.

    Parameters
    ----------
    n_spokes : of one frame; spreads ``uniform-half`` and ``uniform-full`` angles over half a turn or a whole one.
    delay_samples : shift of the true centre of k-space along the readout, in samples (gradient delay).
    order : how angles follow from spoke numbers.
    angle_units : of ``user_float``; ``header`` trusts the name of the user parameter, and takes rad without one.
    outside : what happens to samples beyond the encoded k-space, or that are no numbers: ``error`` ends the measurement
        (the unit is wrong, most likely); ``mask`` sets the samples to 0, and leaves readouts aside of which more than
        half lies outside. Counted and told.
    """

    takes = (Acquisition,)
    gives = (PlacedAcquisition, LostReadout, Notice)

    def __init__(
        self,
        scan: Scan,
        source: Source,
        units: Units,
        n_spokes: int,
        angle_index: int,
        delay_samples: float,
        *,
        order: SpokeOrder | None = None,
        angle_units: AngleUnits = "header",
        outside: Outside = "error",
        counters: Counters | None = None,
    ) -> None:
        self._scan, self._source, self._units = scan, source, units
        self._n_spokes = n_spokes
        self._order, self._outside, self._counters = order or SpokeOrder(), outside, counters or Counters()
        self._angle_units = angle_units
        self._n_masked = 0
        self._angle_index, self._delay_samples = angle_index, delay_samples
        scale = np.array(scan.recon_fov_mm) / np.array(scan.encoded_fov_mm)
        self._limit = np.array(scan.encoded_matrix) / 2 * scale * 1.01 + 1
        self._told = False

    def push(self, acquisition: Acquisition) -> list[Any]:
        source = self._choose(acquisition) if self._source == "auto" else self._source
        trajectory = self._trajectory(acquisition, source)
        reach = np.abs(trajectory).max(axis=0, initial=0)
        is_planned = source != "cartesian" or self._is_planned(acquisition)  # else framing leaves it aside
        if is_planned and not (reach <= self._limit).all():  # written so that NaN is refused
            if self._outside == "mask":
                return self._masked(acquisition, trajectory)
            raise ScanError(
                f"trajectory reaches {_triple(reach)} cycles per field of view, beyond {_triple(self._limit)}",
                where=acquisition.place,
                likely=_WRONG.get(source, "center_sample, or the angle, is wrong"),
                hint=(_CHOOSE if source == "acquisition" else "") + "--set trajectory.outside=mask",
            )
        placed = PlacedAcquisition(acquisition, trajectory)
        if self._told:
            return [placed]
        self._told = True
        return [Notice("info", f"trajectory from {source}" + (f", {self._unit()}" * (source == "acquisition"))), placed]

    def _is_planned(self, acquisition: Acquisition) -> bool:
        """False if the header limits the counter of lines, and this one is beyond."""
        name = "kspace_encode_step_1"
        limit = self._scan.limit(name)
        return name not in self._scan.limits or limit.minimum <= acquisition.counter(name) <= limit.maximum

    def finish(self) -> list[Any]:
        if self._n_masked < 2:
            return []
        return [Notice("warning", f"{self._n_masked} readouts had samples outside the encoded k-space, not used")]

    def _masked(self, acquisition: Acquisition, trajectory: Float) -> list[Any]:
        """The readout without its samples that lie outside: 0 where the line through the others would have them."""
        inside = (np.abs(trajectory) <= self._limit).all(axis=1)
        if inside.mean() < 0.5:
            told = self._counters.leave("trajectory outside its range") == 1
            text = f"most of a trajectory is outside the encoded k-space: readout left aside ({acquisition.place})"
            return [*([Notice("warning", text)] if told else []), LostReadout(acquisition)]
        self._n_masked += 1
        filled = _filled(trajectory, inside)
        data = np.where(inside, acquisition.data, 0).astype(np.complex64)
        placed = PlacedAcquisition(replace(acquisition, data=data), filled)
        if self._n_masked > 1:
            return [placed]
        text = f"{int((~inside).sum())} samples lie outside the encoded k-space, not used ({acquisition.place})"
        return [Notice("warning", text), placed]

    def _choose(self, acquisition: Acquisition) -> Source:
        if acquisition.trajectory.shape[1] >= 2:
            return "acquisition"
        if any(self._header_names_angle(unit) for unit in ("rad", "deg")):
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
            angle = self._angle_from_user_float(acquisition)
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
        """Angle by the number of the spoke: golden angles run on through the frames, uniform ones begin anew."""
        limit = self._scan.limit("kspace_encode_step_1")
        spoke = acquisition.counter("kspace_encode_step_1") - limit.minimum
        if source == "golden-angle":
            return self._order.angle_rad(self._running_number(acquisition), self._order.golden_step_rad(self._scan))
        turn = np.pi if source == "uniform-half" else 2 * np.pi
        return self._order.angle_rad(spoke % self._n_spokes, turn / self._n_spokes)

    def _running_number(self, acquisition: Acquisition) -> int:
        """Number of the spoke, counted on through the frames."""
        limit, frame = self._scan.limit("kspace_encode_step_1"), 0
        for counter in FRAME_COUNTERS:
            of = self._scan.limit(counter)
            frame = frame * of.size + acquisition.counter(counter) - of.minimum
        return frame * limit.size + acquisition.counter("kspace_encode_step_1") - limit.minimum

    def _header_names_angle(self, unit: str) -> bool:
        return self._scan.user_parameters.get(f"spoke_angle_{unit}") == f"user_float_{self._angle_index}"

    def _angle_from_user_float(self, acquisition: Acquisition) -> float:
        angle = float(acquisition.header["user_float"][self._angle_index])
        is_deg = self._angle_units == "deg" or (self._angle_units == "header" and self._header_names_angle("deg"))
        angle = float(np.deg2rad(angle)) if is_deg else angle
        return self._order.placed(angle + self._order.turned_rad(self._running_number(acquisition)))

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


def _filled(trajectory: Float, inside: np.ndarray[Any, np.dtype[np.bool_]]) -> Float:
    """The trajectory with what is not `inside` between its neighbours; at the ends, along the last two inside.

    A spoke stays straight, as delays, oversampling and zero-wait combination need it, and weights stay finite.
    """
    index = np.arange(len(trajectory))
    known, values = index[inside], trajectory[inside].astype(np.float64)
    filled = np.stack([np.interp(index, known, part) for part in values.T], axis=1)
    if len(known) > 1:
        for end, (a, b) in ((index < known[0], (0, 1)), (index > known[-1], (-2, -1))):
            slope = (values[b] - values[a]) / (known[b] - known[a])
            filled[end] = values[a] + (index[end] - known[a])[:, None] * slope
    return filled.astype(np.float32)


def _triple(values: np.ndarray[Any, np.dtype[Any]]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
