"""What must hold for any bytes: the codec, the session rules and every parser that a client's word reaches.

1. Nothing but a ``KstreamError`` is raised, and a decoder's error has a place.
2. However the bytes are cut, the messages and the error are the same.
3. Messages before the damage are, bit for bit, what was sent.
4. No buffer is larger than the largest message that the limits allow, and no case takes longer than a second.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

from kstream.config import resolve
from kstream.errors import KstreamError, ProtocolError
from kstream.mrd import codec
from kstream.mrd.codec import Decoder, Limits
from kstream.mrd.header import parse_header, patient_words
from kstream.mrd.messages import ConfigFile, ConfigText, Header, Image, Message, Query, Text, Waveform
from kstream.mrd.session import Role, Session
from kstream.serve import parameters, queries
from kstream.types import Acquisition
from tests.fuzz.mutate import Stream

LIMITS = Limits(
    text_bytes=2**17,
    config_bytes=2**16,
    header_bytes=2**18,
    meta_bytes=2**16,
    acquisition_bytes=2**20,
    image_bytes=2**20,
    waveform_bytes=2**18,
)
"""Small, so that mutated sizes fall on both sides of them."""

LARGEST_BYTES = 2**20 + 2**16 + 2**10
"""An image with its meta and its header: no buffer is larger."""

SLOWEST_S = 1.0

Outcome = tuple[list[Any], str]
"""Fingerprints of the messages, and the error (empty if the stream ended well)."""


class Violation(Exception):
    """Something that must hold did not."""


@dataclass
class Case:
    """One damaged stream: its messages, how many at the front are intact, and who receives it."""

    stream: Stream
    n_intact: int
    sent: list[Any]
    role: Role = "server"


def fingerprint(message: Message) -> Any:
    """A value that is equal exactly if the messages are, bit for bit."""
    match message:
        case Acquisition(header, data, trajectory):
            parts = (data.shape, data.tobytes(), trajectory.shape, trajectory.tobytes())
            return ("Acquisition", header.tobytes(), *parts)
        case Image(header, meta, data):
            return ("Image", header.tobytes(), repr(meta), data.dtype.str, data.shape, data.tobytes())
        case Waveform(header, data):
            return ("Waveform", header.tobytes(), data.shape, data.tobytes())
        case _:
            return message


def check(case: Case, rng: Random) -> None:
    """Run one case.

    Raises
    ------
    Violation : names what did not hold.
    """
    data = b"".join(case.stream)
    with _time_limit(SLOWEST_S):
        whole = decode(data, [len(data)], case.role, zero_copy=False)
        cut = decode(data, _cuts(rng, len(data)), case.role, zero_copy=True)
    if whole != cut:
        raise Violation(f"cut otherwise, the stream is read otherwise:\n{_short(whole)}\n{_short(cut)}")
    n_equal = min(case.n_intact, len(case.sent))
    if whole[0][:n_equal] != case.sent[:n_equal]:
        raise Violation(f"{n_equal} intact messages were sent, but this was read: {_short(whole)}")


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Break off what computes for longer, even if it would never end; time that others take does not count.

    The handler stays: a signal that another thread took may still be on its way, and what SIGPROF does by default is to
    end the process.
    """
    is_over = False

    def stop(number: int, frame: object) -> None:
        if not is_over:
            raise Violation(f"took more than {seconds:g} s")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        is_over = True
        signal.setitimer(signal.ITIMER_PROF, 0)


def decode(data: bytes, sizes: list[int], role: Role, *, zero_copy: bool) -> Outcome:
    """Feed a decoder in pieces of the given sizes (again and again), and use every message as a session would."""
    decoder, receiver = Decoder(LIMITS), _Receiver(role)
    got: list[Any] = []
    at, turn = 0, 0
    try:
        while at < len(data):
            size = min(sizes[turn % len(sizes)], len(data) - at)
            messages, taken = _feed(decoder, data[at : at + size], zero_copy)
            at, turn = at + taken, turn + 1
            # Fingerprints only at the end of the piece: a later message must not have changed an earlier one.
            for message in messages:
                got.append(message)
                receiver.take(message)
        decoder.end()
    except KstreamError as error:
        if decoder.error is error and "byte offset" not in error.where:
            raise Violation(f"an error without a place: {error}") from error
        return [fingerprint(message) for message in got], str(error)
    except Violation:
        raise
    except Exception as error:
        raise Violation(f"{type(error).__name__} escaped: {str(error)[:300]}") from error
    return [fingerprint(message) for message in got], ""


def _feed(decoder: Decoder, piece: bytes, zero_copy: bool) -> tuple[list[Message], int]:
    if not zero_copy:
        return decoder.receive(piece), len(piece)
    space = decoder.space()
    if not 1 <= len(space) <= max(LARGEST_BYTES, codec.CHUNK):
        raise Violation(f"the decoder asks for {len(space)} bytes")
    n_bytes = min(len(space), len(piece))
    space[:n_bytes] = piece[:n_bytes]
    return decoder.filled(n_bytes), n_bytes


def _cuts(rng: Random, n_bytes: int) -> list[int]:
    """Sizes of pieces; single bytes too, but never more than some thousand pieces, for each takes microseconds."""
    kind = rng.random()
    most = 1 if kind < 0.1 else 40 if kind < 0.4 else 600 if kind < 0.7 else 100_000
    least = 1 + n_bytes // 2000
    return [rng.randint(least, max(most, least)) for _ in range(rng.randint(1, 9))]


class _Receiver:
    """What a session does with messages, without sockets, models and pipeline."""

    def __init__(self, role: Role) -> None:
        self._rules = Session(role)
        self._preset = "recon-radial"
        self._parameters: dict[str, str] = {}
        self._is_running = False

    def take(self, message: Message) -> None:
        self._rules.check(message)
        match message:
            case ConfigFile(name=name):
                self._preset = name
            case ConfigText(text=text):
                self._preset, sent = parameters.parse_config_text(text)
                self._parameters.update(sent)
            case Header(xml=xml):
                patient_words(xml)
                self._parameters.update(parameters.header_parameters(parse_header(xml)))
            case Text(text=text):
                self._take_text(text)
            case Query(text=text):
                queries.answer(text)
            case Acquisition():
                self._take_acquisition(message)

    def _take_text(self, text: str) -> None:
        sent = parameters.json_object(text)
        if sent is not None:
            self._preset = parameters.preset_of(sent) or self._preset
            self._parameters.update(parameters.parameters_of(sent)[0])

    def _take_acquisition(self, acquisition: Acquisition) -> None:
        if not acquisition.place or acquisition.data.size == 0:
            raise ProtocolError("an acquisition without place or samples was let through")
        if not self._is_running and self._rules.role == "server":
            resolve(self._preset, parameters=self._parameters).rows()
        self._is_running = True


def _short(outcome: Outcome) -> str:
    messages, error = outcome
    return f"{len(messages)} messages, {' '.join(repr(m)[:60] for m in messages[-3:])} then {error[:300]!r}"
