"""The client: replays a recording through a server's socket and keeps what comes back.

Two threads work beside the caller's: one reads the file and sends, the other receives all the while, for a server that
is not read from stops reading. With a recorded timing, the sender reads a few acquisitions ahead right after it has
sent one, and nothing else of this process does much: images are written to their file after the last acquisition
(HDF5 keeps the interpreter for up to a millisecond at a time; nothing is lost by it, for the file appears under its
name when it is whole), and progress is shown by the caller's thread.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import KstreamError, PeerError, ProtocolError, RecordingError
from ..mrd.codec import Bytes, Decoder, encode, encode_parts
from ..mrd.messages import Close, ConfigFile, Error, Header, Image, Message, Text
from ..mrd.recording import BLOCK, ImageWriter, Recording
from ..mrd.recovering import JournalRecording, open_recording
from ..types import Acquisition
from .connection import Connection, connect
from .pacing import TICK_S, Jitter, keeping_time, sleep_until, timed
from .summary import SUMMARY

Progress = Callable[[int], None]
"""Called about ten times a second with the number of acquisitions sent so far."""

CONNECT_S = 10.0
TURN_S = 0.1
WAIT_S = 300.0

BATCH_BYTES = 2**20
"""Acquisitions are handed to the system together up to this size, when they need not keep a timing."""

PACED_BLOCK = 4
"""Acquisitions that are read at a time while a timing is kept: 0.4 ms, which fits between two of them."""


@dataclass
class ReplayResult:
    """What a replay sent and received.

    ``summary`` is the server's own account of the session (empty if the server is not ours); times named ``_ns`` are
    this side's monotonic clock; ``jitter`` is there if a recorded timing was kept.
    """

    sent: int = 0
    sent_bytes: int = 0
    images: dict[int, list[Image]] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    jitter: Jitter | None = None
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

    @property
    def sent_per_s(self) -> float:
        """Acquisitions sent, over the time from the connection to the last of them."""
        elapsed_ns = self.last_sent_ns - self.begin_ns
        return self.sent / elapsed_ns * 1e9 if elapsed_ns > 0 else 0.0

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
    tick_s: float = TICK_S,
    wait_s: float = WAIT_S,
    group: str | None = None,
    tls: ssl.SSLContext | None = None,
    progress: Progress | None = None,
    on_text: Callable[[str], None] | None = None,
) -> ReplayResult:
    """Send a recording or journal to an MRD server and receive until its CLOSE.

    Parameters
    ----------
    output : ISMRMRD HDF5 file for the returned images (``/images/image_SERIES/{data,header,attributes}``).
    parameters : sent as JSON TEXT after the header.
    speed : 0 sends as fast as the server takes; 1 keeps the recorded timing (see `pacing.timed`); 2 is twice as fast.
    tick_s : duration of one tick of ``acquisition_time_stamp``.
    wait_s : longest silence of the server after our CLOSE, and longest time for it to take a message.
    tls : speaks TLS (see `connection.client_tls`).
    on_text : called for each text of the server, in a thread of its own.

    Raises
    ------
    RecordingError : the file is not a recording, has no acquisitions, or keeps no times although `speed` asks for them;
        or the images cannot be written.
    PeerError : no connection, or the server vanished, fell silent or ended early; not if it told an error itself, which
        is in `ReplayResult.errors`.
    """
    if output is not None and output.exists() and output.samefile(recording):
        raise RecordingError("the images would overwrite the recording", where=str(output), hint="another --output")
    failure: BaseException | None = None
    with open_recording(recording, group) as source, contextlib.ExitStack() as stack:
        writer = stack.enter_context(ImageWriter(output)) if output is not None else None
        connection = connect(host, port, tls, min(CONNECT_S, wait_s))
        result = ReplayResult(begin_ns=time.monotonic_ns())
        exchange = _Exchange(connection, result, wait_s, on_text)
        try:
            exchange.run(lambda: exchange.send_all(source, preset, parameters, speed, tick_s), progress)
        except (KstreamError, KeyboardInterrupt) as error:
            failure = error
        finally:
            connection.close()
        if writer is not None:  # also after a failure: what came before it is kept
            for image in (image for series in result.images.values() for image in series):
                writer.append(image)
    result.end_ns = time.monotonic_ns()
    if failure is not None and not (isinstance(failure, (PeerError, ProtocolError)) and result.errors):
        raise failure
    return result


def opening(xml: bytes, preset: str, parameters: dict[str, Any] | None, wants_summary: bool) -> list[Message]:
    """The messages before the first acquisition; a summary is sent only to who asks for it."""
    asked = ({"parameters": parameters} if parameters else {}) | ({"summary": True} if wants_summary else {})
    return [ConfigFile(preset), Header(xml), *([Text(json.dumps(asked))] if asked else [])]


class _Exchange:
    """One session as a client: what is sent, what is received, and the watch over both."""

    def __init__(
        self, connection: Connection, result: ReplayResult, wait_s: float, on_text: Callable[[str], None] | None
    ) -> None:
        self._connection, self._result, self._wait_s, self._on_text = connection, result, wait_s, on_text
        self._heard = time.monotonic()
        self._is_over = threading.Event()

    def run(self, send: Callable[[], None], progress: Progress | None) -> None:
        """Send and receive until the server's CLOSE.

        Raises
        ------
        KstreamError : whichever side failed first, in our words.
        """
        with ThreadPoolExecutor(2, "kstream-replay") as pool:
            try:
                receiving = pool.submit(self._receive)
                sending = pool.submit(send)
                self._watch(sending, receiving, progress)
            finally:  # also for KeyboardInterrupt: both threads wake up and end
                self._is_over.set()
                self._connection.abort()
        if progress is not None:
            progress(self._result.sent)
        self._judge(sending.exception(), receiving.exception())

    def _watch(self, sending: Future[None], receiving: Future[None], progress: Progress | None) -> None:
        """Until the receiver ends; gives up on a server that is silent although it has everything."""
        since = time.monotonic()
        while not receiving.done():
            wait([receiving], TURN_S)
            if progress is not None:
                progress(self._result.sent)
            if not sending.done():
                since = time.monotonic()
            elif isinstance(sending.exception(), TimeoutError):
                return
            elif not receiving.done() and time.monotonic() - max(since, self._heard) > self._wait_s:
                raise PeerError(f"the server said nothing for {self._wait_s:g} s", where=self._place())

    def _judge(self, sending: BaseException | None, receiving: BaseException | None) -> None:
        """Turn what the two threads met into one error; the cause rather than what it led to."""
        if isinstance(sending, KstreamError):  # our recording, not the server
            raise sending
        if isinstance(sending, TimeoutError):
            raise PeerError(
                f"the server did not take a message within {self._wait_s:g} s",
                where=self._place(),
                likely="it does not read what it is sent",
                hint="--timeout",
                code="send_timeout",
            )
        if isinstance(receiving, OSError):
            raise _broken(receiving, self._place())
        if receiving is not None:
            raise receiving
        if isinstance(sending, OSError):  # while the server had already said CLOSE
            raise PeerError(
                "the server ended the session before everything was sent",
                where=self._place(),
                likely="it takes no scans of this kind, or stops at its first error",
            )
        if sending is not None:
            raise sending

    # ---- sending ----

    def send_all(
        self,
        source: Recording | JournalRecording,
        preset: str,
        parameters: dict[str, Any] | None,
        speed: float,
        tick_s: float,
    ) -> None:
        """Send the whole measurement; ends the stream without CLOSE if it cannot be read to its end."""
        for message in opening(source.xml, preset, parameters, wants_summary=True):
            self._connection.send(encode_parts(message), self._wait_s)
        try:
            if speed > 0:
                self._send_paced(source, speed, tick_s)
            else:
                self._send_fast(_read(source, BLOCK))
            self._connection.send([encode(Close())], self._wait_s)
        except KstreamError:  # the frames before it are still worth having
            self._connection.end_sending(drain_s=0)
            raise

    def _send_fast(self, acquisitions: Iterator[Acquisition]) -> None:
        batch: list[Bytes] = []
        n_batch, n_bytes = 0, 0
        for acquisition in acquisitions:
            parts = encode_parts(acquisition)
            batch += parts
            n_batch, n_bytes = n_batch + 1, n_bytes + sum(map(len, parts))
            if n_bytes >= BATCH_BYTES:
                self._send(batch, n_batch, n_bytes)
                batch, n_batch, n_bytes = [], 0, 0
        if batch:
            self._send(batch, n_batch, n_bytes)

    def _send_paced(self, source: Recording | JournalRecording, speed: float, tick_s: float) -> None:
        late_s = array("d")
        begin_s: float | None = None
        with keeping_time():
            for moment_s, acquisition in timed(_read(source, PACED_BLOCK), tick_s):
                parts = encode_parts(acquisition)
                if begin_s is None:
                    begin_s = time.monotonic()
                due_s = begin_s + moment_s / speed
                while not sleep_until(due_s) and not self._is_over.is_set():
                    pass
                first_ns = self._send(parts, 1, sum(map(len, parts)))
                late_s.append(max(first_ns / 1e9 - due_s, 0.0))
        self._result.jitter = Jitter.of(late_s)

    def _send(self, parts: list[Bytes], n_acquisitions: int, n_bytes: int) -> int:
        first_ns = self._connection.send(parts, self._wait_s)
        self._result.last_sent_ns = time.monotonic_ns()
        self._result.sent += n_acquisitions
        self._result.sent_bytes += n_bytes
        return first_ns

    # ---- receiving ----

    def _receive(self) -> None:
        decoder = Decoder()
        while True:
            try:
                n_bytes = self._connection.receive_into(decoder.space(), self._wait_s)
            except TimeoutError:  # a long scan may well have no images yet; the watch knows
                continue
            self._heard = time.monotonic()
            if not n_bytes:
                decoder.end()
                raise PeerError(
                    "the server closed the connection without CLOSE",
                    where=self._place(),
                    likely="it crashed, or was killed",
                    code="ended_without_close",
                )
            for message in decoder.filled(n_bytes):
                if isinstance(message, Close):
                    self._result.is_closed = True
                    return
                self._take(message)
            if decoder.error is not None:
                raise decoder.error

    def _take(self, message: Message) -> None:
        result = self._result
        if isinstance(message, Image):
            series = int(message.header["image_series_index"])
            result.images.setdefault(series, []).append(message)
            result.last_image_ns[series] = time.monotonic_ns()
        elif isinstance(message, Text) and message.text.startswith(SUMMARY):
            result.summary = _summary(message.text[len(SUMMARY) :])
        elif isinstance(message, (Text, Error)):
            text = message.text.rstrip("\n") if isinstance(message, Text) else f"ERR {message.text}"
            result.texts.append(text)
            if self._on_text is not None:
                self._on_text(text)
        elif isinstance(message, Acquisition):
            result.texts.append("WRN the server sent an acquisition back; it was left aside")

    def _place(self) -> str:
        return f"after {self._result.sent} acquisitions sent, {self._result.n_images} images received"


def _read(source: Recording | JournalRecording, block: int) -> Iterator[Acquisition]:
    return source.acquisitions(block) if isinstance(source, Recording) else source.acquisitions()


def _broken(error: OSError, place: str) -> PeerError:
    if isinstance(error, ssl.SSLError):
        return PeerError(
            f"TLS failed: {error.reason or error}",
            where=place,
            likely="the server asks for a certificate that it trusts",
            hint="--tls-cert PEM",
            code="tls",
        )
    return PeerError(
        f"the connection broke: {error.strerror or error}",
        where=place,
        likely="the server was killed, or it speaks TLS and we did not",
        hint="the server's log; --tls-ca PEM",
        code="connection_broke",
    )


def _summary(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the server's summary is not JSON: {error}", likely="another version of kstream") from None
    return found if isinstance(found, dict) else {}
