"""Takes a beating heart in its chest, gives images of a plane at a phase, and the truth labels of the same plane."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...output.phenotypes import LEFT_ATRIUM, LV_CAVITY, LV_MYOCARDIUM, RIGHT_ATRIUM, RV_CAVITY
from ...types import Float, Geometry, Vector
from ..fields import Texture
from ..raster import ramp
from .anatomy import BeatingHeart, HeartShape
from .chest import Chest
from .tissue import BLOOD, FAT, MYOCARDIUM, VESSEL_WALL, Water, steady_state
from .views import HeartPlace

_REACH_MM = 120.0  # from the middle of the heart to what moves with it
_FAT_MM = 2.5


@dataclass(frozen=True)
class _Plane:
    """Sample positions of a slab: flat arrays over (through-slice, y, x), and their shape."""

    positions: tuple[Float, Float, Float]
    shape: tuple[int, int, int]


class HeartScene:
    """Heart, chest and textures of one seed.

    Parameters
    ----------
    seed : everything follows from it.
    flip_angle_deg : of the balanced steady-state sequence.
    """

    def __init__(self, seed: int, flip_angle_deg: float = 55.0) -> None:
        place_rng, chest_rng, texture_rng = (
            np.random.default_rng(s) for s in np.random.SeedSequence([seed, 10]).spawn(3)
        )
        self.heart = BeatingHeart(seed)
        self.place = HeartPlace.random(place_rng, self.heart.form.length_mm)
        self.chest = Chest.random(chest_rng, flip_angle_deg)
        self._flip_angle_deg = flip_angle_deg
        # Textures are periodic; a box as large as the heart would cost most of the time of a small scan.
        self._coarse = Texture.random(texture_rng, (180.0, 180.0, 180.0), 16.0)
        self._fine = Texture.random(texture_rng, (90.0, 90.0, 90.0), 5.0)

    def labels(self, geometry: Geometry, phase: float, breath_mm: Vector = (0.0, 0.0, 0.0)) -> NDArray[np.uint8]:
        """Truth of the middle plane of a slice: uint8 ``(y, x)``, indices of `HEART_LABELS`."""
        plane = _plane(geometry, (1, 1), 1)
        u, v, s = self.place.at(plane.positions, breath_mm)
        return _label(self.heart.shape(phase).depths(u, v, s)).reshape(plane.shape[1:])

    def still(
        self, geometry: Geometry, factor: tuple[int, int], n_through: int, breath_mm: Vector = (0.0, 0.0, 0.0)
    ) -> Slab:
        """A slab with everything that does not beat already painted; `Slab.image` adds the heart at a phase.

        Parameters
        ----------
        factor : fine samples per voxel along x and y.
        n_through : samples through the slice.
        """
        plane = _plane(geometry, factor, n_through)
        voxel_x, voxel_y, _ = geometry.voxel_size_mm
        edge_mm = 0.5 * (voxel_x / factor[0] + voxel_y / factor[1])
        background = self.chest.signal(plane.positions, edge_mm, breath_mm)
        u, v, s = self.place.at(plane.positions, breath_mm)
        near = np.flatnonzero(u * u + v * v + (s - np.float32(0.3 * self.heart.form.length_mm)) ** 2 < _REACH_MM**2)
        u, v, s = u[near], v[near], s[near]
        bodily = u, v, s
        coarse, fine = self._coarse.at(u, v, s), self._fine.at(u, v, s)
        return Slab(self, plane.shape, background, near, bodily, coarse, fine, edge_mm)

    def paint(self, slab: Slab, shape: HeartShape) -> Float:
        """Signal of the points near the heart at one phase."""
        u, v, s = slab.heart_mm
        depths = shape.depths(u, v, s)
        out = slab.background[slab.near]
        edge, coarse, fine = slab.edge_mm, slab.coarse, slab.fine
        muscle = 1.0 + 0.05 * fine
        blood = 1.0 + 0.05 * coarse

        def blend(depth: Float, water: Water, factor: Float | float = 1.0) -> None:
            value = np.float32(steady_state(water, self._flip_angle_deg)) * factor
            out[:] = out + ramp(depth, edge) * (value - out)

        ventricles = np.maximum(depths["epicardium"], depths["rv_wall"])
        atria = np.maximum(depths["la"], depths["ra"]) + np.float32(1.5)
        whole = np.maximum(ventricles, atria)
        groove = np.float32(6.0) * np.exp(-(((s - np.float32(shape.shift_mm)) / np.float32(14.0)) ** 2))
        blend(
            whole + np.float32(_FAT_MM) + groove + np.clip(u / np.float32(10.0), 0, 3) + self._smooth(s, v), FAT, 0.85
        )
        for depth, factor in self._outflow(shape, u, v, s):
            blend(depth + np.float32(1.5), VESSEL_WALL)
            blend(depth, BLOOD, factor * blood)
        blend(atria, VESSEL_WALL)
        blend(depths["la"], BLOOD, 0.97 * blood)
        blend(depths["ra"], BLOOD, 0.95 * blood)
        blend(depths["rv_wall"], MYOCARDIUM, muscle)
        blend(depths["rv"], BLOOD, _trabeculated(0.96 * blood, depths["rv"], 3.0, 0.30 * (fine > 0.4)))
        blend(depths["epicardium"], MYOCARDIUM, muscle)
        blend(depths["lv"], BLOOD, _trabeculated(blood, depths["lv"], 2.0, 0.25 * (fine > 0.6)))
        blend(depths["papillary"], MYOCARDIUM, muscle)
        return np.asarray(out, dtype=np.float32)

    @staticmethod
    def _smooth(s: Float, v: Float) -> Float:
        """The outline of the fat around the heart is wavy."""
        waves = np.sin(s * np.float32(0.11) + v * np.float32(0.05)) + np.sin(v * np.float32(0.13))
        return np.asarray(np.float32(1.2) * waves, dtype=np.float32)

    def _outflow(self, shape: HeartShape, u: Float, v: Float, s: Float) -> list[tuple[Float, float]]:
        """Aortic root, pulmonary trunk, and the veins that enter the atria: depth below the surface, brightness."""
        s = s - np.float32(shape.shift_mm)
        behind = -s

        def tube(cu: float, cv: float, radius: float, lean: float = 0.0) -> Float:
            across = np.sqrt((u - np.float32(cu) - lean * behind) ** 2 + (v - np.float32(cv)) ** 2)
            return np.asarray(np.minimum(np.float32(radius) - across, behind + np.float32(3.0)), np.float32)

        r = shape.radius + shape.wall
        (left, left_axes), (right, right_axes) = shape.atria
        sideways = np.sqrt((u - np.float32(left[0])) ** 2 + (s - np.float32(left[2])) ** 2)
        pulmonary_veins = np.minimum(7.0 - sideways, np.abs(v - np.float32(left[1])) - np.float32(0.8 * left_axes[1]))
        cava = np.sqrt((u - np.float32(right[0])) ** 2 + (s - np.float32(right[2])) ** 2)
        cavae = np.minimum(10.0 - cava, np.abs(v - np.float32(right[1])) - np.float32(0.7 * right_axes[1]))
        reach = np.float32(left_axes[1] + 12.0) - np.abs(v - np.float32(left[1]))
        return [
            (np.minimum(tube(0.35 * r, 0.75 * r, 14.0, 0.10), np.float32(80.0) - behind), 0.92),
            (np.minimum(tube(0.75 * r + 0.3 * shape.rv_depth, 0.95 * r, 13.0, -0.25), np.float32(70.0) - behind), 0.92),
            (np.minimum(pulmonary_veins, reach), 0.9),
            (np.minimum(cavae, np.float32(80.0) - np.abs(v)), 0.9),
        ]


@dataclass(frozen=True)
class Slab:
    """A slice of finite thickness on a fine grid, chest painted, heart to come.

    Parameters
    ----------
    background : flat signal of the chest.
    near : flat indices of the points that the heart may reach.
    heart_mm : heart coordinates of those points.
    coarse, fine : textures there.
    """

    scene: HeartScene
    shape: tuple[int, int, int]
    background: Float
    near: NDArray[np.intp]
    heart_mm: tuple[Float, ...]
    coarse: Float
    fine: Float
    edge_mm: float

    def image(self, phase: float) -> Float:
        """Signal at a phase, the mean through the slice: float32 ``(fine y, fine x)``."""
        signal = self.background.copy()
        signal[self.near] = self.scene.paint(self, self.scene.heart.shape(phase))
        return np.asarray(signal.reshape(self.shape).mean(axis=0), dtype=np.float32)


def _trabeculated(blood: Float, depth: Float, reach_mm: float, share: NDArray[np.floating]) -> Float:
    """Blood that is darker near the wall, where a `share` of it is muscle."""
    return np.asarray(blood * (1.0 - share * np.exp(-np.maximum(depth, 0) / reach_mm)), np.float32)


def _label(depths: dict[str, Float]) -> NDArray[np.uint8]:
    """Class of each point; chambers win over the wall."""
    labels = np.zeros(depths["lv"].shape, np.uint8)
    painted = {
        "epicardium": LV_MYOCARDIUM, "rv": RV_CAVITY, "la": LEFT_ATRIUM, "ra": RIGHT_ATRIUM, "lv": LV_CAVITY,
    }  # fmt: skip
    for name, index in painted.items():
        labels[depths[name] > 0] = index
    return labels


def _plane(geometry: Geometry, factor: tuple[int, int], n_through: int) -> _Plane:
    """Sample j of a fine axis of factor f sits at recon index j / f, as the encoding expects."""
    nx, ny, _ = geometry.matrix
    affine = geometry.affine_lps
    ix, iy = np.arange(nx * factor[0]) / factor[0], np.arange(ny * factor[1]) / factor[1]
    iz = (np.arange(n_through) + 0.5) / n_through - 0.5
    zz, yy, xx = np.meshgrid(iz, iy, ix, indexing="ij")
    x, y, z = (np.asarray(a[0] * xx + a[1] * yy + a[2] * zz + a[3], dtype=np.float32).reshape(-1) for a in affine[:3])
    return _Plane((x, y, z), (n_through, iy.size, ix.size))
