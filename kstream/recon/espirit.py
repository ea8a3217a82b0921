"""ESPIRiT coil sensitivity maps (Uecker et al., MRM 2014).

The calibration matrix enters only through its Gram matrix, and the per-pixel operator only through its
``(2k-1)^2`` Fourier coefficients, which are evaluated on a coarse grid: maps are smooth, so their eigenvectors are
computed there, aligned in phase, and interpolated.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import ScanError
from ..types import Complex

SMALLEST = np.finfo(np.float32).tiny
BLOCK_POINTS = 2**22
"""Entries of the per-pixel operator that are held at a time (32 MB)."""


def calibration_gram(calibration: Complex, kernel: int) -> NDArray[np.complex128]:
    """``A^H A`` of the calibration matrix whose rows are all ``kernel x kernel`` windows of all coils.

    Parameters
    ----------
    calibration : complex64 ``(coils, y, x)``: fully sampled centre of k-space.
    kernel : window size.
    """
    windows = np.lib.stride_tricks.sliding_window_view(calibration, (kernel, kernel), axis=(1, 2))
    rows = windows.transpose(1, 2, 0, 3, 4).reshape(windows.shape[1] * windows.shape[2], -1).astype(np.complex128)
    return np.asarray(rows.conj().T @ rows)


def kernel_coefficients(gram: NDArray[np.complex128], n_coils: int, kernel: int, threshold: float) -> Complex:
    """Fourier coefficients of the per-pixel operator: complex64 ``(coils, coils, 2k-1, 2k-1)``.

    Steps: eigenvectors of the Gram matrix whose singular value exceeds ``threshold`` times the largest span the signal
    space (eq. 7 of the paper); their projector, summed over equal displacements, is the operator (eq. 13).
    """
    values, vectors = np.linalg.eigh(gram)
    signal = vectors[:, np.sqrt(np.maximum(values, 0)) > threshold * np.sqrt(values[-1])]
    projector = (signal.conj() @ signal.T).reshape(n_coils, kernel, kernel, n_coils, kernel, kernel)
    coefficients = np.zeros((n_coils, n_coils, 2 * kernel - 1, 2 * kernel - 1), np.complex128)
    for py in range(kernel):
        for px in range(kernel):
            # displacement p - q, shifted by kernel - 1; q runs over the window, so its axis is flipped
            block = projector[:, py, px][:, :, ::-1, ::-1]
            coefficients[:, :, py : py + kernel, px : px + kernel] += block
    return (coefficients / kernel**2).astype(np.complex64)


def espirit_maps(
    calibration: Complex,
    shape: tuple[int, int],
    *,
    kernel: int = 6,
    threshold: float = 0.02,
    crop: float = 0.95,
    map_size: int = 64,
    iterations: int = 100,
) -> Complex:
    """Coil sensitivity maps of one slice.

    Parameters
    ----------
    calibration : complex64 ``(coils, y, x)``: centre of Cartesian k-space, at least ``kernel`` wide.
    shape : ``(y, x)`` of the maps.
    kernel, threshold, crop : window size, relative singular value of the signal space, eigenvalue below which a voxel
        has no map.
    map_size : eigenvectors are computed on at most this many points per axis and interpolated.
    iterations : of the power method. Where the calibration leaves several eigenvalues near 1 (strong undersampling) the
        result depends on it; 100 is SigPy's number, and gives SigPy's image.

    Returns
    -------
    complex64 ``(coils, y, x)``, unit norm over coils where the largest eigenvalue exceeds `crop`, else 0; the phase
    is that of the first coil, made real.

    Raises
    ------
    ScanError : if the calibration region is smaller than the kernel, not finite or empty.
    """
    n_coils = calibration.shape[0]
    if min(calibration.shape[1:]) <= kernel or not np.isfinite(calibration).all():
        raise ScanError(
            f"the calibration region {calibration.shape[1:]} cannot hold a kernel of {kernel}, or is not finite",
            hint="enlarge coils.calibration_size or choose coils.method = rss",
        )
    if not calibration.any():
        return np.zeros((n_coils, *shape), np.complex64)
    coefficients = kernel_coefficients(calibration_gram(calibration, kernel), n_coils, kernel, threshold)
    coarse = (min(shape[0], map_size), min(shape[1], map_size))
    vectors = np.empty((*coarse, n_coils), np.complex64)
    values = np.empty(coarse, np.float32)
    n_rows = max(1, BLOCK_POINTS // (coarse[1] * n_coils**2))
    for first in range(0, coarse[0], n_rows):
        rows = slice(first, min(first + n_rows, coarse[0]))
        vectors[rows], values[rows] = _dominant_eigenvectors(
            _operator_at(coefficients, shape, coarse, rows), iterations
        )
    maps, eigenvalues = _interpolate(vectors, values, shape)
    norm = np.sqrt(np.sum(np.abs(maps) ** 2, axis=0))
    inside = (eigenvalues > crop) & (norm > 0)
    return np.asarray(np.where(inside, maps / np.where(inside, norm, 1), 0), np.complex64)


def _grid(n: int, n_coarse: int) -> NDArray[np.float64]:
    """Coarse positions along one axis in fractional voxel indices; the grid itself when it is not coarser."""
    return np.linspace(0, n - 1, n_coarse) if n_coarse < n else np.arange(n, dtype=np.float64)


def _operator_at(coefficients: Complex, shape: tuple[int, int], coarse: tuple[int, int], rows: slice) -> Complex:
    """Operator at the points of some coarse rows, complex64 ``(rows, x, coils, coils)``."""
    size = coefficients.shape[-1]
    lag = np.arange(size) - size // 2
    waves = [
        np.exp(2j * np.pi * np.outer((_grid(n, c) - n // 2) / n, lag)).astype(np.complex64)
        for n, c in zip(shape, coarse, strict=True)
    ]
    operator = np.einsum("yp,cdpq,xq->yxcd", waves[0][rows], coefficients, waves[1], optimize=True)
    return np.ascontiguousarray(operator, np.complex64)


def _dominant_eigenvectors(operator: Complex, iterations: int) -> tuple[Complex, NDArray[np.float32]]:
    """Largest eigenvalue and its unit eigenvector at every point by the power method, first coil made real.

    All iterations at once: the operator is raised to their number by squaring, which takes eight products instead of a
    hundred. Its eigenvalues do not exceed 1, so nothing overflows.
    """
    start = np.ones((*operator.shape[:-1], 1), np.complex64)
    vector = np.linalg.matrix_power(operator, iterations) @ start
    vector = vector / np.maximum(np.linalg.norm(vector, axis=-2, keepdims=True), SMALLEST)
    value = np.linalg.norm(operator @ vector, axis=-2)[..., 0]
    vector = vector * np.exp(-1j * np.angle(vector[..., :1, :])).astype(np.complex64)
    return np.asarray(vector[..., 0], np.complex64), np.asarray(value, np.float32)


def _interpolate(
    vectors: Complex, values: NDArray[np.float32], shape: tuple[int, int]
) -> tuple[Complex, NDArray[np.float32]]:
    """Linear interpolation of phase-aligned eigenvectors ``(y, x, coils)`` and eigenvalues onto the full grid."""
    y, x = (_linear(n, c) for n, c in zip(shape, values.shape, strict=True))
    maps = np.einsum("Yy,yxc,Xx->cYX", y, vectors, x, optimize=True)
    return np.asarray(maps, np.complex64), np.asarray(y @ values @ x.T, np.float32)


def _linear(n: int, n_coarse: int) -> NDArray[np.float32]:
    """Interpolation matrix ``(n, n_coarse)`` from the points of `_grid` to every voxel."""
    points = _grid(n, n_coarse)
    return np.stack([np.interp(np.arange(n), points, unit) for unit in np.eye(n_coarse)], axis=1).astype(np.float32)
