"""Which readouts form one output, and when the last of them has come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..errors import ScanError
from ..stream.telemetry import Counters
from ..types import Acquisition, FrameEnd, Geometry, Notice, Readout, Scan
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


def frame_geometry(scan: Scan, placed: PlacedAcquisition) -> Geometry:
    """Geometry of the reconstructed volume from the header's recon space and the acquisition's position."""
    header = placed.acquisition.header

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
    )


class FrameReadouts:
    """Labels readouts with frame, slice and partition, and says when a frame is full.

    Readouts are passed on at once; only their keys are remembered. A frame ends when every expected readout has come,
    in whatever order, or at the end of the stream, and then it is marked incomplete. A readout that comes twice within
    one frame, after its frame was full, or beyond the planned counters, is left aside and counted.
    """

    takes = (PlacedAcquisition,)
    gives = (Readout, FrameEnd, Notice)

    def __init__(self, scan: Scan, plan: FramePlan, counters: Counters) -> None:
        self._scan, self.plan, self._counters = scan, plan, counters
        self._seen: dict[tuple[int, int], set[tuple[int, int]]] = {}
        self._last: dict[tuple[int, int], FrameEnd] = {}

    def push(self, placed: PlacedAcquisition) -> list[Any]:
        acquisition, plan = placed.acquisition, self.plan
        frame, spoke = self._frame(acquisition)
        partition = self._from_minimum(acquisition, "kspace_encode_step_2")
        average = self._from_minimum(acquisition, "average")
        has_limit = "kspace_encode_step_1" in self._scan.limits
        in_range = 0 <= frame < plan.n_frames and 0 <= partition < plan.n_partitions and 0 <= average < plan.n_averages
        if not in_range or (has_limit and not 0 <= spoke < plan.n_spokes):
            return self._leave("outside the planned frames", acquisition.place)
        place = (frame, acquisition.counter("slice"))
        key = (spoke * plan.n_averages + average, partition)
        seen = self._seen.setdefault(place, set())
        if key in seen:
            return self._leave("repeated", acquisition.place)
        if len(seen) >= plan.n_expected:
            return self._leave("after its frame was full", acquisition.place)
        seen.add(key)
        readout = Readout(acquisition.data, placed.trajectory, *place, partition, key, acquisition.received_ns)
        end = FrameEnd(
            *place,
            n_readouts=len(seen),
            n_expected=plan.n_expected,
            received_ns=acquisition.received_ns,
            geometry=frame_geometry(self._scan, placed),
        )
        if not end.is_complete:
            self._last[place] = end
            return [readout]
        self._last.pop(place, None)
        self._counters.frames += 1
        return [readout, end]

    def finish(self) -> list[Any]:
        """Frames that never became full, in order, each with a warning."""
        left: list[Any] = []
        for (frame, slice_), end in sorted(self._last.items()):
            text = f"frame {frame} slice {slice_} is incomplete: {end.n_readouts} of {end.n_expected} readouts came"
            left += [Notice("warning", text), end]
            self._counters.frames += 1
        self._last.clear()
        return left

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
