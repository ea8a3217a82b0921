"""A phantom of ellipses whose k-space is known exactly, seen by coils whose maps are known exactly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import j1

from kstream.recon.fourier import to_image
from kstream.types import Complex, Float

# centre x, centre y, half axis a, half axis b (fields of view), angle, amplitude
ELLIPSES = (
    (0.0, 0.0, 0.36, 0.42, 0.1, 1.0),
    (0.02, -0.03, 0.3, 0.35, 0.2, -0.4),
    (0.12, 0.1, 0.06, 0.1, 0.7, 0.5),
    (-0.13, -0.06, 0.09, 0.05, -0.5, 0.3),
    (0.02, -0.2, 0.03, 0.03, 0.0, 0.8),
)
# each coil is a sum of plane waves of at most this many cycles per field of view
WAVES = np.array([(0, 0), (0.6, 0.2), (-0.3, 0.7), (0.2, -0.8)])


def spokes(angles_rad: NDArray[np.floating], matrix: tuple[int, int], aspect: float = 1.0) -> Float:
    """Spokes ``(spokes, samples, xyz)``, twice oversampled, to the ends of k-space; `matrix` is (x, y)."""
    n = 2 * matrix[0]
    radius = (np.arange(n) - n // 2) / 2
    x, y = np.outer(np.cos(angles_rad), radius), aspect * np.outer(np.sin(angles_rad), radius)
    return np.stack([x, y, 0 * x], axis=-1).astype(np.float32)


def kspace(k: NDArray[np.floating], matrix: tuple[int, int]) -> NDArray[np.complex128]:
    """Exact k-space at ``(..., xyz)`` in cycles per field of view, in the scale of the orthonormal transform."""
    kx, ky = np.asarray(k, np.float64)[..., 0], np.asarray(k, np.float64)[..., 1]
    total = np.zeros(kx.shape, np.complex128)
    for x, y, a, b, angle, amplitude in ELLIPSES:
        along, across = kx * np.cos(angle) + ky * np.sin(angle), ky * np.cos(angle) - kx * np.sin(angle)
        q = 2 * np.pi * np.hypot(a * along, b * across) + 1e-9
        total += amplitude * a * b * 2 * np.pi * j1(q) / q * np.exp(-2j * np.pi * (kx * x + ky * y))
    return total * np.sqrt(matrix[0] * matrix[1])


def waves(n_coils: int) -> NDArray[np.complex128]:
    """Amplitudes ``(coils, waves)`` of the coils."""
    rng = np.random.default_rng(5)
    mixed = rng.standard_normal((n_coils, len(WAVES))) + 1j * rng.standard_normal((n_coils, len(WAVES)))
    return mixed / np.linalg.norm(mixed)


def coil_kspace(k: NDArray[np.floating], matrix: tuple[int, int], n_coils: int) -> Complex:
    """Exact k-space of every coil: complex64 ``(coils, ...)``."""
    shifted = np.stack([kspace(np.asarray(k)[..., :2] - wave, matrix) for wave in WAVES])
    return np.tensordot(waves(n_coils), shifted, axes=1).astype(np.complex64)


def coil_maps(matrix: tuple[int, int], n_coils: int) -> Complex:
    """Maps ``(coils, y, x)`` of the same coils."""
    nx, ny = matrix
    y, x = np.mgrid[:ny, :nx]
    phases = [np.exp(2j * np.pi * (wx * (x - nx // 2) / nx + wy * (y - ny // 2) / ny)) for wx, wy in WAVES]
    return np.tensordot(waves(n_coils), np.stack(phases), axes=1).astype(np.complex64)


def truth(matrix: tuple[int, int]) -> Complex:
    """The phantom as spokes can show it, complex64 ``(y, x)``: k-space within the ellipse that they reach."""
    nx, ny = matrix
    y, x = np.mgrid[:ny, :nx]
    k = np.stack([x - nx // 2, y - ny // 2], axis=-1)
    inside = np.hypot(k[..., 0] / nx, k[..., 1] / ny) <= 0.5
    return to_image((kspace(k, matrix) * inside).astype(np.complex64))
