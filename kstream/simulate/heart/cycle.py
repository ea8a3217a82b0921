"""Takes the phase of a heartbeat, gives how far each chamber has emptied."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_RELAXATION = 0.04  # of the beat, without change of volume
_ATRIAL_KICK = 0.16  # of the beat, at its end


@dataclass(frozen=True)
class HeartCycle:
    """Volumes over one beat, whose phase runs from 0 (end-diastole) to 1.

    Parameters
    ----------
    systole : part of the beat until end-systole. It takes about 0.3 s, so a fast heart has a larger part.
    early_share : part of the filling that comes before the atria contract.
    conduit_share : part of the atria's emptying that comes before they contract.
    """

    systole: float
    early_share: float = 0.72
    conduit_share: float = 0.55

    @classmethod
    def of_heart_rate(cls, heart_rate_bpm: float) -> HeartCycle:
        """Systole shortens less than the beat: 0.33 s at 60 per minute, with the square root of the beat's length."""
        return cls(systole=float(0.33 * np.sqrt(heart_rate_bpm / 60.0)))

    def contraction(self, phase: float) -> float:
        """0 at end-diastole, 1 at end-systole: how much of its stroke a ventricle has ejected."""
        return self._emptied(phase, self.early_share)

    def atrial_filling(self, phase: float) -> float:
        """0 at ventricular end-diastole, 1 at end-systole, when the atria are fullest."""
        return self._emptied(phase, self.conduit_share)

    def _emptied(self, phase: float, early_share: float) -> float:
        phase = phase % 1.0
        relaxed = self.systole + _RELAXATION
        early_end = relaxed + 0.42 * (1.0 - _ATRIAL_KICK - relaxed)
        if phase < self.systole:
            return _smooth(phase / self.systole)
        early = _smooth((phase - relaxed) / (early_end - relaxed))
        kick = _smooth((phase - (1.0 - _ATRIAL_KICK)) / _ATRIAL_KICK)
        return 1.0 - early_share * early - (1.0 - early_share) * kick


def _smooth(part: float) -> float:
    """From 0 to 1 with flat ends."""
    return float(np.sin(0.5 * np.pi * np.clip(part, 0.0, 1.0)) ** 2)
