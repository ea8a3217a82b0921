"""Which readouts form one output, and when the last of them has come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..errors import ScanError
from ..stream.telemetry import Counters
from ..types import FrameEnd, Geometry, Notice, Readout, Scan
from .trajectory import PlacedAcquisition

By = Literal["auto", "windows", "repetition", "contrast", "phase", "set", "single"]


@dataclass(frozen=True)
class FramePlan:
    """How counters become frames.

    ``windows`` cuts the running spoke number ``kspace_encode_step_1`` into `n_frames` windows of equal length (pre,
    first post, second post); a counter name makes each of its values a frame; ``single`` puts everything into one.
    """

    by: By
    n_frames: int
    spokes_per_frame: int
    n_partitions: int
    n_slices: int

    @property
    def readouts_per_frame(self) -> int:
        return self.spokes_per_frame * self.n_partitions

    @classmethod
    def of(cls, scan: Scan, by: By, n_frames: int, readouts_per_frame: int) -> FramePlan:
        """Plan for a scan; `n_frames` 0 takes the header's user parameter ``n_frames`` (1 if absent).

        `readouts_per_frame` 0 trusts the encoding limits; a positive number says how many readouts end a frame of a
        scan that leaves lines out.
        """
        n_frames = n_frames or int(scan.user_parameters.get("n_frames", 1))
        if by == "auto":
            by = "repetition" if scan.limit("repetition").size > 1 else ("windows" if n_frames > 1 else "single")
        spokes = scan.limit("kspace_encode_step_1").size
        partitions = scan.limit("kspace_encode_step_2").size
        if by == "windows":
            spokes //= n_frames
        elif by != "single":
            n_frames = scan.limit(by).size
        else:
            n_frames = 1
        if readouts_per_frame:
            spokes = max(readouts_per_frame // partitions, 1)
        if spokes < 1:
            raise ScanError(
                f"{scan.limit('kspace_encode_step_1').size} spokes cannot make {n_frames} frames",
                hint="--set frames.n_frames=N",
            )
        return cls(by, n_frames, spokes, partitions, scan.limit("slice").size)


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
    one frame, or beyond the last frame, is left aside and counted.
    """

    takes = (PlacedAcquisition,)
    gives = (Readout, FrameEnd, Notice)

    def __init__(self, scan: Scan, plan: FramePlan, counters: Counters) -> None:
        self._scan, self.plan, self._counters = scan, plan, counters
        self._seen: dict[tuple[int, int], set[tuple[int, int]]] = {}
        self._last: dict[tuple[int, int], FrameEnd] = {}

    def push(self, placed: PlacedAcquisition) -> list[Any]:
        acquisition = placed.acquisition
        step_1 = acquisition.counter("kspace_encode_step_1")
        partition = acquisition.counter("kspace_encode_step_2") - self._scan.limit("kspace_encode_step_2").minimum
        frame, spoke = self._frame(placed, step_1 - self._scan.limit("kspace_encode_step_1").minimum)
        if not (0 <= frame < self.plan.n_frames and 0 <= partition < self.plan.n_partitions):
            return self._leave("outside the planned frames", acquisition.place)
        place = (frame, acquisition.counter("slice"))
        key = (spoke, partition)
        seen = self._seen.setdefault(place, set())
        if key in seen:
            return self._leave("repeated", acquisition.place)
        seen.add(key)
        readout = Readout(acquisition.data, placed.trajectory, *place, partition, key, acquisition.received_ns)
        end = FrameEnd(
            *place,
            n_readouts=len(seen),
            n_expected=self.plan.readouts_per_frame,
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

    def _frame(self, placed: PlacedAcquisition, spoke: int) -> tuple[int, int]:
        if self.plan.by == "windows":
            return divmod(spoke, self.plan.spokes_per_frame)
        if self.plan.by == "single":
            return 0, spoke
        return placed.acquisition.counter(self.plan.by) - self._scan.limit(self.plan.by).minimum, spoke

    def _leave(self, reason: str, place: str) -> list[Any]:
        if self._counters.leave(reason) > 1:
            return []
        return [Notice("warning", f"readout left aside, {reason} ({place}); further ones are only counted")]
