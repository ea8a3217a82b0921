"""Takes nothing, gives how bright the tissues of the chest are in a balanced steady-state sequence at 1.5 T."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Water:
    """Relaxation times and proton density relative to water."""

    t1_ms: float
    t2_ms: float
    proton_density: float


# T1 and T2 at 1.5 T after Stanisz et al., MRM 54:507 (2005), and Messroghli et al., MRM 58:34 (2007); rounded.
BLOOD = Water(1550, 240, 0.95)
MYOCARDIUM = Water(1000, 48, 0.80)
FAT = Water(300, 85, 0.90)
MUSCLE = Water(1000, 42, 0.78)
LIVER = Water(570, 46, 0.75)
SPLEEN = Water(1050, 80, 0.80)
MARROW = Water(520, 55, 0.60)
CARTILAGE = Water(1060, 30, 0.35)
FLUID = Water(3000, 1500, 1.0)
LUNG = Water(1200, 40, 0.10)
VESSEL_WALL = Water(1000, 40, 0.45)

INFLOW = 1.4
"""Blood is brighter than its steady state by about this factor, because much of it comes fresh into the slice."""


def steady_state(water: Water, flip_angle_deg: float) -> float:
    """Signal of balanced SSFP on resonance for TR much shorter than T1 and T2.

    ``M0 sin a / ((T1/T2 + 1) - cos a (T1/T2 - 1))``, times the echo's decay, which is close to 1 at TE = TR/2.

    Blood gets `INFLOW` on top.

    References
    ----------
    Scheffler and Lehnhardt, Eur Radiol 13:2409 (2003), equation 3.
    """
    flip = np.deg2rad(flip_angle_deg)
    inflow = INFLOW if water is BLOOD else 1.0
    ratio = water.t1_ms / water.t2_ms
    return float(inflow * water.proton_density * np.sin(flip) / ((ratio + 1) - np.cos(flip) * (ratio - 1)))
