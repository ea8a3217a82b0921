"""What the live page shows: fed by the server's side tap, read by any number of viewers, bounded in every direction."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ProtocolError
from ..stream.telemetry import FIRST_NS, Durations
from .worker_wire import Head, read_array

log = logging.getLogger("kstream.serve")

MAX_SESSIONS, MAX_LINES, MAX_WARNINGS = 20, 400, 20
MAX_PATHS = 2048
"""Of the newest spokes, for viewers that open the page meanwhile."""

HISTORY = 1500
"""Points of the latency strip: five minutes at five a second."""

MAX_DELIVERIES = 400
MAX_FRAMES = 4096
VOLUME_BYTES = 1 << 30
"""All volumes that are kept; those that came first go first."""

WAITING_EVENTS, WAITING_CHARACTERS = 256, 4 << 20
"""What may wait for one viewer; one that falls behind is told everything anew instead."""

PERCENTILES = (1.0, 99.7)
SAMPLE = 200_000
"""Voxels that give a window."""

Place = tuple[str, int, int, str]
"""Session, frame, slice, and ``image`` or ``labels``."""


class Viewer:
    """What waits for one open page."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._waiting: deque[str] = deque()
        self._n_characters = 0
        self._is_behind = True  # a new one knows nothing
        self._news = asyncio.Event()
        self._news.set()

    def put(self, text: str) -> None:
        """Add an event; if too many wait, forget them all and begin anew."""
        if self._is_behind:
            return
        self._waiting.append(text)
        self._n_characters += len(text)
        if len(self._waiting) > WAITING_EVENTS or self._n_characters > WAITING_CHARACTERS:
            self._is_behind = True
            self._forget()
        self._news.set()

    async def next(self, seconds: float) -> str:
        """Everything that waits, as server-sent events; a comment if nothing came within `seconds`."""
        try:
            await asyncio.wait_for(self._news.wait(), seconds)
        except TimeoutError:
            return ": nothing new\n\n"
        self._news.clear()
        if self._is_behind:
            self._is_behind = False
            self._forget()
            return event_text("everything", self._board.everything())
        text = "".join(self._waiting)
        self._forget()
        return text

    def _forget(self) -> None:
        self._waiting.clear()
        self._n_characters = 0


def event_text(name: str, data: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'), allow_nan=False)}\n\n"


class Mark(NamedTuple):
    """Where to look first: ``plane``, ``y`` and ``x``, or None; and how many voxels of its plane speak for it."""

    n_voxels: int
    place: dict[str, int] | None


@dataclass
class _Frame:
    """What is known of one frame beside its volumes."""

    number: int
    fields: dict[str, Any] = field(default_factory=dict)
    windows: dict[int, tuple[float, float]] = field(default_factory=dict)
    volumes_ml: dict[int, list[float]] = field(default_factory=dict)
    marks: dict[int, Mark] = field(default_factory=dict)
    revisions: dict[str, dict[int, int]] = field(default_factory=lambda: {"image": {}, "labels": {}})

    def describe(self) -> dict[str, Any]:
        """For JSON; ``revisions`` number the volumes that are kept, by kind and slice, and are never used again."""
        told = {"frame": self.number, **self.fields, "revisions": self.revisions}
        told |= {f"has_{kind}": bool(slices) for kind, slices in self.revisions.items()}
        if self.marks:
            told["mark"] = max(self.marks.values(), key=lambda mark: mark.n_voxels).place
        if self.windows:
            told["window"] = [min(low for low, _ in self.windows.values()), max(h for _, h in self.windows.values())]
        if self.volumes_ml:
            told["volumes_ml"] = [round(sum(parts), 4) for parts in zip(*self.volumes_ml.values(), strict=True)]
        return told


@dataclass
class _Session:
    """What is known of one session."""

    about: dict[str, Any] = field(default_factory=dict)
    frames: OrderedDict[int, _Frame] = field(default_factory=OrderedDict)
    first_frame: int | None = None
    history: deque[list[float | None]] = field(default_factory=lambda: deque(maxlen=HISTORY))
    deliveries: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MAX_DELIVERIES))
    warnings: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_WARNINGS))
    spokes: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MAX_PATHS))
    counts: list[int] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        return {**self.about, "warnings": list(self.warnings)}

    def frame(self, number: int) -> _Frame:
        """What is known of a frame, from now on if nothing was."""
        self.first_frame = number if self.first_frame is None else min(self.first_frame, number)
        return self.frames.setdefault(number, _Frame(number))

    def everything(self) -> dict[str, Any]:
        return {
            "about": self.describe(),
            "frames": [frame.describe() for frame in self.frames.values()],
            "history": list(self.history),
            "deliveries": list(self.deliveries),
            "spokes": [spoke for spoke in self.spokes if spoke["frame"] == self.spokes[-1]["frame"]],
        }


class Board:
    """Takes the events of the tap, keeps what a page needs, and tells every viewer.

    Parameters
    ----------
    volume_bytes : all volumes that are kept.
    """

    def __init__(self, volume_bytes: int = VOLUME_BYTES) -> None:
        self._volume_bytes = volume_bytes
        self._volumes: OrderedDict[Place, NDArray[Any]] = OrderedDict()
        self._n_bytes = self._n_revisions = 0
        self._server: dict[str, Any] = {}
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._lines: deque[dict[str, Any]] = deque(maxlen=MAX_LINES)
        self._viewers: set[Viewer] = set()

    # ---- viewers ----

    @property
    def n_viewers(self) -> int:
        return len(self._viewers)

    @property
    def n_bytes(self) -> int:
        """Of all volumes."""
        return self._n_bytes

    def enter(self) -> Viewer:
        """A page was opened; it is told everything first."""
        viewer = Viewer(self)
        self._viewers.add(viewer)
        return viewer

    def leave(self, viewer: Viewer) -> None:
        self._viewers.discard(viewer)

    def everything(self) -> dict[str, Any]:
        """All that a page shows but its pixels."""
        return {
            "server": self._server,
            "sessions": [session.everything() for session in self._sessions.values()],
            "lines": list(self._lines),
        }

    # ---- what pages ask for ----

    def plane(self, session: str, frame: int, plane: int, kind: str) -> NDArray[Any] | None:
        """One plane ``(y, x)`` of a frame; planes run through the slices and, within each, through z."""
        found = self._found(session, frame, plane, kind)
        return None if found is None else found[0][found[1]]

    def curve(self, session: str, plane: int, y: int, x: int) -> dict[str, Any]:
        """Magnitude of one voxel in all frames that are kept, and whether the scan's first frame is among them."""
        frames: list[float] = []
        values: list[float] = []
        known = self._sessions.get(session)
        for frame in sorted(known.frames) if known is not None else ():
            found = self._found(session, frame, plane, "image")
            if found is None:
                continue
            volume, z = found
            if 0 <= y < volume.shape[1] and 0 <= x < volume.shape[2]:
                frames.append(frame)
                values.append(float(np.nan_to_num(np.abs(volume[z, y, x]))))
        has_first = known is not None and bool(frames) and frames[0] == known.first_frame
        return {"frames": frames, "values": values, "has_first": has_first}

    def _found(self, session: str, frame: int, plane: int, kind: str) -> tuple[NDArray[Any], int] | None:
        """The volume that holds a plane, and its place in it."""
        slices = sorted(place[2] for place in self._volumes if place[:2] == (session, frame) and place[3] == kind)
        known = self._sessions.get(session)
        if not slices or known is None or plane < 0:
            return None
        n_z = self._volumes[session, frame, slices[0], kind].shape[0]
        slice_ = plane // n_z + int(known.about.get("plan", {}).get("first_slice", slices[0]))
        volume = self._volumes.get((session, frame, slice_, kind))
        return None if volume is None or plane % n_z >= volume.shape[0] else (volume, plane % n_z)

    # ---- what the tap tells ----

    def take(self, head: Head, payload: memoryview) -> None:
        """One event of the tap.

        Raises
        ------
        ProtocolError : its array is not what its head says.
        """
        fields = {name: value for name, value in head.items() if name not in ("kstream", "kind", "id")}
        try:
            json.dumps(fields, allow_nan=False)
        except ValueError:  # browsers refuse such an event, and everything in which it would be told again
            log.error("the live page leaves out an event %s: a number in it is not finite", head["kind"])
            return
        match head["kind"]:
            case "server":
                self._server = fields
                self._tell("server", fields)
            case "line":
                self._line(fields)
            case "session":
                self._tell("session", self._state(fields))
            case "spokes":
                self._spokes(fields, read_array(head, payload, "float32"))
            case "image":
                self._volume(fields, "image", read_array(head, payload, "complex64"))
            case "labels":
                self._volume(fields, "labels", read_array(head, payload, "uint8"))
            case "delivered":
                self._session(fields).deliveries.append(fields)
                self._tell("delivered", fields)
            case "frame_end":
                counts = {name: fields[name] for name in ("n_readouts", "n_expected")}
                self._frame(fields, counts)
            case other:
                raise ProtocolError(f"the server's tap told of {other!r}", likely="server and watcher differ")

    def _tell(self, name: str, data: Mapping[str, Any]) -> None:
        if not self._viewers:
            return
        text = event_text(name, data)
        for viewer in self._viewers:
            viewer.put(text)

    def _session(self, fields: Mapping[str, Any]) -> _Session:
        name = str(fields["session"])
        if name not in self._sessions:
            self._sessions[name] = _Session({"session": name, "state": "connected"})
            while len(self._sessions) > MAX_SESSIONS:
                self._forget(next(iter(self._sessions)))
        return self._sessions[name]

    def _line(self, fields: dict[str, Any]) -> None:
        self._lines.append(fields)
        self._tell("line", fields)
        session = self._sessions.get(fields["session"])
        if session is not None and fields["level"] in ("WARNING", "ERROR", "CRITICAL"):
            session.warnings.append(fields["text"])

    def _state(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Keep a session's new state; gives it with the newest point of its history."""
        session = self._session(fields)
        latency = fields.get("latency", {})
        counts = list(latency.get("counts", ()))
        point: list[float | None] = [fields["at_s"], fields.get("queued_bytes", 0), *_interval(session.counts, counts)]
        session.counts = counts
        session.about = fields
        session.history.append(point)
        return {**session.describe(), "point": point}

    def _spokes(self, fields: dict[str, Any], points: NDArray[np.float32]) -> None:
        session = self._session(fields)
        levels = {(frame, spoke): (n, level) for frame, spoke, n, level in fields["levels"]}
        told = []
        for frame, spoke, path in zip(fields["frames"], fields["spokes"], points, strict=True):
            finite = np.nan_to_num(path.reshape(-1), posinf=0, neginf=0)
            item = {"frame": frame, "spoke": spoke, "path": [round(float(v), 2) for v in finite]}
            if (frame, spoke) in levels:
                item["n_samples"], item["level_db"] = levels[frame, spoke]
            session.spokes.append(item)
            told.append(item)
        self._tell("spokes", {"session": fields["session"], "spokes": told})

    def _frame(self, fields: Mapping[str, Any], more: Mapping[str, Any]) -> _Frame:
        """Note something of a frame, and tell it."""
        session = self._session(fields)
        frame = session.frame(int(fields["frame"]))
        frame.fields |= more
        while len(session.frames) > MAX_FRAMES:
            session.frames.popitem(last=False)
        self._tell("frame", {"session": fields["session"], **frame.describe()})
        return frame

    def _volume(self, fields: dict[str, Any], kind: str, volume: NDArray[Any]) -> None:
        if volume.ndim != 3:
            raise ProtocolError(f"a volume of shape {volume.shape}", likely="server and watcher differ")
        session = self._session(fields)
        number, slice_ = int(fields["frame"]), int(fields["slice"])
        frame = session.frame(number)
        geometry = {"voxel_size_mm": fields["voxel_size_mm"], "affine_lps": fields["affine_lps"]}
        more: dict[str, Any] = {"shape": list(volume.shape), **geometry}
        if kind == "image":
            frame.windows[slice_] = window_of(volume)
        else:
            more |= {"table": fields["table"], "provenance": fields["provenance"]}
            frame.marks[slice_] = self._mark(session, slice_, _pointed(volume, [row[0] for row in fields["table"]]))
            counts = np.bincount(volume.reshape(-1), minlength=len(fields["table"]))
            if fields["voxel_size_mm"] is not None:
                voxel_ml = float(np.prod(fields["voxel_size_mm"])) / 1000
                frame.volumes_ml[slice_] = [float(n) * voxel_ml for n in counts]
        self._keep((str(fields["session"]), number, slice_, kind), volume)
        self._frame(fields, more)

    def _mark(self, session: _Session, slice_: int, labels: NDArray[np.bool_]) -> Mark:
        """Where to look first: the labelled voxel nearest the middle of the plane that has most of them."""
        counts = np.count_nonzero(labels, axis=(1, 2))
        z = int(counts.argmax())
        y, x = np.nonzero(labels[z])
        if not len(y):
            return Mark(0, None)
        nearest = int(((y - y.mean()) ** 2 + (x - x.mean()) ** 2).argmin())
        first = int(session.about.get("plan", {}).get("first_slice", slice_))
        place = {"plane": (slice_ - first) * len(labels) + z, "y": int(y[nearest]), "x": int(x[nearest])}
        return Mark(len(y), place)

    def _keep(self, place: Place, volume: NDArray[Any]) -> None:
        """Keep a volume under a new revision; those that go for it are told."""
        self._drop(place)
        self._volumes[place] = volume
        self._n_bytes += volume.nbytes
        self._n_revisions += 1
        session, number, slice_, kind = place
        self._sessions[session].frame(number).revisions[kind][slice_] = self._n_revisions
        while self._n_bytes > self._volume_bytes and len(self._volumes) > 1:
            evicted = next(iter(self._volumes))
            frame = self._drop(evicted)
            if frame is not None:
                self._tell("frame", {"session": evicted[0], **frame.describe()})

    def _drop(self, place: Place) -> _Frame | None:
        """Let go of a volume; gives its frame, if that is known."""
        dropped = self._volumes.pop(place, None)
        if dropped is None:
            return None
        self._n_bytes -= dropped.nbytes
        session, number, slice_, kind = place
        known = self._sessions.get(session)
        frame = known.frames.get(number) if known is not None else None
        if frame is not None:
            frame.revisions[kind].pop(slice_, None)
        return frame

    def _forget(self, name: str) -> None:
        """A session that is too old."""
        del self._sessions[name]
        for place in [place for place in self._volumes if place[0] == name]:
            self._drop(place)
        self._tell("forgotten", {"session": name})


def _interval(before: list[int], after: list[int]) -> list[float | None]:
    """Median, 95th percentile and maximum (by bins) in ms of what was added between two counts; None if nothing was."""
    if len(before) != len(after):
        before = [0] * len(after)
    added = [b - a for a, b in zip(before, after, strict=True)]
    n = sum(added)
    if n <= 0:
        return [None, None, None]
    top = max(index for index, count in enumerate(added) if count)
    grown = Durations(added, n, 0, int(FIRST_NS * 2 ** ((top + 1) / 4)))
    return [round(grown.quantile_ms(share), 4) for share in (0.5, 0.95, 1.0)]


def _pointed(labels: NDArray[Any], names: list[str]) -> NDArray[np.bool_]:
    """What a mark may point at: lesions, if the model knows any, or else all that is labelled."""
    lesions = [number for number, name in enumerate(names) if "lesion" in str(name).lower()]
    found: NDArray[np.bool_] = np.isin(labels, lesions) if lesions else labels > 0
    return found


def window_of(volume: NDArray[Any]) -> tuple[float, float]:
    """Grey levels for black and white: percentiles of the magnitude of at most `SAMPLE` voxels."""
    flat = volume.reshape(-1)
    magnitude = np.abs(flat[:: max(flat.size // SAMPLE, 1)])
    magnitude = magnitude[np.isfinite(magnitude)]
    if not magnitude.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(magnitude, PERCENTILES))
    return low, high if high > low else low + 1.0
