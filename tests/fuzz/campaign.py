"""Many cases: where each comes from, and what a run of them amounts to."""

from __future__ import annotations

import logging
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from kstream.errors import ProtocolError
from kstream.mrd import codec
from kstream.mrd.codec import Decoder
from tests.fuzz.mutate import mutate
from tests.fuzz.oracle import LIMITS, Case, Violation, check, decode, fingerprint
from tests.fuzz.seeds import Seed, seeds

ROOM_BYTES = 64 * 2**20
"""Address space that a run may take beyond what it has after its start: an allocation above it fails."""

SMALL_BUFFERS = (2048, 512)
"""``CHUNK`` and ``LARGE`` in every second case, so that short messages meet the rules of long ones."""


@dataclass
class Result:
    """What a run found.

    Parameters
    ----------
    n_cases : cases that were run.
    seconds, slowest_s : wall time of the run, and computing time of its slowest case.
    slowest : number of that case.
    growth_bytes : of the resident memory at its peak, beyond what it was after the start.
    failures : number of the case and what did not hold.
    """

    n_cases: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    slowest: int = -1
    growth_bytes: int = 0
    failures: list[tuple[int, str]] = field(default_factory=list)


class Campaign:
    """Cases by number: the same number and seed give the same bytes.

    Parameters
    ----------
    seed : of all random choices.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._starts = [(start, _sound(start)) for start in seeds()]

    def case(self, number: int) -> tuple[Case, Random]:
        """One case, and the random numbers that cut it into pieces."""
        rng = Random(self._seed * 2**40 + number)
        start, sent = self._starts[number % len(self._starts)]
        n_damages = rng.choice((0, 1, 1, 1, 2, 3, 8))
        stream, n_intact = mutate(start.stream, rng, n_damages)
        return Case(stream, n_intact, sent, start.role), rng

    def run(self, numbers: range) -> Result:
        """Run the cases of the given numbers; a case that fails does not stop the others."""
        result = Result()
        begin, before = time.perf_counter(), _peak_bytes()
        for number in numbers:
            started = time.process_time()
            case, rng = self.case(number)
            try:
                _check(case, rng, number)
            except (Violation, MemoryError) as error:
                result.failures.append((number, f"{type(error).__name__}: {error}"))
            seconds = time.process_time() - started
            result.n_cases += 1
            if seconds > result.slowest_s:
                result.slowest_s, result.slowest = seconds, number
        result.seconds = time.perf_counter() - begin
        result.growth_bytes = _peak_bytes() - before
        return result


def limit_memory() -> None:
    """Let this process take no more than ``ROOM_BYTES`` beyond what it has; there is no way back."""
    n_pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = n_pages * resource.getpagesize() + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


_campaign: Campaign | None = None


def prepare(seed: int) -> None:
    """In a process of its own: read what is read once, then close the door on memory."""
    global _campaign
    logging.disable()
    _campaign = Campaign(seed)
    _campaign.run(range(200))
    limit_memory()


def run_in_process(numbers: range) -> Result:
    """Run the cases of the given numbers in a process that was prepared."""
    if _campaign is None:
        raise RuntimeError("the process was not prepared")
    return _campaign.run(numbers)


def _check(case: Case, rng: Random, number: int) -> None:
    normal = codec.CHUNK, codec.LARGE
    if number % 2:
        codec.CHUNK, codec.LARGE = SMALL_BUFFERS
    try:
        check(case, rng)
    finally:
        codec.CHUNK, codec.LARGE = normal


def _sound(start: Seed) -> list[object]:
    """Fingerprints of the messages of a seed that can be read, each by a decoder of its own, up to the first bad one.

    The session rules may end a session earlier, so the list also stops where they do.
    """
    sent: list[object] = []
    for data in start.stream:
        decoder = Decoder(LIMITS)
        try:
            messages = decoder.receive(data)
            decoder.end()
        except ProtocolError:
            break
        sent += map(fingerprint, messages)
    n_read = len(decode(b"".join(start.stream), [10**9], start.role, zero_copy=False)[0])
    return sent[:n_read]


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
