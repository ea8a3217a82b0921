"""Takes a seed, gives a digital head: which of BrainWeb's twelve tissues lies at any point.

A head is a set of nested surfaces that differ from subject to subject: scalp, muscle, skull with marrow, dura, CSF, two
hemispheres whose folded cortex follows the zero levels of a random field, deep grey matter, ventricles, cerebellum and
brain stem. It is no registered anatomy and no atlas: it has the tissues, sizes and thicknesses of a head, and labels
that are exact by construction. Below the base of the brain there is no face and no neck.

Coordinates are millimetres in patient axes (LPS: x to the left, y to the back, z to the head); the origin is the middle
of the brain in an axial plane at the height of the anterior commissure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...types import Float, Geometry
from ..fields import Texture
from ..raster import Superellipsoid, fine_positions_mm

Labels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Points = tuple[Float, Float, Float]

_BOX_MM = (260.0, 260.0, 260.0)
_FINE_BOX_MM = (110.0, 110.0, 110.0)
"""Textures repeat after their box; that of small structures may be smaller than the head."""


class Tissue(IntEnum):
    """The twelve classes of BrainWeb's twenty normal brains, in its numbering."""

    BACKGROUND = 0
    CSF = 1
    GREY = 2
    WHITE = 3
    FAT = 4
    MUSCLE = 5
    SKIN = 6
    SKULL = 7
    VESSELS = 8
    CONNECTIVE = 9
    DURA = 10
    MARROW = 11


@dataclass(frozen=True)
class Anatomy:
    """What differs between subjects; lengths in mm.

    Parameters
    ----------
    brain : semi-axes of the inside of the skull along x, y, z.
    rim : CSF between dura and cortex.
    cortex : thickness of the grey ribbon.
    sulcus : half width of sulci at the surface.
    depth : of sulci.
    fold : distance at which the folding repeats.
    ventricles : size relative to the usual.
    skull, fat, skin : thickness.
    """

    brain: tuple[float, float, float]
    rim: float
    cortex: float
    sulcus: float
    depth: float
    fold: float
    ventricles: float
    skull: float
    fat: float
    skin: float

    @classmethod
    def random(cls, rng: np.random.Generator) -> Anatomy:
        """A healthy adult; spreads are those seen between adults, rounded."""

        def around(mean: float, spread: float) -> float:
            return float(mean + spread * np.clip(rng.standard_normal(), -2, 2))

        size = around(1.0, 0.02)
        return cls(
            brain=(size * around(73.0, 1.5), size * around(92.0, 2.0), size * around(76.0, 2.0)),
            rim=around(1.6, 0.35),
            cortex=around(2.7, 0.15),
            sulcus=around(0.6, 0.12),
            depth=around(21.0, 1.5),
            fold=around(18.5, 0.9),
            ventricles=around(1.2, 0.18),
            skull=around(6.0, 0.8),
            fat=around(2.8, 0.7),
            skin=around(2.3, 0.25),
        )


class Head:
    """One subject.

    Parameters
    ----------
    seed : anatomy and folding follow from it.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 4])
        self.seed = seed
        self.anatomy = Anatomy.random(rng)
        fold = self.anatomy.fold
        self._bend = [Texture.random(rng, _BOX_MM, 110.0) for _ in range(3)]
        self._folding = Texture.random(rng, _BOX_MM, fold)
        self._crossing = Texture.random(rng, _BOX_MM, 0.9 * fold)
        self._thickness = Texture.random(rng, _BOX_MM, 40.0)
        self._trabecular = Texture.random(rng, _FINE_BOX_MM, 9.0)
        self._folia = Texture.random(rng, _FINE_BOX_MM, 7.0)
        self._tilt = rng.normal(0.0, 0.02, 3)
        self._sylvian = float(rng.normal(4.0, 1.5)), float(rng.normal(0.42, 0.06))
        self._jitter = rng.normal(0.0, 1.0, 8)

    @cached_property
    def _hull(self) -> Superellipsoid:
        """The inside of the skull."""
        return Superellipsoid((0.0, 0.0, 4.0), self.anatomy.brain, 2.35)

    def labels(self, geometry: Geometry, factor: tuple[int, int, int] = (1, 1, 1)) -> Labels:
        """Tissues on a grid, uint8 ``(z, y, x)``.

        Parameters
        ----------
        factor : samples per voxel along x, y, z; sample j of a fine axis sits at voxel index ``j / factor``.
        """
        positions = fine_positions_mm(geometry, factor)
        planes = [self.at(*(np.ascontiguousarray(p[z]) for p in positions)) for z in range(positions[0].shape[0])]
        return np.stack(planes)

    def at(self, x: Float, y: Float, z: Float) -> Labels:
        """Tissues at points; float32 coordinates of any one shape."""
        shape, flat = x.shape, (x.reshape(-1), y.reshape(-1), z.reshape(-1))
        x, y, z = self._straightened(*flat)
        depth = self._hull.depth_mm(x, y, z)
        labels = np.zeros(x.size, np.uint8)
        for part, paint in ((depth <= 0, self._outside), (depth > 0, self._inside)):
            index = np.flatnonzero(part & (depth > -40.0))
            if index.size:
                labels[index] = paint((x[index], y[index], z[index]), depth[index])
        return labels.reshape(shape)

    def _straightened(self, x: Float, y: Float, z: Float) -> Points:
        """Coordinates in the symmetric head that this one is a bent and tilted copy of."""
        bent = [p + np.float32(1.6) * t.at(x, y, z) for p, t in zip((x, y, z), self._bend, strict=True)]
        a, b, c = (np.float32(angle) for angle in self._tilt)
        x, y, z = bent
        return x + a * y + b * z, y - a * x + c * z, z - b * x - c * y

    def _outside(self, point: Points, depth: Float) -> Labels:
        """Skull, muscle, fat and skin, by height above the inside of the skull."""
        x, y, z = point
        shape, height = self.anatomy, -depth
        variation = self._thickness.at(x, y, z)
        _, b, _ = shape.brain
        skull = shape.skull * (1 + 0.1 * variation) + 2.0 * (np.abs(y) / b) ** 3
        temple = np.clip((np.abs(x) - 40) / 25, 0, 1) * np.clip((36 - z) / 30, 0, 1) * np.clip((34 - y) / 45, 0, 1)
        muscle = 5.5 * temple
        fat = shape.fat * (1 + 0.2 * variation) * (1 - 0.5 * temple)
        labels = np.full(height.size, Tissue.BACKGROUND, np.uint8)
        top = np.zeros_like(height)
        layers = (
            (skull, Tissue.SKULL),
            (muscle, Tissue.MUSCLE),
            (np.float32(0.8), Tissue.CONNECTIVE),
            (fat, Tissue.FAT),
            (shape.skin, Tissue.SKIN),
        )
        for thickness, tissue in layers:
            labels[(height >= top) & (height < top + thickness)] = tissue
            top = top + thickness
        part = height / skull
        spongy = (np.abs(part - 0.5) < 0.24) & (self._trabecular.at(x, y, z) > -0.6) & (skull > 4.5)
        labels[spongy] = Tissue.MARROW
        return labels

    def _inside(self, point: Points, depth: Float) -> Labels:
        """Dura, CSF, brain and vessels."""
        x, y, z = point
        shape = self.anatomy
        variation = self._thickness.at(x, y, z)
        surface = depth - np.float32(1.0) - np.float32(shape.rim) * (1 + 0.45 * variation) - _cistern(point)
        labels = np.full(depth.size, Tissue.CSF, np.uint8)
        brain = np.flatnonzero(surface > 0)
        here = (x[brain], y[brain], z[brain])
        labels[brain] = self._brain(here, surface[brain])
        self._paint_cerebellum(labels, point, depth)
        self._paint_deep(labels, point)
        across = np.abs(x)
        falx = (across < 0.55) & (depth < 30) & (_core_depth(point) < -4) & (z > -6) & (labels == Tissue.CSF)
        labels[falx | (depth < 1.0)] = Tissue.DURA
        sinus = (across < 5.0 * (1 - depth / 7.0)) & ((y > 30) | (z > 45)) & (depth < 7.0) & (z > -8)
        labels[sinus] = Tissue.VESSELS
        sulcal = np.flatnonzero((labels == Tissue.CSF) & (surface < 6) & (depth > 1.2))
        if sulcal.size:
            near = self._distance(self._crossing, (x[sulcal], y[sulcal], z[sulcal]), 0.2)
            labels[sulcal[near < 0.7]] = Tissue.VESSELS
        return labels

    def _brain(self, point: Points, surface: Float) -> Labels:
        """Cortex around white matter: the ribbon follows the surface, the fissures and the sulci."""
        x, y, z = point
        shape = self.anatomy
        variation = self._crossing.at(x * 0.5, y * 0.5, z * 0.5)
        core = np.maximum(_core_depth(point), 0)
        medial = np.hypot(np.abs(x), core) - np.float32(0.9 + 0.5 * shape.sulcus)
        sulcus = self._sulcal_distance(point, np.minimum(surface, np.maximum(medial, 0)))
        insula = self._insular_distance(point)
        wall = np.minimum(np.minimum(surface, medial), np.minimum(sulcus, insula))
        ribbon = shape.cortex * (1 + 0.12 * variation)
        labels = np.full(surface.size, Tissue.WHITE, np.uint8)
        ribbon = np.where((core > 2) & (medial < sulcus) & (medial < surface), 0, ribbon)
        labels[wall < ribbon] = Tissue.GREY
        labels[(wall < 0) & ((core <= 2) | (medial > 0))] = Tissue.CSF
        return labels

    def _distance(self, field: Texture, point: Points, stretch: float) -> Float:
        """Distance to the zero level of a field that runs inwards along rays, in mm.

        Parameters
        ----------
        stretch : how much the field changes along a ray, relative to across it.
        """
        projected = self._on_hull(point, stretch)
        value = field.at(*projected)
        step = np.float32(1.0)
        slope = np.zeros_like(value)
        for axis in range(3):
            moved = [p + step if i == axis else p for i, p in enumerate(projected)]
            slope += (field.at(*moved) - value) ** 2
        floor = np.float32(0.35 / field.spacing_mm)  # where the field is flat, a sheet would become a lake
        return np.asarray(np.abs(value) / np.maximum(np.sqrt(slope), floor), np.float32)

    def _on_hull(self, point: Points, stretch: float) -> Points:
        """Points moved outwards along rays to (nearly) the same depth, so that sheets run inwards."""
        u, v, w = self._hull.normalised(*point)
        gauge = np.maximum(np.sqrt(u * u + v * v + w * w), np.float32(0.35))
        scale = (np.float32(1.0) + np.float32(stretch) * (gauge - 1)) / gauge
        x, y, z = (p * scale for p in point)
        return x, y, z

    def _sulcal_distance(self, point: Points, surface: Float) -> Float:
        """Distance to the nearest sulcus's wall; sulci narrow inwards and end at a depth."""
        shape = self.anatomy
        across = self._distance(self._folding, point, 0.6)
        lateral = np.sign(point[0]) * np.float32(40.0)  # the two sides fold apart from each other
        shifted = (point[0] + lateral, point[1], point[2])
        limit = shape.depth * (1 + 0.3 * self._thickness.at(*shifted))
        below = np.maximum(surface - limit, 0)
        half_width = shape.sulcus * (0.35 + 1.1 * np.exp(-surface / np.float32(5.0)))
        return np.asarray(np.hypot(across, below) - half_width, np.float32)

    def _insular_distance(self, point: Points) -> Float:
        """Distance to the lateral (Sylvian) fissure, which ends in the insula."""
        x, y, z = point
        height, slope = self._sylvian
        level = z - height + slope * (y + 15) + np.float32(2.0) * self._thickness.at(x, y, z)
        lateral = np.abs(x) + np.float32(1.5) * self._folding.at(x, y, z)
        along = np.maximum(np.abs(y + 12) - 24, 0)
        cleft = np.hypot(np.hypot(level, along), np.maximum(41 - lateral, 0)) - np.float32(0.8)
        island = np.hypot(np.hypot(lateral - 39.5, np.maximum(np.abs(level) - 9, 0)), along) - np.float32(1.3)
        return np.asarray(np.minimum(cleft, island), np.float32)

    def _paint_deep(self, labels: Labels, point: Points) -> None:
        """Ventricles and deep grey matter over what is there."""
        x, y, z = point
        v = self.anatomy.ventricles
        j = self._jitter
        across = np.abs(x)
        near = np.flatnonzero((across < 48) & (y > -60) & (y < 75) & (z > -60) & (z < 40) & (labels != Tissue.DURA))
        if near.size == 0:
            return
        here = (across[near], y[near], z[near])
        bodies: tuple[tuple[Tissue, tuple[float, float, float], tuple[float, float, float], float], ...] = (
            (Tissue.WHITE, (0, -10, 18), (13, 34, 7), 0.0),  # callosum and fornix around the ventricles
            (Tissue.WHITE, (0, 6, -14), (16, 17, 17), 0.0),  # midbrain
            (Tissue.GREY, (10.5, 2, 7 + j[0]), (9, 14, 9.5), 0.25),  # thalamus
            (Tissue.GREY, (25, -19 + j[1], 4), (5.5, 16, 10), 0.20),  # putamen
            (Tissue.WHITE, (20.8, -14, 3), (1.0, 13, 9), 0.25),  # lamina between them
            (Tissue.GREY, (18.5, -14, 1), (3.6, 8.5, 6), 0.30),  # pallidum
            (Tissue.GREY, (13, -30 + j[2], 9), (5.2, 9, 11), 0.15),  # caudate, head
            (Tissue.GREY, (16.5, -8, 20), (3.2, 20, 4.5), 0.18),  # caudate, body
            (Tissue.CSF, (9 * v, -33, 11 + 0.5 * j[3]), (4.0 * v, 12 * v, 8 * v), 0.32),  # frontal horn
            (Tissue.CSF, (9.5 * v, -6, 20 + 0.5 * j[4]), (5.5 * v, 29, 5.5 * v), 0.12),  # body
            (Tissue.CSF, (20, 21 + j[5], 12), (5 * v, 12 * v, 9 * v), 0.35),  # atrium
            (Tissue.CSF, (24, 38 + j[6], 6), (2.8 * v, 14 * v, 4.5 * v), 0.12),  # occipital horn
            (Tissue.CSF, (31, 4, -13), (2.6 * v, 16, 3.0 * v), 0.25),  # temporal horn
            (Tissue.CSF, (0, -2, 1), (2.3 * v, 13, 10), 0.0),  # third ventricle
            (Tissue.CSF, (0, 24, 0), (11, 4.5, 6.5), 0.0),  # cistern behind the midbrain
            (Tissue.CSF, (0, -19, -17), (13, 9, 7), 0.0),  # suprasellar cistern
            (Tissue.CSF, (0, 31, -33), (7 * v, 6 * v, 9 * v), 0.0),  # fourth ventricle
        )
        for tissue, centre, axes, lean in bodies:
            inside = _ellipsoid(here, centre, axes, lean)
            if tissue is Tissue.CSF and centre[0] > 3 and centre[0] < 15:
                inside &= here[0] > 0.8  # the septum
            labels[near[inside]] = tissue

    def _paint_cerebellum(self, labels: Labels, point: Points, depth: Float) -> None:
        """Cerebellum with its folia, under the tentorium."""
        x, y, z = point
        part = np.flatnonzero((z < -2) & (y > 8) & (depth > 2))
        if part.size == 0:
            return
        here = (np.abs(x[part]), y[part], z[part])
        roof = z[part] + np.float32(12.0) - 0.12 * (60 - y[part]) + 0.004 * x[part] ** 2
        lobe = _ellipsoid(here, (20, 42, -34), (36, 34, 24), 0.0) & (roof < 0)
        folia = self._folia.at(x[part], 0.6 * y[part], 2.2 * z[part])
        tree = _ellipsoid(here, (16, 34, -34), (20, 18, 11), 0.0)
        fill = np.where(tree, Tissue.WHITE, np.where(folia > 1.3, Tissue.CSF, Tissue.GREY)).astype(np.uint8)
        labels[part[lobe]] = fill[lobe]
        gap = (np.abs(roof) < 1.6) & (here[0] < 62) & (y[part] > 22)
        labels[part[gap]] = np.where(np.abs(roof[gap]) < 0.6, Tissue.DURA, Tissue.CSF)


def _ellipsoid(
    point: Points, centre: tuple[float, float, float], axes: tuple[float, float, float], lean: float
) -> Mask:
    """Inside an ellipsoid whose x grows with y by `lean`."""
    x, y, z = point
    dy = y - np.float32(centre[1])
    dx = x - np.float32(centre[0]) - np.float32(lean) * dy
    dz = z - np.float32(centre[2])
    return np.asarray((dx / axes[0]) ** 2 + (dy / axes[1]) ** 2 + (dz / axes[2]) ** 2 < 1)


def _core_depth(point: Points) -> Float:
    """Depth in mm below the surface of the part that joins the hemispheres: callosum, thalami, midbrain."""
    _, y, z = point
    above = ((y + 11) / 37) ** 2 + (np.maximum(z - 2, 0) / 25) ** 2
    below = ((y + 3) / 27) ** 2 + (np.minimum(z - 2, 0) / 60) ** 2
    return np.asarray(np.where(z > 2, 1 - np.sqrt(above), 1 - np.sqrt(below)) * np.float32(27.0), np.float32)


def _cistern(point: Points) -> Float:
    """CSF that is wider in front and behind, at the midline."""
    x, y, _ = point
    return np.asarray(1.2 * np.exp(-((x / 9) ** 2)) * (np.abs(y) > 60), np.float32)
