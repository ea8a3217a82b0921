"""The MRD server: one measurement after another, many at a time, over TCP.

A session reads messages in its own thread, stamps every acquisition with the time at which its last byte came, and
hands it to a pipeline that runs in a worker thread behind a bounded queue. Images go back while acquisitions still
come. Every session ends with exactly one CLOSE, and every error is told to the client as TEXT and to the log.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config import ResolvedConfig, resolve
from ..errors import KstreamError, PeerError, ProtocolError
from ..mrd.codec import Decoder, encode
from ..mrd.header import parse_header
from ..mrd.messages import Close, ConfigFile, ConfigText, Header, Image, Query, Response, Text, Waveform
from ..mrd.session import Session as SessionRules
from ..pipeline import Measurement, build_pipeline
from ..stream import StageError
from ..stream.runners import ThreadRunner
from ..stream.telemetry import Durations
from ..types import Acquisition, Delivered, FrameEnd, Notice, Scan
from .store import ModelStore

log = logging.getLogger("kstream.serve")

SUMMARY = "kstream summary "
"""A TEXT that starts so carries one JSON object: counters, latencies, stage times and configuration of the session."""

SHOWN = 1000
"""Latencies and timeline events in a summary, so that it does not grow with the scan."""

PREFIX = {"info": "", "warning": "WRN ", "error": "ERR "}
"""FIRE colours a line by its first three characters."""


@dataclass(frozen=True)
class ServerSettings:
    """Limits of the server.

    Parameters
    ----------
    handshake_s : from connection to the header.
    idle_s : between two receptions later on; a paused scan is normal, a dead one is not.
    send_s : for a client that does not take its images.
    queue : acquisitions that may wait for the pipeline.
    max_sessions : measurements at a time; one more is refused with a reason.
    settings : ``section.key=value`` applied to every measurement.
    """

    handshake_s: float = 10.0
    idle_s: float = 600.0
    send_s: float = 60.0
    queue: int = 512
    max_sessions: int = 8
    settings: tuple[str, ...] = ()


@dataclass
class _State:
    """What one session knows so far."""

    resolved: ResolvedConfig | None = None
    scan: Scan | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    measurement: Measurement | None = None
    runner: ThreadRunner | None = None


class ServerSession:
    """One connection, from CONFIG to CLOSE."""

    def __init__(self, connection: socket.socket, number: int, settings: ServerSettings, store: ModelStore) -> None:
        self._socket, self._settings, self._store = connection, settings, store
        self._sender = connection.dup()  # a time limit of its own: sending waits for the client's reader
        self._sender.settimeout(settings.send_s)
        self._log = logging.LoggerAdapter(log, {"session": number})
        self._send_lock = threading.Lock()
        self._is_cut = False
        self._decoder = Decoder()
        self._rules = SessionRules("server")
        self._state = _State()
        self._begin_ns = time.monotonic_ns()
        self._timeline: list[tuple[str, float]] = []
        self._readout_latency = Durations()

    def run(self) -> bool:
        """Serve until CLOSE, end of stream or error; True if nothing went wrong."""
        try:
            self._receive_all()
            self._finish()
        except KstreamError as error:
            self._fail(error)
            return False
        except OSError as error:
            self._fail(PeerError(f"the connection broke: {error}", where=self._place()))
            return False
        except Exception as error:  # noqa: BLE001 - no defect may end a session without a word
            self._fail(StageError.of(error, "the session"))
            return False
        finally:
            if self._state.runner is not None:
                self._state.runner.abandon()
            self._close()
        return True

    def interrupt(self) -> None:
        """End the session from outside: its reader sees the end of the stream, tells the client, and closes."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def _receive_all(self) -> None:
        deadline = time.monotonic() + self._settings.handshake_s
        while True:
            in_handshake = self._state.scan is None
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001) if in_handshake else self._settings.idle_s)
            try:
                data = self._socket.recv(1 << 18)
            except TimeoutError:
                raise PeerError(
                    "no complete header came in time" if in_handshake else "nothing came for a long time",
                    where=self._place(),
                    likely="the client connected and does not send",
                    hint="kstream serve --handshake-s/--idle-s",
                ) from None
            if not data:
                return self._end_of_stream()
            received_ns = time.monotonic_ns()
            for message in self._decoder.receive(data):
                self._rules.check(message)
                if isinstance(message, Close):
                    return
                self._take(message, received_ns)
            if self._decoder.error is not None:
                raise self._decoder.error

    def _end_of_stream(self) -> None:
        """The client stopped sending without CLOSE: frames that are complete still go back, then the reason."""
        self._decoder.end()
        if self._state.scan is None and self._state.resolved is None:
            raise PeerError("the client closed the connection before it sent a configuration")
        raise ProtocolError(
            "the stream ended without CLOSE",
            where=self._place(),
            likely="the sender was stopped, or its connection broke",
            hint="what was complete has been sent back",
        )

    def _take(self, message: Any, received_ns: int) -> None:
        state = self._state
        match message:
            case Acquisition():
                message.received_ns = received_ns
                self._runner().put(message)
            case ConfigFile(name=name):
                self._configure(name, {})
            case ConfigText(text=text):
                self._configure(*parse_config_text(text))
            case Header(xml=xml):
                state.scan = parse_header(xml)
                self._mark("header")
            case Text(text=text):
                self._parameters(text)
            case Query(correlation=correlation):
                self._send(Response(correlation, "Unknown query"))
            case Waveform() | Image():
                self._log.debug("%s ignored", type(message).__name__)

    def _configure(self, name: str, parameters: Mapping[str, Any]) -> None:
        self._state.parameters.update(parameters)
        self._state.resolved = resolve(name, settings=self._settings.settings)
        self._mark("configuration")
        self._log.info("preset %s", name)

    def _parameters(self, text: str) -> None:
        """JSON parameters may follow the header (FIRE, OpenRecon); any other text is only logged."""
        sent = _json_object(text)
        if sent is None or self._state.runner is not None:
            self._log.info("client says: %s", text[:200].encode("unicode_escape").decode())
            return
        self._state.parameters.update({k: v for k, v in _parameters(sent.get("parameters", sent)).items() if "." in k})

    def _runner(self) -> ThreadRunner:
        """The running pipeline; built at the first acquisition, when configuration and parameters are complete."""
        state = self._state
        if state.runner is None:
            resolved, scan = state.resolved, state.scan
            if resolved is None or scan is None:  # the session rules make sure of both
                raise ProtocolError("an acquisition came before configuration and header", where=self._place())
            if state.parameters:
                resolved = resolve(resolved.preset, settings=self._settings.settings, parameters=state.parameters)
                state.resolved = resolved
            config = resolved.config
            state.measurement = build_pipeline(scan, config, self._store.segment(config.segment))
            state.runner = ThreadRunner(
                state.measurement.pipeline, self._deliver, self._settings.queue, done=self._count_latency
            )
            self._mark("first acquisition")
        return state.runner

    def _deliver(self, item: Any) -> None:
        """Sink of the pipeline, in the worker thread."""
        measurement = self._state.measurement
        if measurement is None:
            return
        counters = measurement.counters
        match item:
            case Image():
                self._send(item)
                counters.images += 1
            case Delivered():
                latency_ms = (time.monotonic_ns() - item.received_ns) / 1e6
                counters.latencies_ms.setdefault(item.kind, []).append(latency_ms)
                self._mark(f"{item.kind} of frame {item.frame}")
                self._tell(
                    Notice("info", f"frame {item.frame}: {item.kind} sent {latency_ms:.0f} ms after its last readout")
                )
            case Notice():
                self._tell(item)
            case FrameEnd():
                self._mark(f"last readout of frame {item.frame}", item.received_ns)

    def _count_latency(self, acquisition: Acquisition) -> None:
        self._readout_latency.add(time.monotonic_ns() - acquisition.received_ns)

    def _finish(self) -> None:
        if self._state.runner is not None:
            runner, self._state.runner = self._state.runner, None
            runner.finish()
        elif self._state.scan is not None:
            raise ProtocolError(
                "the scan has a header but no acquisitions",
                where=self._place(),
                likely="an empty recording, or a scanner that was stopped before the first readout",
                hint="kstream inspect FILE",
            )
        self._summarise()

    def _summarise(self, has_failed: bool = False) -> None:
        measurement, resolved = self._state.measurement, self._state.resolved
        if measurement is None or resolved is None:
            return
        counters = measurement.counters
        if not counters.images and not has_failed:
            reasons = ", ".join(f"{n} {reason}" for reason, n in counters.set_aside.items()) or "no frame was finished"
            self._tell(Notice("error", f"no image was sent: of {counters.received} acquisitions, {reasons}"))
        summary = {
            "preset": resolved.preset,
            "received": counters.received,
            "frames": counters.frames,
            "images": counters.images,
            "dropped": counters.dropped,
            "set_aside": counters.set_aside,
            "latencies_ms": {kind: values[-SHOWN:] for kind, values in counters.latencies_ms.items()},
            "readout_latency": {**_quantiles(self._readout_latency), "counts": self._readout_latency.counts}
            | {"edges_ms": self._readout_latency.edges_ms()},
            "stages": [
                {"name": t.name, "n_calls": t.durations.n, "total_ms": t.durations.total_ns / 1e6}
                | _quantiles(t.durations)
                for t in measurement.pipeline.times
            ],
            "timeline": self._timeline[:SHOWN],
            "config": resolved.rows(),
        }
        self._log.info(
            "received %d, frames %d, images sent %d, dropped %d",
            counters.received,
            counters.frames,
            counters.images,
            counters.dropped,
        )
        self._send(Text(SUMMARY + json.dumps(summary)))

    def _fail(self, error: KstreamError) -> None:
        """Finish what is complete, then tell client and log why the session ends."""
        runner, self._state.runner = self._state.runner, None
        if runner is not None:
            with contextlib.suppress(KstreamError, OSError):
                runner.finish()
        self._log.error("%s", error)
        with contextlib.suppress(OSError, PeerError):
            self._send(Text(PREFIX["error"] + str(error)))
            self._summarise(has_failed=True)

    def _tell(self, notice: Notice) -> None:
        level = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}[notice.level]
        self._log.log(level, "%s", notice.text)
        self._send(Text(PREFIX[notice.level] + notice.text))

    def _send(self, message: Any) -> None:
        """Send one message whole; once a message was cut, nothing more is sent, for the client could not read it."""
        with self._send_lock:
            if self._is_cut:
                raise PeerError("the client did not take what was sent before", where=self._place())
            self._is_cut = True
            self._sender.sendall(encode(message))
            self._is_cut = False

    def _close(self) -> None:
        with contextlib.suppress(OSError, PeerError):
            self._send(Close())
            self._sender.shutdown(socket.SHUT_WR)
            self._drain()
        self._sender.close()
        self._socket.close()

    def _drain(self) -> None:
        """Read what the client still sends, so that closing does not reset the connection under our last words."""
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            if not self._socket.recv(1 << 18):
                return

    def _mark(self, event: str, at_ns: int | None = None) -> None:
        self._timeline.append((event, ((at_ns or time.monotonic_ns()) - self._begin_ns) / 1e9))

    def _place(self) -> str:
        measurement = self._state.measurement
        return f"after {measurement.counters.received if measurement else 0} acquisitions"


def _quantiles(durations: Durations) -> dict[str, float]:
    return {
        "p50_ms": durations.quantile_ms(0.5),
        "p95_ms": durations.quantile_ms(0.95),
        "max_ms": durations.longest_ns / 1e6,
    }


def parse_config_text(text: str) -> tuple[str, dict[str, str]]:
    """Preset name and parameters of a CONFIG_TEXT: a bare name, or JSON ``{"preset": ..., "parameters": {...}}``."""
    stripped = text.strip()
    if not stripped.startswith("{"):
        return stripped, {}
    sent = _json_object(stripped)
    if sent is None:
        raise ProtocolError("CONFIG_TEXT begins like JSON and is not", hint="send a preset name, or valid JSON")
    return str(sent.get("preset", sent.get("config", ""))), _parameters(sent.get("parameters", {}))


def _json_object(text: str) -> dict[str, Any] | None:
    """A JSON object, or None for anything else (however deeply nested or long its numbers are)."""
    try:
        sent = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return sent if isinstance(sent, dict) else None


def _parameters(sent: Any) -> dict[str, str]:
    if not isinstance(sent, dict):
        raise ProtocolError("parameters are not a JSON object", hint='{"parameters": {"section.key": value}}')
    return {str(key): json.dumps(value) for key, value in sent.items()}


class MrdServer:
    """Listens and gives each connection a session of its own.

    Parameters
    ----------
    host, port : where to listen; loopback by default; port 0 takes a free one (see `port`).
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 9002,
        settings: ServerSettings | None = None,
        store: ModelStore | None = None,
    ) -> None:
        self._settings = settings or ServerSettings()
        self._store = store or ModelStore()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family, backlog=64)
        except OSError as error:
            raise PeerError(
                f"cannot listen on {host} port {port}: {error.strerror}",
                likely="another server runs there, or the port needs privileges",
                hint="--port 0 takes a free port",
            ) from error
        self._sessions: dict[threading.Thread, ServerSession] = {}
        self._stopping = threading.Event()
        self._count = 0

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def serve_forever(self) -> None:
        """Accept until `stop`."""
        self._listener.settimeout(0.2)
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
                self._start(connection)
            except TimeoutError:
                continue
            except OSError as error:  # one connection that failed, or too many open files: others go on
                if not self._stopping.is_set():
                    log.error("a connection could not be accepted: %s", error)
                    self._stopping.wait(0.1)

    def stop(self, grace_s: float = 10.0) -> None:
        """Accept no more; give running sessions `grace_s` to end, then end them with a word to their clients."""
        self._stopping.set()
        self._join(grace_s)
        for thread, session in list(self._sessions.items()):
            if thread.is_alive():
                log.warning("a session did not end within %g s and is ended", grace_s)
                session.interrupt()
        self._join(5.0)
        self._listener.close()

    def _join(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for thread in list(self._sessions):
            thread.join(max(deadline - time.monotonic(), 0))

    def _start(self, connection: socket.socket) -> None:
        self._sessions = {thread: session for thread, session in self._sessions.items() if thread.is_alive()}
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self._sessions) >= self._settings.max_sessions:
            threading.Thread(target=self._refuse, args=(connection,), name="kstream-refuse", daemon=True).start()
            return
        self._count += 1
        session = ServerSession(connection, self._count, self._settings, self._store)
        thread = threading.Thread(target=session.run, name=f"kstream-session-{self._count}", daemon=True)
        self._sessions[thread] = session
        thread.start()

    def _refuse(self, connection: socket.socket) -> None:
        """Say why, and read what the client still sends for a second, lest a reset eats our words."""
        error = PeerError(
            f"busy: {self._settings.max_sessions} measurements run already",
            likely="more scanners or replays than this server takes",
            hint="try again later, or kstream serve --max-sessions N",
        )
        log.warning("%s", error)
        with contextlib.suppress(OSError), connection:
            connection.settimeout(1.0)
            connection.sendall(encode(Text(PREFIX["error"] + str(error))) + encode(Close()))
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 18):
                pass
