"""Leaving out phase-encode lines or spokes, and adding noise: as paper 000 published it, and as one scan would have it.

Cartesian masks are those of fastMRI's ``RandomMaskFunc``, bit for bit. The published evaluation draws a new mask for
every *patch* of an exam; patches overlap, so half of the slices are voted over two masks, which no scanner could have
played. `Scope` chooses: ``exam`` (one mask, one noise; default) or ``patch`` (published).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...types import Complex

Scope = Literal["exam", "patch"]
Scheme = Literal["uniform", "contiguous", "random"]
Mask = NDArray[np.bool_]

CENTRE_FRACTIONS: dict[int, float] = {
    2: 0.04,
    4: 0.08,
    6: 0.05,
    8: 0.04,
    10: 0.03,
    12: 0.02,
    16: 0.015,
    24: 0.008,
    32: 0.004,
    48: 0.002,
    64: 0.001,
}
"""Fully sampled part of the lines at each acceleration (paper 000, supplement S2)."""

SNRS_DB: tuple[float, ...] = (20, 10, 5, 0, -5, -10, -15, -20, -25, -30)
"""Noise levels of the published evaluation."""

SMALL_MATRIX_FRACTIONS: dict[int, float] = {2: 0.04, 4: 0.08, 6: 0.05, 8: 0.04, 10: 0.03, 12: 0.03, 16: 0.02, 24: 0.02}
"""For planes of fewer than 128 lines, where the published fractions would leave no centre at 12x and above."""

_SEED, _PER_LEVEL, _PER_PATIENT, _PER_SLICE = 123, 1_000_003, 10_007, 101


def scenario_seed(level: int, patient_index: int, z_start: int = 0) -> int:
    """Seed of a mask or a noise field, as published.

    Parameters
    ----------
    level : the acceleration, or `noise_level` of a signal-to-noise ratio.
    patient_index : place of the patient in the sorted list of all.
    z_start : first slice of the patch; 0 for an exam as a whole.
    """
    return (_SEED + _PER_LEVEL * level + _PER_PATIENT * patient_index + _PER_SLICE * z_start) % 2**32


def noise_level(snr_db: float) -> int:
    """The number that stands for a signal-to-noise ratio in `scenario_seed`: hundredths of a decibel, as uint32."""
    return int(snr_db * 100) & 0xFFFFFFFF


def cartesian_mask(n_lines: int, acceleration: float, centre_fraction: float, seed: int) -> Mask:
    """Which of `n_lines` phase-encode lines are sampled: fastMRI's ``RandomMaskFunc`` for one acceleration.

    The centre is kept whole; every line is kept with a probability that makes ``n_lines / acceleration`` the expected
    number, so the real acceleration varies, and near 64x the centre of k-space is usually lost.
    """
    rng = np.random.RandomState(seed)  # the legacy generator: its stream is frozen, and fastMRI's
    rng.randint(1)  # fastMRI's choice among one pair of settings
    return _random_lines(n_lines, acceleration, centre_fraction, rng.uniform(size=n_lines))


def random_lines(n_lines: int, acceleration: float, centre_fraction: float, rng: np.random.Generator) -> Mask:
    """The same scheme from a modern generator, for augmentation."""
    return _random_lines(n_lines, acceleration, centre_fraction, rng.uniform(size=n_lines))


def _random_lines(n_lines: int, acceleration: float, centre_fraction: float, uniform: NDArray[np.float64]) -> Mask:
    n_centre = round(n_lines * centre_fraction)
    kept = uniform < (n_lines / acceleration - n_centre) / (n_lines - n_centre)
    start = (n_lines - n_centre + 1) // 2
    kept[start : start + n_centre] = True
    return np.asarray(kept)


def undersample(kspace: Complex, acceleration: int, patient_index: int, z_start: int = 0) -> Complex:
    """An exam or a patch ``(z, y, x)`` with the mask of its evaluation; lines run along y and are left out along x."""
    if acceleration == 1:
        return kspace
    fraction = centre_fraction(acceleration, kspace.shape[-1])
    mask = cartesian_mask(kspace.shape[-1], acceleration, fraction, scenario_seed(acceleration, patient_index, z_start))
    return kspace * mask


def centre_fraction(acceleration: int, n_lines: int) -> float:
    """Published fraction; on small planes the one that still leaves a centre line."""
    small = n_lines < 128 and acceleration in SMALL_MATRIX_FRACTIONS
    return (SMALL_MATRIX_FRACTIONS if small else CENTRE_FRACTIONS)[acceleration]


def noisy(kspace: Complex, snr_db: float, patient_index: int, z_start: int = 0) -> Complex:
    """White complex noise, the same numbers as the published evaluation draws.

    ``x + randn sqrt(mean(x^2) / 10^(snr_db / 10))`` on real and imaginary parts alike; the mean is over all of them.
    """
    import torch  # its generator; processes that simulate exams do without

    parts = np.stack((kspace.real, kspace.imag)).astype(np.float32)
    generator = torch.Generator().manual_seed(scenario_seed(noise_level(snr_db), patient_index, z_start))
    noise = torch.randn(parts.shape, generator=generator).numpy()
    sigma = np.sqrt(np.mean(np.square(parts, dtype=np.float64)) / 10 ** (snr_db / 10))
    real, imaginary = parts + noise * np.float32(sigma)
    return np.asarray(real + 1j * imaginary, np.complex64)


def kept_spokes(n_spokes: int, factor: float, scheme: Scheme, seed: int = 0) -> NDArray[np.int64]:
    """Which spokes of a frame a native radial undersampling keeps, in order of time.

    Parameters
    ----------
    n_spokes : of the frame.
    factor : acceleration; ``round(n_spokes / factor)`` spokes are kept, at least one.
    scheme : ``uniform`` keeps evenly spaced ones, ``contiguous`` the first (the scan stopped early), ``random`` any.
    """
    n_kept = min(max(round(n_spokes / factor), 1), n_spokes)
    if scheme == "contiguous":
        return np.arange(n_kept)
    if scheme == "uniform":
        return np.floor(np.arange(n_kept) * n_spokes / n_kept).astype(np.int64)
    return np.sort(np.random.default_rng([seed, n_spokes, n_kept]).permutation(n_spokes)[:n_kept])


def fibonacci_prefixes(n_spokes: int) -> tuple[int, ...]:
    """Numbers of golden-angle spokes that cover directions most evenly, up to `n_spokes`: 8, 13, 21, 34, ..."""
    counts = [8, 13]
    while counts[-1] <= n_spokes:
        counts.append(counts[-1] + counts[-2])
    return tuple(count for count in counts if count <= n_spokes)
