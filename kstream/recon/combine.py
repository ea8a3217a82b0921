"""Spokes to coil-combined k-space while they come."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np

from ..errors import ScanError
from ..stream.crew import Crew, InlineCrew, Task, Wake
from ..types import Complex, EarlyKSpace, Float, FrameEnd, FrameProgress, KSpace, MissingReadout, Notice, Readout
from .calibration import Calibration, EspiritSettings
from .espirit import CoilMaps
from .sampling import Sampling
from .zero_wait import SpokeSum


class FrameSum(Protocol):
    """The running coil-combined image of one frame, wherever it is computed, for every set of maps."""

    n_sets: int

    def add(self, samples: Complex, trajectory: Float, weights: Float) -> None: ...

    def kspace(self, number: int = 0) -> Complex: ...


MakeSum = Callable[[CoilMaps, Complex, Crew], FrameSum]


def frame_sums(device: str) -> MakeSum:
    """Where volumes are computed: compiled loops on the processor, or torch on a GPU.

    Raises
    ------
    ConfigError : if this machine has no such device.
    """
    if device == "cpu":
        return SpokeSum
    from .gpu import TorchSums  # torch takes seconds to import, and most reconstructions need none of it

    return TorchSums(device)


BACKLOG = 4
"""Angles that may come to wait on top of those that waited already: a few, so that bursts do not hold up readouts."""


@dataclass
class Angle:
    """Readouts along one line of the plane: samples ``(coils, samples)`` by partition, of those that came."""

    frame: int
    trajectory: Float
    weights: Float
    parts: dict[int, Complex] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())

    def samples(self, n_partitions: int) -> Complex:
        """Complex64 ``(partitions, coils, samples)``, 0 where none came."""
        if len(self.parts) == n_partitions:
            return np.stack([self.parts[partition] for partition in range(n_partitions)])
        block = np.zeros((n_partitions, *next(iter(self.parts.values())).shape), np.complex64)
        for partition, part in self.parts.items():
            block[partition] = part
        return block


Group = tuple[int, int, int, bytes]
"""Frame, spoke, samples and line in the plane: what the partitions of one angle share."""


@dataclass
class _Slice:
    """What one slice (or slab) knows: its maps or how far they are, and what waits for them in order of arrival."""

    number: int
    calibration: Calibration | None = None
    task: Task[tuple[CoilMaps, list[Notice]]] | None = None
    maps: CoilMaps | None = None
    open: dict[Group, Angle] = field(default_factory=dict)
    ready: deque[Angle | FrameEnd | FrameProgress] = field(default_factory=deque)
    sums: dict[int, FrameSum] = field(default_factory=dict)
    ready_bytes: int = 0
    unfinished: set[int] = field(default_factory=set)  # frames of which readouts came, and no end
    lost: set[tuple[int, int]] = field(default_factory=set)  # calibration readouts that will not come
    is_later: bool = False  # a readout of a frame after the calibration frame has come
    least_waited: int = 0  # since the maps are there


MOSTLY = 0.9
"""Of the calibration readouts: with so many, maps do not wait for the others once the next frame has begun."""


class CombineSpokes:
    """Adds every angle, coil-combined, to its frame's volume when all its partitions have come.

    Maps come from the first spokes of the calibration frame, a fixed set of readouts, so that they do not depend on
    timing; they are made in the background. Readouts of that set that are lost are not waited for, nor are missing ones
    if `MOSTLY` all have come when the first readout of a later frame does (where frames take turns, few have then).
    Angles that are complete before the maps are wait as samples, and are added in the same order as if the maps had
    been there. An angle that misses a partition is added at the end of its frame, or earlier if too many angles are
    open; a late partition then opens it again, for the volume is a sum.

    Readouts go before angles that wait, until more angles wait than before: then the readout that brings one waits for
    two of them, so that what is held does not grow and a fast sender is slowed down. Before memory is refused, maps
    that are on the way are waited for and all that waits is worked off: success does not depend on timing.

    When `FrameProgress` announces a frame that is still open, the sum of its whole angles leaves as `EarlyKSpace`, and
    the sum goes on.

    Parameters
    ----------
    calibration_frame : frame whose spokes give the maps.
    n_calibration : its first spokes that do; 0 for all.
    memory_gib : all that is held may take so much.
    crew : who works in the background and on several slices at a time.
    make_sum : where volumes are computed; by default with the compiled loops of this machine's processor.

    Raises
    ------
    ScanError : the header asks for more memory than that.
    """

    takes = (Readout, MissingReadout, FrameEnd, FrameProgress, Wake)
    gives = (KSpace, EarlyKSpace, FrameEnd, FrameProgress, Notice)

    def __init__(
        self,
        sampling: Sampling,
        espirit: EspiritSettings,
        calibration_frame: int,
        n_calibration: int,
        memory_gib: float,
        crew: Crew | None = None,
        make_sum: MakeSum = SpokeSum,
    ) -> None:
        self._sampling, self._espirit = sampling, espirit
        self._calibration_frame = calibration_frame
        self._n_spokes = round(sampling.readouts_per_plane / sampling.n_averages)
        self._n_calibration = min(n_calibration or self._n_spokes, self._n_spokes)
        self._memory_gib = memory_gib
        self._crew, self._make_sum = crew or InlineCrew(), make_sum
        self._slices: dict[int, _Slice] = {}
        self._open_bytes = 0
        self._has_told_few = False
        self._is_wake_coming = False
        self._check_memory(max(sampling.scan.n_coils, 1), 0, 0)
        self._to_z = sampling.partition_to_z()

    def push(self, item: Readout | MissingReadout | FrameEnd | FrameProgress | Wake) -> list[Any]:
        if isinstance(item, Wake):
            self._is_wake_coming = False
            return [made for state in self._slices.values() for made in self._advance(state)]
        state = self._slices.setdefault(item.slice, _Slice(item.slice))
        if isinstance(item, FrameEnd):
            return [item, *self._end_frame(state, item), *self._advance(state)]
        if isinstance(item, FrameProgress):
            state.ready.append(item)
            return [item, *self._advance(state)]
        if isinstance(item, MissingReadout):
            return self._miss(state, item)
        made = [*self._make_room(item), *self._go_on_without(state, item), *self._take(state, item)]
        made += self._advance(state) if made or state.ready else []
        return made + self._keep_pace(state)

    def finish(self) -> list[Any]:
        """Everything that still waits; slices whose calibration frame never came use the first frame that did."""
        left: list[Any] = []
        for number, state in self._slices.items():
            if state.task is None and state.ready:
                left += self._calibrate_otherwise(number, state)
            if state.task is not None and state.maps is None:
                left += self._set_maps(state)
            while state.ready:
                left += self._process(state, state.ready.popleft())
        return left

    # ---- readouts to angles ----

    def _take(self, state: _Slice, readout: Readout) -> list[Any]:
        """Put a readout into its angle, and into the calibration if it belongs there."""
        line = np.round(readout.trajectory[[0, -1], :2], 3).tobytes()
        group = (readout.frame, readout.key[0], readout.data.shape[1], line)
        told: list[Any] = []
        angle = state.open.get(group)
        if angle is None:
            weights, told = self._sampling.weights(readout)
            angle = state.open[group] = Angle(readout.frame, readout.trajectory, weights)
        else:
            self._sampling.came(readout)
        angle.parts[readout.partition] = readout.data.copy()  # the readout may be a view of all that came with it
        self._open_bytes += readout.data.nbytes
        state.unfinished.add(readout.frame)
        if self._is_for_calibration(readout) and state.task is None:
            told = told + self._calibrate(state, readout, angle.weights)
        if len(angle.parts) == self._sampling.n_partitions:
            self._close(state, group)
        return told

    def _close(self, state: _Slice, group: Group) -> None:
        """This angle waits for no more partitions."""
        angle = state.open.pop(group)
        self._open_bytes -= angle.n_bytes
        state.ready_bytes += angle.n_bytes
        state.ready.append(angle)

    def _end_frame(self, state: _Slice, end: FrameEnd) -> list[Any]:
        """Angles that miss a partition are as full as they will be."""
        for group in [group for group in state.open if group[0] == end.frame]:
            self._close(state, group)
        state.ready.append(end)
        state.unfinished.discard(end.frame)
        if end.frame != self._calibration_frame or state.task is not None:
            return []
        if state.calibration is not None:
            return self._start_without(state)
        if any(isinstance(item, Angle) and item.frame == end.frame for item in state.ready):
            return self._calibrate_from(state, end.frame, f"no calibration readout of frame {end.frame} came")
        return []

    # ---- coil maps ----

    @property
    def _n_calibration_readouts(self) -> int:
        return self._n_calibration * self._sampling.n_averages * self._sampling.n_partitions

    def _is_for_calibration(self, readout: Readout | MissingReadout) -> bool:
        spoke = readout.key[0] // self._sampling.n_averages
        return readout.frame == self._calibration_frame and spoke < self._n_calibration

    def _calibrate(self, state: _Slice, readout: Readout, weights: Float) -> list[Any]:
        """Add a readout to the calibration; start on the maps when it was the last one."""
        if state.calibration is None:
            state.calibration = Calibration(self._espirit, self._sampling.shape, self._to_z)
        state.calibration.add(readout.data, readout.trajectory, weights, readout.partition)
        state.lost.discard(readout.key)
        return self._start_if_complete(state)

    def _miss(self, state: _Slice, missing: MissingReadout) -> list[Any]:
        """A readout that will not come, most likely: if it is sent again after all, it counts again."""
        if state.task is not None or not self._is_for_calibration(missing):
            return []
        state.lost.add(missing.key)
        return [*self._start_if_complete(state), *self._advance(state)]

    def _start_if_complete(self, state: _Slice) -> list[Any]:
        if state.calibration is None or state.calibration.n_readouts + len(state.lost) < self._n_calibration_readouts:
            return []
        return self._start_without(state) if state.lost else self._start(state)

    def _go_on_without(self, state: _Slice, readout: Readout) -> list[Any]:
        """Start on the maps if most readouts for them are there when the first of a later frame comes."""
        if state.is_later or readout.frame <= self._calibration_frame:
            return []
        state.is_later = True
        is_enough = state.calibration and state.calibration.n_readouts >= MOSTLY * self._n_calibration_readouts
        return self._start_without(state) if is_enough else []

    def _start_without(self, state: _Slice) -> list[Any]:
        """Start on the maps with the readouts that came."""
        n_came = state.calibration.n_readouts if state.calibration is not None else 0
        which = f"{n_came} of {self._n_calibration_readouts} calibration readouts"
        return [Notice("warning", f"coil maps from {which}: the others did not come"), *self._start(state)]

    def _start(self, state: _Slice) -> list[Any]:
        if state.calibration is None:
            return []
        state.task, state.calibration = self._crew.submit(partial(state.calibration.maps, self._crew)), None
        n_full = int(2 / np.pi * self._n_calibration)
        if n_full >= self._espirit.calibration_size or self._has_told_few:
            return []
        self._has_told_few = True
        text = f"{self._n_calibration} spokes sample only the inner {n_full} of {self._espirit.calibration_size}"
        text = f"{text} calibration samples fully: coil maps may show streaks"
        return [Notice("warning", text, kind="few_calibration_spokes")]

    def _calibrate_otherwise(self, number: int, state: _Slice) -> list[Any]:
        """Maps from the first frame that came, when the calibration frame did not."""
        frame = min(item.frame for item in state.ready)
        why = f"slice {number}: calibration frame {self._calibration_frame} never came"
        return self._calibrate_from(state, frame, why)

    def _calibrate_from(self, state: _Slice, frame: int, why: str) -> list[Any]:
        """Maps from all of a frame that waits."""
        state.calibration = Calibration(self._espirit, self._sampling.shape, self._to_z)
        for angle in state.ready:
            if isinstance(angle, Angle) and angle.frame == frame:
                for partition, samples in angle.parts.items():
                    state.calibration.add(samples, angle.trajectory, angle.weights, partition)
        return [Notice("warning", f"{why}; maps from {frame}"), *self._start(state)]

    def _set_maps(self, state: _Slice) -> list[Any]:
        if state.task is None:
            return []
        state.maps, told = state.task.result()
        state.least_waited = n_waiting = len(state.ready)
        held = f"{n_waiting} angles ({self._held_bytes / 2**20:.0f} MiB) waited for them"
        text = f"slice {state.number}: coil maps are there, {held}"
        return [*told, Notice("info", text)]

    # ---- angles to volumes ----

    def _advance(self, state: _Slice) -> list[Any]:
        """Work on what waits: one angle if the stream will wake us again (readouts go first), else everything."""
        made: list[Any] = []
        if self._is_wake_coming:
            return made
        if state.maps is None:
            if state.task is None or not state.task.is_done:
                return made
            made += self._set_maps(state)
        while state.ready:
            made += self._process(state, state.ready.popleft())
            if state.ready and isinstance(state.ready[0], Angle) and self._crew.wake():
                self._is_wake_coming = True
                break
        return made

    def _keep_pace(self, state: _Slice) -> list[Any]:
        """Work off two angles if more wait than before: readouts come faster than angles can be added."""
        if state.maps is None:
            return []
        made: list[Any] = []
        state.least_waited = min(state.least_waited, len(state.ready))
        if len(state.ready) > state.least_waited + BACKLOG:
            state.least_waited = max(state.least_waited - 1, 0)
            while len(state.ready) > state.least_waited + BACKLOG:
                made += self._process(state, state.ready.popleft())
        return made

    def _make_room(self, readout: Readout) -> list[Any]:
        """Room for a readout: open angles are added early, maps are waited for, and what waits is worked off.

        Which angles are added early, and whether there is room, depends on the readouts only, not on timing.
        """
        n_coils = len(readout.data)
        block_bytes = self._sampling.n_partitions * readout.data.nbytes  # an angle, while it is added
        n_unfinished = sum(len(state.unfinished) for state in self._slices.values())
        limit = self._memory_gib * 2**30
        half = (limit - self._fixed_bytes(n_coils, n_unfinished)) / 2
        able = [state for state in self._slices.values() if state.task is not None]
        while self._open_bytes + block_bytes > half and any(state.open for state in able):
            state = max(able, key=_fullest)
            self._close(state, max(state.open, key=lambda group: len(state.open[group].parts)))
        stuck = sum(state.ready_bytes for state in self._slices.values() if state.task is None)
        self._check_memory(n_coils, n_unfinished, self._open_bytes + stuck + block_bytes)
        made: list[Any] = []
        for state in able:
            while state.ready and self._needed_bytes(n_coils) + block_bytes > limit:
                made += self._set_maps(state) if state.maps is None else []
                made += self._process(state, state.ready.popleft())
        return made

    def _process(self, state: _Slice, item: Angle | FrameEnd | FrameProgress) -> list[Any]:
        if state.maps is None:
            raise ScanError("no readout came that could give coil maps")
        if isinstance(item, Angle):
            if item.frame not in state.sums:
                state.sums[item.frame] = self._make_sum(state.maps, self._to_z, self._crew)
            samples = item.samples(self._sampling.n_partitions)
            state.sums[item.frame].add(samples, item.trajectory, item.weights)
            state.ready_bytes -= item.n_bytes
            return []
        if isinstance(item, FrameProgress):
            so_far = item.so_far
            if item.frame not in state.sums:
                return []  # no angle is whole yet
            return [EarlyKSpace(_kspace(state.sums[item.frame], so_far), so_far.n_readouts, so_far.n_expected)]
        total = state.sums.pop(item.frame, None) or self._make_sum(state.maps, self._to_z, self._crew)
        return [_kspace(total, item)]

    def _fixed_bytes(self, n_coils: int, n_frames: int) -> int:
        """Calibration, maps, and volumes of the open frames, one more, and what leaves."""
        sampling, shape = self._sampling, self._sampling.shape
        maps = Calibration.n_bytes(self._espirit, shape, sampling.n_partitions, n_coils)
        return max(len(self._slices), 1) * maps + (2 + n_frames) * 8 * self._espirit.n_sets * int(np.prod(shape))

    @property
    def _held_bytes(self) -> int:
        """Samples that wait."""
        return self._open_bytes + sum(state.ready_bytes for state in self._slices.values())

    def _needed_bytes(self, n_coils: int) -> int:
        n_sums = sum(len(state.sums) for state in self._slices.values())
        return self._fixed_bytes(n_coils, n_sums) + self._held_bytes

    def _check_memory(self, n_coils: int, n_frames: int, held_bytes: int) -> None:
        """Refuse what would not fit if all that can be worked off had been."""
        sampling, needed_gib = self._sampling, (self._fixed_bytes(n_coils, n_frames) + held_bytes) / 2**30
        if needed_gib > self._memory_gib:
            raise ScanError(
                f"{max(n_frames, 1)} open frames of {n_coils} coils, matrix {sampling.scan.recon_matrix} and "
                f"{sampling.n_partitions} partitions, with {held_bytes / 2**30:.1f} GiB of spokes that wait, "
                f"need {needed_gib:.1f} GiB, more than {self._memory_gib:g}",
                likely="the header is wrong, or frames that never become full pile up",
                hint="--set gridding.memory_gib=N, or --set frames.readouts_per_frame=N",
            )


def _kspace(total: FrameSum, end: FrameEnd) -> KSpace:
    """What a sum is, as k-space of a frame."""
    sets = [total.kspace(number) for number in range(total.n_sets)]
    return KSpace.of_sets(sets, end.frame, end.slice, end.received_ns, end.geometry)


def _fullest(state: _Slice) -> int:
    """Partitions of the open angle that has most."""
    return max((len(angle.parts) for angle in state.open.values()), default=0)
