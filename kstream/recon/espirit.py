"""ESPIRiT coil sensitivity maps (Uecker et al., MRM 2014).

The signal space is found through the smaller of the calibration matrix's two Gram matrices, and the per-pixel operator
is known by its ``(2k-1)^2`` Fourier coefficients, which are evaluated on a coarse grid: maps are smooth, so their
eigenvectors are computed there, aligned in phase, and interpolated where they are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from ..errors import ScanError
from ..stream.crew import Crew, InlineCrew
from ..types import Complex, Float
from . import kernels

Weighting = Literal["hard", "soft"]
SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class CoilMaps:
    """Sensitivity maps as vectors at coarse nodes, interpolated linearly, and a real scale at every voxel.

    ``S_c(x, y) = scale(x, y) * interpolated vector_c(x, y)``. The scale makes S of unit norm and is 0 where there is no
    map. At full size this takes 0.1 GB where maps of every voxel would take 2.5 GB.

    Parameters
    ----------
    vectors : float32 ``(sets, z, nodes y, nodes x, re/im, coils)``; coils padded with zeros (`kernels.padded`).
    scale : float32 ``(sets, z, y, x)``.
    n_coils : without padding.
    """

    vectors: Float
    scale: Float
    n_coils: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(z, y, x)`` of the maps."""
        nz, ny, nx = self.scale.shape[1:]
        return nz, ny, nx

    @cached_property
    def nodes(self) -> tuple[kernels.Index, Float, kernels.Index, Float]:
        """Node below and distance from it in nodes, for every x, then for every y."""
        _, ny, nx = self.shape
        gy, gx = self.vectors.shape[2:4]
        return *_nodes(nx, gx), *_nodes(ny, gy)

    @cached_property
    def spans(self) -> kernels.Index:
        """First and last + 1 column with a map in every row: int32 ``(sets, z, y, 2)``."""
        inside = self.scale > 0
        first = np.argmax(inside, axis=-1)
        last = inside.shape[-1] - np.argmax(inside[..., ::-1], axis=-1)
        return np.stack([first, np.where(inside.any(axis=-1), last, first)], axis=-1).astype(np.int32)

    def full(self, number: int = 0, slices: slice = slice(None)) -> Complex:
        """One set of maps on every voxel, of some slices: complex64 ``(coils, z, y, x)``."""
        _, ny, nx = self.shape
        gy, gx = self.vectors.shape[2:4]
        nodes = self.vectors[number, slices, ..., : self.n_coils]
        complex_nodes = (nodes[..., 0, :] + 1j * nodes[..., 1, :]).astype(np.complex64)
        maps = np.einsum("Yy,zyxc,Xx->czYX", _linear(ny, gy), complex_nodes, _linear(nx, gx), optimize=True)
        return np.asarray(maps * self.scale[number, slices], np.complex64)


def signal_space(calibration: Complex, kernel: int, threshold: float, weighting: Weighting = "hard") -> Complex:
    """Orthonormal basis of the span of all ``kernel x kernel`` windows: complex64 ``(coils * kernel^2, rank)``.

    Steps: the windows are the rows of the calibration matrix; eigenvectors of the smaller Gram matrix whose singular
    value exceeds ``threshold`` times the largest span the signal space (eq. 7 of the paper). With soft weighting each
    vector is multiplied by the root of ``1 - (threshold sigma_1 / sigma)^2``, the part of its energy that is not noise.

    Parameters
    ----------
    calibration : complex64 ``(coils, y, x)``: fully sampled centre of k-space, not all zero.
    """
    windows = np.lib.stride_tricks.sliding_window_view(calibration, (kernel, kernel), axis=(1, 2))
    rows = windows.transpose(1, 2, 0, 3, 4).reshape(windows.shape[1] * windows.shape[2], -1)
    rows = rows / np.float32(np.linalg.norm(rows, np.inf))
    is_wide = rows.shape[0] < rows.shape[1]
    adjoint = rows.conj().T
    gram = rows @ adjoint if is_wide else adjoint @ rows
    lowest = threshold**2 * _largest_eigenvalue(gram)
    values, vectors = scipy.linalg.eigh(gram, subset_by_value=(lowest, np.inf), check_finite=False, driver="evr")
    if is_wide:
        vectors = adjoint @ (vectors / np.sqrt(values).astype(np.float32))
    if weighting == "soft":
        vectors = vectors * np.sqrt(1 - lowest / values)
    return np.asarray(vectors, np.complex64)


def _largest_eigenvalue(gram: Complex) -> float:
    """By the power method; the quotient converges twice as fast as the vector."""
    vector = np.ones(len(gram), np.complex64)
    for _ in range(50):
        vector = gram @ (vector / max(float(np.linalg.norm(vector)), SMALLEST))
    return float(np.real(np.vdot(vector, gram @ vector)) / max(float(np.real(np.vdot(vector, vector))), SMALLEST))


def kernel_coefficients(signal: Complex, n_coils: int, kernel: int) -> Complex:
    """Fourier coefficients of the per-pixel operator: complex64 ``(2k-1, 2k-1, coils, coils)``.

    The projector on the signal space, summed over equal displacements within the window, is the operator (eq. 13).
    """
    projector = (signal.conj() @ signal.T).reshape(n_coils, kernel, kernel, n_coils, kernel, kernel)
    coefficients = np.zeros((2 * kernel - 1, 2 * kernel - 1, n_coils, n_coils), np.complex64)
    add_displacements(coefficients, projector.transpose(1, 2, 4, 5, 0, 3), kernel)
    return np.asarray(coefficients / np.float32(kernel**2), np.complex64)


def add_displacements(coefficients: Any, projector: Any, kernel: int) -> None:
    """Sum a projector over equal displacements within the window; arrays of numpy and of torch alike.

    Parameters
    ----------
    coefficients : ``(..., 2k-1, 2k-1, coils, coils)``, added to; the displacement ``q - p`` lies at ``q - p + k - 1``.
    projector : ``(..., py, px, qy, qx, coils, coils)``.
    """
    for py in range(kernel):
        for px in range(kernel):
            y, x = (slice(kernel - 1 - p, 2 * kernel - 1 - p) for p in (py, px))
            coefficients[..., y, x, :, :] += projector[..., py, px, :, :, :, :]


def coil_maps(
    calibration: Complex,
    shape: tuple[int, int],
    *,
    kernel: int = 6,
    threshold: float = 0.02,
    crop: float = 0.95,
    map_size: int = 64,
    iterations: int = 100,
    n_sets: int = 1,
    weighting: Weighting = "hard",
    crew: Crew | None = None,
) -> CoilMaps:
    """Coil sensitivity maps of all slices.

    Parameters
    ----------
    calibration : complex64 ``(coils, z, y, x)``: centre of Cartesian k-space in plane, at least ``kernel`` wide.
    shape : ``(y, x)`` of the maps.
    kernel, threshold, crop : window size, relative singular value of the signal space, eigenvalue below which a voxel
        has no map.
    map_size : eigenvectors are computed on at most this many points per axis and interpolated.
    iterations : of the power method. Where the calibration leaves several eigenvalues near 1 (strong undersampling) the
        result depends on it; 100 is SigPy's number, and gives SigPy's image.
    n_sets : sets of maps, by falling eigenvalue (soft SENSE).
    weighting : ``soft`` weights singular vectors by their signal and lets maps fade where eigenvalues fall to `crop`.
    crew : works on several slices at a time.

    Returns
    -------
    Maps of unit norm over coils where the eigenvalue exceeds `crop`, else 0; the phase is that of the first coil, made
    real. Slices without any signal have no map.

    Raises
    ------
    ScanError : if the calibration region is not larger than the kernel, or not finite.
    """
    check_calibration(calibration, kernel)
    n_coils, nz = calibration.shape[:2]
    maps = empty_maps(nz, n_coils, shape, map_size, n_sets)
    coarse = (maps.vectors.shape[2], maps.vectors.shape[3])

    def one_slice(z: int) -> None:
        if np.abs(calibration[:, z]).max() > np.finfo(np.float32).tiny:  # smaller ones have no inverse
            signal = signal_space(calibration[:, z], kernel, threshold, weighting)
            operators = _operators(kernel_coefficients(signal, n_coils, kernel), shape, coarse)
            values = _eigenvectors(operators, iterations, maps.vectors[:, z])
            set_scale(maps, z, values, crop, weighting)

    (crew or InlineCrew()).each(one_slice, nz)
    return maps


def check_calibration(calibration: Complex, kernel: int) -> None:
    """Refuse a calibration ``(coils, z, y, x)`` that is not larger than the kernel, or not finite.

    Raises
    ------
    ScanError : if so.
    """
    if min(calibration.shape[2:]) <= kernel or not np.isfinite(calibration).all():
        raise ScanError(
            f"the calibration region {calibration.shape[2:]} cannot hold a kernel of {kernel}, or is not finite",
            hint="enlarge coils.calibration_size or choose coils.method = rss",
        )


def empty_maps(nz: int, n_coils: int, shape: tuple[int, int], map_size: int, n_sets: int) -> CoilMaps:
    """Maps of nothing, to be filled."""
    nodes = min(shape[0], map_size), min(shape[1], map_size)
    vectors = np.zeros((n_sets, nz, *nodes, 2, kernels.padded(n_coils)), np.float32)
    return CoilMaps(vectors, np.zeros((n_sets, nz, *shape), np.float32), n_coils)


def espirit_maps(
    calibration: Complex,
    shape: tuple[int, int],
    *,
    kernel: int = 6,
    threshold: float = 0.02,
    crop: float = 0.95,
    map_size: int = 64,
    iterations: int = 100,
    weighting: Weighting = "hard",
) -> Complex:
    """Maps of one slice on every voxel, complex64 ``(coils, y, x)``, from ``(coils, y, x)``; as `coil_maps`."""
    found = coil_maps(
        calibration[:, None],
        shape,
        kernel=kernel,
        threshold=threshold,
        crop=crop,
        map_size=map_size,
        iterations=iterations,
        weighting=weighting,
    )
    return found.full()[:, 0]


def node_waves(size: int, shape: tuple[int, int], coarse: tuple[int, int]) -> tuple[Complex, Complex]:
    """Waves of every displacement at the nodes: complex64 ``(nodes y, size)`` and ``(nodes x, size)``.

    They run against the order of `add_displacements`, for the operator (eq. 13) has ``p - q``.
    """
    lag = size // 2 - np.arange(size)
    y, x = (
        np.exp(2j * np.pi * np.outer((_positions(n, c) - n // 2) / n, lag)).astype(np.complex64)
        for n, c in zip(shape, coarse, strict=True)
    )
    return y, x


def _operators(coefficients: Complex, shape: tuple[int, int], coarse: tuple[int, int]) -> Float:
    """Operator at every node: float32 ``(points, coils, re/im, coils)``, coils padded with zeros."""
    size, n_coils = coefficients.shape[0], coefficients.shape[-1]
    wave_y, wave_x = node_waves(size, shape, coarse)
    rows = (wave_y @ coefficients.reshape(size, -1)).reshape(coarse[0], size, -1)
    operators = (wave_x @ rows).reshape(-1, n_coils, n_coils)
    width = kernels.padded(n_coils)
    out = np.zeros((len(operators), width, 2, width), np.float32)
    out[:, :n_coils, 0, :n_coils] = operators.real
    out[:, :n_coils, 1, :n_coils] = operators.imag
    return out


def _eigenvectors(operators: Float, iterations: int, vectors: Float) -> Float:
    """Fill ``(sets, nodes y, nodes x, re/im, coils)``, first coil made real; gives the eigenvalues at the nodes."""
    n_sets, gy, gx = vectors.shape[:3]
    flat = np.empty((n_sets, gy * gx, *vectors.shape[3:]), np.float32)
    values = np.empty((n_sets, gy * gx), np.float32)
    kernels.power(operators, iterations, n_sets, flat, values)
    re, im = flat[..., 0, :], flat[..., 1, :]
    first = re[..., :1] + 1j * im[..., :1]
    size = np.abs(first)
    turned = (re + 1j * im) * np.where(size > 0, first.conj() / np.maximum(size, SMALLEST), 1)
    vectors[..., 0, :], vectors[..., 1, :] = (part.reshape(n_sets, gy, gx, -1) for part in (turned.real, turned.imag))
    return values.reshape(n_sets, gy, gx)


def set_scale(maps: CoilMaps, z: int, values: Float, crop: float, weighting: Weighting) -> None:
    """Scale of one slice: unit norm, times how much the voxel counts."""
    length, value = (np.empty(maps.shape[1:], np.float32) for _ in range(2))
    for number in range(len(values)):
        kernels.interpolate(maps.vectors[number, z], values[number], *maps.nodes, length, value)
        inside = (value > crop) & (length > 0)
        unit = np.where(inside, 1 / np.where(inside, length, 1), 0)
        maps.scale[number, z] = unit * np.clip((value - crop) / (1 - crop), 0, 1) if weighting == "soft" else unit


def _positions(n: int, n_coarse: int) -> NDArray[np.float64]:
    """Positions of nodes along one axis in fractional voxel indices; every voxel when they are not fewer."""
    return np.linspace(0, n - 1, n_coarse) if n_coarse < n else np.arange(n, dtype=np.float64)


def _nodes(n: int, n_coarse: int) -> tuple[kernels.Index, Float]:
    """Node below every voxel (never the last) and the distance from it, in nodes."""
    place = np.arange(n) * ((n_coarse - 1) / max(n - 1, 1))
    node = np.clip(np.floor(place + 1e-9).astype(np.int32), 0, max(n_coarse - 2, 0))
    return node, np.asarray(place - node, np.float32)


def _linear(n: int, n_coarse: int) -> Float:
    """Interpolation matrix ``(n, n_coarse)`` from nodes to every voxel."""
    points = _positions(n, n_coarse)
    return np.stack([np.interp(np.arange(n), points, unit) for unit in np.eye(n_coarse)], axis=1).astype(np.float32)
