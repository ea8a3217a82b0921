"""The live page of a server: its address, its process, and the thread that gives that process what it asks for.

The page is served by a process of its own (`watcher`), which asks for news when it is ready for them; at most one
answer is on its way at a time. So a slow watcher gets less, a dead one gets nothing, and neither is ever waited for.

Server and watcher talk ZeroMQ over a file in a folder that only this user can enter: messages of two frames, a JSON
head and an array's bytes (see `worker_wire`).

====== =================================== =================================================================
kind   the watcher says                    the server answers
====== =================================== =================================================================
news   ``id``                              any number of events (`tap.Event`) with this id, then ``end``
====== =================================== =================================================================
"""

from __future__ import annotations

import ipaddress
import json
import logging
import secrets
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import quote

import numpy as np
import zmq

from ..errors import KstreamError, PeerError
from .settings import PageSettings
from .tap import Event, Tap
from .worker_link import WorkerProcess
from .worker_wire import COPY_BELOW_BYTES, MAX_HEAD_BYTES, array_fields, decode_head, encode_head

log = logging.getLogger("kstream.serve")

COMMAND = (sys.executable, "-X", "faulthandler", "-P", "-m", "kstream.serve.watcher")
"""``-P`` keeps the working directory from shadowing modules."""

INTERVAL_S = 1 / 30
"""Between two answers: what an eye can follow."""

TICK_MS = 200
START_S = 30.0
"""For a watcher to answer; it imports a web server first."""

STOP_S = 2.0


class LivePage:
    """A web page that shows what a server does.

    The address is taken at once, so that a server whose page cannot be had says so before it listens itself.

    Raises
    ------
    PeerError : the address cannot be listened on.
    """

    def __init__(self, tap: Tap, settings: PageSettings | None = None, command: tuple[str, ...] = COMMAND) -> None:
        self.tap, self._settings, self._command = tap, settings or PageSettings(), command
        self._listener = _listen(self._settings)
        self.port = int(self._listener.getsockname()[1])
        self.token = secrets.token_urlsafe(24) if self._needs_token() else ""
        tap.page_url = self.public_url
        self._stopping = threading.Event()
        self._folder = tempfile.TemporaryDirectory(prefix="kstream-")  # of mode 0700
        self._process: WorkerProcess | None = None
        self._thread = threading.Thread(target=self._answer, name="kstream-live-page", daemon=True)

    @property
    def url(self) -> str:
        """What to type into a browser."""
        return f"{self.public_url}?token={quote(self.token)}" if self.token else self.public_url

    @property
    def public_url(self) -> str:
        """The address without the token, for those who may know that there is a page."""
        host = self._settings.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def start(self) -> None:
        """Start the process and answer it, in the background."""
        self.tap.listen_to_logs()
        self._thread.start()

    def stop(self) -> None:
        """End the process."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_S + 1)
        self._listener.close()
        self._folder.cleanup()

    def _needs_token(self) -> bool:
        return self._settings.has_token or not is_loopback(str(self._listener.getsockname()[0]))

    def _answer(self) -> None:
        """The thread: until it is told to stop or the watcher is gone, which is said once."""
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        pair = context.socket(zmq.PAIR)
        pair.set(zmq.LINGER, 0)
        pair.set(zmq.MAXMSGSIZE, MAX_HEAD_BYTES)
        address = f"ipc://{Path(self._folder.name) / 'tap'}"
        try:
            pair.bind(address)
            self._process = self._start(address)
            self._answer_all(pair, self._process)
        except (OSError, zmq.ZMQError, KstreamError) as error:
            if not self._stopping.is_set():
                log.error("the live page ended: %s; the server goes on without it", error)
        except Exception:  # no defect of what only looks on may be more than a line in the log
            log.exception("the live page ended by a defect of kstream; the server goes on without it")
        finally:
            self.tap.close()
            if self._process is not None:
                self._process.lifeline.close()  # it ends by itself
                self._process.wait(STOP_S)
                self._process.close()
            context.destroy(linger=0)

    def _start(self, address: str) -> WorkerProcess:
        fd = self._listener.fileno()
        process = WorkerProcess(self._command, pass_fds=(fd,))
        self._listener.close()  # it is the child's now
        told = {"address": address, "fd": fd, "token": self.token, "host": self._settings.host}
        process.lifeline.sendall(json.dumps(told).encode() + b"\n")
        return process

    def _answer_all(self, pair: zmq.Socket[bytes], process: WorkerProcess) -> None:
        poller = zmq.Poller()
        poller.register(pair, zmq.POLLIN)
        poller.register(process.lifeline.fileno(), zmq.POLLIN)
        has_answered, until = False, time.monotonic() + START_S
        while not self._stopping.is_set():
            events = dict(poller.poll(TICK_MS))
            if process.lifeline.fileno() in events:
                raise PeerError(f"its process is gone: {process.how_it_ended()}")
            if pair in events:
                has_answered = True
                request = int(decode_head(pair.recv_multipart()[0])["id"])
                for event in self.tap.gather():
                    _send(pair, request, event)
                _send(pair, request, Event("end", {}))
                self._stopping.wait(INTERVAL_S)
            elif not has_answered and time.monotonic() > until:
                raise PeerError(f"its process did not answer within {START_S:g} s")


def _send(pair: zmq.Socket[bytes], request: int, event: Event) -> None:
    """Never waits: one answer at a time is far less than a socket holds, unless the watcher asks and does not read."""
    fields = event.fields if event.array is None else event.fields | array_fields(event.array)
    head = encode_head(event.kind, request, **fields)
    if len(head) > MAX_HEAD_BYTES:
        return
    pair.send(head, zmq.SNDMORE | zmq.NOBLOCK)
    payload = memoryview(b"") if event.array is None else event.array.reshape(-1).view(np.uint8).data
    pair.send(payload, zmq.NOBLOCK, copy=len(payload) < COPY_BELOW_BYTES)


def is_loopback(address: str) -> bool:
    """True for an address that only this machine reaches."""
    return ipaddress.ip_address(address.split("%")[0]).is_loopback


def _listen(settings: PageSettings) -> socket.socket:
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise PeerError(
            f"cannot show the live page on {settings.host} port {settings.port}: {error.strerror or error}",
            likely="another page or program has this port, or this machine has no such address",
            hint="--watch-port 0 takes a free port",
            code="cannot_listen",
        ) from error
