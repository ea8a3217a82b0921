"""Which readouts form one output, and when the last of them has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ScanError
from ..stream.telemetry import Counters
from ..types import Acquisition, FrameEnd, FrameProgress, Geometry, MissingReadout, Notice, Origin, Readout, Scan
from .routing import LostReadout
from .trajectory import PlacedAcquisition

By = Literal["auto", "windows", "repetition", "contrast", "phase", "set", "single"]
COUNTERS: tuple[By, ...] = ("repetition", "contrast", "phase", "set")
MAX_FRAMES = 4096


@dataclass(frozen=True)
class FramePlan:
    """How counters become frames.

    Parameters
    ----------
    by : ``windows`` cuts the running spoke number ``kspace_encode_step_1`` into windows of equal length (pre, first
        post, second post); a counter name makes each of its values a frame; ``single`` puts everything into one.
    n_frames, n_slices, n_partitions, n_averages : sizes of the scan.
    n_spokes : values of ``kspace_encode_step_1`` that belong to one frame; if the header does not limit it, as many as
        fill the frame.
    n_expected : readouts that fill one frame of one slice.
    """

    by: By
    n_frames: int
    n_spokes: int
    n_partitions: int
    n_averages: int
    n_slices: int
    n_expected: int

    @property
    def readouts_per_plane(self) -> float:
        """Readouts of a full frame that share one plane of k-space; sets the density between spokes."""
        return self.n_expected / self.n_partitions

    @classmethod
    def of(cls, scan: Scan, by: By, n_frames: int, readouts_per_frame: int) -> FramePlan:
        """Plan for a scan.

        Parameters
        ----------
        n_frames : of a windowed scan; 0 takes the header's user parameter ``n_frames`` (1 if absent).
        readouts_per_frame : how many readouts fill a frame of a scan that leaves lines out; 0 takes the header's user
            parameter ``readouts_per_frame``, or else trusts the encoding limits.

        Raises
        ------
        ScanError : the header does not say how many readouts make a frame, or leaves open which counter numbers frames.
        """
        if "kspace_encode_step_1" not in scan.limits and not readouts_per_frame:
            raise ScanError(
                "the header does not say how many readouts make a frame",
                where="encodingLimits has no kspace_encoding_step_1",
                hint="--set frames.readouts_per_frame=N",
            )
        n_frames = n_frames or _declared_frames(scan)
        readouts_per_frame = readouts_per_frame or _declared_readouts(scan)
        by = _counter_of_frames(scan, by, n_frames)
        n_partitions, n_averages = scan.limit("kspace_encode_step_2").size, scan.limit("average").size
        n_spokes = scan.limit("kspace_encode_step_1").size
        if "kspace_encode_step_1" not in scan.limits:
            n_spokes = max(readouts_per_frame // (n_partitions * n_averages), 1)
        elif by == "windows":
            n_spokes //= n_frames
        if by != "windows":
            n_frames = 1 if by == "single" else scan.limit(by).size
        if n_spokes < 1 or n_frames > MAX_FRAMES:
            raise ScanError(
                f"{scan.limit('kspace_encode_step_1').size} spokes cannot make {n_frames} frames",
                hint="--set frames.n_frames=N",
            )
        n_expected = readouts_per_frame or n_spokes * n_partitions * n_averages
        return cls(by, n_frames, n_spokes, n_partitions, n_averages, scan.limit("slice").size, n_expected)


def _declared_frames(scan: Scan) -> int:
    """The header's user parameter ``n_frames``, 1 if it has none."""
    declared = scan.user_parameters.get("n_frames", 1)
    if not isinstance(declared, int) or not 1 <= declared <= MAX_FRAMES:
        raise ScanError(
            f"the header's n_frames is {declared!r}, expected a whole number from 1 to {MAX_FRAMES}",
            where="userParameters",
            hint="--set frames.n_frames=N",
        )
    return declared


def _declared_readouts(scan: Scan) -> int:
    """The header's user parameter ``readouts_per_frame``, 0 if it has none."""
    declared = scan.user_parameters.get("readouts_per_frame", 0)
    if not isinstance(declared, int) or not 0 <= declared <= 2**24:
        raise ScanError(
            f"the header's readouts_per_frame is {declared!r}, expected a whole number",
            where="userParameters",
            hint="--set frames.readouts_per_frame=N",
        )
    return declared


def _counter_of_frames(scan: Scan, by: By, n_frames: int) -> By:
    """What numbers the frames; refuses a scan in which a second counter would make readouts look repeated."""
    running = [counter for counter in COUNTERS if scan.limit(counter).size > 1]
    if by == "auto":
        by = running[0] if running else ("windows" if n_frames > 1 else "single")
    others = [counter for counter in running if counter != by]
    if others:
        raise ScanError(
            f"frames are numbered by {by}, but {' and '.join(others)} runs too",
            where="encodingLimits",
            likely="a multi-echo or multi-phase scan",
            hint=f"--set frames.by={others[0]}, or send one {others[0]} at a time",
        )
    return by


def frame_geometry(scan: Scan, acquisition: Acquisition) -> Geometry:
    """Geometry of the reconstructed volume from the header's recon space and the acquisition's position."""
    header = acquisition.header

    def vector(name: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        x, y, z = (float(v) for v in header[name])
        return (x, y, z) if (x, y, z) != (0.0, 0.0, 0.0) else default

    return Geometry(
        matrix=scan.recon_matrix,
        field_of_view_mm=scan.recon_fov_mm,
        position_mm=tuple(float(v) for v in header["position"]),  # type: ignore[arg-type]
        read_dir=vector("read_dir", (1.0, 0.0, 0.0)),
        phase_dir=vector("phase_dir", (0.0, 1.0, 0.0)),
        slice_dir=vector("slice_dir", (0.0, 0.0, 1.0)),
        origin=Origin(
            measurement_uid=int(header["measurement_uid"]),
            acquisition_time_stamp=int(header["acquisition_time_stamp"]),
            physiology_time_stamp=tuple(header["physiology_time_stamp"].tolist()),
            patient_table_position_mm=tuple(header["patient_table_position"].tolist()),
        ),
    )


MOSTLY = 0.9
"""Share of a later frame that must have come before an earlier one is closed by itself. A segmented or interleaved
scan, which will come back to the earlier frame, brings its frames in smaller parts."""


@dataclass
class _Frame:
    """What has come of one frame of one slice, while it is open.

    Parameters
    ----------
    later : readouts of later frames, by frame, since the last of its own.
    """

    seen: set[tuple[int, int]] = field(default_factory=set)
    lost: set[tuple[int, int]] = field(default_factory=set)
    last: FrameEnd | None = None
    later: dict[int, int] = field(default_factory=dict)


class _Runs:
    """A set of whole numbers as runs of successive ones: of a full frame, one run."""

    def __init__(self, numbers: set[int]) -> None:
        ordered = np.array(sorted(numbers), np.int64)
        starts = np.flatnonzero(np.diff(ordered, prepend=-2) > 1)
        self._first: NDArray[np.int64] = ordered[starts]
        self._last: NDArray[np.int64] = ordered[np.append(starts[1:], len(ordered)) - 1] if len(ordered) else ordered

    def __contains__(self, number: int) -> bool:
        run = int(np.searchsorted(self._first, number, side="right")) - 1
        return run >= 0 and number <= int(self._last[run])


class FrameReadouts:
    """Labels readouts with frame, slice and partition, and says when a frame is full.

    Readouts are passed on at once; only their keys are remembered, of frames that are over as a few runs. A frame ends
    when every expected readout has come or is known to be lost, in whatever order; or when it is closed, because enough
    readouts of later frames have come since the last of its own; or at the end of the stream. If readouts are missing,
    it is marked incomplete and told. A readout that comes twice within one frame, after its frame was over, or beyond
    the planned counters, is left aside and counted.

    Parameters
    ----------
    close_after : readouts of later frames of the same slice, since its own last one, that close a frame which lacks
        some. -1: as many as fill a frame, most of them (`MOSTLY`) from one frame, so that scans which come back to a
        frame are left alone; 0: never, it waits for the end of the scan.
    early : numbers of readouts at which an open frame is announced (`FrameProgress`).
    """

    takes = (PlacedAcquisition, LostReadout)
    gives = (Readout, MissingReadout, FrameEnd, FrameProgress, Notice)

    def __init__(
        self, scan: Scan, plan: FramePlan, counters: Counters, close_after: int = -1, early: tuple[int, ...] = ()
    ) -> None:
        self._scan, self.plan, self._counters = scan, plan, counters
        self._close_after, self._early = close_after, frozenset(early)
        self._frames: dict[tuple[int, int], _Frame] = {}
        self._over: dict[tuple[int, int], _Runs] = {}

    def push(self, item: PlacedAcquisition | LostReadout) -> list[Any]:
        acquisition, plan = item.acquisition, self.plan
        number, spoke = self._frame(acquisition)
        partition = self._from_minimum(acquisition, "kspace_encode_step_2")
        average = self._from_minimum(acquisition, "average")
        has_limit = "kspace_encode_step_1" in self._scan.limits
        in_range = 0 <= number < plan.n_frames and 0 <= partition < plan.n_partitions and 0 <= average < plan.n_averages
        in_range = in_range and acquisition.counter("slice") <= self._scan.limit("slice").maximum
        if not in_range or (has_limit and not 0 <= spoke < plan.n_spokes):
            return self._leave("outside the planned frames", acquisition.place)
        place = (number, acquisition.counter("slice"))
        key = (spoke * plan.n_averages + average, partition)
        if place in self._over:
            is_repeated = self._number(key) in self._over[place]
            return self._leave("repeated" if is_repeated else "after its frame was over", acquisition.place)
        frame = self._frames.setdefault(place, _Frame())
        if key in frame.seen:
            return self._leave("repeated", acquisition.place)
        frame.later.clear()
        if isinstance(item, LostReadout):
            frame.lost.add(key)
            return [MissingReadout(*place, key), *self._ended(place, frame, acquisition)]
        frame.lost.discard(key)
        frame.seen.add(key)
        readout = Readout(acquisition.data, item.trajectory, *place, partition, key, acquisition.received_ns)
        made = [readout, *self._overtaken(place), *self._ended(place, frame, acquisition)]
        if frame.last is not None:
            readout.geometry = frame.last.geometry
            if place in self._frames and len(frame.seen) in self._early:
                made.append(FrameProgress(frame.last))
        return made

    def finish(self) -> list[Any]:
        """Frames that never became full, in order, each with a warning; and how many frames never came at all."""
        cut = [item for place in sorted(self._frames) for item in self._cut(place)]
        return [*cut, *self._absent()]

    def _absent(self) -> list[Any]:
        """A warning if some planned frames never came, unless none did."""
        plan, first_slice = self.plan, self._scan.limit("slice").minimum
        n_came = sum(number >= first_slice for _, number in self._over)
        n_absent = plan.n_frames * plan.n_slices - n_came
        if not self._over or n_absent <= 0:
            return []
        places = ((frame, first_slice + n) for n in range(plan.n_slices) for frame in range(plan.n_frames))
        frame, number = next(place for place in places if place not in self._over)
        text = f"{n_absent} of {plan.n_frames * plan.n_slices} planned frames never came"
        text += f", the first is frame {frame} slice {number}"
        return [Notice("warning", text, kind="missing_frames", amount=n_absent)]

    def _ended(self, place: tuple[int, int], frame: _Frame, acquisition: Acquisition) -> list[Any]:
        """The frame's end, if nothing is left to wait for."""
        frame.last = FrameEnd(
            *place,
            n_readouts=len(frame.seen),
            n_expected=self.plan.n_expected,
            received_ns=acquisition.received_ns,
            geometry=frame_geometry(self._scan, acquisition),
        )
        if frame.last.is_complete:
            self._finish_frame(place)
            self._counters.frames += 1
            return [frame.last]
        if len(frame.seen) + len(frame.lost) >= self.plan.n_expected:
            return self._cut(place)
        return []

    def _overtaken(self, place: tuple[int, int]) -> list[Any]:
        """Ends of earlier frames of this slice that enough readouts of later ones have passed."""
        if not self._close_after or len(self._frames) - (place in self._frames) == 0:
            return []
        ended: list[Any] = []
        for other in sorted(p for p in self._frames if p[1] == place[1] and p[0] < place[0]):
            later = self._frames[other].later
            later[place[0]] = later.get(place[0], 0) + 1
            if self._is_overtaken(later):
                ended += self._cut(other)
        return ended

    def _is_overtaken(self, later: dict[int, int]) -> bool:
        if self._close_after > 0:
            return sum(later.values()) >= self._close_after
        n_expected = self.plan.n_expected
        return sum(later.values()) >= n_expected and max(later.values()) >= MOSTLY * n_expected

    def _number(self, key: tuple[int, int]) -> int:
        """A key as one number; successive partitions, then spokes, are successive."""
        return key[0] * self.plan.n_partitions + key[1]

    def _finish_frame(self, place: tuple[int, int]) -> None:
        """Forget a frame but for what tells repeated readouts from late ones."""
        self._over[place] = _Runs({self._number(key) for key in self._frames.pop(place).seen})

    def _cut(self, place: tuple[int, int]) -> list[Any]:
        """The end of a frame that lacks readouts; a frame that has none at all makes no image."""
        frame = self._frames[place]
        self._finish_frame(place)
        if frame.last is None:
            return []
        lost = f", {len(frame.lost)} could not be used" if frame.lost else ""
        came = f"{len(frame.seen)} of {self.plan.n_expected} readouts came{lost}"
        text = f"frame {place[0]} slice {place[1]} is incomplete: {came}"
        n_missing = self.plan.n_expected - len(frame.seen)
        if not frame.seen:
            return [Notice("warning", f"{text}; there is no image of it", kind="missing_readouts", amount=n_missing)]
        self._counters.frames += 1
        return [Notice("warning", text, kind="missing_readouts", amount=n_missing), frame.last]

    def _from_minimum(self, acquisition: Acquisition, counter: str) -> int:
        return acquisition.counter(counter) - self._scan.limit(counter).minimum

    def _frame(self, acquisition: Acquisition) -> tuple[int, int]:
        """Frame, and number of the spoke within it."""
        spoke = self._from_minimum(acquisition, "kspace_encode_step_1")
        if self.plan.by == "windows":
            return divmod(spoke, self.plan.n_spokes)
        return (0 if self.plan.by == "single" else self._from_minimum(acquisition, self.plan.by)), spoke

    def _leave(self, reason: str, place: str) -> list[Any]:
        if self._counters.leave(reason) > 1:
            return []
        return [Notice("warning", f"readout left aside, {reason} ({place}); further ones are only counted")]
