"""The server's side of model workers: a pool of processes and addresses, and the policy when one of them fails.

Every worker has at most one request of ours. A frame waits for a free worker, not longer than `wait_s`, and at most
`max_waiting` frames wait. Then, for the frame and for its worker:

=================================== ================================================= =============================
what happens                        the frame                                         the worker
=================================== ================================================= =============================
it answers with an error            fails with that error                             goes on, if its model still works
its process dies, connection breaks is tried once more, on another or the replacement is replaced
it dies again under the same frame  fails: the frame is the culprit                   is replaced
no answer within `timeout_s`        fails: a second try would double the wait         is killed and replaced
it answers what is no answer        fails                                             is killed and replaced
it outgrew `memory_gib`             has its labels                                    ends itself and is replaced
no worker can be had                fails, or is segmented here (`when_absent`)       is tried again, ever less often
=================================== ================================================= =============================

"Replaced" for a worker that was started by hand, on an address: connected again once it answers.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zmq

from ..config import CineConfig, SegmentConfig
from ..engines.array_engine import Array
from ..errors import ConfigError, KstreamError, ModelError, ProtocolError
from ..models.bundle import Bundle
from ..segment import ModelInfo, Segment, Segmentation
from ..segment.cine import CineModel
from ..types import Complex
from .store import ModelStore, make_stage
from .worker_link import (
    Keys,
    WorkerBusyError,
    WorkerGoneError,
    WorkerLink,
    WorkerLostError,
    WorkerProcess,
    WorkerTimeoutError,
)
from .worker_wire import (
    Head,
    array_fields,
    pack_arrays,
    read_array,
    read_arrays,
    read_error,
    read_info,
    read_seconds,
)

log = logging.getLogger("kstream.serve")

COMMAND = (sys.executable, "-X", "faulthandler", "-P", "-m", "kstream", "worker")
"""Starts a worker; ``-P`` keeps the working directory from shadowing modules."""

MAX_FAILED_STARTS = 3
"""After so many in a row, frames no longer wait for this worker."""

MAX_PAUSE_S = 30.0
PROBE_S = 1.0
"""For a worker on an address to answer when nobody waits for it."""

BUSY_PAUSE_S = 0.05

TIMED_VOXELS = 4 << 20
"""Of a volume for which `WorkerSettings.timeout_s` holds: 192 x 320 x 320, five times as many, took 179 s on two cores
that six other programs used as well."""


@dataclass(frozen=True)
class WorkerSettings:
    """Workers of one server.

    Parameters
    ----------
    n_processes : workers that the server starts and owns.
    addresses : workers that run already, ``ipc://FILE`` or ``tcp://HOST:PORT``.
    models : loaded by every worker of our own at its start.
    device, engine, precision : where and how networks of our own workers run, and those segmented here (`when_absent`).
    timeout_s : for a worker to segment one volume of up to `TIMED_VOXELS`, and in proportion for larger ones.
    wait_s : for a worker to be free.
    start_s : for a worker to start and load its models.
    max_waiting : frames that may wait for a free worker; one more fails at once.
    memory_gib : resident memory above which a worker of our own is replaced after its frame; 0: never.
    keys : certificates for addresses on tcp.
    when_absent : what happens to frames while no worker on any address can be had: ``fail``, or ``local`` segments
        them in the server's own process, and says so. Never applies to workers of our own: what kills them would
        kill the server.
    n_threads : of each process of our own; 0 shares the cores among them.
    command : starts a worker of our own.
    """

    n_processes: int = 0
    addresses: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    device: str = "cpu"
    engine: str = "auto"
    precision: str = "auto"
    timeout_s: float = 120.0
    wait_s: float = 120.0
    start_s: float = 120.0
    max_waiting: int = 16
    memory_gib: float = 8.0
    keys: Keys | None = None
    when_absent: Literal["fail", "local"] = "fail"
    n_threads: int = 0
    command: tuple[str, ...] = COMMAND


@dataclass
class WorkerCounters:
    """What happened to requests and workers since the start.

    Parameters
    ----------
    requests : volumes that sessions wanted segmented; ``failed`` of them without labels, ``local`` in this process.
    retries : volumes that were sent to a second worker.
    restarts : workers that were replaced, for any reason.
    deaths, timeouts, garbage, recycled : the reasons.
    refused : volumes that found too many others waiting, or no worker.
    """

    requests: int = 0
    failed: int = 0
    local: int = 0
    retries: int = 0
    restarts: int = 0
    deaths: int = 0
    timeouts: int = 0
    garbage: int = 0
    recycled: int = 0
    refused: int = 0


@dataclass(eq=False)
class _Slot:
    """The place of one worker in the pool.

    ``starting`` (soon there), ``free``, ``busy`` (a session uses its link), ``lost`` (to be replaced), ``absent``
    (tried again now and then, nobody waits for it).
    """

    name: str
    address: str = ""
    is_ours: bool = False
    state: Literal["starting", "free", "busy", "lost", "absent"] = "starting"
    reason: str = ""
    link: WorkerLink | None = None
    was_lost: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    @property
    def process(self) -> WorkerProcess | None:
        link = self.link
        return link.process if link is not None else None


class ModelWorkers:
    """Segments in worker processes; a `SegmentSource`.

    `start` returns at once, workers come up beside it. torch is not imported here unless ``when_absent`` is ``local``
    and it comes to that.

    Raises
    ------
    ConfigError : an address is neither ipc nor tcp, or is on tcp without readable keys.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        _check_addresses(settings)
        self._settings = settings
        self.counters = WorkerCounters()
        self._changed = threading.Condition(threading.RLock())
        self._slots = [_Slot(f"worker {i + 1}", is_ours=True) for i in range(settings.n_processes)]
        self._slots += [_Slot(f"worker at {a}", a) for a in settings.addresses]
        self._n_waiting = 0
        self._is_stopping = threading.Event()
        self._known: dict[str, ModelInfo] = {}
        self._numbers = itertools.count(1)
        self._store = ModelStore(settings.device, settings.engine, settings.precision)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def start(self) -> None:
        """Start processes and connect to addresses, in the background."""
        if self._settings.n_processes:
            self._folder = tempfile.TemporaryDirectory(prefix="kstream-")  # of mode 0700
        for slot in self._slots:
            slot.thread = threading.Thread(target=self._keep, args=(slot,), name=f"kstream-{slot.name}", daemon=True)
            slot.thread.start()

    def stop(self, grace_s: float = 5.0) -> None:
        """End our processes; frames that they segment fail, those that wait fail too."""
        self._is_stopping.set()
        with self._changed:
            self._changed.notify_all()
            slots = list(self._slots)
        for slot in slots:
            slot.was_lost.set()
            if (process := slot.process) is not None:
                process.terminate()
        deadline = time.monotonic() + grace_s
        has_ended = [self._end(slot, deadline) for slot in slots]
        if all(has_ended):
            self._context.destroy(linger=0)
        if self._folder is not None:
            self._folder.cleanup()

    def _end(self, slot: _Slot, deadline_s: float) -> bool:
        """Wait for the thread of a worker that was told to end, with force after the deadline; True if it ended."""
        if slot.thread is None:
            return True
        slot.thread.join(max(deadline_s - time.monotonic(), 0))
        if slot.thread.is_alive() and (process := slot.process) is not None:
            process.kill()
            slot.thread.join(5.0)
        return not slot.thread.is_alive()

    def wait_ready(self, timeout_s: float, n: int = 1) -> bool:
        """Wait until `n` workers are free; False if they are not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._count("free") >= n, timeout_s)

    def segment_stage(self, config: SegmentConfig) -> Segment | None:
        """See `SegmentSource`: the stage sends each volume to a worker."""
        return make_stage(config, self._remote)

    def cine_model(self, config: CineConfig) -> CineModel:
        """See `SegmentSource`: the network runs in a worker; its bundle must be known here too."""
        info = Bundle.load(config.model).info
        return CineModel.of(info, _RemoteArrayEngine(self, config.model, info.sha256))

    def describe(self) -> dict[str, Any]:
        """Workers and counters, for logs, metrics and `kstream doctor`."""
        with self._changed:
            workers = [
                {
                    "name": slot.name,
                    "address": slot.address,
                    "state": slot.state,
                    "pid": process.pid if (process := slot.process) is not None else None,
                    "reason": slot.reason,
                }
                for slot in self._slots
            ]
            return {"workers": workers, "waiting": self._n_waiting, "counters": asdict(self.counters)}

    # What sessions do

    def _remote(self, model: str) -> _RemoteSegmenter:
        """A segmenter for one measurement; the model is loaded now, if no worker has it yet."""
        try:
            self._check_present()
            info = self._known.get(model)
            if info is None:
                answer, _ = self._ask("describe", model=model)
                info = self._known[model] = read_info(answer.get("info"))
        except _AbsentError:
            info = self._store.segmenter(model).info
        except ProtocolError as error:
            raise ModelError(error.what, where=error.where, likely=error.likely, code="worker_garbage") from None
        return _RemoteSegmenter(self, model, info)

    def segment(self, model: str, info: ModelInfo, difference: Complex) -> Segmentation:
        """Have one volume segmented, by the policy at the head of this file."""
        self._note("requests")
        try:
            return self._segment(model, info, difference)
        except KstreamError:
            self._note("failed")
            raise

    def _segment(self, model: str, info: ModelInfo, difference: Complex) -> Segmentation:
        volume = np.ascontiguousarray(difference, np.complex64)
        payload = volume.reshape(-1).view(np.uint8).data
        fields = {"model": model, "sha256": info.sha256, **array_fields(volume)}
        try:
            answer, labels = self._ask("segment", payload, volume.shape, **fields)
        except _AbsentError as error:
            self._note("local")
            made = self._store.segmenter(model).segment(volume)
            warning = f"segmented in the server's own process, because {error}"
            return Segmentation(made.labels, made.provenance, (*made.warnings, warning), made.seconds)
        provenance = {str(key): str(value) for key, value in dict(answer.get("provenance") or {}).items()}
        warnings = tuple(str(text) for text in answer.get("warnings") or ())
        found = np.frombuffer(labels, np.uint8).reshape(volume.shape)
        return Segmentation(found, provenance, warnings, read_seconds(answer))

    def evaluate(
        self, model: str, inputs: Sequence[Array], sha256: str = ""
    ) -> tuple[tuple[Array, ...], dict[str, str]]:
        """Outputs of a network with any inputs, and what made them, by the policy at the head of this file.

        Parameters
        ----------
        sha256 : of the weights that the measurement began with; empty takes any.
        """
        self._note("requests")
        try:
            fields, payload = pack_arrays(inputs)
            answer, data = self._ask("evaluate", payload, model=model, sha256=sha256, **fields)
        except _AbsentError:
            self._note("local")
            engine = self._store.array_engine(model)
            return engine.run_arrays(inputs), engine.describe()
        except KstreamError:
            self._note("failed")
            raise
        provenance = {str(key): str(value) for key, value in dict(answer.get("provenance") or {}).items()}
        return read_arrays(answer, data), provenance

    def _ask(
        self, kind: str, payload: memoryview | bytes = b"", expected: tuple[int, ...] = (), **fields: Any
    ) -> tuple[Head, memoryview]:
        """One request, on another worker once more if the first one died."""
        settings = self._settings
        timeout_s = settings.timeout_s if kind in ("segment", "evaluate") else settings.start_s
        timeout_s = in_proportion(timeout_s, expected)
        wait_until = time.monotonic() + settings.wait_s
        died: list[str] = []
        while True:
            try:
                slot, link = self._take(wait_until)
            except _AbsentError as error:
                if died:  # what killed a worker must not get into this process
                    raise ModelError(f"{died[-1]}; {error}", hint="the server's log", code="worker_died") from None
                raise
            try:
                answer, data = link.request(
                    kind, time.monotonic() + timeout_s, self._is_stopping.is_set, payload, **fields
                )
                if answer["kind"] == "segment":
                    _check_reply(answer, data, expected)
                elif answer["kind"] == "evaluate":
                    read_arrays(answer, data)
            except WorkerBusyError as error:
                self._give_back(slot)
                self._pause(wait_until, str(error))
            except WorkerTimeoutError:
                self._lose(slot, "timeouts", f"no answer within {timeout_s:g} s")
                raise self._timed_out(timeout_s, slot) from None
            except (WorkerLostError, zmq.ZMQError) as error:
                self._lose(slot, "deaths", str(error))
                if not isinstance(error, WorkerGoneError):
                    died.append(str(error))
                if len(died) == 2 or self._is_stopping.is_set():
                    raise self._culprit(died) from None
                self._note("retries")
            except ProtocolError as error:
                self._lose(slot, "garbage", error.what)
                raise ModelError(
                    f"the model worker gave no valid answer: {error.what}",
                    where=slot.name,
                    likely=error.likely or "a worker of another version, or a defect of the model",
                    hint="the worker has been replaced",
                    code="worker_garbage",
                ) from None
            except BaseException:  # no defect may keep a worker for ever
                self._lose(slot, "garbage", "a defect of kstream")
                raise
            else:
                self._finished(slot, answer)
                if answer["kind"] == "error":
                    raise read_error(answer)
                return answer, data

    def _timed_out(self, timeout_s: float, slot: _Slot) -> ModelError:
        return ModelError(
            f"the model worker did not answer within {timeout_s:g} s",
            where=slot.name,
            likely="a model that hangs, or a machine that is too slow for this volume",
            hint="the worker has been replaced; kstream serve --worker-s",
            code="worker_timeout",
        )

    def _culprit(self, died: list[str]) -> ModelError:
        if self._is_stopping.is_set():
            return ModelError("the server stops", hint="send the scan again when it runs", code="stopping")
        return ModelError(
            f"{died[-1]}; so did the worker before it, with the same volume",
            likely="a volume or model that brings the network's libraries down, or too little memory",
            hint="the workers have been replaced; kstream doctor; the server's log has what they said",
            code="worker_died",
        )

    def _take(self, wait_until_s: float) -> tuple[_Slot, WorkerLink]:
        """A free worker, which is busy from now on."""
        with self._changed:
            if self._n_waiting >= self._settings.max_waiting:
                self._note("refused")
                raise ModelError(
                    f"{self._n_waiting} volumes wait for a model worker already",
                    likely="more scans than the workers can segment",
                    hint="kstream serve --workers N",
                    code="worker_busy",
                )
            self._n_waiting += 1
            try:
                while True:
                    if self._is_stopping.is_set():
                        raise self._culprit([])
                    for slot in self._slots:
                        if slot.state == "free" and slot.link is not None:
                            slot.state = "busy"
                            # the next request begins with another worker: they share the load
                            self._slots.remove(slot)
                            self._slots.append(slot)
                            return slot, slot.link
                    self._check_present()
                    left_s = wait_until_s - time.monotonic()
                    if left_s <= 0:
                        self._note("refused")
                        raise ModelError(
                            f"no model worker was free within {self._settings.wait_s:g} s",
                            likely="more scans than the workers can segment, or workers that do not start",
                            hint="kstream serve --workers N; the server's log",
                            code="worker_busy",
                        )
                    self._changed.wait(left_s)
            finally:
                self._n_waiting -= 1

    def _check_present(self) -> None:
        """Raise at once, rather than wait, if no worker is there and none is about to be."""
        with self._changed:
            if self._count("absent") == len(self._slots):
                raise self._absent()

    def _absent(self) -> ModelError | _AbsentError:
        reasons = "; ".join(f"{slot.name}: {slot.reason}" for slot in self._slots) or "none is configured"
        if self._settings.when_absent == "local" and not self._settings.n_processes:
            return _AbsentError(f"no model worker can be had ({reasons})")
        self._note("refused")
        return ModelError(
            f"no model worker can be had ({reasons})",
            likely="workers that were not started, or that cannot start",
            hint="kstream worker; the server's log",
            code="no_worker",
        )

    def _give_back(self, slot: _Slot) -> None:
        self._set(slot, "free")

    def _finished(self, slot: _Slot, answer: Head) -> None:
        if answer.get("is_last"):
            reason = "its model no longer works" if answer["kind"] == "error" else "it has grown over its memory limit"
            self._lose(slot, "recycled", reason)
        else:
            self._give_back(slot)

    def _lose(self, slot: _Slot, counter: str, reason: str) -> None:
        """This worker must be replaced; the session that used it has let go of its link."""
        self._note(counter)
        if not self._is_stopping.is_set():
            log.error("%s is replaced: %s", slot.name, reason)
        if (process := slot.process) is not None:
            process.kill()
        self._set(slot, "lost", reason)
        slot.was_lost.set()

    def _pause(self, until_s: float, reason: str) -> None:
        if time.monotonic() > until_s:
            raise ModelError(reason, hint="kstream worker: start another one", code="worker_busy")
        self._is_stopping.wait(BUSY_PAUSE_S)

    # What keeps one worker there

    def _keep(self, slot: _Slot) -> None:
        """Thread of one worker: have it there, and when it is lost, again."""
        n_failed = 0
        while not self._is_stopping.is_set():
            try:
                link = self._open(slot)
            except (WorkerLostError, WorkerTimeoutError, KstreamError, OSError, zmq.ZMQError) as error:
                n_failed += 1
                if n_failed in (1, MAX_FAILED_STARTS) and not self._is_stopping.is_set():
                    log.error("%s cannot be had: %s", slot.name, error)
                is_absent = not slot.is_ours or n_failed >= MAX_FAILED_STARTS
                self._set(slot, "absent" if is_absent else "starting", str(error))
                self._is_stopping.wait(pause_s(n_failed))
                continue
            n_failed = 0
            log.info("%s is ready", slot.name)
            self._set(slot, "free")
            self._until_lost(slot, link)
            self._close(slot, link)
            if not self._is_stopping.is_set():
                self._note("restarts")

    def _open(self, slot: _Slot) -> WorkerLink:
        """Start or connect, wait for an answer, and have the models loaded that sessions use."""
        settings = self._settings
        slot.was_lost.clear()
        if slot.is_ours:
            slot.address = self._new_address()
            process = WorkerProcess(self._command(slot.address), self._n_threads())
            try:
                link = WorkerLink(self._context, slot.address, None, process)
            except BaseException:
                process.close()
                raise
        else:
            keys = settings.keys if slot.address.startswith("tcp://") else None
            link = WorkerLink(self._context, slot.address, keys)
        slot.link = link
        try:
            is_stopping = self._is_stopping.is_set
            patience_s = settings.start_s if slot.is_ours else PROBE_S
            link.connect(time.monotonic() + patience_s, is_stopping)
            for model in list(self._known) or list(settings.models):
                self._warm(link, model, time.monotonic() + settings.start_s)
        except BaseException:
            slot.link = None
            link.close()
            raise
        return link

    def _warm(self, link: WorkerLink, model: str, deadline_s: float) -> None:
        """Load a model before frames come; one that cannot be loaded any more is no longer known."""
        try:
            answer, _ = link.request("describe", deadline_s, self._is_stopping.is_set, model=model)
        except WorkerBusyError:
            return
        if answer["kind"] == "error":
            self._known.pop(model, None)
            log.error("%s", read_error(answer))
        else:
            self._known[model] = read_info(answer.get("info"))

    def _until_lost(self, slot: _Slot, link: WorkerLink) -> None:
        """Wait for the end of our process, or for word from a session; then until no session uses the link."""
        if link.process is not None:
            link.process.wait()
        else:
            slot.was_lost.wait()
        with self._changed:
            if slot.state == "free":
                slot.state = "lost"
                if link.process is not None and not self._is_stopping.is_set():
                    self._note("deaths")
                    log.error("%s died while it was idle: %s", slot.name, link.process.how_it_ended())
            self._changed.wait_for(lambda: slot.state == "lost")

    def _close(self, slot: _Slot, link: WorkerLink) -> None:
        with self._changed:
            slot.link = None
            slot.state = "starting"
        link.close()
        if slot.is_ours:
            with contextlib.suppress(FileNotFoundError):
                Path(slot.address.removeprefix("ipc://")).unlink()

    def _new_address(self) -> str:
        """An ipc file of its own for every process: the one before may still be dying."""
        if self._folder is None:  # start makes it
            raise ModelError("workers were not started")
        return f"ipc://{self._folder.name}/worker-{next(self._numbers)}"

    def _command(self, address: str) -> list[str]:
        settings = self._settings
        options = ["--owned", "--address", address, "--device", settings.device]
        chosen = {"--engine": settings.engine, "--precision": settings.precision}
        options += [word for option, value in chosen.items() if value != "auto" for word in (option, value)]
        return [*settings.command, *options, "--memory-gib", f"{settings.memory_gib:g}"]

    def _n_threads(self) -> int:
        """Cores for each process of ours; one process alone decides for itself."""
        settings = self._settings
        if settings.n_threads or settings.n_processes < 2:
            return settings.n_threads
        return max(1, (os.cpu_count() or 1) // settings.n_processes)

    def _note(self, counter: str) -> None:
        with self._changed:
            setattr(self.counters, counter, getattr(self.counters, counter) + 1)

    def _set(self, slot: _Slot, state: Literal["starting", "free", "busy", "lost", "absent"], reason: str = "") -> None:
        with self._changed:
            slot.state, slot.reason = state, reason
            self._changed.notify_all()

    def _count(self, state: str) -> int:
        return sum(slot.state == state for slot in self._slots)


def pause_s(n_failed: int) -> float:
    """Before the next try after so many failures in a row: 0.2 s, 0.4 s, and so on."""
    return min(0.1 * 2.0 ** min(n_failed, 16), MAX_PAUSE_S)


class _RemoteSegmenter:
    """A model in some worker of a pool."""

    def __init__(self, workers: ModelWorkers, model: str, info: ModelInfo) -> None:
        self._workers, self._model, self._info = workers, model, info

    @property
    def info(self) -> ModelInfo:
        return self._info

    def segment(self, difference: Complex) -> Segmentation:
        return self._workers.segment(self._model, self._info, difference)


class _RemoteArrayEngine:
    """A network with any inputs in some worker of a pool."""

    def __init__(self, workers: ModelWorkers, model: str, sha256: str) -> None:
        self._workers, self._model, self._sha256 = workers, model, sha256
        self._told: dict[str, str] = {"model": model}

    def run_arrays(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        outputs, self._told = self._workers.evaluate(self._model, inputs, self._sha256)
        return outputs

    def describe(self) -> dict[str, str]:
        return dict(self._told)


class _AbsentError(Exception):
    """No worker on any address can be had, and the policy says what to do then."""


def in_proportion(timeout_s: float, shape: tuple[int, ...]) -> float:
    """The time that a worker has for a volume ``(z, y, x)``."""
    return timeout_s * max(1.0, math.prod(shape) / TIMED_VOXELS)


def _check_addresses(settings: WorkerSettings) -> None:
    for address in settings.addresses:
        if not address.startswith(("ipc://", "tcp://")):
            raise ConfigError(f"unknown kind of address {address!r}", hint="ipc://FILE or tcp://HOST:PORT")
        if address.startswith("tcp://") and settings.keys is None:
            raise ConfigError(
                "a worker on tcp needs keys, on loopback too",
                where=address,
                hint="kstream worker --make-keys DIR; kstream serve --worker-key --worker-public",
            )
    if settings.keys is not None:
        settings.keys.options()


def _check_reply(answer: Head, data: memoryview, shape: tuple[int, ...]) -> None:
    """Labels must be those of the volume that was sent; a worker that lies about that is replaced."""
    labels = read_array(answer, data, "uint8")
    if labels.shape != shape:
        raise ProtocolError(f"labels of shape {labels.shape} for a volume of {shape}")
    if not isinstance(answer.get("provenance", {}), dict) or not isinstance(answer.get("warnings", []), list):
        raise ProtocolError("labels with an unreadable provenance")
