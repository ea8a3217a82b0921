"""Takes a subject, gives the shape of the beating heart as functions of position and phase.

Heart coordinates ``(u, v, s)`` in millimetres: s along the axis of the left ventricle from the mitral plane (0) towards
the apex, u from the axis towards the septum and the right ventricle, v towards anterior; ``theta`` counts from u to v.

- **Left ventricle**: cavity and outer surface are ellipsoids of revolution about the axis, cut by the mitral plane.
  Radii are multiplied by ``m(theta)`` whose mean square is 1, so that an oval or a weak territory changes no volume.
  The wall keeps its volume: it thickens as the cavity empties. The apex rests; the mitral plane moves.
- **Right ventricle**: a crescent on the outer surface, between the insertions ``|theta| < width``, as deep as its
  volume asks for.
- **Atria**: ellipsoids behind the valve plane.

Volumes are therefore those of `HeartSubject` exactly; `HeartShape` at a phase is what phenotypes are the truth of.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import i0e

from ...output.phenotypes import DENSITY_G_PER_ML
from ...types import Float
from .cycle import HeartCycle
from .subject import HeartSubject, draw_subject

_EQUATOR = 0.15  # of the length: where the ellipsoid is widest
_APEX_WALL = 0.75  # wall at the apex over that of the sides
_RV_LENGTH = 0.93  # of the left ventricle's outer length
_QUADRATURE = 64
_WEAKNESS_SHARPNESS = 2.5
RV_WALL_MM = 3.0

Depths = dict[str, Float]


def _cut_share(equator: float) -> float:
    """Volume of the cut ellipsoid over ``pi R^2 L``."""
    return 1.0 - ((1 - equator) ** 3 + equator**3) / (3 * (1 - equator) ** 2)


@dataclass(frozen=True)
class HeartForm:
    """What of a heart's shape does not change over the beat.

    Parameters
    ----------
    length_mm : of the left ventricle's cavity at end-diastole.
    oval, oval_rad : strength and direction of the left ventricle's oval.
    rv_width_rad : half of the angle over which the right ventricle lies on the left.
    rv_power : how full the crescent is towards its insertions.
    atrial_shapes : semi-axes of the left and the right atrium along u, v, s for a volume of 1 mm^3.
    """

    length_mm: float
    oval: float
    oval_rad: float
    rv_width_rad: float
    rv_power: float
    atrial_shapes: tuple[tuple[float, float, float], tuple[float, float, float]]

    @classmethod
    def random(cls, rng: np.random.Generator, subject: HeartSubject) -> HeartForm:
        slenderness = float(rng.normal(1.0, 0.045))
        length = 17.6 * subject.lv_edv_ml ** (1 / 3) * slenderness
        shapes = []
        for u, v, s in ((0.90, 1.12, 1.0), (0.92, 1.08, 1.0)):
            axes = np.array([u, v, s]) * np.exp(0.06 * rng.standard_normal(3))
            axes *= (3.0 / (4.0 * np.pi * axes.prod())) ** (1 / 3)
            shapes.append((float(axes[0]), float(axes[1]), float(axes[2])))
        return cls(
            length_mm=length,
            oval=float(rng.uniform(0.0, 0.10)),
            oval_rad=float(rng.uniform(-0.4, 0.4) + np.pi / 2),
            rv_width_rad=float(rng.normal(1.36, 0.05)),
            rv_power=float(rng.uniform(0.60, 0.85)),
            atrial_shapes=(shapes[0], shapes[1]),
        )


@dataclass(frozen=True)
class HeartShape:
    """The heart at one phase: sizes in millimetres, and depths below its surfaces.

    Parameters
    ----------
    phase : 0 to 1.
    shift_mm : distance that the mitral plane has moved towards the apex since end-diastole.
    length, radius, wall : of the left ventricle.
    weakness : strength of the territory that moves in less, towards `territory_rad`.
    rv_depth : of the crescent at its middle and base.
    atria : centre along u, v, s and semi-axes of left and right atrium.
    """

    form: HeartForm
    phase: float
    contraction: float
    shift_mm: float
    length: float
    radius: float
    wall: float
    weakness: float
    territory_rad: float
    rv_depth: float
    atria: tuple[tuple[NDArray[np.float64], NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]

    @property
    def outer_length(self) -> float:
        return self.length + _APEX_WALL * self.wall

    def _modulation(self, theta: Float, weakness: float) -> Float:
        """Factor of the squared radius at an angle; its mean over all angles is 1."""
        factor = 1.0 + self.form.oval * np.cos(2.0 * (theta - np.float32(self.form.oval_rad)))
        if weakness:
            k = _WEAKNESS_SHARPNESS
            bump = np.exp(np.float32(k) * (np.cos(theta - np.float32(self.territory_rad)) - 1.0)) - np.float32(i0e(k))
            factor = factor + np.float32(weakness) * bump
        return np.asarray(factor, dtype=np.float32)

    def _outer_radius(self, s: Float, theta: Float) -> Float:
        """Distance of the outer surface of the left ventricle from the axis; 0 beyond its apex."""
        centre = _EQUATOR * self.length
        along = 1.0 - ((s - np.float32(centre)) / np.float32(self.outer_length - centre)) ** 2
        squared = np.float32((self.radius + self.wall) ** 2) * np.maximum(along, 0) * self._outer_modulation(theta)
        return np.asarray(np.sqrt(squared), dtype=np.float32)

    def _outer_modulation(self, theta: Float) -> Float:
        return self._modulation(theta, 0.3 * self.weakness)

    def _ellipsoid_depth(self, r: Float, s: Float, radius: float, end: float, modulation: Float) -> Float:
        """Distance below a cut ellipsoid of revolution, to first order."""
        centre = _EQUATOR * self.length
        a, b = np.float32(1.0 / radius**2) / modulation, np.float32(1.0 / (end - centre) ** 2)
        ds = s - np.float32(centre)
        gauge = r * r * a + ds * ds * b
        slope = 2.0 * np.sqrt((r * a) ** 2 + (ds * b) ** 2)
        depth = (1.0 - gauge) / np.maximum(slope, np.float32(1.0 / radius))
        return np.asarray(np.minimum(depth, s), np.float32)

    def depths(self, u: Float, v: Float, s: Float) -> Depths:
        """Distance in millimetres below the surface of each part (negative outside), at heart coordinates.

        ``lv`` cavity, ``epicardium`` (cavity and wall), ``rv``, ``rv_wall`` (cavity and wall), ``la``, ``ra``,
        ``papillary``.
        """
        s = s - np.float32(self.shift_mm)
        r = np.sqrt(u * u + v * v)
        theta = np.arctan2(v, u)
        lv = self._ellipsoid_depth(r, s, self.radius, self.length, self._modulation(theta, self.weakness))
        outer = self._ellipsoid_depth(r, s, self.radius + self.wall, self.outer_length, self._outer_modulation(theta))
        rv, rv_wall = self._right_ventricle(r, theta, s, outer)
        la, ra = (_ellipsoid(u, v, s, centre, axes) for centre, axes in self.atria)
        return {
            "lv": lv, "epicardium": outer, "rv": rv, "rv_wall": rv_wall, "la": la, "ra": ra,
            "papillary": np.minimum(self._papillary(u, v, s), lv),
        }  # fmt: skip

    def _crescent(self, s: Float, theta: Float) -> Float:
        """Depth of the right ventricle over the outer surface of the left, in units of `rv_depth`."""
        along = np.clip(1.0 - s / np.float32(_RV_LENGTH * self.outer_length), 0.0, 1.0)
        across = np.clip(np.cos(theta * np.float32(0.5 * np.pi / self.form.rv_width_rad)), 0.0, 1.0)
        across = np.where(np.abs(theta) < np.float32(self.form.rv_width_rad), across, 0.0)
        taper = along ** np.float32(0.62)
        return np.asarray(taper * across ** np.float32(self.form.rv_power), dtype=np.float32)

    def _right_ventricle(self, r: Float, theta: Float, s: Float, outer: Float) -> tuple[Float, Float]:
        """Depth below the cavity, and below cavity and free wall together."""
        crescent = self._crescent(s, theta)
        surface = self._outer_radius(s, theta) + np.float32(self.rv_depth) * crescent
        free = (surface - r) * np.float32(0.9)  # the free wall is not at right angles to the radius
        free = np.where(crescent > 0, free, np.float32(-99.0))
        rv = np.minimum(np.minimum(free, -outer), s)
        end = np.float32(_RV_LENGTH * self.outer_length) - s
        return np.minimum(rv, end), np.minimum(np.minimum(free, s), end) + np.float32(RV_WALL_MM)

    def _papillary(self, u: Float, v: Float, s: Float) -> Float:
        """Two muscles in the cavity, at its anterolateral and its posteromedial wall."""
        depth = np.full_like(u, -99.0)
        distance = 0.60 * self.radius
        thickness = 4.6 + 1.2 * self.contraction
        for angle in (2.2, -2.2):
            du, dv = u - np.float32(distance * np.cos(angle)), v - np.float32(distance * np.sin(angle))
            middle, half = 0.55 * self.length, 0.22 * self.length
            ends = np.float32(half) - np.abs(s - np.float32(middle))
            depth = np.maximum(depth, np.minimum(np.float32(thickness) - np.sqrt(du * du + dv * dv), ends))
        return depth

    def lv_volume_ml(self) -> float:
        """Volume of the left ventricle's cavity."""
        return float(np.pi * self.radius**2 * self.length * _cut_share(_EQUATOR)) / 1000


def _ellipsoid(u: Float, v: Float, s: Float, centre: NDArray[np.float64], axes: NDArray[np.float64]) -> Float:
    offsets = [(x - np.float32(c)) for x, c in zip((u, v, s), centre, strict=True)]
    inverse = [np.float32(1.0 / a) for a in axes]
    squared = [(x * i) ** 2 for x, i in zip(offsets, inverse, strict=True)]
    gauge = squared[0] + squared[1] + squared[2]
    slope = 2.0 * np.sqrt(sum(q * i * i for q, i in zip(squared, inverse, strict=True)))
    return np.asarray((1.0 - gauge) / np.maximum(slope, np.float32(1.0 / axes.max())), dtype=np.float32)


class BeatingHeart:
    """One subject's heart: `shape` gives it at any phase.

    Parameters
    ----------
    seed : subject and form follow from it.
    """

    def __init__(self, seed: int) -> None:
        subject_rng, form_rng = (np.random.default_rng(s) for s in np.random.SeedSequence([seed, 9]).spawn(2))
        self.seed = seed
        self.subject = draw_subject(subject_rng)
        self.form = HeartForm.random(form_rng, self.subject)
        self.cycle = HeartCycle.of_heart_rate(self.subject.heart_rate_bpm)

    def shape(self, phase: float) -> HeartShape:
        """The heart at a phase of the beat."""
        subject, form = self.subject, self.form
        contraction = self.cycle.contraction(phase)
        volume = 1000.0 * (subject.lv_edv_ml + contraction * (subject.lv_esv_ml - subject.lv_edv_ml))
        length = form.length_mm * (1.0 - subject.longitudinal_shortening * contraction)
        radius = float(np.sqrt(volume / (np.pi * length * _cut_share(_EQUATOR))))
        shift = form.length_mm - length
        wall = self._wall(radius, length, volume)
        filling = self.cycle.atrial_filling(phase)
        without_right = HeartShape(
            form, phase, contraction, shift, length, radius, wall,
            weakness=0.55 * max(subject.hypokinesia - 0.5, 0.0) * 2.0 * contraction,
            territory_rad=subject.territory_rad, rv_depth=0.0, atria=_nowhere(),
        )  # fmt: skip
        right_volume = 1000.0 * (subject.rv_edv_ml + contraction * (subject.rv_esv_ml - subject.rv_edv_ml))
        rv_depth = _right_depth(without_right, right_volume)
        la = 1000.0 * (subject.la_min_ml + filling * (subject.la_max_ml - subject.la_min_ml))
        ra = 1000.0 * (subject.ra_min_ml + filling * (subject.ra_max_ml - subject.ra_min_ml))
        atria = self._atria(la, ra, radius + wall + 0.45 * rv_depth)
        return HeartShape(
            form, phase, contraction, shift, length, radius, wall, without_right.weakness, subject.territory_rad,
            rv_depth, atria,
        )  # fmt: skip

    def _wall(self, radius: float, length: float, volume_mm3: float) -> float:
        """Thickness at which the wall has its mass."""
        whole = volume_mm3 + 1000.0 * self.subject.lv_mass_g / DENSITY_G_PER_ML

        def missing(wall: float) -> float:
            end = length + _APEX_WALL * wall
            return float(np.pi * (radius + wall) ** 2 * end * _cut_share(_EQUATOR * length / end)) - whole

        return float(brentq(missing, 0.5, 60.0, xtol=1e-6))

    def _atria(
        self, la_mm3: float, ra_mm3: float, right_u_mm: float
    ) -> tuple[tuple[NDArray[np.float64], NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Centres and semi-axes; the two never touch each other, nor the ventricles."""
        left, right = (
            np.array(shape) * volume ** (1 / 3)
            for shape, volume in zip(self.form.atrial_shapes, (la_mm3, ra_mm3), strict=True)
        )
        left_centre = np.array([-3.0, -6.0, -left[2] - 1.5])
        apart = left_centre[0] + left[0] + right[0] + 3.0
        right_centre = np.array([max(right_u_mm - 6.0, apart), -8.0, -right[2] - 1.5])
        return (left_centre, left), (right_centre, right)


def _nowhere() -> tuple[
    tuple[NDArray[np.float64], NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]
]:
    point = (np.zeros(3), np.ones(3))
    return point, point


def _right_depth(shape: HeartShape, volume_mm3: float) -> float:
    """Depth at which the crescent has a volume: ``d int r c + d^2/2 int c^2``, with c its form."""
    n = _QUADRATURE
    end, width = _RV_LENGTH * shape.outer_length, shape.form.rv_width_rad
    s = ((np.arange(n) + 0.5) / n * end).astype(np.float32)[:, None]
    theta = (((np.arange(n) + 0.5) / n * 2.0 - 1.0) * width).astype(np.float32)[None, :]
    form = np.asarray(shape._crescent(s, theta), np.float64)
    radius = np.asarray(shape._outer_radius(s, theta), np.float64)
    cell = end / n * 2.0 * width / n
    linear, square = float((radius * form).sum() * cell), float(0.5 * (form**2).sum() * cell)
    return float((-linear + np.sqrt(linear**2 + 4.0 * square * volume_mm3)) / (2.0 * square))
