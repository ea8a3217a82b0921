"""What a running stream measures of itself: time per stage, counts, latency."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class StageTimes:
    """Calls and time of one stage, without what runs after it.

    ``total_ns`` and ``longest_ns`` count only the stage's own work; a stage that a pipeline never reached has no calls.
    """

    name: str
    calls: int = 0
    total_ns: int = 0
    longest_ns: int = 0

    def add(self, elapsed_ns: int) -> None:
        self.calls += 1
        self.total_ns += elapsed_ns
        self.longest_ns = max(self.longest_ns, elapsed_ns)

    @property
    def mean_ms(self) -> float:
        return self.total_ns / self.calls / 1e6 if self.calls else 0.0


@dataclass
class Counters:
    """What came in, what went out and what was left aside, and why. Nothing is dropped without a reason here."""

    received: int = 0
    frames: int = 0
    images: int = 0
    set_aside: dict[str, int] = field(default_factory=dict)
    latencies_ms: dict[str, list[float]] = field(default_factory=dict)

    def leave(self, reason: str) -> int:
        """Count one acquisition that does not enter a frame; gives how many there are for this reason."""
        self.set_aside[reason] = self.set_aside.get(reason, 0) + 1
        return self.set_aside[reason]

    @property
    def dropped(self) -> int:
        """Acquisitions that were meant for an image and did not reach one."""
        return sum(n for reason, n in self.set_aside.items() if reason not in ROUTINE)


ROUTINE = frozenset({"noise", "dummy", "navigator", "phase correction", "feedback"})
"""Reasons for which a scanner itself marks an acquisition as not imaging."""
