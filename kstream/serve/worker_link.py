"""One connection of the server to one model worker, and the process behind it if the server owns that."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from ..errors import ProtocolError
from .worker import load_certificate
from .worker_wire import COPY_BELOW_BYTES, MAX_MESSAGE_BYTES, MAX_TIMEOUT_S, Head, decode_head, encode_head

_BROKEN = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_REFUSED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL

TICK_MS = 200
"""How often a waiting request looks whether the server stops."""


class WorkerLostError(Exception):
    """The worker's process ended, or its connection broke, before it answered."""


class WorkerGoneError(WorkerLostError):
    """The worker was lost before this request was sent, which cannot be the cause."""


class WorkerTimeoutError(Exception):
    """The worker did not answer in time."""


class WorkerBusyError(Exception):
    """The worker has too many requests of others."""


@dataclass(frozen=True)
class Keys:
    """What a client needs for a worker on tcp: its own secret certificate and the worker's public one."""

    client: Path
    worker: Path

    def options(self) -> dict[int, bytes]:
        """Socket options of a connection that is encrypted with these keys.

        Raises
        ------
        ConfigError : a key cannot be read.
        """
        public, secret = load_certificate(self.client, needs_secret=True)
        server = load_certificate(self.worker)[0]
        return {zmq.CURVE_PUBLICKEY: public, zmq.CURVE_SECRETKEY: secret, zmq.CURVE_SERVERKEY: server}


class WorkerProcess:
    """A worker process that ends with its owner, and whose end is noticed at once.

    Both hold one end of a socket pair (the worker: as its standard input): whoever dies, the other reads its end.

    Parameters
    ----------
    command : what to run, with its arguments.
    n_threads : of torch and OpenMP in the process; 0 leaves the environment as it is.
    pass_fds : descriptors that the process inherits under the same numbers.
    """

    def __init__(self, command: Sequence[str], n_threads: int = 0, pass_fds: Sequence[int] = ()) -> None:
        ours, theirs = socket.socketpair()
        environment = dict(os.environ)
        if n_threads:
            environment.setdefault("OMP_NUM_THREADS", str(n_threads))
        environment.setdefault("OPENBLAS_NUM_THREADS", "1")
        try:
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=environment,
                pass_fds=pass_fds,
                start_new_session=True,  # Ctrl-C in a terminal is for the server, which ends its workers itself
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.lifeline = ours

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait(self, timeout_s: float | None = None) -> bool:
        """True once the process has ended."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def how_it_ended(self) -> str:
        """``signal SIGSEGV`` or ``exit code 3``; waits a moment for a process whose connections broke."""
        if not self.wait(1.0):
            return "it no longer reacts"
        code = self._process.returncode
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def close(self) -> None:
        """Kill the process if it still runs, and let go of it."""
        self.kill()
        self.wait(5.0)
        self.lifeline.close()


class WorkerLink:
    """Asks one worker, one request at a time; to be used by one thread at a time.

    Parameters
    ----------
    context : of the pool.
    address : ZeroMQ endpoint of the worker.
    keys : for an address on tcp.
    process : behind the address, if it is ours.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        keys: Keys | None = None,
        process: WorkerProcess | None = None,
    ) -> None:
        self.address, self.process = address, process
        self._count = 0
        curve = {} if keys is None else keys.options()
        self._socket = context.socket(zmq.DEALER)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.RECONNECT_IVL, 50)
        self._socket.set(zmq.RECONNECT_IVL_MAX, 200)
        self._socket.set(zmq.HEARTBEAT_IVL, 2000)
        self._socket.set(zmq.HEARTBEAT_TIMEOUT, 10000)
        self._socket.set(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        for option, value in curve.items():
            self._socket.set(option, value)
        self._monitor = self._socket.get_monitor_socket(_BROKEN)
        self._socket.connect(address)

    def connect(self, deadline_s: float, is_stopping: Callable[[], bool]) -> Head:
        """Wait until the worker answers; its status.

        Raises
        ------
        WorkerLostError : its process ended, or it refused our key.
        WorkerTimeoutError : `deadline_s` (monotonic) has passed.
        """
        try:
            return self.request("status", deadline_s, is_stopping)[0]
        except WorkerTimeoutError:
            raise WorkerTimeoutError(f"nothing answers at {self.address}") from None

    def request(
        self,
        kind: str,
        deadline_s: float,
        is_stopping: Callable[[], bool],
        payload: Any = b"",
        **fields: Any,
    ) -> tuple[Head, memoryview]:
        """Ask, and wait for the answer until `deadline_s` (monotonic).

        Returns
        -------
        Head and array of the reply, whatever its kind but ``busy``.

        Raises
        ------
        WorkerGoneError, WorkerLostError, WorkerTimeoutError, WorkerBusyError : there is no answer.
        ProtocolError : what came is not an answer.
        """
        self._count += 1
        timeout_s = min(max(deadline_s - time.monotonic(), 0.001), MAX_TIMEOUT_S)
        head = encode_head(kind, self._count, timeout_s=timeout_s, **fields)
        if self._is_broken():  # libzmq would keep the request for whoever listens there next
            raise WorkerGoneError(self._what_broke())
        self._socket.send(head, zmq.SNDMORE)
        self._socket.send(payload, copy=len(payload) < COPY_BELOW_BYTES)
        while True:
            self._wait(deadline_s, is_stopping)
            frames = self._socket.recv_multipart(copy=False)
            answer = decode_head(frames[0].buffer)
            if answer["id"] != self._count:
                continue  # to a request that was given up
            if answer["kind"] == "busy":
                raise WorkerBusyError(f"the worker at {self.address} has too many requests")
            if answer["kind"] not in (kind, "error") or len(frames) != 2:
                raise ProtocolError(f"the worker answered {kind} with {answer['kind'][:40]!r}", where=self.address)
            return answer, frames[1].buffer

    def close(self) -> None:
        """Close the connection; a process behind it is killed."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)
        if self.process is not None:
            self.process.close()

    def _wait(self, deadline_s: float, is_stopping: Callable[[], bool]) -> None:
        """Until a message is there; what has arrived counts, even if the worker died afterwards."""
        poller = self._watched()
        poller.register(self._socket, zmq.POLLIN)
        while True:
            left_ms = (deadline_s - time.monotonic()) * 1000
            events = dict(poller.poll(int(max(min(left_ms, TICK_MS), 0))))
            if self._socket in events:
                return
            if events:
                reason = self._what_broke()
                if self._socket.poll(TICK_MS):  # its last answer was still on the way
                    return
                raise WorkerLostError(reason)
            if is_stopping():
                raise WorkerLostError("the server stops")
            if left_ms <= 0:
                raise WorkerTimeoutError(f"the model worker at {self.address} did not answer in time")

    def _watched(self) -> zmq.Poller:
        """What speaks up when the worker is lost."""
        poller = zmq.Poller()
        poller.register(self._monitor, zmq.POLLIN)
        if self.process is not None:
            poller.register(self.process.lifeline, zmq.POLLIN)
        return poller

    def _is_broken(self) -> bool:
        return bool(self._watched().poll(0))

    def _what_broke(self) -> str:
        if self.process is not None:
            return f"model worker died: {self.process.how_it_ended()}"
        if int(recv_monitor_message(self._monitor)["event"]) & _REFUSED:
            return f"the model worker at {self.address} refused our key"
        return f"the connection to the model worker at {self.address} broke: its process ended, or the network"
