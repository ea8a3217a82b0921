"""Takes tissue parameters and times, gives MRI signal curves while a contrast agent passes.

The chain is: population arterial input -> extended Tofts tissue concentration -> spoiled gradient-echo signal.
Curves of a whole phantom live in a space of very few dimensions, which `TemporalBasis` finds and exploits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import qr

from ...errors import ConfigError

Array = NDArray[np.floating]

_GRID_STEP_S = 0.1


def parker_aif(minutes: ArrayLike) -> NDArray[np.float64]:
    """Population-averaged concentration of contrast agent in arterial blood.

    Two Gaussians (first pass and recirculation) and an exponential that a sigmoid switches on.

    Parameters
    ----------
    minutes : time since the bolus arrives; the curve is 0 before.

    Returns
    -------
    Blood concentration in mmol/L, float64, of the shape of `minutes`, for a dose of 0.1 mmol/kg.

    References
    ----------
    Parker et al., Magn Reson Med 56:993 (2006), equation 1, parameters of table 1.
    """
    t = np.asarray(minutes, dtype=np.float64)
    area, centre, width = (0.809, 0.330), (0.17046, 0.365), (0.0563, 0.132)
    alpha, beta, slope, switch = 1.050, 0.1685, 38.078, 0.483
    blood = alpha * np.exp(-beta * t) / (1.0 + np.exp(-slope * np.clip(t - switch, -15.0, 15.0)))
    for a, c, w in zip(area, centre, width, strict=True):
        blood = blood + a / (w * np.sqrt(2.0 * np.pi)) * np.exp(-((t - c) ** 2) / (2.0 * w**2))
    return np.where(t >= 0.0, blood, 0.0)


def exponential_convolution(times_s: Array, plasma_mm: Array, kep_per_min: Array) -> NDArray[np.float64]:
    """Convolve a plasma curve with ``exp(-kep t)``, exactly for a plasma curve that is linear between its samples.

    Parameters
    ----------
    times_s : ``(times,)``, uniformly spaced.
    plasma_mm : ``(times,)`` in mmol/L.
    kep_per_min : ``(rates,)``, may be 0.

    Returns
    -------
    ``(times, rates)`` in mmol/L * min.
    """
    step_min = float(times_s[1] - times_s[0]) / 60.0
    x = np.asarray(kep_per_min, dtype=np.float64) * step_min
    small = x < 1e-3
    safe = np.where(small, 1.0, x)
    decay = np.exp(-x)
    # Weights of the old and the new sample of a linear segment, s in 0..1: (1 - s) and s against e^{-x (1 - s)}.
    old = np.where(small, 0.5 - x / 3.0, (1.0 - decay * (1.0 + safe)) / safe**2)
    new = np.where(small, 0.5 - x / 6.0, (safe - 1.0 + decay) / safe**2)
    result = np.zeros((times_s.size, x.size))
    for n in range(1, times_s.size):
        result[n] = decay * result[n - 1] + step_min * (old * plasma_mm[n - 1] + new * plasma_mm[n])
    return result


def extended_tofts(
    times_s: Array, plasma_mm: Array, ktrans_per_min: ArrayLike, ve: ArrayLike, vp: ArrayLike
) -> NDArray[np.float64]:
    """Tissue concentration of the extended Tofts model.

    ``C(t) = vp Cp(t) + Ktrans * integral of Cp(u) exp(-Ktrans/ve (t - u)) du``.

    Parameters
    ----------
    times_s : ``(times,)``, uniformly spaced, from before the bolus.
    plasma_mm : ``(times,)`` in mmol/L.
    ktrans_per_min, ve, vp : ``(voxels,)`` or scalars.

    Returns
    -------
    ``(times, voxels)`` in mmol per litre of tissue.

    References
    ----------
    Tofts et al., J Magn Reson Imaging 10:223 (1999), equation 8 with the vascular term of Tofts, JMRI 7:91 (1997).
    """
    ktrans, ve_, vp_ = np.broadcast_arrays(np.atleast_1d(ktrans_per_min), np.atleast_1d(ve), np.atleast_1d(vp))
    extravascular = exponential_convolution(times_s, plasma_mm, ktrans / ve_)
    return vp_ * plasma_mm[:, None] + ktrans * extravascular


def spoiled_gradient_echo(
    r1_per_s: Array | float, r2_star_per_s: Array | float, *, tr_ms: float, te_ms: float, flip_rad: Array | float
) -> Array:
    """Steady-state signal of an ideally spoiled gradient echo for unit proton density (Ernst's equation).

    ``sin a (1 - E1) / (1 - cos a E1) exp(-TE R2*)`` with ``E1 = exp(-TR R1)``.

    References
    ----------
    Ernst and Anderson, Rev Sci Instrum 37:93 (1966); Haase et al., J Magn Reson 67:258 (1986).
    """
    e1 = np.exp(np.asarray(r1_per_s) * np.float32(-1e-3 * tr_ms))
    decay = np.exp(np.asarray(r2_star_per_s) * np.float32(-1e-3 * te_ms))
    signal: Array = np.sin(flip_rad) * (1.0 - e1) / (1.0 - np.cos(flip_rad) * e1) * decay
    return signal


@dataclass(frozen=True)
class Bolus:
    """One injection: when it reaches the breast, how strong, and what it does to relaxation.

    Parameters
    ----------
    arrival_s : time on the scan's clock at which the arterial input begins.
    dose : relative to the 0.1 mmol/kg of the population curve.
    haematocrit : red-cell volume fraction, which the agent does not enter.
    r1_per_mm_s, r2_star_per_mm_s : relaxivities in L/(mmol s).
    """

    arrival_s: float
    dose: float = 1.0
    haematocrit: float = 0.42
    r1_per_mm_s: float = 4.5
    r2_star_per_mm_s: float = 6.0

    def plasma_mm(self, times_s: ArrayLike) -> NDArray[np.float64]:
        """Plasma concentration in mmol/L on the scan's clock."""
        minutes = (np.asarray(times_s, dtype=np.float64) - self.arrival_s) / 60.0
        return self.dose * parker_aif(minutes) / (1.0 - self.haematocrit)


@dataclass(frozen=True)
class TissueCurves:
    """Concentration curves of any tissue at any time, from one table over the rate kep.

    Parameters
    ----------
    bolus : the injection.
    end_s : last time that will be asked for.
    """

    bolus: Bolus
    end_s: float
    _kep: NDArray[np.float64] = field(init=False, repr=False)
    _times_s: NDArray[np.float64] = field(init=False, repr=False)
    _table: NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        start_s = min(0.0, self.bolus.arrival_s)
        count = int(np.ceil((max(self.end_s, start_s) - start_s) / _GRID_STEP_S)) + 3
        times_s = start_s + _GRID_STEP_S * np.arange(count)
        kep = np.concatenate([[0.0], np.geomspace(0.01, 30.0, 400)])
        object.__setattr__(self, "_kep", kep)
        object.__setattr__(self, "_times_s", times_s)
        object.__setattr__(self, "_table", exponential_convolution(times_s, self.bolus.plasma_mm(times_s), kep))

    def concentration_mm(self, time_s: float, ktrans_per_min: Array, ve: Array, vp: Array) -> NDArray[np.float32]:
        """Concentration ``(voxels,)`` in mmol per litre of tissue at one time."""
        if time_s <= self.bolus.arrival_s:
            return np.zeros(np.shape(ktrans_per_min), dtype=np.float32)
        position = (time_s - self._times_s[0]) / _GRID_STEP_S
        low = int(position)
        row = self._table[low] + (position - low) * (self._table[low + 1] - self._table[low])
        extravascular = np.interp(ktrans_per_min / ve, self._kep, row)
        plasma = float(self.bolus.plasma_mm(time_s))
        return np.asarray(vp * plasma + ktrans_per_min * extravascular, dtype=np.float32)


@dataclass(frozen=True)
class TemporalBasis:
    """A few functions of time that carry the curves of every voxel, and the times at which to sample a voxel.

    A voxel is evaluated exactly at `node_times_s` only; `from_nodes` maps those values to coefficients.

    Parameters
    ----------
    functions : ``(rank, times)``.
    node_times_s : ``(nodes,)``.
    from_nodes : ``(rank, nodes)``.
    """

    functions: NDArray[np.float64]
    node_times_s: NDArray[np.float64]
    from_nodes: NDArray[np.float64]

    @property
    def rank(self) -> int:
        return int(self.functions.shape[0])


def temporal_basis(
    curves: Callable[[float], Array], times_s: Array, *, tolerance: float = 1e-4, n_snapshots: int = 96
) -> TemporalBasis:
    """Find the smallest basis that carries sample curves to a relative (Frobenius) error below `tolerance`.

    1. Singular value decomposition of the curves of sample voxels at some of the times; the rank follows from the tail.
    2. Each function of the basis is a fixed mixture of sample curves, so it is known exactly at every time.
    3. A QR decomposition with column pivoting picks the times at which a voxel must be known (empirical
       interpolation), two more than the rank for stability.

    Parameters
    ----------
    curves : gives the ``(voxels,)`` sample values at one time in seconds; a thousand voxels are plenty.
    times_s : ``(times,)``, ascending.

    References
    ----------
    Chaturantabut and Sorensen, SIAM J Sci Comput 32:2737 (2010), section 3, for interpolation at selected points.
    """
    times = np.asarray(times_s, dtype=np.float64)
    if times.size == 0:
        raise ConfigError(
            "no readout times to build a temporal basis for", likely="the protocol has no post-contrast frame"
        )
    samples = np.stack([np.asarray(curves(float(t)), dtype=np.float64) for t in times])
    chosen = np.unique(np.linspace(0, times.size - 1, min(n_snapshots, times.size)).round().astype(int))
    left, singular, right = np.linalg.svd(samples[chosen], full_matrices=False)
    tail = np.cumsum((singular**2)[::-1])[::-1]
    rank = max(1, int(np.sum(tail > (0.5 * tolerance) ** 2 * tail[0])))
    _, _, pivots = qr(left[:, :rank].T, pivoting=True, mode="economic")
    nodes = np.sort(pivots[: min(rank + 2, chosen.size)])
    if singular[0] == 0.0:
        return TemporalBasis(np.zeros((1, times.size)), times[chosen[nodes]], np.zeros((1, nodes.size)))
    functions = (samples @ (right[:rank] / singular[:rank, None]).T).T
    return TemporalBasis(functions, times[chosen[nodes]], np.linalg.pinv(left[nodes, :rank]))
