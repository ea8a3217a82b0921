"""Takes the layout of a breast coil, gives receive sensitivities and correlated receiver noise.

Sensitivities are those of circular loops in the quasi-static limit (closed form of Biot and Savart's law),
evaluated on a coarse grid and interpolated by cubic splines to the grid that the scanner samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.special import ellipe, ellipk

from ..errors import ConfigError
from ..types import Complex

Points = NDArray[np.floating]


@dataclass(frozen=True)
class Loop:
    """A circular receive loop.

    Parameters
    ----------
    centre_mm : LPS.
    normal : unit vector, LPS.
    radius_mm : of the loop.
    wire_mm : radius of the conductor, which bounds the field next to it.
    """

    centre_mm: NDArray[np.float64]
    normal: NDArray[np.float64]
    radius_mm: float
    wire_mm: float = 4.0


def loop_field(loop: Loop, points_mm: Points) -> NDArray[np.float64]:
    """Magnetic field of a loop that carries a steady current, relative to the field at the loop's centre.

    Parameters
    ----------
    points_mm : ``(..., xyz)``, LPS.

    Returns
    -------
    ``(..., xyz)``, dimensionless: on the axis at distance d it is ``a^3 / (a^2 + d^2)^(3/2)`` along the normal.

    References
    ----------
    Smythe, Static and Dynamic Electricity (1950), section 7.10, equations 6 and 7.
    """
    offset = np.asarray(points_mm, dtype=np.float64) - loop.centre_mm
    height = offset @ loop.normal
    radial = offset - height[..., None] * loop.normal
    rho = np.linalg.norm(radial, axis=-1)
    a = loop.radius_mm
    outer = (a + rho) ** 2 + height**2
    inner = (a - rho) ** 2 + height**2 + loop.wire_mm**2 * np.exp(-((a - rho) ** 2 + height**2) / loop.wire_mm**2)
    modulus = np.clip(4.0 * a * rho / outer, 0.0, 1.0 - 1e-9)
    k, e = ellipk(modulus), ellipe(modulus)
    scale = a / (np.pi * np.sqrt(outer))
    along = scale * (k + (a**2 - rho**2 - height**2) / inner * e)
    safe_rho = np.where(rho > 1e-6 * a, rho, 1.0)
    across = scale * height / safe_rho * (-k + (a**2 + rho**2 + height**2) / inner * e)
    across = np.where(rho > 1e-6 * a, across, 0.0)
    return np.asarray(along[..., None] * loop.normal + (across / safe_rho)[..., None] * radial)


def receive_sensitivity(field: Points) -> NDArray[np.complex128]:
    """Complex receive field ``B1- = Bx - i By`` for a main field along z (reciprocity).

    References
    ----------
    Hoult, Concepts Magn Reson 12:173 (2000).
    """
    return np.asarray(field[..., 0] - 1j * field[..., 1])


def breast_array(n_coils: int) -> list[Loop]:
    """Loops on the anterior half of an ellipsoid around both breasts, spread by a Fibonacci lattice, normals inwards.

    Their radius shrinks with their number, so that neighbours always overlap a little.
    """
    if n_coils < 1:
        raise ConfigError(f"a receive array needs at least one coil, got {n_coils}", hint="set n_coils to 8")
    semi_axes = np.array([165.0, 140.0, 95.0])
    centre = np.array([0.0, 5.0, 0.0])
    radius_mm = float(np.clip(210.0 / np.sqrt(n_coils), 25.0, 90.0))
    loops = []
    for index in range(n_coils):
        anterior = 0.06 + 0.94 * (index + 0.5) / n_coils
        angle = 2.0 * np.pi * (index * 0.6180339887498949 + 0.11)
        ring = np.sqrt(1.0 - anterior**2)
        on_sphere = np.array([ring * np.cos(angle), -anterior, ring * np.sin(angle)])
        inwards = -on_sphere / semi_axes
        loops.append(Loop(centre + semi_axes * on_sphere, inwards / np.linalg.norm(inwards), radius_mm))
    return loops


def spline_matrix(coarse: NDArray[np.floating], fine: NDArray[np.floating]) -> NDArray[np.float32]:
    """Matrix ``(fine, coarse)`` of natural cubic spline interpolation between ascending knots."""
    spline = CubicSpline(coarse, np.eye(len(coarse)), bc_type="natural")
    return np.asarray(spline(fine), dtype=np.float32)


@dataclass(frozen=True)
class CoilArray:
    """Sensitivities on a coarse grid over the field of view, and the way to a fine grid.

    Parameters
    ----------
    coarse : complex64 ``(coils, z, y, x)``.
    to_fine : spline matrices along z, y and x.
    noise_covariance : complex128 ``(coils, coils)`` with unit mean diagonal.
    """

    coarse: Complex
    to_fine: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
    noise_covariance: NDArray[np.complex128]

    @property
    def n_coils(self) -> int:
        return int(self.coarse.shape[0])

    def sensitivity(self, coil: int) -> Complex:
        """Sensitivity of one coil on the fine grid: complex64 ``(z, y, x)``."""
        z, y, x = (m.astype(np.complex64) for m in self.to_fine)
        rows = np.einsum("yj,zjx->zyx", y, np.einsum("zk,kjx->zjx", z, self.coarse[coil], optimize=True), optimize=True)
        return np.asarray(rows @ x.T, dtype=np.complex64)


def noise_covariance(sensitivities: NDArray[np.complexfloating], rng: np.random.Generator) -> NDArray[np.complex128]:
    """A plausible receiver noise covariance: shared flux between loops, cross-talk and unequal amplifiers.

    Noise from the body couples coils in proportion to the overlap of their fields (Roemer et al., Magn Reson Med
    16:192 (1990), equation 12); a random mixing matrix stands for cross-talk.

    Parameters
    ----------
    sensitivities : ``(coils, ...)``.

    Returns
    -------
    Hermitian positive definite ``(coils, coils)`` with unit mean diagonal.
    """
    flat = sensitivities.reshape(sensitivities.shape[0], -1).astype(np.complex128)
    gram = flat @ flat.conj().T
    level = np.sqrt(np.real(np.diag(gram)))
    n = len(level)
    body = 0.35 * np.eye(n) + 0.65 * gram / np.outer(level, level)
    crosstalk = rng.standard_normal((n, n)) + 1j * rng.standard_normal((n, n))
    gain = np.exp(0.15 * rng.standard_normal(n))
    mixing = gain[:, None] * (np.eye(n) + 0.06 * crosstalk)
    covariance = mixing @ body @ mixing.conj().T
    return np.asarray(covariance / np.real(np.trace(covariance)) * n)


def correlated_noise(covariance: NDArray[np.complex128], shape: tuple[int, ...], rng: np.random.Generator) -> Complex:
    """Circular complex Gaussian noise ``(*shape[:-1], coils, shape[-1])`` with the given covariance between coils.

    ``E[n n^H] = covariance``; real and imaginary parts share the variance equally.
    """
    root = (np.linalg.cholesky(covariance) * np.sqrt(0.5)).astype(np.complex64)
    size = (*shape[:-1], len(covariance), shape[-1])
    white = np.empty(size, dtype=np.complex64)
    white.real = rng.standard_normal(size, dtype=np.float32)
    white.imag = rng.standard_normal(size, dtype=np.float32)
    return np.asarray(root @ white)
