"""Takes where a heart lies in the chest, gives the planes that a cardiac examination plans on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...types import Float, Geometry, Vector

LONG_AXIS_VIEWS = ("4ch", "2ch", "3ch")
_LONG_AXIS_RAD = {"4ch": -0.25, "2ch": 1.55, "3ch": 0.85}
"""Angle of the plane from the septum towards anterior."""


@dataclass(frozen=True)
class HeartPlace:
    """Where heart coordinates lie in the patient (LPS, millimetres).

    Parameters
    ----------
    base_mm : centre of the mitral plane at end-diastole.
    axis : unit vector from the base to the apex (s).
    septal, anterior : unit vectors of u and v.
    """

    base_mm: NDArray[np.float64]
    axis: NDArray[np.float64]
    septal: NDArray[np.float64]
    anterior: NDArray[np.float64]

    @classmethod
    def random(cls, rng: np.random.Generator, length_mm: float) -> HeartPlace:
        """A heart whose apex points left, anterior and down, turned a little from person to person."""
        axis = _unit(np.array([0.66, -0.53, -0.53]) + 0.07 * rng.standard_normal(3))
        down = _unit(np.array([0.0, 0.0, -1.0]) - axis * -axis[2])
        right = np.cross(down, axis)  # towards the right of the patient, in the short-axis plane
        turn = float(rng.normal(0.30, 0.12))
        septal = np.cos(turn) * right - np.sin(turn) * down
        apex = np.array([68.0, -52.0, -38.0]) + rng.normal(0, 1, 3) * (6.0, 4.0, 6.0)
        return cls(apex - length_mm * axis, axis, septal, _unit(np.cross(septal, axis)))

    def at(self, position_mm: tuple[Float, Float, Float], shift_mm: Vector = (0.0, 0.0, 0.0)) -> tuple[Float, ...]:
        """Heart coordinates ``u, v, s`` of patient positions, of a heart that is shifted (by breathing)."""
        origin = self.base_mm + np.asarray(shift_mm)
        x, y, z = (p - np.float32(o) for p, o in zip(position_mm, origin, strict=True))
        return tuple(
            x * np.float32(d[0]) + y * np.float32(d[1]) + z * np.float32(d[2])
            for d in (self.septal, self.anterior, self.axis)
        )

    def point(self, u: float, v: float, s: float) -> NDArray[np.float64]:
        """Patient position of heart coordinates."""
        return np.asarray(self.base_mm + u * self.septal + v * self.anterior + s * self.axis)


@dataclass(frozen=True)
class View:
    """One plane: its name (``4ch``, ``2ch``, ``3ch``, ``sax0`` at the base, ``sax1`` ...) and where it lies."""

    name: str
    geometry: Geometry

    @property
    def is_short_axis(self) -> bool:
        return self.name.startswith("sax")


def plan_views(
    place: HeartPlace,
    length_mm: float,
    names: tuple[str, ...],
    matrix: tuple[int, int],
    field_of_view_mm: tuple[float, float],
    thickness_mm: float,
    rng: np.random.Generator | None = None,
) -> tuple[View, ...]:
    """Planes of a heart of a length at end-diastole; `rng` lets the operator's hand be a little unsteady.

    Short axes share the length of the ventricle evenly, so Simpson's sum has ``length / number`` as slice distance.
    """
    n_short = sum(name.startswith("sax") for name in names)
    jitter = np.zeros(2) if rng is None else rng.normal(0.0, 2.0, 2)
    views = []
    for name in names:
        if name.startswith("sax"):
            s = (int(name[3:]) + 0.5) / n_short * length_mm
            geometry = _short_axis(place, s, matrix, field_of_view_mm, thickness_mm, jitter)
        else:
            angle = _LONG_AXIS_RAD[name]
            geometry = _long_axis(place, angle, 0.38 * length_mm, matrix, field_of_view_mm, thickness_mm, jitter)
        views.append(View(name, geometry))
    return tuple(views)


def view_names(n_short_axis: int, n_long_axis: int) -> tuple[str, ...]:
    """Long axes first, then short axes from base to apex."""
    return (*LONG_AXIS_VIEWS[:n_long_axis], *(f"sax{i}" for i in range(n_short_axis)))


def _short_axis(
    place: HeartPlace,
    s_mm: float,
    matrix: tuple[int, int],
    field_of_view_mm: tuple[float, float],
    thickness_mm: float,
    jitter: NDArray[np.float64],
) -> Geometry:
    """Seen from the apex: the right ventricle on the left of the picture, anterior at its top."""
    down = _unit(np.array([0.0, 0.0, -1.0]) + place.axis * place.axis[2])
    across = np.cross(down, -place.axis)
    centre = place.point(12.0 + jitter[0], jitter[1], s_mm)
    return _geometry(centre, across, down, matrix, field_of_view_mm, thickness_mm)


def _long_axis(
    place: HeartPlace,
    angle_rad: float,
    s_mm: float,
    matrix: tuple[int, int],
    field_of_view_mm: tuple[float, float],
    thickness_mm: float,
    jitter: NDArray[np.float64],
) -> Geometry:
    """The plane through the axis at an angle from the septum, apex at the top of the picture."""
    septal = np.cos(angle_rad) * place.septal + np.sin(angle_rad) * place.anterior
    centre = place.point(0.0, 0.0, s_mm) + septal * (8.0 + jitter[0])
    return _geometry(centre, -septal, -place.axis, matrix, field_of_view_mm, thickness_mm)


def _geometry(
    centre: NDArray[np.float64],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    matrix: tuple[int, int],
    field_of_view_mm: tuple[float, float],
    thickness_mm: float,
) -> Geometry:
    return Geometry(
        (*matrix, 1), (*field_of_view_mm, thickness_mm), _vector(centre), _vector(x), _vector(y),
        _vector(np.cross(x, y)),
    )  # fmt: skip


def _vector(values: NDArray[np.float64]) -> Vector:
    return float(values[0]), float(values[1]), float(values[2])


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vector / np.linalg.norm(vector))
