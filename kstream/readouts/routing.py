"""Which acquisition is for imaging, and whether it keeps what the header promised."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ..errors import ScanError, ShapeError
from ..stream.telemetry import Counters
from ..types import Acquisition, AcquisitionFlag, Complex, Notice, Scan


@dataclass(slots=True)
class NoiseReadout:
    """An acquisition with the transmitter off, for the noise covariance."""

    acquisition: Acquisition


@dataclass(slots=True)
class LostReadout:
    """An image readout that cannot be used: its frame must not wait for it."""

    acquisition: Acquisition


LARGEST = 1e15
"""Samples beyond this are damage: receivers give at most 1e9, and sums of squares of float32 overflow at 1e19."""

NotFinite = Literal["leave", "zero", "error"]

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


class ScanCounter:
    """Follows ``scan_counter``, which counts all acquisitions of a measurement; many senders leave it at 0."""

    def __init__(self) -> None:
        self._last: int | None = None
        self._is_running = False
        self.n_missing = self.n_repeated = self.n_late = 0

    def follow(self, number: int) -> None:
        """Take the next number; it may wrap at 2**32."""
        step = 1 if self._last is None else (number - self._last) % 2**32
        self._is_running |= self._last is not None and step != 0
        if step == 0:
            self.n_repeated += 1
        elif step < 2**31:
            self.n_missing += step - 1
        else:  # an earlier number: one that was missing, or one that came before
            self.n_late += 1
            self.n_missing = max(self.n_missing - 1, 0)
            return
        self._last = number

    @property
    def gaps(self) -> str:
        """What is wrong with the numbers; empty if nothing is, or if they do not run at all."""
        counts = {"missing": self.n_missing, "repeated": self.n_repeated, "late": self.n_late}
        return ", ".join(f"{n} {what}" for what, n in counts.items() if n) if self._is_running else ""


class RouteReadouts:
    """Sends noise readouts one way and image readouts the other; counts and leaves aside the rest.

    Parameters
    ----------
    samples : what every image readout must have: a number, ``header`` (samples of the encoded matrix, for trajectories
        whose readouts all have that length) or ``first`` (as many as the first one).
    not_finite : a readout with samples that are NaN, Inf or beyond any receiver is left aside (its frame ends without
        it), or those samples become 0, or the measurement ends. Counted and told in each case.
    """

    takes = (Acquisition,)
    gives = (Acquisition, NoiseReadout, LostReadout, Notice)

    def __init__(
        self,
        scan: Scan,
        samples: int | Literal["header", "first"],
        counters: Counters,
        not_finite: NotFinite = "leave",
    ) -> None:
        self._not_finite = not_finite
        self._n_mended = 0
        self._scan = scan
        self._counters = counters
        self._samples: int | None = None
        self._coils: int | None = scan.n_coils or None
        self._promised_by = "the header"
        self._scan_counter = ScanCounter()
        if isinstance(samples, int):
            self._samples, self._promised_by = samples, "the configuration"
        elif samples == "header" and scan.trajectory in FIXED_LENGTH:
            self._samples = scan.encoded_matrix[0]

    def push(self, acquisition: Acquisition) -> list[Any]:
        self._counters.received += 1
        self._scan_counter.follow(int(acquisition.header["scan_counter"]))
        if acquisition.has(AcquisitionFlag.IS_NOISE_MEASUREMENT):
            self._counters.leave("noise")
            return [NoiseReadout(acquisition)]
        for flag, reason in ROUTES:
            if acquisition.has(flag) and not acquisition.has(AcquisitionFlag.IS_PARALLEL_CALIBRATION_AND_IMAGING):
                self._counters.leave(reason)
                return []
        self._check(acquisition)
        told: list[Any] = []
        if not _is_sound(acquisition.data):
            if self._not_finite != "zero":
                return self._leave_non_finite(acquisition)
            acquisition, told = self._mended(acquisition)
        return [*told, _trimmed(_forward(acquisition))]

    def finish(self) -> list[Any]:
        gaps = self._scan_counter.gaps
        told: list[Any] = [Notice("warning", f"scan_counter does not run on: {gaps}")] if gaps else []
        if self._n_mended > 1:
            text = f"{self._n_mended} readouts had samples that are NaN, Inf or huge; those became 0"
            told.append(Notice("warning", text))
        return told

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

    def _leave_non_finite(self, acquisition: Acquisition) -> list[Any]:
        what = "samples that are NaN, Inf or huge"
        if self._not_finite == "error":
            raise ScanError(
                what,
                where=acquisition.place,
                likely="a damaged receiver or recording",
                hint="--set readouts.not_finite=leave|zero",
            )
        lost = LostReadout(acquisition)
        if self._counters.leave("not finite") > 1:
            return [lost]
        return [Notice("warning", f"{what}: readout left aside ({acquisition.place})"), lost]

    def _mended(self, acquisition: Acquisition) -> tuple[Acquisition, list[Any]]:
        """The readout with 0 for what cannot be a sample."""
        self._n_mended += 1
        size = np.maximum(np.abs(acquisition.data.real), np.abs(acquisition.data.imag))
        data = np.where(size < LARGEST, acquisition.data, 0).astype(np.complex64)
        if self._n_mended > 1:
            return replace(acquisition, data=data), []
        n_bad = int(data.size - (size < LARGEST).sum())
        text = f"{n_bad} samples that are NaN, Inf or huge became 0 ({acquisition.place})"
        return replace(acquisition, data=data), [Notice("warning", text)]


def _is_sound(data: Complex) -> bool:
    """True if all samples are finite and of a size that a receiver can give; NaN compares as false."""
    return all(float(part.min()) > -LARGEST and float(part.max()) < LARGEST for part in (data.real, data.imag))


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
