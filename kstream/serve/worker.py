"""The model worker: a process that keeps models loaded and segments what it is sent over ZeroMQ.

One thread (the main one) talks, one computes: so the worker answers and can end while a network runs. It ends by itself

- on SIGTERM or SIGINT, after the frame that runs (those that wait are told ``busy`` and go elsewhere);
- when the process that owns it is gone (its standard input closes);
- after a frame that left it larger than its memory limit (a leak), with exit code `EXIT_REPLACE`;
- after a frame that failed, if the model no longer gives what it once gave (a failed GPU stays failed), likewise;
- during a frame that runs over its deadline, or that doubles the memory limit: at once, with the same code.

Who owns it starts another one: the server for its own workers, a supervisor for those that were started by hand.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import zmq

from ..engines.array_engine import ArrayEngine
from ..errors import ConfigError, KstreamError, ModelError, PeerError
from ..models.bundle import Bundle, shipped
from ..segment import ModelInfo, Segmenter
from ..stream import StageError
from .worker_wire import (
    COPY_BELOW_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_TIMEOUT_S,
    Head,
    array_fields,
    decode_head,
    encode_head,
    error_fields,
    info_fields,
    pack_arrays,
    read_array,
    read_arrays,
)

log = logging.getLogger("kstream.worker")

EXIT_REPLACE = 75
"""``EX_TEMPFAIL`` of sysexits.h: nothing is wrong with the configuration, start another one."""

TICK_MS = 100
"""How often limits are looked at while nothing happens."""


class ModelSource(Protocol):
    """Gives models by name; `ModelStore` is one."""

    def segmenter(self, model: str) -> Segmenter: ...

    def prove(self, model: str) -> None:
        """Raise `ModelError` if the model no longer works, as when its device failed."""

    def array_engine(self, model: str) -> ArrayEngine:
        """A model with any inputs and outputs."""

    def takes_arrays(self, model: str) -> bool:
        """True for a model that `array_engine` gives, False for one that `segmenter` gives."""


@dataclass(frozen=True)
class WorkerOptions:
    """How one worker process runs.

    Parameters
    ----------
    address : ZeroMQ endpoint, ``ipc://FILE`` or ``tcp://HOST:PORT``.
    models : bundles that are loaded at start; if any are named, no other is served.
    memory_gib : resident memory after a frame above which the process asks to be replaced.
    curve_key : the worker's secret certificate; needed for tcp.
    curve_clients : folder with the public certificates of the clients that may connect; needed for tcp.
    is_owned : the process ends when its standard input closes, and loads any bundle that its owner names.
    backlog : requests that may wait; one more is answered ``busy``.
    """

    address: str
    models: tuple[str, ...] = ()
    memory_gib: float = 8.0
    curve_key: Path | None = None
    curve_clients: Path | None = None
    is_owned: bool = False
    backlog: int = 8


@dataclass(frozen=True)
class _Job:
    """One request that waits for the computing thread; `expires_s` is in monotonic seconds."""

    client: bytes
    head: Head
    payload: memoryview
    expires_s: float


class Worker:
    """Serves one address until it is told, or has reason, to end.

    Parameters
    ----------
    options : address and limits.
    source : where models come from.
    """

    def __init__(self, options: WorkerOptions, source: ModelSource) -> None:
        self._options, self._source = options, source
        self._context = zmq.Context()
        self._jobs: queue.Queue[_Job | None] = queue.Queue(options.backlog)
        self._running: _Job | None = None
        self._n_open = 0
        self._models: dict[str, Segmenter] = {}
        self._arrays: dict[str, ArrayEngine] = {}
        self._n_frames = 0
        self._exit_code: int | None = None
        self._failure: KstreamError | None = None

    def run(self) -> int:
        """Serve; the exit code of the process.

        Raises
        ------
        ConfigError : the address or the keys cannot be used.
        PeerError : the address cannot be bound.
        ModelError : a model that was named at start cannot be loaded.
        """
        authenticator = self._authenticator()
        router = self._context.socket(zmq.ROUTER)
        replies = self._context.socket(zmq.PULL)
        computing = threading.Thread(target=self._compute, name="kstream-compute", daemon=True)
        try:
            self._bind(router)
            replies.bind("inproc://replies")
            computing.start()
            log.info("model worker listens on %s", self._options.address)
            self._serve(router, replies)
            if self._failure is not None:
                raise self._failure
            return self._exit_code or 0
        finally:
            self._put(None)
            if computing.ident is not None:
                computing.join(1.0)
            if authenticator is not None:
                authenticator.stop()
            router.close(linger=1000)
            replies.close(linger=0)
            if not computing.is_alive():
                self._context.term()

    def end(self, exit_code: int = 0) -> None:
        """Ask the process to end after the frame that runs."""
        if self._exit_code is None:
            self._exit_code = exit_code

    def _serve(self, router: zmq.Socket[bytes], replies: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(replies, zmq.POLLIN)
        if self._options.is_owned:
            poller.register(sys.stdin.fileno(), zmq.POLLIN)
        while self._exit_code is None or self._n_open:
            events = dict(poller.poll(TICK_MS))
            if sys.stdin is not None and sys.stdin.fileno() in events:
                self._leave("the process that owns this worker is gone", 0)
            if replies in events:
                router.send_multipart(replies.recv_multipart(copy=False), copy=False)
                self._n_open -= 1
            if router in events:
                self._take(router)
            self._watch()

    def _take(self, router: zmq.Socket[bytes]) -> None:
        """Answer one request, or queue it for the computing thread."""
        client, *frames = router.recv_multipart(copy=False)
        number = -1
        try:
            head = decode_head(frames[0].buffer)
            number = head["id"]
            if head["kind"] == "status":
                reply = encode_head("status", number, **self._status())
            elif head["kind"] in ("describe", "segment", "evaluate"):
                payload = frames[1].buffer if len(frames) > 1 else memoryview(b"")
                job = _Job(client.bytes, head, payload, time.monotonic() + _timeout_s(head))
                if self._exit_code is None and self._put(job):
                    self._n_open += 1
                    return
                reply = encode_head("busy", number)
            else:
                raise PeerError(f"a worker cannot do {head['kind'][:40]!r}")
        except KstreamError as error:
            reply = encode_head("error", number, **error_fields(error))
        except (KeyError, IndexError, TypeError, ValueError, OverflowError):
            reply = encode_head("error", number, **error_fields(PeerError("a request without a readable head")))
        router.send_multipart([client.bytes, reply, b""])

    def _put(self, job: _Job | None) -> bool:
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            return False
        return True

    def _watch(self) -> None:
        """End at once if the frame that runs will not be of use to anybody, or eats the machine."""
        job, limit = self._running, self._options.memory_gib * 2**30
        if job is None:
            return
        if time.monotonic() > job.expires_s + 1.0:
            self._leave("a frame ran over its deadline", EXIT_REPLACE)
        if limit and resident_bytes() > 2 * limit:
            self._leave(f"a frame took more than twice {self._options.memory_gib:g} GiB", EXIT_REPLACE)

    def _leave(self, reason: str, exit_code: int) -> None:
        """End without waiting for the computing thread, which nothing can interrupt."""
        log.error("%s; this worker ends", reason)
        if self._options.is_owned:
            _remove_endpoint(self._options.address)
        logging.shutdown()
        os._exit(exit_code)

    def _status(self) -> Head:
        return {
            "pid": os.getpid(),
            "models": sorted(self._models.keys() | self._arrays.keys()),
            "is_busy": self._running is not None,
            "n_frames": self._n_frames,
            "rss_bytes": resident_bytes(),
        }

    def _compute(self) -> None:
        """The computing thread: one request after another."""
        replies = self._context.socket(zmq.PUSH)
        replies.connect("inproc://replies")
        try:
            self._preload()
            while (job := self._jobs.get()) is not None:
                self._running = job
                head, payload = self._answer(job)
                replies.send_multipart([job.client, head, payload], copy=len(payload) < COPY_BELOW_BYTES)
                self._running = None
        finally:
            replies.close(linger=1000)

    def _preload(self) -> None:
        for model in self._options.models:
            try:
                if self._source.takes_arrays(model):
                    self._array_engine(model)
                else:
                    self._segmenter(model)
            except Exception as error:  # whatever it is: without its computing thread a worker would answer nobody
                if not isinstance(error, KstreamError):
                    log.exception("the model %s cannot be loaded", model)
                    error = StageError.of(error, "the model worker")
                self._failure = error
                self.end(error.exit_code)
                return

    def _answer(self, job: _Job) -> tuple[bytes, memoryview]:
        number = job.head["id"]
        if self._exit_code is not None or time.monotonic() > job.expires_s:
            return encode_head("busy", number), memoryview(b"")  # this worker ends, or whoever asked has given up
        try:
            if job.head["kind"] == "describe":
                info = info_fields(self._described(str(job.head.get("model"))))
                return encode_head("describe", number, info=info), memoryview(b"")
            return self._evaluate(job) if job.head["kind"] == "evaluate" else self._segment(job)
        except KstreamError as error:
            told = error
        except Exception as error:
            log.exception("a request failed")
            told = StageError.of(error, "the model worker")
        return encode_head("error", number, **error_fields(told), **self._proof(job)), memoryview(b"")

    def _proof(self, job: _Job) -> Head:
        """After a failure: the model still works, or this process is of no use (a failed device stays failed)."""
        model = str(job.head.get("model"))
        if job.head["kind"] == "describe" or (model not in self._models and model not in self._arrays):
            return {}
        try:
            self._source.prove(model)
        except KstreamError as error:
            log.error("%s; this worker asks to be replaced", error)
            self.end(EXIT_REPLACE)
            return {"is_last": True}
        return {}

    def _segment(self, job: _Job) -> tuple[bytes, memoryview]:
        head = job.head
        difference = read_array(head, job.payload, "complex64")
        segmenter = self._segmenter(str(head.get("model")))
        _check_weights(head, segmenter.info.name, segmenter.info.sha256)
        made = segmenter.segment(difference)
        self._n_frames += 1
        fields = {**array_fields(made.labels), "provenance": dict(made.provenance), "warnings": list(made.warnings)}
        fields["seconds"] = dict(made.seconds)
        if self._has_grown():
            fields["is_last"] = True
            self.end(EXIT_REPLACE)
        return encode_head("segment", head["id"], **fields), made.labels.reshape(-1).data.cast("B")

    def _evaluate(self, job: _Job) -> tuple[bytes, memoryview]:
        head = job.head
        engine = self._array_engine(str(head.get("model")))
        told = engine.describe()
        _check_weights(head, told.get("model", ""), told.get("sha256", ""))
        fields, data = pack_arrays(engine.run_arrays(read_arrays(head, job.payload)))
        self._n_frames += 1
        if self._has_grown():
            fields["is_last"] = True
            self.end(EXIT_REPLACE)
        return encode_head("evaluate", head["id"], **fields, provenance=told), memoryview(data)

    def _check_allowed(self, model: str) -> None:
        options = self._options
        if not (options.is_owned or model in (options.models or shipped())):
            raise ModelError(
                f"this worker does not serve the model {model[:80]!r}",
                where=options.address,
                hint="kstream worker --model NAME; it serves: " + ", ".join(options.models or shipped()),
            )

    def _described(self, model: str) -> ModelInfo:
        """What a session needs to know of a model, which is loaded now."""
        self._check_allowed(model)
        if model in self._models or not self._source.takes_arrays(model):
            return self._segmenter(model).info
        self._array_engine(model)
        return ModelInfo.of(Bundle.load(model).info)

    def _segmenter(self, model: str) -> Segmenter:
        """A model that this worker may serve, loaded at its first use."""
        if model not in self._models:
            self._check_allowed(model)
            self._models[model] = self._source.segmenter(model)
            log.info("model %s is ready", model)
        return self._models[model]

    def _array_engine(self, model: str) -> ArrayEngine:
        """The same of a model with any inputs and outputs."""
        if model not in self._arrays:
            self._check_allowed(model)
            self._arrays[model] = self._source.array_engine(model)
            log.info("model %s is ready", model)
        return self._arrays[model]

    def _has_grown(self) -> bool:
        limit, used = self._options.memory_gib * 2**30, resident_bytes()
        if limit and used > limit:
            log.warning(
                "%.2f GiB in use, the limit is %.2f GiB: this worker asks to be replaced",
                used / 2**30,
                self._options.memory_gib,
            )
            return True
        return False

    def _bind(self, router: zmq.Socket[bytes]) -> None:
        router.set(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        router.set(zmq.RCVHWM, 2)
        router.set(zmq.SNDHWM, 16)
        router.set(zmq.HEARTBEAT_IVL, 2000)
        router.set(zmq.HEARTBEAT_TIMEOUT, 10000)
        if self._options.curve_key is not None:
            public, secret = load_certificate(self._options.curve_key, needs_secret=True)
            router.set(zmq.CURVE_SERVER, 1)
            router.set(zmq.CURVE_PUBLICKEY, public)
            router.set(zmq.CURVE_SECRETKEY, secret)
        try:
            router.bind(self._options.address)
        except zmq.ZMQError as error:
            raise PeerError(
                f"cannot listen on {self._options.address}: {error}",
                likely="another worker runs there, or the folder does not exist",
            ) from error

    def _authenticator(self) -> Any:
        """Lets in the clients whose public certificates are in the folder; None for ipc, where file rights decide.

        Raises
        ------
        ConfigError : tcp without keys.
        """
        options = self._options
        if options.address.startswith("ipc://"):
            return None
        if not options.address.startswith("tcp://"):
            raise ConfigError(f"unknown kind of address {options.address!r}", hint="ipc://FILE or tcp://HOST:PORT")
        if options.curve_key is None or options.curve_clients is None or not options.curve_clients.is_dir():
            raise ConfigError(
                "a worker on tcp needs its key and the keys of its clients, on loopback too",
                where=options.address,
                hint="kstream worker --make-keys DIR, then --curve-key and --curve-clients; or an ipc:// address",
            )
        from zmq.auth.thread import ThreadAuthenticator

        authenticator = ThreadAuthenticator(self._context)
        authenticator.start()
        authenticator.configure_curve(domain="*", location=str(options.curve_clients))
        return authenticator


def serve_models(options: WorkerOptions, source: ModelSource) -> int:
    """Be a worker: the body of ``kstream worker`` once its process is set up."""
    os.umask(0o077)  # the ipc file is for this user alone
    worker = Worker(options, source)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.end())
    if options.is_owned:
        _offer_to_kernel()
    return worker.run()


def _check_weights(head: Head, name: str, sha256: str) -> None:
    """Raise `ModelError` if a request was made for other weights than those that are loaded."""
    if head.get("sha256") and sha256 and head["sha256"] != sha256:
        raise ModelError(
            f"the worker's {name} has other weights than the one that the scan began with",
            likely="a bundle was exchanged while workers ran, or workers have different bundles of one name",
            hint="start all workers again, with the same bundle",
        )


def _timeout_s(head: Head) -> float:
    """How long the client will wait for its answer."""
    timeout_s = float(head["timeout_s"])
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise ValueError(timeout_s)
    return timeout_s


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def load_certificate(path: Path, needs_secret: bool = False) -> tuple[bytes, bytes]:
    """Public and secret key of a CURVE certificate; the secret one is empty in a public certificate.

    Raises
    ------
    ConfigError : it cannot be read, or lacks the secret key.
    """
    from zmq.auth import load_certificate as load

    try:
        public, secret = load(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read the key: {error}", where=str(path), hint="kstream worker --make-keys DIR"
        ) from error
    if needs_secret and not secret:
        raise ConfigError("a public key where a secret one is needed", where=str(path), hint="the .key_secret file")
    return public, secret or b""


def make_keys(folder: Path) -> tuple[Path, Path]:
    """Write certificates for a worker and for a server that may use it: ``NAME.key`` and ``NAME.key_secret``.

    The folder ``clients`` beside them holds the public certificates that the worker lets in.

    Returns
    -------
    The secret certificates of worker and client.
    """
    from zmq.auth import create_certificates

    clients = folder / "clients"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    clients.mkdir(exist_ok=True, mode=0o700)
    worker, client = (Path(create_certificates(folder, name)[1]) for name in ("worker", "client"))
    (clients / "client.key").write_bytes(client.with_suffix(".key").read_bytes())
    for secret in (worker, client):
        secret.chmod(0o600)
    return worker, client


def _offer_to_kernel() -> None:
    """If memory runs out, the kernel shall take the worker, not the server that can replace it."""
    try:
        Path("/proc/self/oom_score_adj").write_text("500")
    except OSError:
        log.debug("the kernel takes no preference")


def _remove_endpoint(address: str) -> None:
    """Take away the ipc file of an owner that is gone, and its folder when this was the last worker in it."""
    file = Path(address.removeprefix("ipc://"))
    steps: tuple[Callable[[], None], ...] = (file.unlink, file.parent.rmdir)
    for step in steps:
        try:
            step()
        except OSError:
            return
