"""The client: replays a recording through a server's socket and keeps what comes back."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import KstreamError, PeerError, ProtocolError, RecordingError
from ..mrd.codec import Decoder, encode
from ..mrd.messages import Close, ConfigFile, Header, Image, Text
from ..mrd.recording import ImageWriter, Recording
from ..types import Acquisition
from .server import SUMMARY

Progress = Callable[[int], None]
"""Called with the number of acquisitions sent so far."""


@dataclass
class ReplayResult:
    """What a replay sent and received.

    ``summary`` is the server's own account of the session (empty if the server is not ours); times named ``_ns`` are
    this side's monotonic clock.
    """

    sent: int = 0
    images: dict[int, list[Image]] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    is_closed: bool = False
    begin_ns: int = 0
    last_sent_ns: int = 0
    last_image_ns: dict[int, int] = field(default_factory=dict)
    end_ns: int = 0

    @property
    def n_images(self) -> int:
        return sum(len(series) for series in self.images.values())

    @property
    def errors(self) -> list[str]:
        """Errors that the server told, without their prefix."""
        return [text[4:] for text in self.texts if text.startswith("ERR")]

    @property
    def warnings(self) -> list[str]:
        return [text[4:] for text in self.texts if text.startswith("WRN")]

    def last_readout_to_image_ms(self, series: int) -> float | None:
        """From the last acquisition sent to the last image of a series received."""
        if series not in self.last_image_ns or not self.last_sent_ns:
            return None
        return (self.last_image_ns[series] - self.last_sent_ns) / 1e6


def replay(
    recording: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 9002,
    preset: str,
    output: Path | None = None,
    parameters: dict[str, Any] | None = None,
    speed: float = 0.0,
    tick_s: float = 2.5e-3,
    wait_s: float = 300.0,
    group: str | None = None,
    progress: Progress | None = None,
    on_text: Callable[[str], None] | None = None,
) -> ReplayResult:
    """Send a recording to an MRD server and receive until its CLOSE.

    Parameters
    ----------
    output : ISMRMRD HDF5 file for the returned images (``/images/image_SERIES/{data,header,attributes}``).
    parameters : sent as JSON TEXT after the header.
    speed : 0 sends as fast as the server takes; 1 keeps the recorded timing; 2 is twice as fast.
    tick_s : duration of one tick of ``acquisition_time_stamp``.
    wait_s : longest silence of the server after our CLOSE.

    Raises
    ------
    RecordingError : the file is not a recording, or has no acquisitions.
    PeerError : no connection, or the server vanished or fell silent.
    """
    if output is not None and output.exists() and output.samefile(recording):
        raise RecordingError("the images would overwrite the recording", where=str(output), hint="another --output")
    with Recording(recording, group) as source:
        connection = _connect(host, port)
        result = ReplayResult(begin_ns=time.monotonic_ns())
        receiver = _Receiver(connection, result, output, on_text)
        receiver.start()
        try:
            _send_all(connection, source, preset, parameters, speed, tick_s, result, progress)
        except OSError as error:
            receiver.broken = receiver.broken or PeerError(
                f"the server stopped receiving: {error.strerror or error}",
                where=f"after {result.sent} acquisitions",
                likely="the server ended the session; its reason is above",
            )
        finally:
            receiver.await_close(wait_s)
            connection.close()
    result.end_ns = time.monotonic_ns()
    if receiver.broken is not None and not result.errors:
        raise receiver.broken
    return result


def _connect(host: str, port: int) -> socket.socket:
    try:
        connection = socket.create_connection((host, port), timeout=10)
    except OSError as error:
        raise PeerError(
            f"no connection to {host} port {port}: {error.strerror or error}",
            likely="no server listens there",
            hint="kstream serve --port 9002",
        ) from error
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(None)
    return connection


def _send_all(
    connection: socket.socket,
    source: Recording,
    preset: str,
    parameters: dict[str, Any] | None,
    speed: float,
    tick_s: float,
    result: ReplayResult,
    progress: Progress | None,
) -> None:
    connection.sendall(encode(ConfigFile(preset)) + encode(Header(source.xml)))
    if parameters:
        connection.sendall(encode(Text(json.dumps({"parameters": parameters}))))
    first_tick: int | None = None
    begin = time.monotonic()
    for acquisition in source.acquisitions():
        if result.is_closed:
            return
        if speed > 0:
            tick = int(acquisition.header["acquisition_time_stamp"])
            first_tick = tick if first_tick is None else first_tick
            _wait_until(begin + (tick - first_tick) * tick_s / speed)
        connection.sendall(encode(acquisition))
        result.last_sent_ns = time.monotonic_ns()
        result.sent += 1
        if progress is not None:
            progress(result.sent)
    connection.sendall(encode(Close()))
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)


def _wait_until(moment: float) -> None:
    remaining = moment - time.monotonic()
    if remaining > 0:
        threading.Event().wait(remaining)


def _summary(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the server's summary is not JSON: {error}", likely="another version of kstream") from None
    return found if isinstance(found, dict) else {}


class _Receiver(threading.Thread):
    """Reads what the server sends until CLOSE, end of stream, or silence."""

    def __init__(
        self,
        connection: socket.socket,
        result: ReplayResult,
        output: Path | None,
        on_text: Callable[[str], None] | None,
    ) -> None:
        super().__init__(name="kstream-replay-receiver", daemon=True)
        self._socket, self._result, self._output = connection, result, output
        self._on_text = on_text
        self._heard = time.monotonic()
        self.broken: KstreamError | None = None

    def run(self) -> None:
        try:
            with contextlib.ExitStack() as stack:
                writer = stack.enter_context(ImageWriter(self._output)) if self._output else None
                self._receive_or_break(writer)
        except KstreamError as error:
            self.broken = error

    def _receive_or_break(self, writer: ImageWriter | None) -> None:
        """Note a broken stream inside the writer's block, so that the images that came before it are kept."""
        try:
            self._receive(writer)
        except KstreamError as error:
            self.broken = error
        except OSError as error:
            self.broken = PeerError(f"the connection broke: {error.strerror or error}", where=self._place())

    def await_close(self, wait_s: float) -> None:
        """Wait for the receiver while the server still speaks; give up after `wait_s` of silence."""
        self._heard = time.monotonic()
        while self.is_alive():
            self.join(0.2)
            if time.monotonic() - self._heard > wait_s:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
                self.join(5)
                self.broken = PeerError(f"the server said nothing for {wait_s:g} s", where=self._place())
                return

    def _receive(self, writer: ImageWriter | None) -> None:
        decoder = Decoder()
        while True:
            data = self._socket.recv(1 << 18)
            self._heard = time.monotonic()
            if not data:
                decoder.end()
                raise PeerError(
                    "the server closed the connection without CLOSE",
                    where=self._place(),
                    likely="it crashed, or was killed",
                )
            for message in decoder.receive(data):
                if isinstance(message, Close):
                    self._result.is_closed = True
                    return
                self._take(message, writer)
            if decoder.error is not None:
                raise decoder.error

    def _take(self, message: Any, writer: ImageWriter | None) -> None:
        result = self._result
        if isinstance(message, Image):
            series = int(message.header["image_series_index"])
            result.images.setdefault(series, []).append(message)
            result.last_image_ns[series] = time.monotonic_ns()
            if writer is not None:
                writer.append(message)
        elif isinstance(message, Text):
            if message.text.startswith(SUMMARY):
                result.summary = _summary(message.text[len(SUMMARY) :])
                return
            result.texts.append(message.text)
            if self._on_text is not None:
                self._on_text(message.text)
        elif isinstance(message, Acquisition):
            result.texts.append("WRN the server sent an acquisition back; it was left aside")

    def _place(self) -> str:
        return f"after {self._result.sent} acquisitions sent, {self._result.n_images} images received"
