"""The door of a server that Gadgetron connects to (``<connect>``)."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import PeerError
from ..mrd.codec import encode_parts
from ..mrd.messages import Close, Error
from .connection import SocketConnection
from .gadget_session import DRAIN_S, LAST_WORDS_S, LOOK_S, GadgetSession, Place
from .store import SegmentSource

if TYPE_CHECKING:
    from .server import MrdServer

log = logging.getLogger("kstream.gadgetron")

REFUSALS = 16
"""Refusals that may be under way at a time; beyond, a connection is closed without a word."""


class GadgetDoor:
    """Listens for Gadgetron's ``<connect>``: a second door of an MRD server, with the same models, limits, journals
    and metrics.

    Gadgetron speaks no TLS: keep to loopback, or to a network of its own.

    Parameters
    ----------
    hosts, port, models : as of `MrdServer`.
    server : measurements of both doors are counted there together, connections for each door alone.

    Raises
    ------
    PeerError : no address can be listened on.
    """

    def __init__(self, hosts: Sequence[str], port: int, server: MrdServer, models: SegmentSource) -> None:
        from .server import listen

        self._server, self._settings, self._models = server, server.settings, models
        self._listeners = listen(hosts, port)
        self._sessions: dict[threading.Thread, GadgetSession | None] = {}  # None: accepted a moment ago
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._orphans: list[GadgetSession] = []
        self._refusals = threading.Semaphore(REFUSALS)
        self._thread = threading.Thread(target=self._accept_all, name="kstream-gadget-door", daemon=True)

    @property
    def port(self) -> int:
        return int(self._listeners[0].getsockname()[1])

    def start(self) -> None:
        """Accept in a thread of its own."""
        self._thread.start()

    def stop(self, grace_s: float = 10.0) -> None:
        """Accept no more; give running scans `grace_s` to end, then end them with an error to their Gadgetron.

        A server that is asked to stop once more ends the grace.
        """
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(5)
        for listener in self._listeners:
            listener.close()
        for session in self._running():
            if not session.is_measuring:
                session.interrupt(_stopped())
        self._join(grace_s, hurried_s=0.0)
        for session in self._running():
            log.warning("a session did not end in time and is ended")
            session.interrupt(_stopped())
        self._join(5.0, hurried_s=1.0)
        for session in self._running():
            session.force(_stopped())
        self._join(5.0, hurried_s=1.0)

    @property
    def is_computing(self) -> bool:
        """True while a pipeline works, even if its session has ended."""
        return any(session.is_computing for session in (*self._orphans, *self._running()))

    def _accept_all(self) -> None:
        with selectors.DefaultSelector() as selector:
            for listener in self._listeners:
                selector.register(listener, selectors.EVENT_READ)
            while not self._stopping.is_set():
                for key, _ in selector.select(LOOK_S):
                    self._accept(key.fileobj)  # type: ignore[arg-type]

    def _accept(self, listener: socket.socket) -> None:
        try:
            raw, _ = listener.accept()
        except OSError as error:  # too many open files, or a peer that was gone at once: others go on
            log.error("a connection could not be accepted: %s", error)
            self._stopping.wait(0.1)
            return
        self._server.metrics.connections.inc()
        with self._lock:
            n_running = len(self._sessions)
        refusal = self._server.refusal(n_running)
        if refusal is not None:
            self._refuse(raw, refusal)
            return
        thread = threading.Thread(target=self._serve, args=(raw,), name="kstream-gadget", daemon=True)
        with self._lock:
            self._sessions[thread] = None
        try:
            thread.start()
        except RuntimeError as error:  # the machine gives no more threads: this one loses, the others do not
            with self._lock:
                del self._sessions[thread]
            self._drop(raw, error)

    def _drop(self, raw: socket.socket, error: Exception) -> None:
        raw.close()
        self._server.metrics.sessions.labels("error").inc()
        log.error("a connection had to be dropped: %s", error, extra={"code": "error"})

    def _refuse(self, raw: socket.socket, error: PeerError) -> None:
        """Say why; in a thread of its own, for Gadgetron must get rid of what it is sending before it can read it."""
        self._server.metrics.sessions.labels(error.code).inc()
        log.warning("%s", error, extra={"code": error.code})
        if not self._refusals.acquire(blocking=False):
            raw.close()
            return
        try:
            threading.Thread(target=self._tell, args=(raw, error), name="kstream-refuse", daemon=True).start()
        except RuntimeError:
            self._refusals.release()
            raw.close()

    def _tell(self, raw: socket.socket, error: PeerError) -> None:
        try:
            connection = SocketConnection(raw)
            with contextlib.suppress(OSError):
                connection.send([*encode_parts(Error(str(error))), *encode_parts(Close())], LAST_WORDS_S)
                connection.end_sending(DRAIN_S)
            connection.close()
        finally:
            self._refusals.release()

    def _serve(self, raw: socket.socket) -> None:
        """One connection; in a thread of its own."""
        session: GadgetSession | None = None
        thread = threading.current_thread()
        try:
            try:
                session = self._session(SocketConnection(raw))
            except RuntimeError as error:  # no thread for its sender
                return self._drop(raw, error)
            with self._lock:
                self._sessions[thread] = session
            self._server.enter(session)
            if self._stopping.is_set():  # while it was being made
                session.interrupt(_stopped())
            self._server.metrics.sessions.labels(session.run()).inc()
        finally:
            self._server.leave()
            with self._lock:
                self._sessions.pop(thread, None)
                ended = [session] if session is not None else []
                self._orphans = [orphan for orphan in (*self._orphans, *ended) if orphan.is_computing]

    def _session(self, connection: SocketConnection) -> GadgetSession:
        number, journal = self._server.register(connection.peer)
        place = Place(self._server.admit, self._server.dismiss, journal, self._server.metrics, self._server.tap)
        try:
            return GadgetSession(
                connection, f"g{number}", self._settings, lambda _: contextlib.nullcontext(self._models), place=place
            )
        except RuntimeError as error:
            if journal is not None:
                journal.close(False, str(error))
            raise

    def _running(self) -> list[GadgetSession]:
        with self._lock:
            return [session for session in self._sessions.values() if session is not None]

    def _join(self, seconds: float, hurried_s: float) -> None:
        """Wait until all sessions have ended, for at most `seconds`, or `hurried_s` once the server is hurried."""
        begin = time.monotonic()
        with self._lock:
            threads = list(self._sessions)
        for thread in threads:
            while thread.is_alive():
                left_s = begin + (hurried_s if self._server.is_hurried else seconds) - time.monotonic()
                if left_s <= 0:
                    return
                thread.join(min(0.1, left_s))


def _stopped() -> PeerError:
    return PeerError("the server was stopped", hint="send the scan again", code="server_stopped")
