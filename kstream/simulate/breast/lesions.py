"""Takes a random generator, gives enhancing masses: closed star-shaped surfaces with kinetics of their own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Shape = Literal["smooth", "lobulated", "irregular", "spiculated"]
Kinetics = Literal["washout", "plateau", "persistent"]
Array = NDArray[np.float64]

_N_QUADRATURE = 20_000


def fibonacci_sphere(count: int) -> NDArray[np.float64]:
    """Nearly uniform unit vectors ``(count, xyz)``."""
    index = np.arange(count) + 0.5
    height = 1.0 - 2.0 * index / count
    angle = np.pi * (1.0 + np.sqrt(5.0)) * index
    ring = np.sqrt(1.0 - height**2)
    return np.stack([ring * np.cos(angle), ring * np.sin(angle), height], axis=1)


@dataclass(frozen=True, eq=False)
class Lesion:
    """One mass: where it is, its surface, and how it takes up contrast agent.

    In direction u the surface lies at ``scale * ellipsoid(u) * (1 + sum_j a_j exp(kappa_j (u . d_j - 1)))``:
    few broad bumps make a lobulated margin, many narrow ones an irregular or a spiculated one.

    Parameters
    ----------
    centre_mm : LPS.
    diameter_mm : of the sphere of equal volume.
    shape, kinetics : class names.
    ktrans_per_min, ve, vp : extended Tofts parameters of the enhancing tissue.
    rim : 0 (homogeneous) to 1 (core hardly enhances).
    axes : relative semi-axes of the underlying ellipsoid (xyz).
    directions, amplitudes, sharpness : bumps, ``(bumps, xyz)``, ``(bumps,)``, ``(bumps,)``.
    is_malignant : malignant masses are labelled; benign ones are not.
    """

    centre_mm: tuple[float, float, float]
    diameter_mm: float
    shape: Shape
    kinetics: Kinetics
    ktrans_per_min: float
    ve: float
    vp: float
    rim: float
    axes: NDArray[np.float64]
    directions: NDArray[np.float64]
    amplitudes: NDArray[np.float64]
    sharpness: NDArray[np.float64]
    is_malignant: bool = True

    def _relative_radius(self, unit: NDArray[np.floating]) -> NDArray[np.floating]:
        relative = 1.0 / np.sqrt(np.square(unit / self.axes.astype(unit.dtype)).sum(axis=-1))
        bumps = np.zeros_like(relative)
        for direction, amplitude, kappa in zip(self.directions, self.amplitudes, self.sharpness, strict=True):
            cosine = unit @ direction.astype(unit.dtype)
            bumps += amplitude * np.exp(unit.dtype.type(kappa) * (cosine - 1))
        return np.asarray(relative * np.maximum(1.0 + bumps, 0.25))

    @cached_property
    def _scale_mm(self) -> float:
        mean_cube = float(np.mean(self._relative_radius(fibonacci_sphere(_N_QUADRATURE)) ** 3))
        return float(0.5 * self.diameter_mm / np.cbrt(mean_cube))

    @cached_property
    def reach_mm(self) -> float:
        """Largest distance of the surface from the centre."""
        return 1.03 * self._scale_mm * float(self._relative_radius(fibonacci_sphere(_N_QUADRATURE)).max())

    @property
    def volume_ml(self) -> float:
        """Analytic volume (that of the equivalent sphere, by construction of the scale)."""
        return float(np.pi / 6.0 * self.diameter_mm**3 * 1e-3)

    def polar(
        self, x: NDArray[np.floating], y: NDArray[np.floating], z: NDArray[np.floating]
    ) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Distance from the centre and distance of the surface in the same direction, in millimetres."""
        offset = np.stack([x, y, z], axis=-1) - np.asarray(self.centre_mm, dtype=x.dtype)
        distance = np.linalg.norm(offset, axis=-1)
        offset[..., 2] += np.where(distance < 1e-6, 1e-6, 0.0)  # the centre has no direction: take any
        unit = offset / np.maximum(distance, 1e-6)[..., None].astype(x.dtype)
        return distance, self._relative_radius(unit) * x.dtype.type(self._scale_mm)

    def uptake(self, relative_depth: NDArray[np.floating]) -> NDArray[np.floating]:
        """Ktrans relative to the nominal one, from distance over surface distance (0 centre, 1 margin)."""
        margin = 1.0 / (1.0 + np.exp(-(relative_depth - 0.62) / 0.07))
        return np.asarray(1.0 + self.rim * (0.25 * margin - 0.85 * (1.0 - margin)))


def random_directions(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Uniform random unit vectors ``(count, xyz)``."""
    vectors = rng.standard_normal((count, 3))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _bumps(rng: np.random.Generator, count: int, low: float, high: float, kappa: tuple[float, float]) -> list[Array]:
    return [random_directions(rng, count), rng.uniform(low, high, count), rng.uniform(*kappa, count)]


def random_surface(rng: np.random.Generator, shape: Shape) -> tuple[Array, Array, Array, Array]:
    """Axes, directions, amplitudes and sharpness of a margin of the given class."""
    axes = rng.uniform(0.8, 1.25, 3)
    parts = [_bumps(rng, 2, -0.08, 0.08, (2.0, 4.0))]
    if shape == "lobulated":
        parts.append(_bumps(rng, int(rng.integers(4, 7)), 0.25, 0.5, (5.0, 10.0)))
    if shape in ("irregular", "spiculated"):
        parts.append(_bumps(rng, 10, -0.3, 0.45, (6.0, 22.0)))
    if shape == "spiculated":
        parts.append(_bumps(rng, int(rng.integers(10, 18)), 0.5, 1.1, (60.0, 140.0)))
    directions, amplitudes, sharpness = (np.concatenate(column) for column in zip(*parts, strict=True))
    return axes, directions, amplitudes, sharpness


_KINETICS: dict[Kinetics, tuple[tuple[float, float], tuple[float, float]]] = {
    # class: range of Ktrans (1/min), range of kep (1/min)
    "washout": ((0.35, 0.85), (2.2, 3.6)),
    "plateau": ((0.22, 0.45), (0.80, 1.10)),
    "persistent": ((0.12, 0.22), (0.25, 0.45)),
}


def random_kinetics(rng: np.random.Generator, kinetics: Kinetics) -> tuple[float, float, float]:
    """Ktrans (1/min), ve and vp of a mass of the given class of signal curve."""
    (low, high), (slow, fast) = _KINETICS[kinetics]
    ktrans, kep = rng.uniform(low, high), rng.uniform(slow, fast)
    return float(ktrans), float(np.clip(ktrans / kep, 0.12, 0.6)), float(rng.uniform(0.01, 0.06))


def random_malignant(rng: np.random.Generator, centre_mm: tuple[float, float, float], diameter_mm: float) -> Lesion:
    """A malignant mass: margin, kinetics and rim enhancement at frequencies near those of clinical series."""
    shape: Shape = rng.choice(["smooth", "lobulated", "irregular", "spiculated"], p=[0.15, 0.25, 0.3, 0.3])
    kinetics: Kinetics = rng.choice(["washout", "plateau", "persistent"], p=[0.5, 0.35, 0.15])
    rim = float(rng.uniform(0.4, 0.9)) if rng.random() < (0.5 if diameter_mm > 14 else 0.15) else 0.0
    surface = random_surface(rng, shape)
    return Lesion(centre_mm, diameter_mm, str(shape), str(kinetics), *random_kinetics(rng, kinetics), rim, *surface)  # type: ignore[arg-type]


def random_benign(rng: np.random.Generator, centre_mm: tuple[float, float, float], diameter_mm: float) -> Lesion:
    """A benign mass (focus or fibroadenoma): smooth margin, slow persistent uptake."""
    ktrans = float(rng.uniform(0.035, 0.12))
    ve = float(rng.uniform(0.3, 0.5))
    surface = random_surface(rng, "smooth")
    return Lesion(centre_mm, diameter_mm, "smooth", "persistent", ktrans, ve, 0.01, 0.0, *surface, is_malignant=False)
