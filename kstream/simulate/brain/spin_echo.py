"""Takes what tissues are made of, gives what a spin echo makes of them.

Relaxation times and densities are those that BrainWeb's pages and programs quote for its two sets of phantoms. Grey and
white matter of the twenty normal brains share one T2 (85 ms), so that at TE 80 ms their contrast is 6 % and hardly a
task; ``brainweb-1`` has 23 % and is the default. It takes tissues that it does not name from the twenty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...types import Float
from .head import Tissue

RelaxationTable = Literal["brainweb-1", "brainweb-20"]


@dataclass(frozen=True)
class Relaxation:
    """What tissues are made of, one value per `Tissue`.

    Parameters
    ----------
    density : protons relative to water.
    t1_ms, t2_ms, t2_star_ms : relaxation times.
    """

    density: NDArray[np.float64]
    t1_ms: NDArray[np.float64]
    t2_ms: NDArray[np.float64]
    t2_star_ms: NDArray[np.float64]

    def signal(self, te_ms: float, tr_ms: float) -> NDArray[np.float64]:
        """Signal of every tissue at the echo."""
        return np.asarray(spin_echo(self.density, self.t1_ms, self.t2_ms, te_ms, tr_ms))


# T1 and its spread, T2 and its spread, T2* in ms, proton density. The twenty brains' densities are not published with
# their relaxation times: those of CSF, grey and white matter are the normal brain's, the others rounded from textbooks.
_TWENTY: dict[Tissue, tuple[float, float, float, float, float, float]] = {
    Tissue.BACKGROUND: (1.0, 0.0, 1.0, 0.0, 1.0, 0.0),
    Tissue.CSF: (3000.0, 500.0, 2500.0, 500.0, 70.0, 1.0),
    Tissue.GREY: (1050.0, 150.0, 85.0, 15.0, 35.0, 0.86),
    Tissue.WHITE: (700.0, 200.0, 85.0, 15.0, 30.0, 0.77),
    Tissue.FAT: (250.0, 50.0, 85.0, 15.0, 30.0, 1.0),
    Tissue.MUSCLE: (1050.0, 50.0, 50.0, 10.0, 25.0, 1.0),
    Tissue.SKIN: (1050.0, 50.0, 50.0, 10.0, 25.0, 1.0),
    Tissue.SKULL: (350.0, 100.0, 15.0, 5.0, 7.5, 0.15),
    Tissue.VESSELS: (1750.0, 250.0, 200.0, 25.0, 20.0, 0.9),
    Tissue.CONNECTIVE: (250.0, 50.0, 85.0, 15.0, 35.0, 0.8),
    Tissue.DURA: (700.0, 100.0, 150.0, 50.0, 50.0, 0.7),
    Tissue.MARROW: (225.0, 75.0, 50.0, 10.0, 25.0, 0.9),
}
_ONE: dict[Tissue, tuple[float, float, float, float]] = {  # T1, T2, T2*, density
    Tissue.CSF: (2569.0, 329.0, 58.0, 1.0),
    Tissue.GREY: (833.0, 83.0, 69.0, 0.86),
    Tissue.WHITE: (500.0, 70.0, 61.0, 0.77),
    Tissue.FAT: (350.0, 70.0, 58.0, 1.0),
    Tissue.MUSCLE: (900.0, 47.0, 30.0, 1.0),
    Tissue.SKIN: (900.0, 47.0, 30.0, 1.0),  # of its class muscle and skin; its class skin has the values of CSF
}


def relaxation(table: RelaxationTable, rng: np.random.Generator | None = None) -> Relaxation:
    """Relaxation of one subject.

    Parameters
    ----------
    table : which phantom's values.
    rng : draws T1 and T2 of ``brainweb-20`` within one standard deviation; without it, their means. ``brainweb-1`` has
        no spread: with a generator, its times vary by up to 3 %.
    """
    rows = np.array([_TWENTY[tissue] for tissue in Tissue])
    t1, t1_spread, t2, t2_spread, t2_star, density = (column.copy() for column in rows.T)
    if table == "brainweb-1":
        for tissue, values in _ONE.items():
            t1[tissue], t2[tissue], t2_star[tissue], density[tissue] = values
            t1_spread[tissue], t2_spread[tissue] = 0.03 * t1[tissue], 0.03 * t2[tissue]
    if rng is not None:
        t1 = t1 + t1_spread * rng.uniform(-1, 1, len(t1))
        t2 = t2 + t2_spread * rng.uniform(-1, 1, len(t2))
    return Relaxation(density, t1, t2, np.minimum(t2_star, t2))


def spin_echo(density: Any, t1_ms: Any, t2_ms: Any, te_ms: float, tr_ms: float) -> NDArray[np.floating]:
    """Signal of a 90-180 spin echo in the steady state; arrays broadcast.

    ``PD (1 - 2 exp(-(TR - TE/2) / T1) + exp(-TR / T1)) exp(-TE / T2)``: the longitudinal magnetisation grows from the
    last excitation, is inverted by the refocusing pulse at TE/2, and grows again. Transverse magnetisation is spoiled.
    """
    recovered = 1 - 2 * np.exp(-(tr_ms - te_ms / 2) / t1_ms) + np.exp(-tr_ms / t1_ms)
    return np.asarray(density * recovered * np.exp(-te_ms / t2_ms))


def tissue_lookup(values: NDArray[np.floating], labels: NDArray[np.uint8]) -> Float:
    """Values of the tissues at every voxel, float32."""
    return values.astype(np.float32)[labels]
