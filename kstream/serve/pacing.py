"""When to send each acquisition of a replay, and how well that was kept."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice

from ..errors import RecordingError
from ..types import Acquisition

TICK_S = 2.5e-3
"""What one step of ``acquisition_time_stamp`` means on Siemens scanners, and hence in most recordings."""

MAX_SHARING = 1000
"""Acquisitions that may share a time stamp; no scanner reads out 400 times in a millisecond."""

NAP_S = 0.1
"""Longest sleep, so that a session which ended is noticed."""

SWITCH_S = 1e-4
"""How long another thread may keep the interpreter from the sender; the default, 5 ms, is more than jitter may be."""


@dataclass(frozen=True)
class Jitter:
    """How late acquisitions left, against the recorded timing, in ms; none ever leaves early."""

    n: int
    p50_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, late_s: array[float]) -> Jitter | None:
        """Quantiles (nearest rank); None without a measurement."""
        if not late_s:
            return None
        ordered = sorted(late_s)
        p50, p99 = (ordered[min(int(share * len(ordered)), len(ordered) - 1)] for share in (0.5, 0.99))
        return cls(len(ordered), p50 * 1e3, p99 * 1e3, ordered[-1] * 1e3)

    def __str__(self) -> str:
        return f"jitter p50 {self.p50_ms:.2f} ms, p99 {self.p99_ms:.2f} ms, max {self.max_ms:.2f} ms"


def timed(acquisitions: Iterable[Acquisition], tick_s: float) -> Iterator[tuple[float, Acquisition]]:
    """Each acquisition with its time in s after the first.

    A journal tells when each one arrived, and that is kept as it is. A recording has ``acquisition_time_stamp`` in
    ticks, which several acquisitions may share: those are spread evenly over their tick, the first at its start. A
    stamp smaller than the one before it (past midnight, or another clock) goes on one tick after it.

    Raises
    ------
    RecordingError : so many acquisitions share a stamp that the recording has no timing.
    """
    remaining = iter(acquisitions)
    first = next(remaining, None)
    if first is None:
        return
    both = _with(first, remaining)
    if first.received_ns:
        for acquisition in both:
            yield (acquisition.received_ns - first.received_ns) / 1e9, acquisition
    else:
        yield from _spread(both, tick_s)


def _with(first: Acquisition, rest: Iterator[Acquisition]) -> Iterator[Acquisition]:
    yield first
    yield from rest


def _stamp(acquisition: Acquisition) -> int:
    return int(acquisition.header["acquisition_time_stamp"])


def _spread(acquisitions: Iterator[Acquisition], tick_s: float) -> Iterator[tuple[float, Acquisition]]:
    previous: int | None = None
    shift = 0
    for stamp, group in groupby(acquisitions, _stamp):
        if previous is None:
            shift = -stamp
        elif stamp < previous:
            shift += previous + 1 - stamp
        previous = stamp
        sharing = list(islice(group, MAX_SHARING + 1))
        if len(sharing) > MAX_SHARING:
            raise RecordingError(
                f"more than {MAX_SHARING} acquisitions have the same acquisition_time_stamp ({stamp})",
                where=sharing[0].place,
                likely="whoever wrote the recording kept no times",
                hint="--speed 0 sends it as fast as the server takes it",
            )
        for number, acquisition in enumerate(sharing):
            yield (stamp + shift + number / len(sharing)) * tick_s, acquisition


def sleep_until(moment_s: float) -> bool:
    """Sleep until a time of the monotonic clock; False if that is further away than one nap."""
    remaining = moment_s - time.monotonic()
    if remaining > NAP_S:
        time.sleep(NAP_S)
        return False
    if remaining > 0:
        time.sleep(remaining)
    return True


@contextlib.contextmanager
def keeping_time() -> Iterator[None]:
    """Let this thread run soon after it wakes: before other threads of the process, and before other processes.

    The second is real-time scheduling, which Linux grants to root and to users with a limit for it (``ulimit -r``);
    elsewhere the thread competes like any other. With the server on the same two busy cores it brought the 99th
    percentile at 250 and 500 acquisitions/s from 4-9 ms to 0.1-0.3 ms. That is the wait for a core, not for the
    interpreter: to leave what is received undecoded until the end changed nothing.
    """
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(min(interval_s, SWITCH_S))
    has_priority = _set_scheduler("SCHED_RR", 1)
    try:
        yield
    finally:
        sys.setswitchinterval(interval_s)
        if has_priority:
            _set_scheduler("SCHED_OTHER", 0)


def _set_scheduler(policy: str, priority: int) -> bool:
    """Of the calling thread; False if the system has no such thing or does not let us."""
    try:
        os.sched_setscheduler(0, getattr(os, policy), os.sched_param(priority))
    except (AttributeError, OSError):
        return False
    return True
