"""Random variations of a patch that keep its labels true; each is exact in centred k-space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...recon.fourier import to_image, to_kspace
from ...types import Complex
from ..experiment import AugmentConfig
from .undersampling import centre_fraction, random_lines

Labels = NDArray[np.uint8]
AXES = {"z": -3, "y": -2, "x": -1}
LINES = {"narrow": (2, 4), "wide": (2, 4, 6, 8, 10, 12, 16)}
"""Accelerations that augmentation draws from: those of paper 000, or its evaluation factors up to 16x."""


def flip_kspace(kspace: Complex, axes: Sequence[str]) -> Complex:
    """K-space ``(z, y, x)`` of the image reversed along some axes.

    Reversing centred k-space of even size would also move it by one sample, that is modulate the image; so in-plane
    reversal is done in image space.
    """
    if not axes:
        return kspace
    return to_kspace(np.ascontiguousarray(np.flip(to_image(kspace), tuple(AXES[axis] for axis in axes))))


def shift_kspace(kspace: Complex, shift: tuple[int, int]) -> Complex:
    """K-space of the image rolled by whole voxels along y and x: a linear phase (Fourier shift theorem)."""
    for axis, voxels in zip((-2, -1), shift, strict=True):
        n = kspace.shape[axis]
        ramp = np.exp(-2j * np.pi / n * voxels * (np.arange(n) - n // 2)).astype(np.complex64)
        kspace = kspace * (ramp if axis == -1 else ramp[:, None])
    return kspace


def add_noise(kspace: Complex, snr_db: float, rng: np.random.Generator) -> Complex:
    """White complex noise; `snr_db` compares mean squares of the patch and of the noise (paper 000)."""
    sigma = np.sqrt(np.mean(np.abs(kspace) ** 2) / 2 / 10 ** (snr_db / 10))
    noise = rng.standard_normal((*kspace.shape, 2), np.float32) * np.float32(sigma)
    return np.asarray(kspace + noise.view(np.complex64)[..., 0])


def move(kspace: Complex, labels: Labels, config: AugmentConfig, rng: np.random.Generator) -> tuple[Complex, Labels]:
    """The object moves: flips and a shift, then a global phase and scale.

    Parameters
    ----------
    kspace : complex64 ``(z, y, x)``, difference k-space.
    labels : uint8 ``(z, y, x)``, image space.
    """
    flips = [axis for axis in config.flip_axes if rng.random() < 0.5]
    kspace = flip_kspace(kspace, flips)
    labels = np.flip(labels, tuple(AXES[axis] for axis in flips))
    if config.shift_voxels:
        dy, dx = (int(v) for v in rng.integers(-config.shift_voxels, config.shift_voxels, 2, endpoint=True))
        kspace = shift_kspace(kspace, (dy, dx))
        labels = np.roll(labels, (dy, dx), (-2, -1))
    factor = config.scale ** rng.uniform(-1, 1) * np.exp(2j * np.pi * rng.random() * config.phase)
    return (kspace * factor).astype(np.complex64), labels


def degrade(kspace: Complex, config: AugmentConfig, rng: np.random.Generator) -> Complex:
    """The scanner adds noise, then leaves lines out."""
    if rng.random() < config.noise_probability:
        kspace = add_noise(kspace, rng.uniform(*config.noise_snr_db), rng)
    if config.lines != "none" and rng.random() < config.lines_probability:
        acceleration = LINES[config.lines][rng.integers(len(LINES[config.lines]))]
        n_lines = kspace.shape[-1]
        kspace = kspace * random_lines(n_lines, acceleration, centre_fraction(acceleration, n_lines), rng)
    return kspace


def augment(kspace: Complex, labels: Labels, config: AugmentConfig, rng: np.random.Generator) -> tuple[Complex, Labels]:
    """One random variation of a patch: `move`, then `degrade`."""
    kspace, labels = move(kspace, labels, config, rng)
    return degrade(kspace, config, rng), labels
