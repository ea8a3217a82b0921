"""Which acquisition is for imaging, and whether it keeps what the header promised."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ..errors import ScanError, ShapeError
from ..stream.telemetry import Counters
from ..types import Acquisition, AcquisitionFlag, Notice, Scan


@dataclass(slots=True)
class NoiseReadout:
    """An acquisition with the transmitter off, for the noise covariance."""

    acquisition: Acquisition


# First match wins. A calibration readout that is also an image readout (flag 21) goes on.
ROUTES: tuple[tuple[AcquisitionFlag, str], ...] = (
    (AcquisitionFlag.IS_DUMMYSCAN_DATA, "dummy"),
    (AcquisitionFlag.IS_NAVIGATION_DATA, "navigator"),
    (AcquisitionFlag.IS_PHASECORR_DATA | AcquisitionFlag.IS_PHASE_STABILIZATION_REFERENCE, "phase correction"),
    (AcquisitionFlag.IS_HPFEEDBACK_DATA | AcquisitionFlag.IS_RTFEEDBACK_DATA, "feedback"),
    (AcquisitionFlag.IS_SURFACECOILCORRECTIONSCAN_DATA, "surface coil correction"),
    (AcquisitionFlag.IS_PARALLEL_CALIBRATION, "parallel calibration"),
)

FIXED_LENGTH = frozenset({"cartesian", "epi", "radial", "goldenangle"})


class RouteReadouts:
    """Sends noise readouts one way and image readouts the other; counts and leaves aside the rest.

    Parameters
    ----------
    samples : what every image readout must have: a number, ``header`` (samples of the encoded matrix, for trajectories
        whose readouts all have that length) or ``first`` (as many as the first one).
    """

    takes = (Acquisition,)
    gives = (Acquisition, NoiseReadout, Notice)

    def __init__(self, scan: Scan, samples: int | Literal["header", "first"], counters: Counters) -> None:
        self._scan = scan
        self._counters = counters
        self._samples: int | None = None
        self._coils: int | None = scan.n_coils or None
        self._promised_by = "the header"
        if isinstance(samples, int):
            self._samples, self._promised_by = samples, "the configuration"
        elif samples == "header" and scan.trajectory in FIXED_LENGTH:
            self._samples = scan.encoded_matrix[0]

    def push(self, acquisition: Acquisition) -> list[Any]:
        self._counters.received += 1
        if acquisition.has(AcquisitionFlag.IS_NOISE_MEASUREMENT):
            self._counters.leave("noise")
            return [NoiseReadout(acquisition)]
        for flag, reason in ROUTES:
            if acquisition.has(flag) and not acquisition.has(AcquisitionFlag.IS_PARALLEL_CALIBRATION_AND_IMAGING):
                self._counters.leave(reason)
                return []
        self._check(acquisition)
        if not np.isfinite(acquisition.data).all():
            return self._leave_non_finite(acquisition)
        return [_trimmed(_forward(acquisition))]

    def finish(self) -> list[Any]:
        return []

    def _check(self, acquisition: Acquisition) -> None:
        n_coils, n_samples = acquisition.data.shape
        if self._samples is None:
            self._samples, self._promised_by = n_samples, "the first readout"
        if self._coils is None:
            self._coils = n_coils
        if n_samples != self._samples:
            raise ShapeError(
                f"readout {self._counters.received} has {n_samples} samples, but {self._promised_by} promises "
                f"{self._samples}",
                where=acquisition.place,
                likely="readout oversampling was removed upstream, or the header is of another measurement",
                hint=f"--set readouts.samples={n_samples}",
            )
        if n_coils != self._coils:
            raise ShapeError(
                f"readout {self._counters.received} has {n_coils} coils, but this scan has {self._coils}",
                where=acquisition.place,
                likely="coil compression upstream, or the header is of another measurement",
                hint="compare receiverChannels in the header (`kstream inspect FILE`)",
            )
        if acquisition.counter("slice") > max(self._scan.limit("slice").maximum, 0):
            raise ScanError(
                f"slice {acquisition.counter('slice')} is beyond the header's limit "
                f"{self._scan.limit('slice').maximum}",
                where=acquisition.place,
                hint="correct encodingLimits in the header",
            )

    def _leave_non_finite(self, acquisition: Acquisition) -> list[Any]:
        if self._counters.leave("not finite") > 1:
            return []
        return [Notice("warning", f"samples that are NaN or Inf: readout left aside ({acquisition.place})")]


def _forward(acquisition: Acquisition) -> Acquisition:
    """A reversed readout turned round, with its trajectory if it carries one (that goes sample by sample)."""
    if not acquisition.has(AcquisitionFlag.IS_REVERSE):
        return acquisition
    return replace(acquisition, data=acquisition.data[:, ::-1], trajectory=acquisition.trajectory[::-1])


def _trimmed(acquisition: Acquisition) -> Acquisition:
    """Without the samples that the header wants discarded, counted in the order of acquisition."""
    header = acquisition.header
    before, after = int(header["discard_pre"]), int(header["discard_post"])
    if acquisition.has(AcquisitionFlag.IS_REVERSE):
        before, after = after, before
    n_samples = acquisition.data.shape[1]
    if not before and not after:
        return acquisition
    if before + after >= n_samples:
        raise ShapeError(
            f"all {n_samples} samples are to be discarded ({before} before, {after} after)", where=acquisition.place
        )
    keep = slice(before, n_samples - after)
    trimmed = header.copy()
    trimmed["center_sample"] = max(int(header["center_sample"]) - int(header["discard_pre"]), 0)
    trimmed["number_of_samples"] = n_samples - before - after
    trajectory = acquisition.trajectory[keep] if acquisition.trajectory.size else acquisition.trajectory
    return replace(acquisition, header=trimmed, data=acquisition.data[:, keep], trajectory=trajectory)
