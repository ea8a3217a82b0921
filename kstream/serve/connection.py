"""The bytes of one peer, over a socket, TLS or a pair of pipes: every wait has a limit, both directions run at once."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import stat
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import ConfigError, PeerError

Buffer = bytes | bytearray | memoryview
MAX_PARTS = 64


class Connection(ABC):
    """One peer. One thread may receive while another sends.

    Parameters
    ----------
    peer : who it is, for logs.
    """

    def __init__(self, peer: str) -> None:
        self.peer = peer

    def receive_ready(self, view: memoryview) -> int | None:
        """Put bytes that are there already at the start of `view`; None if none are, 0 at the end of the stream.

        Raises
        ------
        OSError : the connection broke.
        """
        try:
            return self._read(view)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None

    def receive_into(self, view: memoryview, seconds: float) -> int:
        """Wait for bytes and put them at the start of `view`; 0 at the end of the stream.

        Raises
        ------
        TimeoutError : nothing came within `seconds`.
        OSError : the connection broke.
        """
        return self._retry(lambda: self._read(view), time.monotonic() + seconds)

    def send(self, parts: Sequence[Buffer], seconds: float) -> int:
        """Send buffers one after another, whole; gives the monotonic time in ns at which the first bytes had left.

        Raises
        ------
        TimeoutError : the peer did not take all of it within `seconds`.
        OSError : the connection broke.
        """
        deadline = time.monotonic() + seconds
        views = [memoryview(part).cast("B") for part in parts if len(part)]
        first_ns = 0
        while views:
            sent = self._retry(lambda: self._write(views[:MAX_PARTS]), deadline)
            first_ns = first_ns or time.monotonic_ns()
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if sent:
                views[0] = views[0][sent:]
        return first_ns

    def end_sending(self, drain_s: float = 2.0) -> None:
        """Tell the peer that nothing more comes, and read what it still sends for `drain_s`.

        Closing at once would reset the connection under our last words.
        """
        with contextlib.suppress(OSError):
            self._end_sending()
            self._drain(drain_s)

    @abstractmethod
    def interrupt(self) -> None:
        """End the receiving direction from another thread: `receive_into` gives 0."""

    @abstractmethod
    def abort(self) -> None:
        """End both directions from another thread: whoever waits here gets an error or the end of the stream."""

    @abstractmethod
    def close(self) -> None:
        """Give the descriptors back."""

    @abstractmethod
    def _read(self, view: memoryview) -> int: ...

    @abstractmethod
    def _write(self, parts: list[memoryview]) -> int: ...

    @abstractmethod
    def _wait(self, error: OSError, seconds: float) -> bool:
        """Wait until what raised `error` is worth another try; False when it took longer."""

    @abstractmethod
    def _end_sending(self) -> None: ...

    @abstractmethod
    def _drain(self, seconds: float) -> None:
        """Read and forget."""

    def _retry(self, operation: Callable[[], int], deadline: float) -> int:
        while True:
            try:
                return operation()
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
                remaining = deadline - time.monotonic()
                if remaining <= 0 or not self._wait(error, remaining):
                    raise TimeoutError from None


def _wait_for(fd: int, event: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(max(seconds, 0) * 1000))


class _WouldRead(BlockingIOError):
    """Nothing to read yet."""


class _WouldWrite(BlockingIOError):
    """No room to write yet."""


class SocketConnection(Connection):
    """A TCP connection."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(_peer_name(connection))
        connection.setblocking(False)
        with contextlib.suppress(OSError):  # not every family has these
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._socket = connection

    def interrupt(self) -> None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RD)

    def abort(self) -> None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()

    def _read(self, view: memoryview) -> int:
        try:
            return self._socket.recv_into(view)
        except BlockingIOError:
            raise _WouldRead from None

    def _write(self, parts: list[memoryview]) -> int:
        try:
            return self._socket.sendmsg(parts)
        except BlockingIOError:
            raise _WouldWrite from None

    def _wait(self, error: OSError, seconds: float) -> bool:
        is_reading = isinstance(error, (_WouldRead, ssl.SSLWantReadError))
        return _wait_for(self._socket.fileno(), select.POLLIN if is_reading else select.POLLOUT, seconds)

    def _end_sending(self) -> None:
        socket.socket.shutdown(self._socket, socket.SHUT_WR)

    def _drain(self, seconds: float) -> None:
        scratch, deadline = memoryview(bytearray(1 << 18)), time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not self._retry(lambda: SocketConnection._read(self, scratch), deadline):
                return


class TlsConnection(SocketConnection):
    """A TCP connection under TLS. OpenSSL takes one call at a time, so a lock guards each; waiting is done outside it.

    Parameters
    ----------
    connection : the accepted or connected socket.
    context : with our certificate, and what we ask of the peer's.
    server_hostname : for a client: whose certificate is expected; None on the server's side.
    """

    def __init__(
        self, connection: socket.socket, context: ssl.SSLContext, server_hostname: str | None, seconds: float
    ) -> None:
        super().__init__(connection)
        self._lock = threading.Lock()
        try:
            self._socket: ssl.SSLSocket = context.wrap_socket(
                connection,
                server_side=server_hostname is None,
                server_hostname=server_hostname,
                do_handshake_on_connect=False,
            )
            self._retry(self._handshake, time.monotonic() + seconds)
        except (OSError, ValueError) as error:  # ValueError: no such host name, or a peer that was gone at once
            self._socket.close()
            raise _handshake_error(error, self.peer) from None

    def _handshake(self) -> int:
        self._socket.do_handshake()
        return 0

    def _read(self, view: memoryview) -> int:
        try:
            with self._lock:
                return self._socket.recv_into(view)
        except ssl.SSLEOFError:
            return 0

    def _write(self, parts: list[memoryview]) -> int:
        with self._lock:
            return self._socket.send(parts[0])

    def _end_sending(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._socket.unwrap()  # sends our half of the closing handshake
        super()._end_sending()


def _handshake_error(error: Exception, peer: str) -> PeerError:
    reason = "it took too long" if isinstance(error, TimeoutError) else str(error)
    return PeerError(
        f"no TLS connection with {peer}: {reason}",
        where="TLS handshake",
        likely="the other side speaks no TLS, or one side does not trust the other's certificate",
        hint="kstream serve --tls and --tls-clients; kstream replay --tls-ca and --tls-cert",
        code="tls",
    )


class PipeConnection(Connection):
    """A pair of file descriptors, such as standard input and output.

    Regular files are always ready; pipes are made non-blocking, so that a reader that went away is noticed.
    """

    def __init__(self, fd_in: int, fd_out: int) -> None:
        super().__init__("pipe")
        self._in, self._out = fd_in, fd_out
        self._is_interrupted = self._is_aborted = False
        self._was_blocking = {fd: os.get_blocking(fd) for fd in (fd_in, fd_out) if _is_pipe(fd)}
        for fd in self._was_blocking:
            os.set_blocking(fd, False)

    def interrupt(self) -> None:
        self._is_interrupted = True

    def abort(self) -> None:
        self._is_interrupted = self._is_aborted = True

    def close(self) -> None:
        for fd, was_blocking in self._was_blocking.items():
            with contextlib.suppress(OSError):
                os.set_blocking(fd, was_blocking)

    def _read(self, view: memoryview) -> int:
        if self._is_interrupted:
            return 0
        try:
            return os.readv(self._in, [view])
        except BlockingIOError:
            raise _WouldRead from None

    def _write(self, parts: list[memoryview]) -> int:
        try:
            return os.writev(self._out, parts)
        except BlockingIOError:
            raise _WouldWrite from None

    def _wait(self, error: OSError, seconds: float) -> bool:
        """In short waits, for nothing else would wake a thread that waits for a pipe."""
        is_writing = isinstance(error, _WouldWrite)
        fd, event = (self._out, select.POLLOUT) if is_writing else (self._in, select.POLLIN)
        deadline = time.monotonic() + seconds
        while (remaining := deadline - time.monotonic()) > 0:
            if _wait_for(fd, event, min(remaining, 0.2)):
                return True
            if self._is_aborted or (self._is_interrupted and not is_writing):
                return not is_writing
        return False

    def _end_sending(self) -> None:
        """Whoever opened the descriptors closes them."""

    def _drain(self, seconds: float) -> None:
        """A pipe keeps what was written when its writer goes."""


def _is_pipe(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _peer_name(connection: socket.socket) -> str:
    try:
        address = connection.getpeername()
    except OSError:
        return "a peer that is gone"
    return f"{address[0]} port {address[1]}" if isinstance(address, tuple) else (str(address) or "local socket")


def connect(host: str, port: int, tls: ssl.SSLContext | None = None, seconds: float = 10.0) -> Connection:
    """Connect to a server.

    Parameters
    ----------
    tls : speaks TLS, and expects a certificate for `host`.
    seconds : for the connection, and again for the TLS handshake.

    Raises
    ------
    PeerError : no server listens there, or it speaks no TLS that both sides trust.
    """
    try:
        connection = socket.create_connection((host, port), timeout=seconds)
    except OSError as error:
        raise PeerError(
            f"no connection to {host} port {port}: {error.strerror or error}",
            likely="no server listens there",
            hint=f"kstream serve --port {port}",
            code="no_connection",
        ) from error
    return SocketConnection(connection) if tls is None else TlsConnection(connection, tls, host, seconds)


def server_tls(certificate: Path, clients: Path | None) -> ssl.SSLContext:
    """TLS 1.2 or newer for a server.

    Parameters
    ----------
    certificate : PEM file with the server's certificate chain and its private key.
    clients : PEM file of the authorities whose clients may connect; None takes every client.

    Raises
    ------
    ConfigError : a file is missing, or is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_own(context, certificate)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _load(lambda: context.load_verify_locations(clients), clients, "certificates of authorities")
    return context


def client_tls(authorities: Path | None, certificate: Path | None) -> ssl.SSLContext:
    """TLS for a client.

    Parameters
    ----------
    authorities : PEM file of the authorities that may have signed the server's certificate; None: the system's.
    certificate : PEM file with our own certificate and key, for servers that ask for it.

    Raises
    ------
    ConfigError : a file is missing, or is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificate and host name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if authorities is None:
        context.load_default_certs()
    else:
        _load(lambda: context.load_verify_locations(authorities), authorities, "certificates of authorities")
    if certificate is not None:
        _load_own(context, certificate)
    return context


def _load_own(context: ssl.SSLContext, path: Path) -> None:
    """Our certificate and key; without a password, for OpenSSL would ask for it on the terminal, and wait."""
    _load(lambda: context.load_cert_chain(path, password=""), path, "a certificate chain and its unencrypted key")


def _load(load: Callable[[], None], path: Path, what: str) -> None:
    try:
        load()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(
            f"cannot read TLS file: {error.strerror if isinstance(error, OSError) else error}",
            where=str(path),
            likely=f"the file is missing, or does not hold {what} in PEM form",
        ) from None
