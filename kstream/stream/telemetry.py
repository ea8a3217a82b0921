"""What a running stream measures of itself: counts, time per stage, latency. Memory does not grow with the scan."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

BINS_PER_OCTAVE = 4
FIRST_NS = 1000
N_BINS = 33 * BINS_PER_OCTAVE


@dataclass
class Durations:
    """Durations in bins of equal ratio (four per octave, from 1 us to two hours), with exact count, sum and maximum."""

    counts: list[int] = field(default_factory=lambda: [0] * N_BINS)
    n: int = 0
    total_ns: int = 0
    longest_ns: int = 0

    def add(self, elapsed_ns: int) -> None:
        position = int(math.log2(elapsed_ns / FIRST_NS) * BINS_PER_OCTAVE) if elapsed_ns > FIRST_NS else 0
        self.counts[min(position, N_BINS - 1)] += 1
        self.n += 1
        self.total_ns += elapsed_ns
        self.longest_ns = max(self.longest_ns, elapsed_ns)

    def edges_ms(self) -> list[float]:
        """Edges of the bins: one more than there are bins."""
        return [FIRST_NS / 1e6 * 2 ** (i / BINS_PER_OCTAVE) for i in range(N_BINS + 1)]

    def quantile_ms(self, share: float) -> float:
        """Geometric middle of the bin that holds the quantile, never above the exact maximum; 0 without entries."""
        passed = 0
        for edge_ms, count in zip(self.edges_ms(), self.counts, strict=False):
            passed += count
            if count and passed >= share * self.n:
                return min(edge_ms * 2 ** (0.5 / BINS_PER_OCTAVE), self.longest_ns / 1e6)
        return 0.0


@dataclass
class StageTimes:
    """Time of one stage's own work, call by call, without what runs after it."""

    name: str
    durations: Durations = field(default_factory=Durations)

    def add(self, elapsed_ns: int) -> None:
        self.durations.add(elapsed_ns)


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


ROUTINE = frozenset(
    {"noise", "dummy", "navigator", "phase correction", "feedback", "surface coil correction", "parallel calibration"}
)
"""Reasons for which a scanner itself marks an acquisition as not imaging."""
