"""The MRD server: listens, gives each connection a session of its own, and keeps the house within its limits."""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import itertools
import logging
import os
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from ..errors import KstreamError, PeerError
from ..mrd.codec import encode
from ..mrd.messages import Close
from .connection import Connection, SocketConnection, TlsConnection
from .journal import JournalFolder, SessionJournal
from .metrics import ServerMetrics
from .settings import LOOPBACK, ServerSettings
from .store import ModelStore, SegmentSource
from .summary import SUMMARY
from .texts import PREFIX, line

if TYPE_CHECKING:
    from .session import ServerSession
    from .tap import Tap

__all__ = ["SUMMARY", "MrdServer", "ServerSettings"]

log = logging.getLogger("kstream.serve")

BACKLOG = 128
REFUSALS = 16
"""Refusals that may be under way at a time; beyond, a connection is closed without a word."""

WATCH_S = 0.5
STEP_S = 60.0
"""Longest wait for a step of a session that was ended: nothing can interrupt it."""

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Guest(Protocol):
    """A session, of whatever door."""

    @property
    def is_computing(self) -> bool: ...

    @property
    def queued_bytes(self) -> int: ...

    @property
    def unsent_bytes(self) -> int: ...

    def force(self, error: KstreamError) -> None: ...


class MrdServer:
    """Listens and gives each connection a session of its own.

    Parameters
    ----------
    hosts : addresses to listen on; loopback, IPv4 and IPv6, by default. One that this machine does not have is passed
        over as long as another one is there.
    port : 0 takes a free one (see `port`).
    tls : makes every connection a TLS one.
    tap : shows sessions to those who look on.

    Raises
    ------
    PeerError : no address can be listened on.
    """

    def __init__(
        self,
        hosts: Sequence[str] = LOOPBACK,
        port: int = 9002,
        settings: ServerSettings | None = None,
        models: SegmentSource | None = None,
        tls: ssl.SSLContext | None = None,
        tap: Tap | None = None,
    ) -> None:
        self.settings = settings or ServerSettings()
        self.tap = tap
        self.metrics = ServerMetrics()
        self._models = models or ModelStore()
        self._tls = tls
        self._sessions: dict[threading.Thread, ServerSession] = {}
        self._pending: set[threading.Thread] = set()
        self._guests: dict[threading.Thread, Guest] = {}  # sessions of another door
        self._measuring: dict[threading.Thread, None] = {}  # in the order of their headers
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._n_asked = 0
        self._orphans: list[ServerSession] = []  # ended, while a step of their pipeline still works
        self._numbers = itertools.count(1)
        self._refusals = threading.Semaphore(REFUSALS)
        self._listeners = listen(hosts, port)
        self._journals = JournalFolder(self.settings.record) if self.settings.record is not None else None
        self._watch_gauges()

    @property
    def port(self) -> int:
        return int(self._listeners[0].getsockname()[1])

    @property
    def addresses(self) -> list[str]:
        """Where we listen."""
        return [str(listener.getsockname()[0]) for listener in self._listeners]

    def serve_forever(self) -> None:
        """Accept until `stop`, or until somebody asked to stop."""
        watch = threading.Thread(target=self._watch_memory, name="kstream-watch", daemon=True)
        watch.start()
        with selectors.DefaultSelector() as selector:
            for listener in self._listeners:
                if listener.fileno() >= 0:  # else stopped already
                    selector.register(listener, selectors.EVENT_READ)
            while not self._stopping.is_set() and not self._n_asked:
                for key, _ in selector.select(0.2):
                    self._accept(key.fileobj)  # type: ignore[arg-type]
        self._stopping.set()
        watch.join(5)

    def ask_to_stop(self) -> None:
        """End `serve_forever`; asked again, end the grace of `stop` as well. May be called by a signal handler.

        It only counts, for the interrupted thread may hold any lock.
        """
        self._n_asked += 1

    @property
    def is_computing(self) -> bool:
        """True while a pipeline works, even if its session has ended."""
        with self._lock:
            self._orphans = [session for session in self._orphans if session.is_computing]
            return bool(self._orphans) or any(session.is_computing for session in self._sessions.values())

    @property
    def is_hurried(self) -> bool:
        """True if we were asked to stop more than once."""
        return self._n_asked > 1

    def stop(self, grace_s: float = 10.0) -> None:
        """Accept no more; give running sessions `grace_s` to end, then end them with a word to their clients."""
        self._stopping.set()
        self._close_listeners()
        stopped = PeerError(
            "the server was stopped", where="during the scan", hint="send the scan again", code="server_stopped"
        )
        for session in self._running():
            if not session.is_measuring:
                session.interrupt(stopped)
        self._join(grace_s, 0.0)
        for session in self._running():
            log.warning("a session did not end in time and is ended")
            session.interrupt(stopped)
        self._join(5.0, 1.0)
        for session in self._running():
            session.force(stopped)
        self._join(5.0, 1.0)

    def _close_listeners(self) -> None:
        """From now on the system refuses clients, which can then try another server."""
        for listener in self._listeners:
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:  # too many open files, or a client that was gone at once: others go on
            if not self._stopping.is_set():
                log.error("a connection could not be accepted: %s", error)
                self._stopping.wait(0.1)
            return
        self.metrics.connections.inc()
        with self._lock:
            is_full = len(self._sessions) + len(self._pending) >= self.settings.max_connections
            is_busy = len(self._measuring) >= self.settings.max_sessions
        if is_full or is_busy:
            self._refuse(connection, _busy(self.settings, is_full))
            return
        thread = threading.Thread(
            target=self._serve, args=(connection, next(self._numbers)), name="kstream-session", daemon=True
        )
        with self._lock:
            self._pending.add(thread)
        try:
            thread.start()
        except RuntimeError as error:  # the machine gives no more threads: this client loses, the others do not
            with self._lock:
                self._pending.discard(thread)
            self._drop(connection, error)

    def _drop(self, raw: socket.socket, error: Exception) -> None:
        raw.close()
        self.metrics.sessions.labels("error").inc()
        log.error("a connection had to be dropped: %s", error, extra={"code": "error"})

    def _serve(self, raw: socket.socket, number: int) -> None:
        """One connection; in a thread of its own."""
        thread = threading.current_thread()
        try:
            connection = self._secured(raw)
            if connection is None:
                return
            journal = self._journals.open(number, connection.peer) if self._journals is not None else None
            admit = functools.partial(self._admit, thread)
            release = functools.partial(self._dismiss, thread)
            from .session import ServerSession  # brings the pipeline: the server listens before that is loaded

            try:
                session = ServerSession(
                    connection, number, self.settings, self._models, self.metrics, admit, journal, release, self.tap
                )
            except RuntimeError as error:  # no thread for its sender
                if journal is not None:
                    journal.close(False, str(error))
                return self._drop(raw, error)
            with self._lock:
                self._sessions[thread] = session
                self._pending.discard(thread)
            outcome = session.run()
            log.debug("session ended: %s", outcome, extra={"session": number})
        finally:
            with self._lock:
                ended = self._sessions.pop(thread, None)
                if ended is not None and ended.is_computing:
                    self._orphans = [*(orphan for orphan in self._orphans if orphan.is_computing), ended]
                self._pending.discard(thread)
                self._measuring.pop(thread, None)

    def _secured(self, raw: socket.socket, is_counted: bool = False) -> Connection | None:
        if self._tls is None:
            return SocketConnection(raw)
        try:
            return TlsConnection(raw, self._tls, None, self.settings.handshake_s)
        except PeerError as error:
            if not is_counted:
                self.metrics.sessions.labels(error.code).inc()
            log.error("%s", error, extra={"code": error.code})
            return None

    def _admit(self, thread: threading.Thread) -> None:
        """Called by a session whose header has come: from now on it counts as a measurement.

        Raises
        ------
        PeerError : as many measurements run as may, or the memory is used up.
        """
        if resident_bytes() > self.settings.memory_gib * 2**30:
            raise _too_large(self.settings)
        with self._lock:
            if len(self._measuring) >= self.settings.max_sessions:
                raise _busy(self.settings, False)
            self._measuring[thread] = None

    def _dismiss(self, thread: threading.Thread) -> None:
        """The measurement is over; what is left is to say so."""
        with self._lock:
            self._measuring.pop(thread, None)

    # ---- for the sessions of another door; each calls from its own thread ----

    def refusal(self, n_connections: int) -> PeerError | None:
        """Why a door that has `n_connections` can take no other one now; None if it can."""
        is_full = n_connections >= self.settings.max_connections
        with self._lock:
            is_busy = len(self._measuring) >= self.settings.max_sessions
        return _busy(self.settings, is_full) if is_full or is_busy else None

    def register(self, peer: str) -> tuple[int, SessionJournal | None]:
        """Number and journal for a session."""
        number = next(self._numbers)
        return number, self._journals.open(number, peer) if self._journals is not None else None

    def enter(self, guest: Guest) -> None:
        """From now on the session is among the gauges, and may be ended for its memory."""
        with self._lock:
            self._guests[threading.current_thread()] = guest

    def admit(self) -> None:
        """The header has come; raises a PeerError if this measurement cannot be taken."""
        self._admit(threading.current_thread())

    def dismiss(self) -> None:
        """The measurement is over."""
        self._dismiss(threading.current_thread())

    def leave(self) -> None:
        """The session is over."""
        self.dismiss()
        with self._lock:
            self._guests.pop(threading.current_thread(), None)

    def _refuse(self, raw: socket.socket, error: PeerError) -> None:
        """Say why; in a thread of its own, for the client may be slow to read it."""
        self.metrics.sessions.labels(error.code).inc()
        log.warning("%s", error, extra={"code": error.code})
        if not self._refusals.acquire(blocking=False):
            raw.close()
            return
        teller = threading.Thread(target=self._tell_refused, args=(raw, error), name="kstream-refuse", daemon=True)
        try:
            teller.start()
        except RuntimeError:
            self._refusals.release()
            raw.close()

    def _tell_refused(self, raw: socket.socket, error: PeerError) -> None:
        try:
            connection = self._secured(raw, is_counted=True)
            if connection is not None:
                with contextlib.suppress(OSError):
                    connection.send([encode(line(f"{PREFIX['error']}{error}")), encode(Close())], 1.0)
                    connection.end_sending()
                connection.close()
        finally:
            self._refusals.release()

    def _watch_memory(self) -> None:
        """End the youngest measurement while the process uses more memory than it may."""
        cap_bytes = self.settings.memory_gib * 2**30
        while not self._stopping.wait(WATCH_S):
            if resident_bytes() > cap_bytes:
                with self._lock:
                    youngest = next(reversed(self._measuring), None)
                    session: Guest | None = None
                    if youngest is not None:
                        session = self._sessions.get(youngest) or self._guests.get(youngest)
                if session is not None:
                    log.error("the server uses more than %g GiB: its youngest session is ended", cap_bytes / 2**30)
                    self._end_for_memory(session)

    def _end_for_memory(self, session: Guest) -> None:
        """End a session, and wait until its memory is free: else the next session would be ended for it as well."""
        session.force(_too_large(self.settings))
        deadline = time.monotonic() + STEP_S
        while session.is_computing and time.monotonic() < deadline and not self._stopping.wait(WATCH_S):
            pass
        gc.collect()
        self._stopping.wait(WATCH_S)

    def _watch_gauges(self) -> None:
        def total(of: Callable[[Guest], int]) -> Callable[[], float]:
            return lambda: float(sum(of(session) for session in self._all()))

        watch = self.metrics.watch
        watch("open_sessions", "sessions now", lambda: float(len(self._all())))
        watch("queued_bytes", "acquisitions that wait for a pipeline", total(lambda s: s.queued_bytes))
        watch("unsent_bytes", "messages that wait for a client", total(lambda s: s.unsent_bytes))
        watch("resident_bytes", "resident memory of the server", lambda: float(resident_bytes()))

    def _all(self) -> list[Guest]:
        with self._lock:
            return [*self._sessions.values(), *self._guests.values()]

    def _running(self) -> list[ServerSession]:
        with self._lock:
            return list(self._sessions.values())

    def _join(self, seconds: float, hurried_s: float) -> None:
        """Wait until all sessions have ended, for at most `seconds`, or `hurried_s` once we are hurried."""
        begin = time.monotonic()
        with self._lock:
            threads = [*self._sessions, *self._pending]
        for thread in threads:
            while thread.is_alive():
                left_s = begin + (hurried_s if self.is_hurried else seconds) - time.monotonic()
                if left_s <= 0:
                    return
                thread.join(min(0.1, left_s))


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not tell it."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0


def _busy(settings: ServerSettings, is_full: bool) -> PeerError:
    n, what, option = (
        (settings.max_connections, "connections are open", "--max-connections")
        if is_full
        else (settings.max_sessions, "measurements run", "--max-sessions")
    )
    return PeerError(
        f"busy: {n} {what} already",
        likely="more scanners or replays than this server takes",
        hint=f"try again later, or kstream serve {option} N",
        code="busy",
    )


def _too_large(settings: ServerSettings) -> PeerError:
    return PeerError(
        f"the server's memory is used up: more than {settings.memory_gib:g} GiB",
        likely="other scans are large, or this one's header asks for too much",
        hint="try again later, or kstream serve --memory-gib N",
        code="memory",
    )


def listen(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Listening sockets, all on one port."""
    listeners: list[socket.socket] = []
    failures: list[tuple[str, OSError]] = []
    for host in hosts:
        try:
            chosen = listeners[0].getsockname()[1] if listeners else port
            listeners += _listen_on(host, chosen)
        except OSError as refused:
            failures.append((host, refused))
    fatal = [failure for failure in failures if not listeners or not _is_absent(failure[1])]
    if fatal:
        for listener in listeners:
            listener.close()
        host, error = fatal[0]
        raise PeerError(
            f"cannot listen on {host} port {port}: {error.strerror or error}",
            likely="another server runs there, the port needs privileges, or this machine has no such address",
            hint="--port 0 takes a free port",
            code="cannot_listen",
        ) from error
    for host, error in failures:
        log.info("%s is not listened on: %s", host, error.strerror or error)
    return listeners


def _listen_on(host: str, port: int) -> Iterator[socket.socket]:
    """One socket for each address that a name stands for."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, _, _, _, address in dict.fromkeys(found):
        yield socket.create_server(address[:2], family=family, backlog=BACKLOG)


def _is_absent(error: OSError) -> bool:
    """True if the machine has no such address, as one without IPv6."""
    return isinstance(error, socket.gaierror) or error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
