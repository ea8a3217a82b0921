"""The side tap of a server: the newest of what happens, for whoever looks on.

Sessions leave what they have in places that overwrite themselves, and never wait, send or grow. Whoever looks on
empties the places when it is ready to (`Tap.gather`); what it was too slow for is lost, and counted. A readout costs
about a microsecond, and only those of one partition and slice are kept; no k-space is copied in a session's thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..stream.telemetry import Durations
from ..types import Float, FrameEnd, FrameImage, Geometry, LabelMap, Readout, Scan
from .logs import CleanRecords

if TYPE_CHECKING:
    from ..pipeline import Measurement

log = logging.getLogger("kstream.serve")

PATHS, MOMENTS, LINES = 512, 256, 200
"""What may wait of each kind; beyond, the oldest is lost."""

SAMPLED = 4
"""Readouts whose magnitude is shown, each time: the newest."""

VOLUME_BYTES = 256 << 20
"""Volumes that may wait; a larger one is not shown."""

POINTS = 128
"""Of a readout's path and of its magnitude: what a picture of some hundred pixels can show."""

STATE_S = 0.2
"""How often counters and queues are told."""

STRAIGHT = 0.02
"""A path that strays less from a line, in cycles per field of view, is drawn as one."""

SMALLEST = 1e-12

ENDED = 64
"""Sessions that ended and that nobody was told of yet."""

Kind = Literal["image", "labels"]


class Event(NamedTuple):
    """One thing to tell: a kind, fields that JSON can carry, and an array or None."""

    kind: str
    fields: dict[str, Any]
    array: NDArray[Any] | None = None


class Watched(Protocol):
    """What a session of either door lets others see."""

    @property
    def queued_bytes(self) -> int: ...

    @property
    def unsent_bytes(self) -> int: ...


@dataclass(frozen=True)
class _Path:
    """Where a readout went: float32 ``(points, xy)`` in cycles per field of view."""

    session: str
    frame: int
    spoke: int
    points: Float


class _Volumes:
    """Volumes that wait: the newest is taken first, and the newest stay within the bytes that there are."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._waiting: dict[tuple[Any, ...], Event] = {}  # in the order in which they came
        self._n_bytes = 0
        self.n_lost = 0

    def put(self, volume: Event) -> None:
        """Add a volume, in place of the one that it supersedes: of the same session, frame, slice and kind."""
        n_bytes = _size(volume)
        place = (volume.kind, *(volume.fields[name] for name in ("session", "frame", "slice")))
        with self._lock:
            if n_bytes > self._max_bytes:
                self.n_lost += 1
                return
            if place in self._waiting:
                self._drop(place)
            while self._n_bytes + n_bytes > self._max_bytes:
                self._drop(next(iter(self._waiting)))
                self.n_lost += 1
            self._waiting[place] = volume
            self._n_bytes += n_bytes

    def take(self) -> Event | None:
        with self._lock:
            return self._drop(next(reversed(self._waiting))) if self._waiting else None

    def waits_for(self, session: str) -> bool:
        """True while a volume of a session waits."""
        with self._lock:
            return any(volume.fields["session"] == session for volume in self._waiting.values())

    def _drop(self, place: tuple[Any, ...]) -> Event:
        volume = self._waiting.pop(place)
        self._n_bytes -= _size(volume)
        return volume

    def clear(self) -> None:
        with self._lock:
            self._waiting.clear()
            self._n_bytes = 0


def _size(volume: Event) -> int:
    return 0 if volume.array is None else volume.array.nbytes


class SessionTap:
    """What one session leaves for those who look on.

    Parameters
    ----------
    name, door, client : of the session: its name in logs, ``MRD`` or ``Gadgetron``, and who connected.
    watched : its queues.
    """

    def __init__(self, tap: Tap, name: str, door: str, client: str, watched: Watched) -> None:
        self._tap, self.name, self._watched = tap, name, watched
        self._about: dict[str, Any] = {"session": name, "door": door, "client": client, "state": "connected"}
        self._measurement: Measurement | None = None
        self._latency = Durations()
        self._centre = self._middle = 0
        self.newest: deque[Readout] = deque(maxlen=SAMPLED)
        self.is_measuring = False

    def header(self, preset: str, scan: Scan) -> None:
        """The header has come."""
        self._about |= {"state": "measuring", "preset": preset, "scan": _scan_fields(scan)}
        self.is_measuring = True

    def begin(self, preset: str, scan: Scan, measurement: Measurement, latency: Durations) -> None:
        """The pipeline is built, and nothing went through it yet.

        Parameters
        ----------
        latency : from the arrival of each acquisition to the end of its way; read while it grows.
        """
        from ..recon.sampling import kz_positions  # a server listens before it loads the pipeline's modules

        plan, self._latency = measurement.plan, latency
        self._centre = int(np.abs(kz_positions(scan, plan.n_partitions)).argmin())
        self._middle = scan.limit("slice").minimum + plan.n_slices // 2
        self._about["preset"] = preset
        self._about["plan"] = {
            "n_frames": plan.n_frames,
            "n_slices": plan.n_slices,
            "n_partitions": plan.n_partitions,
            "n_spokes": plan.n_spokes * plan.n_averages,
            "partition": self._centre,
            "slice": self._middle,
            "first_slice": scan.limit("slice").minimum,
        }
        self._measurement = measurement
        pipeline = measurement.pipeline
        pipeline.observe(Readout, self._see_readout)
        pipeline.observe(FrameEnd, self._see_end)
        pipeline.observe(FrameImage, self._see_image)
        pipeline.observe(LabelMap, self._see_labels)

    def delivered(self, kind: str, frame: int, slice_: int, first_ms: float, latency_ms: float) -> None:
        """All images of a frame and kind were sent; both times since its last readout."""
        self._tap.moment(
            "delivered",
            session=self.name,
            of=kind,
            frame=frame,
            slice=slice_,
            first_ms=round(first_ms, 3),
            latency_ms=round(latency_ms, 3),
        )

    def ended(self, outcome: str) -> None:
        """The session is over; nothing of it is held any longer but its last account."""
        self._about = self.describe() | {"state": "ended", "outcome": outcome, "queued_bytes": 0, "unsent_bytes": 0}
        self._measurement = None
        self.newest.clear()
        self._tap.leave(self)

    def describe(self) -> dict[str, Any]:
        """The session now, for JSON."""
        told = dict(self._about)
        if self._about["state"] != "ended":
            told |= {"queued_bytes": self._watched.queued_bytes, "unsent_bytes": self._watched.unsent_bytes}
        measurement = self._measurement
        if measurement is not None:
            counters, latency = measurement.counters, self._latency
            told["counters"] = {
                "received": counters.received,
                "frames": counters.frames,
                "images": counters.images,
                "dropped": counters.dropped,
                "set_aside": dict(counters.set_aside),
            }
            told["latency"] = {"counts": list(latency.counts), "n": latency.n, "longest_ms": latency.longest_ns / 1e6}
            told["stages"] = [
                [t.name, t.durations.n, round(t.durations.total_ns / 1e6, 3), round(t.durations.longest_ns / 1e6, 3)]
                for t in measurement.pipeline.times
            ]
        return told

    # ---- observers, in the thread of the pipeline ----

    def _see_readout(self, readout: Readout) -> None:
        if readout.partition != self._centre or readout.slice != self._middle or not self._tap.is_open:
            return
        step = len(readout.trajectory) // POINTS + 1
        self._tap.n_lost_paths += len(self._tap.paths) == PATHS
        self._tap.paths.append(_Path(self.name, readout.frame, readout.key[0], readout.trajectory[::step, :2].copy()))
        self.newest.append(readout)

    def _see_end(self, end: FrameEnd) -> None:
        self._tap.moment(
            "frame_end",
            session=self.name,
            frame=end.frame,
            slice=end.slice,
            n_readouts=end.n_readouts,
            n_expected=end.n_expected,
        )

    def _see_image(self, image: FrameImage) -> None:
        self._volume("image", image, image.data)

    def _see_labels(self, labels: LabelMap) -> None:
        table = [[name, *colour] for name, colour in zip(labels.table.names, labels.table.colours, strict=True)]
        self._volume("labels", labels, labels.labels, table=table, provenance=dict(labels.provenance))

    def _volume(self, kind: Kind, item: FrameImage | LabelMap, array: NDArray[Any], **fields: Any) -> None:
        fields |= {"session": self.name, "frame": item.frame, "slice": item.slice}
        self._tap.volume(Event(kind, fields | _geometry_fields(item.geometry), array))


class Tap:
    """The side tap of one server; sessions of all its doors share it.

    Parameters
    ----------
    about : what else to tell of the server, asked for a few times a second, such as its memory and workers.
    page_url : of the page that shows it all, for clients who ask; without its token.
    """

    def __init__(self, about: Callable[[], Mapping[str, Any]] = dict) -> None:
        self.about = about
        self.page_url = ""
        self.is_open = True
        self.paths: deque[_Path] = deque(maxlen=PATHS)
        self.n_lost_paths = 0  # roughly: sessions count in threads of their own
        self._moments: deque[Event] = deque(maxlen=MOMENTS)
        self._lines: deque[Event] = deque(maxlen=LINES)
        self._volumes = _Volumes(VOLUME_BYTES)
        self._lock = threading.Lock()
        self._sessions: dict[str, SessionTap] = {}
        self._ended: deque[SessionTap] = deque(maxlen=ENDED)
        self._told_s = 0.0
        self._handler = _LineHandler(self._lines)

    def enter(self, name: str, door: str, client: str, watched: Watched) -> SessionTap:
        """A session begins."""
        session = SessionTap(self, name, door, client, watched)
        if self.is_open:
            with self._lock:
                self._sessions[name] = session
        return session

    def leave(self, session: SessionTap) -> None:
        """A session is over; one that never had a header was a probe, and is not worth a word."""
        with self._lock:
            if self._sessions.pop(session.name, None) is not None and session.is_measuring:
                self._ended.append(session)

    def moment(self, kind: str, **fields: Any) -> None:
        """Something happened once."""
        if self.is_open:
            self._moments.append(Event(kind, {"at_s": time.monotonic(), **fields}))

    def volume(self, volume: Event) -> None:
        """A volume is there; it is not copied, so it must stay as it is."""
        if self.is_open:
            self._volumes.put(volume)

    def listen_to_logs(self) -> None:
        """From now on, log lines are told too, as they are written."""
        logging.getLogger("kstream").addHandler(self._handler)

    def close(self) -> None:
        """Nobody looks on any more: keep nothing."""
        self.is_open = False
        logging.getLogger("kstream").removeHandler(self._handler)
        for place in (self.paths, self._moments, self._lines, self._ended):
            place.clear()
        self._volumes.clear()
        with self._lock:
            self._sessions.clear()

    def gather(self) -> Iterator[Event]:
        """Everything new since the last time, and at most one volume; to be called by one thread."""
        now = time.monotonic()
        with self._lock:
            sessions = list(self._sessions.values())
        yield from _taken(self._lines)
        if now - self._told_s >= STATE_S:
            self._told_s = now
            lost = {"n_lost": self._volumes.n_lost, "n_lost_paths": self.n_lost_paths}
            yield Event("server", {"at_s": now, **lost, **self.about()})
            for about in [session.describe() for session in sessions if session.is_measuring]:
                if about["state"] != "ended":  # since we looked; it is told below
                    yield Event("session", {"at_s": now, **about})
        yield from self._spokes({session.name: session for session in sessions})
        yield from _taken(self._moments)
        volume = self._volumes.take()
        if volume is not None and volume.array is not None:
            yield volume._replace(array=np.ascontiguousarray(volume.array))
        for session in self._over():
            yield Event("session", {"at_s": now, **session.describe()})

    def _over(self) -> list[SessionTap]:
        """Sessions that ended and whose volumes have all been told; the others stay."""
        with self._lock:
            over = [session for session in self._ended if not self._volumes.waits_for(session.name)]
            for session in over:
                self._ended.remove(session)
        return over

    def _spokes(self, sessions: Mapping[str, SessionTap]) -> Iterator[Event]:
        """Paths of new readouts, one event for each run of one session and number of points."""
        paths = list(_taken(self.paths))
        groups: list[list[tuple[_Path, Float]]] = []
        for path in paths:
            points = drawn(path.points)
            last = groups[-1][-1] if groups else None
            if last is None or last[0].session != path.session or last[1].shape != points.shape:
                groups.append([])
            groups[-1].append((path, points))
        for group in groups:
            name = group[0][0].session
            fields: dict[str, Any] = {
                "session": name,
                "frames": [path.frame for path, _ in group],
                "spokes": [path.spoke for path, _ in group],
            }
            session = sessions.get(name)
            fields["levels"] = [
                [readout.frame, readout.key[0], readout.data.shape[1], levels_db(readout.data)]
                for readout in (_taken(session.newest) if session is not None else ())
            ]
            yield Event("spokes", fields, np.stack([points for _, points in group]))


def _taken(place: deque[Any]) -> Iterator[Any]:
    """Empty a place that others fill meanwhile."""
    for _ in range(len(place)):
        try:
            yield place.popleft()
        except IndexError:
            return


def drawn(points: Float) -> Float:
    """A path as it is drawn: its two ends if it is straight."""
    if len(points) < 3:
        return points
    line = points[0] + np.linspace(0, 1, len(points), dtype=np.float32)[:, None] * (points[-1] - points[0])
    return points[[0, -1]] if float(np.abs(points - line).max()) < STRAIGHT else points


def levels_db(data: NDArray[np.complex64]) -> list[int]:
    """Root sum of squares over the coils of samples ``(coils, samples)``, at most `POINTS` means of it, in dB."""
    energy = (data.real**2 + data.imag**2).sum(axis=0)
    n = len(energy)
    starts = np.arange(min(n, POINTS)) * n // min(n, POINTS) if n else np.zeros(0, np.int64)
    means = np.add.reduceat(energy, starts) / np.diff(starts, append=n) if n else energy
    level = 10 * np.log10(np.maximum(np.nan_to_num(means), SMALLEST))
    return [int(value) for value in np.round(level)]


def _scan_fields(scan: Scan) -> dict[str, Any]:
    """Sizes of a scan; nothing that names a patient or a study."""
    return {
        "recon_matrix": list(scan.recon_matrix),
        "encoded_matrix": list(scan.encoded_matrix),
        "recon_fov_mm": _finite(scan.recon_fov_mm),
        "encoded_fov_mm": _finite(scan.encoded_fov_mm),
        "trajectory": scan.trajectory,
        "n_coils": scan.n_coils,
        "field_strength_t": _finite(scan.field_strength_t),
    }


def _geometry_fields(geometry: Geometry) -> dict[str, Any]:
    return {"voxel_size_mm": _finite(geometry.voxel_size_mm), "affine_lps": _finite(geometry.affine_lps.round(6))}


def _finite(numbers: ArrayLike) -> Any:
    """Numbers for JSON, which knows no NaN and no infinity: None in their place if any is one."""
    array = np.asarray(numbers, np.float64)
    return array.tolist() if np.isfinite(array).all() else None


class _LineHandler(logging.Handler):
    """Keeps log records as they are written: cleaned of names."""

    def __init__(self, lines: deque[Event]) -> None:
        super().__init__()
        self._lines = lines
        self.addFilter(CleanRecords())

    def emit(self, record: logging.LogRecord) -> None:
        session = getattr(record, "session", "-")
        fields = {"time_s": record.created, "level": record.levelname, "session": str(session)}
        self._lines.append(Event("line", {**fields, "text": record.getMessage()[:2000]}))
