"""Which readouts form one output, and when the last of them has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import ScanError
from ..stream.telemetry import Counters
from ..types import Acquisition, FrameEnd, Geometry, Notice, Origin, Readout, Scan
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
    n_spokes : values of ``kspace_encode_step_1`` that belong to one frame.
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
        readouts_per_frame : 0 trusts the encoding limits; a positive number says how many readouts fill a frame of a
            scan that leaves lines out.

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
        by = _counter_of_frames(scan, by, n_frames)
        n_spokes = scan.limit("kspace_encode_step_1").size
        if by == "windows":
            n_spokes //= n_frames
        else:
            n_frames = 1 if by == "single" else scan.limit(by).size
        if n_spokes < 1 or n_frames > MAX_FRAMES:
            raise ScanError(
                f"{scan.limit('kspace_encode_step_1').size} spokes cannot make {n_frames} frames",
                hint="--set frames.n_frames=N",
            )
        n_partitions, n_averages = scan.limit("kspace_encode_step_2").size, scan.limit("average").size
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


@dataclass
class _Frame:
    """What has come of one frame of one slice."""

    seen: set[tuple[int, int]] = field(default_factory=set)
    lost: set[tuple[int, int]] = field(default_factory=set)
    last: FrameEnd | None = None
    n_later: int = 0
    is_over: bool = False


class FrameReadouts:
    """Labels readouts with frame, slice and partition, and says when a frame is full.

    Readouts are passed on at once; only their keys are remembered. A frame ends when every expected readout has come or
    is known to be lost, in whatever order; or when enough readouts of later frames have come; or at the end of the
    stream. If readouts are missing, it is marked incomplete and told. A readout that comes twice within one frame,
    after its frame was over, or beyond the planned counters, is left aside and counted.

    Parameters
    ----------
    close_after : readouts of later frames of the same slice after which a frame that lacks readouts ends; 0 waits until
        the end of the scan, which any order of arrival needs.
    """

    takes = (PlacedAcquisition, LostReadout)
    gives = (Readout, FrameEnd, Notice)

    def __init__(self, scan: Scan, plan: FramePlan, counters: Counters, close_after: int = 0) -> None:
        self._scan, self.plan, self._counters = scan, plan, counters
        self._close_after = close_after
        self._frames: dict[tuple[int, int], _Frame] = {}

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
        frame = self._frames.setdefault(place, _Frame())
        if key in frame.seen:
            return self._leave("repeated", acquisition.place)
        if frame.is_over:
            return self._leave("after its frame was over", acquisition.place)
        if isinstance(item, LostReadout):
            frame.lost.add(key)
            return self._ended(place, frame, acquisition)
        frame.lost.discard(key)
        frame.seen.add(key)
        readout = Readout(acquisition.data, item.trajectory, *place, partition, key, acquisition.received_ns)
        return [readout, *self._ended(place, frame, acquisition), *self._overtaken(place)]

    def finish(self) -> list[Any]:
        """Frames that never became full, in order, each with a warning."""
        return [item for place in sorted(self._frames) for item in self._cut(place)]

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
            frame.is_over = True
            self._counters.frames += 1
            return [frame.last]
        return self._cut(place) if len(frame.seen) + len(frame.lost) >= self.plan.n_expected else []

    def _overtaken(self, place: tuple[int, int]) -> list[Any]:
        """Ends of earlier frames of this slice that enough readouts of later ones have passed."""
        ended: list[Any] = []
        if not self._close_after:
            return ended
        for other in [p for p in self._frames if p[1] == place[1] and p[0] < place[0]]:
            self._frames[other].n_later += 1
            if self._frames[other].n_later >= self._close_after:
                ended += self._cut(other)
        return ended

    def _cut(self, place: tuple[int, int]) -> list[Any]:
        """The end of a frame that lacks readouts; a frame that has none at all makes no image."""
        frame = self._frames[place]
        if frame.is_over or frame.last is None:
            return []
        frame.is_over = True
        lost = f", {len(frame.lost)} could not be used" if frame.lost else ""
        came = f"{len(frame.seen)} of {self.plan.n_expected} readouts came{lost}"
        text = f"frame {place[0]} slice {place[1]} is incomplete: {came}"
        if not frame.seen:
            return [Notice("warning", f"{text}; there is no image of it")]
        self._counters.frames += 1
        return [Notice("warning", text), frame.last]

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
