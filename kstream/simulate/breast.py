"""Takes a seed, gives a breast DCE-MRI phantom as continuous functions of position, and rasterises it.

Patient axes are LPS in millimetres about the isocentre; the patient lies prone, so the breasts hang towards anterior
(negative y). Tissue is painted from the outside in: breasts and thorax, skin, fat, chest wall, lungs, heart, liver,
fibroglandular tissue, vessels, benign masses, malignant masses. Every margin is a ramp as wide as a voxel of the grid,
so that partial volume is right to first order and the sum over the grid converges quickly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..types import Float, Geometry
from .fields import SlowField, Texture
from .lesions import Lesion, random_benign, random_malignant

LesionCount = int | Literal["random"]

PARAMETERS = ("t1_ms", "t2_star_ms", "proton_density", "ktrans_per_min", "ve", "vp", "fat_fraction")

_HALF_BOX_MM = (170.0, 170.0, 90.0)


@dataclass(frozen=True)
class Tissue:
    """What a voxel is made of; relaxation at 3 T.

    Parameters
    ----------
    t1_ms, t2_star_ms : relaxation times of the water.
    proton_density : relative to water.
    ktrans_per_min, ve, vp : extended Tofts parameters.
    fat_fraction : part of the signal that fat suppression acts on.
    """

    t1_ms: float
    t2_star_ms: float
    proton_density: float
    ktrans_per_min: float = 0.0
    ve: float = 0.3
    vp: float = 0.0
    fat_fraction: float = 0.0


# T1 and T2* at 3 T after Rakow-Penner et al., JMRI 23:87 (2006), and Stanisz et al., MRM 54:507 (2005); rounded.
FAT = Tissue(t1_ms=380, t2_star_ms=30, proton_density=0.90, fat_fraction=0.97)
SKIN = Tissue(t1_ms=1050, t2_star_ms=15, proton_density=0.70, ktrans_per_min=0.05, ve=0.30, vp=0.02)
GLAND = Tissue(t1_ms=1400, t2_star_ms=35, proton_density=0.85, ktrans_per_min=0.02, ve=0.35, vp=0.01, fat_fraction=0.05)
NIPPLE = Tissue(t1_ms=1200, t2_star_ms=30, proton_density=0.85, ktrans_per_min=0.20, ve=0.35, vp=0.04)
MUSCLE = Tissue(t1_ms=1400, t2_star_ms=28, proton_density=0.80, ktrans_per_min=0.04, ve=0.12, vp=0.02)
BONE = Tissue(t1_ms=900, t2_star_ms=8, proton_density=0.45, ktrans_per_min=0.02, ve=0.20, vp=0.01, fat_fraction=0.5)
LUNG = Tissue(t1_ms=1200, t2_star_ms=1.5, proton_density=0.20, vp=0.08)
BLOOD = Tissue(t1_ms=1850, t2_star_ms=40, proton_density=0.90, vp=0.58)
VESSEL = Tissue(t1_ms=1700, t2_star_ms=35, proton_density=0.90, ktrans_per_min=0.10, ve=0.20, vp=0.45)
MYOCARDIUM = Tissue(t1_ms=1200, t2_star_ms=30, proton_density=0.80, ktrans_per_min=0.50, ve=0.22, vp=0.08)
LIVER = Tissue(t1_ms=800, t2_star_ms=20, proton_density=0.75, ktrans_per_min=0.35, ve=0.22, vp=0.12)
CYST = Tissue(t1_ms=3000, t2_star_ms=60, proton_density=1.00)

# Codes of the optional tissue map.
TISSUE_CODES = {"air": 0, "fat": 1, "skin": 2, "gland": 3, "muscle": 4, "lung": 5, "heart": 6, "vessel": 7, "lesion": 8}


@dataclass(frozen=True)
class TissueMaps:
    """Parameters of the phantom on a fine grid: float32 ``(z, y, x)`` each, in the units of `Tissue`.

    `geometry` is that of the reconstruction grid; sample j of a fine axis of factor f sits at recon index j/f.
    """

    values: dict[str, Float]
    geometry: Geometry
    factor: tuple[int, int, int]
    positions_mm: tuple[Float, Float, Float] = field(repr=False)

    def __getitem__(self, name: str) -> Float:
        return self.values[name]

    @property
    def shape(self) -> tuple[int, int, int]:
        z, y, x = self.values["t1_ms"].shape
        return z, y, x


def fine_positions_mm(geometry: Geometry, factor: tuple[int, int, int]) -> tuple[Float, Float, Float]:
    """LPS coordinates of the fine samples: three float32 arrays ``(z, y, x)``; `factor` is along x, y, z."""
    affine = geometry.affine_lps
    index = [np.arange(n * f) / f for n, f in zip(geometry.matrix, factor, strict=True)]
    ix, iy, iz = index[0][None, None, :], index[1][None, :, None], index[2][:, None, None]
    x, y, z = (
        np.asarray((a[0] * ix + (a[3] + a[1] * iy + a[2] * iz)), dtype=np.float32) for a in affine[:3]
    )
    return x, y, z


def _ramp(depth_mm: Float, edge_mm: float) -> Float:
    """Membership of a region from the depth below its surface: 0.5 on the surface, linear over one voxel."""
    return np.asarray(np.clip(depth_mm * np.float32(1.0 / edge_mm) + np.float32(0.5), 0.0, 1.0), dtype=np.float32)


def _smooth_union(first: Float, second: Float, blend_mm: float) -> Float:
    """Depth below the union of two bodies with a rounded crease (polynomial smooth maximum)."""
    h = np.clip(np.float32(0.5) + (first - second) * np.float32(0.5 / blend_mm), 0.0, 1.0)
    return np.asarray(second + (first - second) * h + np.float32(blend_mm) * h * (1 - h), dtype=np.float32)


@dataclass(frozen=True)
class _Superellipsoid:
    """A body ``(|u|^2 + |w|^2)^(p/2) + |v|^p = 1`` of semi-axes (x, y, z); v runs along y."""

    centre: tuple[float, float, float]
    axes: tuple[float, float, float]
    power: float = 2.0
    lean: float = 0.0

    def normalised(self, x: Float, y: Float, z: Float) -> tuple[Float, Float, Float]:
        """Coordinates in units of the semi-axes; `lean` shears x with y."""
        dy = y - np.float32(self.centre[1])
        dx = x - np.float32(self.centre[0]) + np.float32(self.lean) * dy
        dz = z - np.float32(self.centre[2])
        a, b, c = (np.float32(1.0 / axis) for axis in self.axes)
        return dx * a, dy * b, dz * c

    def depth_mm(self, x: Float, y: Float, z: Float) -> Float:
        """Approximate depth below the surface: distance to it along the ray from the centre."""
        u, v, w = self.normalised(x, y, z)
        across = u * u + w * w
        if self.power == 2.0:
            gauge = np.sqrt(across + v * v)
        else:
            half = np.float32(self.power / 2.0)
            gauge = (across**half + (v * v) ** half) ** np.float32(1.0 / self.power)
        a, b, c = (np.float32(axis) for axis in self.axes)
        length = np.sqrt((u * a) ** 2 + (v * b) ** 2 + (w * c) ** 2)
        scale = np.where(gauge > 1e-3, length / np.maximum(gauge, 1e-3), np.float32(min(self.axes)))
        return np.asarray((1 - gauge) * scale, dtype=np.float32)

    def point(self, gauge: float, angle: float, v: float) -> NDArray[np.float64]:
        """Position at relative depth `gauge`, at an angle about the y axis, at normalised height v."""
        ring = max(0.0, 1.0 - abs(v) ** self.power) ** (1.0 / self.power)
        dy = self.axes[1] * v
        x = self.centre[0] + gauge * ring * self.axes[0] * np.cos(angle) - self.lean * dy
        z = self.centre[2] + gauge * ring * self.axes[2] * np.sin(angle)
        return np.array([x, self.centre[1] + dy, z])


@dataclass(frozen=True)
class _Tube:
    """A piece of vessel between two points, of tapering radius."""

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    radius_start_mm: float
    radius_end_mm: float


class _Canvas:
    """Parameter arrays that are painted over, flat over the voxels of the fine grid."""

    def __init__(self, geometry: Geometry, factor: tuple[int, int, int]) -> None:
        self.positions = fine_positions_mm(geometry, factor)
        self.shape = self.positions[0].shape
        self.size = self.positions[0].size
        self.flat_positions = tuple(p.reshape(-1) for p in self.positions)
        voxel = [size / f for size, f in zip(geometry.voxel_size_mm, factor, strict=True)]
        self.edge_mm = float(np.cbrt(np.prod(voxel)))
        self.voxel_mm = voxel
        self.factor = factor
        self._to_index = np.linalg.inv(geometry.affine_lps)
        self.values = {name: np.zeros(self.size, dtype=np.float32) for name in PARAMETERS}
        self.values["t1_ms"] += 1000.0
        self.values["t2_star_ms"] += 30.0
        self.values["ve"] += 0.3

    def at(self, index: NDArray[np.intp]) -> tuple[Float, Float, Float]:
        x, y, z = (p[index] for p in self.flat_positions)
        return x, y, z

    def paint(
        self, index: NDArray[np.intp], weight: Float, tissue: Tissue, ktrans_per_min: Float | None = None
    ) -> None:
        """Blend a tissue over the voxels `index`, by membership `weight`; Ktrans may vary from voxel to voxel."""
        touched = weight > 0
        index, weight = index[touched], weight[touched]
        for name in PARAMETERS:
            new: Float | float = getattr(tissue, name)
            if name == "ktrans_per_min" and ktrans_per_min is not None:
                new = ktrans_per_min[touched]
            array = self.values[name]
            old = array[index]
            array[index] = old + weight * (np.asarray(new, dtype=np.float32) - old)

    def box(self, centre_mm: NDArray[np.float64], reach_mm: float) -> NDArray[np.intp]:
        """Flat indices of the voxels in a box around a sphere; empty if it lies outside the grid."""
        centre = (self._to_index @ np.append(centre_mm, 1.0))[:3] * self.factor
        ranges = []
        for c, v, n in zip(centre, self.voxel_mm, reversed(self.shape), strict=True):
            low, high = int(np.floor(c - reach_mm / v)), int(np.ceil(c + reach_mm / v)) + 1
            ranges.append(np.arange(max(low, 0), min(high, n)))
        ix, iy, iz = ranges
        _, ny, nx = self.shape
        return np.asarray((iz[:, None, None] * ny + iy[:, None]) * nx + ix, dtype=np.intp).reshape(-1)


class BreastPhantom:
    """Two breasts, chest wall, heart and what enhances in them, from a seed.

    Parameters
    ----------
    seed : everything about the anatomy follows from it.
    n_lesions : malignant masses, 0 to 3, or ``"random"``; the anatomy does not depend on it.
    """

    def __init__(self, seed: int, n_lesions: LesionCount = "random") -> None:
        if n_lesions != "random" and n_lesions not in range(4):
            raise ConfigError(
                f"n_lesions is {n_lesions!r}", likely="a typing error", hint="use 0, 1, 2, 3 or 'random'"
            )
        self.seed = seed
        anatomy, masses, count = (np.random.default_rng(s) for s in np.random.SeedSequence([seed, 1]).spawn(3))
        self._draw_outline(anatomy)
        self._draw_gland(anatomy)
        self._draw_organs(anatomy)
        self.vessels = [tube for breast in self._breasts for tube in self._vessel_tree(anatomy, breast)]
        self.vessels += self._internal_mammary(anatomy)
        random_count = int(count.choice(4, p=[0.2, 0.45, 0.25, 0.1]))
        self._draw_masses(masses, random_count if n_lesions == "random" else int(n_lesions))

    def _draw_outline(self, rng: np.random.Generator) -> None:
        size = float(rng.uniform(0.88, 1.12))
        self._wall_y = float(rng.uniform(-2.0, 10.0))
        self._thorax = _Superellipsoid((0.0, self._wall_y + 108.0, 0.0), (146.0, 108.0, 400.0), 2.4)
        self._breasts = []
        for side in (-1.0, 1.0):
            local = size * float(rng.uniform(0.94, 1.06))
            axes = (62.0 * local, float(rng.uniform(80, 100)) * local, 66.0 * local)
            centre = (side * float(rng.uniform(71, 77)), self._wall_y + 14.0, float(rng.uniform(-6, 6)))
            self._breasts.append(_Superellipsoid(centre, axes, float(rng.uniform(2.1, 2.6)), side * 0.10))
        self._skin_mm = float(rng.uniform(1.6, 2.4))
        self._undulation = Texture.random(rng, (360.0, 360.0, 200.0), 90.0)

    def _draw_gland(self, rng: np.random.Generator) -> None:
        box = (340.0, 200.0, 180.0)
        self._coarse_texture = Texture.random(rng, box, 22.0)
        self._fine_texture = Texture.random(rng, box, 9.0)
        self._uptake_texture = Texture.random(rng, box, 12.0)
        self.density = float(rng.uniform(-0.9, 0.7))
        self.background_enhancement = str(
            rng.choice(["minimal", "mild", "moderate", "marked"], p=[0.35, 0.35, 0.2, 0.1])
        )
        low, high = {"minimal": (0.004, 0.012), "mild": (0.012, 0.025), "moderate": (0.025, 0.04), "marked": (0.04, 0.06)}[
            self.background_enhancement
        ]
        self.background_ktrans_per_min = float(rng.uniform(low, high))

    def _draw_organs(self, rng: np.random.Generator) -> None:
        y0 = self._wall_y
        heart = np.array([28.0, y0 + 70.0, -12.0]) + rng.uniform(-6, 6, 3)
        self._cage = _Superellipsoid((0.0, y0 + 112.0, 0.0), (124.0, 96.0, 400.0), 2.3)
        self._heart = _Superellipsoid((heart[0], heart[1], heart[2]), (52.0, 42.0, 50.0))
        self._left_ventricle = _Superellipsoid((heart[0] + 16, heart[1] + 6, heart[2] - 4), (22.0, 20.0, 30.0))
        self._right_ventricle = _Superellipsoid((heart[0] - 18, heart[1] - 12, heart[2] - 2), (24.0, 18.0, 32.0))
        self._atria = _Superellipsoid((heart[0] - 10, heart[1] + 16, heart[2] + 26), (34.0, 16.0, 18.0))
        self._aorta = _Superellipsoid((18.0, y0 + 138.0, 0.0), (12.0, 12.0, 4000.0))
        self._liver = _Superellipsoid((-52.0, y0 + 95.0, -108.0 + float(rng.uniform(-8, 8))), (74.0, 74.0, 78.0))
        self._pectoral_mm = float(rng.uniform(8.0, 14.0))
        self.arrival_delay_s = float(rng.uniform(12.0, 20.0))
        self.dose = float(rng.uniform(0.9, 1.1))
        self._transmit = SlowField.random(rng, 1.0, 0.10)
        self._fat_residual = SlowField.random(rng, float(rng.uniform(0.06, 0.12)), 0.03)

    def _vessel_tree(self, rng: np.random.Generator, breast: _Superellipsoid) -> list[_Tube]:
        """Superficial veins and perforating arteries that run from the base towards the nipple and branch."""
        tubes: list[_Tube] = []
        todo = [
            (float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(-0.2, 0.05)), float(rng.uniform(0.78, 0.93)),
             float(rng.uniform(1.2, 2.2)), 0)
            for _ in range(int(rng.integers(3, 6)))
        ]  # fmt: skip
        while todo:
            angle, v, gauge, radius, level = todo.pop()
            turn = float(rng.normal(0, 0.05))
            sink = 0.0 if level == 0 else float(rng.uniform(0.0, 0.05))
            point = breast.point(gauge, angle, v)
            while v > -0.93 and radius > 0.55 and gauge > 0.15:
                turn = 0.85 * turn + float(rng.normal(0, 0.045))
                angle += turn
                v -= float(rng.uniform(0.03, 0.07))
                gauge = float(np.clip(gauge - sink + rng.normal(0, 0.012), 0.1, 0.93))
                following, thinner = breast.point(gauge, angle, v), radius * 0.965
                tubes.append(_Tube(point, following, radius, thinner))
                point, radius = following, thinner
                if level < 2 and rng.random() < 0.11:
                    todo.append((angle + float(rng.choice([-1, 1])) * 0.12, v, gauge - 0.02, 0.75 * radius, level + 1))
        return tubes

    def _internal_mammary(self, rng: np.random.Generator) -> list[_Tube]:
        tubes = []
        for x in (-17.0, -13.0, 14.0, 18.0):
            y = self._wall_y + 19.0 + float(rng.uniform(-1, 1))
            heights = np.linspace(-90.0, 90.0, 13)
            path = [np.array([x + rng.normal(0, 0.8), y + rng.normal(0, 0.5), z]) for z in heights]
            radius = float(rng.uniform(1.2, 1.8))
            tubes += [_Tube(a, b, radius, radius) for a, b in zip(path[:-1], path[1:], strict=True)]
        return tubes

    def _draw_masses(self, rng: np.random.Generator, n_lesions: int) -> None:
        taken: list[tuple[NDArray[np.float64], float]] = []
        self.lesions: list[Lesion] = []
        for _ in range(n_lesions):
            diameter = 8.0 + 22.0 * float(rng.beta(1.5, 1.9))
            lesion = random_malignant(rng, (0.0, 0.0, 0.0), diameter)
            self.lesions.append(self._placed(rng, lesion, taken))
        self.benign: list[Lesion] = []
        sizes = [rng.uniform(2.5, 5.0) for _ in range(rng.poisson(3.0))]
        sizes += [rng.uniform(8.0, 18.0) for _ in range(int(rng.random() < 0.4))]
        for size in sizes:
            self.benign.append(self._placed(rng, random_benign(rng, (0.0, 0.0, 0.0), float(size)), taken))
        self.cysts: list[Lesion] = []
        for size in [rng.uniform(5.0, 14.0) for _ in range(rng.poisson(0.5))]:
            self.cysts.append(self._placed(rng, random_benign(rng, (0.0, 0.0, 0.0), float(size)), taken))

    def _placed(self, rng: np.random.Generator, mass: Lesion, taken: list[tuple[NDArray[np.float64], float]]) -> Lesion:
        """Move a mass to a free place in a breast: inside the skin, off the chest wall and off its neighbours."""
        reach = mass.reach_mm
        best, best_clearance = np.zeros(3), -np.inf
        for _ in range(200):
            breast = self._breasts[int(rng.integers(2))]
            centre = breast.point(0.85 * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi), -rng.uniform(0.1, 0.9))
            point = [np.array([c], dtype=np.float32) for c in centre]
            skin = float(breast.depth_mm(point[0], point[1], point[2])[0]) - 3.0 - self._skin_mm
            wall = -float(self._cage.depth_mm(point[0], point[1], point[2])[0]) - self._pectoral_mm - 2.0
            slab = 46.0 - abs(centre[2])
            others = min((float(np.linalg.norm(centre - c)) - r - 4.0 for c, r in taken), default=np.inf)
            clearance = min(skin, wall, others, slab + 0.5 * reach) - reach
            if clearance > best_clearance:
                best, best_clearance = centre, clearance
            if clearance > 0:
                break
        taken.append((best, reach))
        return Lesion(
            (float(best[0]), float(best[1]), float(best[2])),
            **{name: getattr(mass, name) for name in mass.__dataclass_fields__ if name != "centre_mm"},
        )

    @cached_property
    def _fat(self) -> Tissue:
        return FAT

    def transmit_field(self, x: Float, y: Float, z: Float) -> Float:
        """Flip angle relative to the nominal one."""
        return np.asarray(np.clip(self._transmit.at(x, y, z), 0.6, 1.3), dtype=np.float32)

    def fat_residual(self, x: Float, y: Float, z: Float) -> Float:
        """Part of the fat signal that fat suppression leaves; it fails towards the edge of the field."""
        return np.asarray(np.clip(self._fat_residual.at(x, y, z), 0.02, 0.35), dtype=np.float32)

    def rasterise(self, geometry: Geometry, factor: tuple[int, int, int] = (2, 2, 2)) -> TissueMaps:
        """Paint the phantom on a grid `factor` times finer (along x, y, z) than the reconstruction grid."""
        canvas = _Canvas(geometry, factor)
        body, depth = self._paint_body(canvas)
        cage_depth = self._paint_chest(canvas, body)
        self._paint_gland(canvas, body, depth, cage_depth)
        self._paint_vessels(canvas)
        for cyst in self.cysts:
            self._paint_mass(canvas, cyst, CYST)
        for mass in [*self.benign, *self.lesions]:
            density = Tissue(1450, 38, 0.92, mass.ktrans_per_min, mass.ve, mass.vp)
            self._paint_mass(canvas, mass, density)
        values = {name: array.reshape(canvas.shape) for name, array in canvas.values.items()}
        return TissueMaps(values, geometry, factor, canvas.positions)

    def _paint_body(self, canvas: _Canvas) -> tuple[NDArray[np.intp], Float]:
        """Outline, skin and fat; returns the voxels of the body and their depth below the skin's surface."""
        x, y, z = canvas.flat_positions
        depth = self._thorax.depth_mm(x, y, z)
        for breast in self._breasts:
            near = np.flatnonzero(y < self._wall_y + 30.0)
            depth[near] = _smooth_union(depth[near], breast.depth_mm(x[near], y[near], z[near]), 9.0)
        body = np.flatnonzero(depth > -6.0)
        depth = depth[body]
        x, y, z = canvas.at(body)
        depth += np.float32(1.5) * self._undulation.at(x, y, z)
        inside = _ramp(depth, canvas.edge_mm)
        for name in PARAMETERS:
            canvas.values[name][body] = getattr(SKIN, name)
        canvas.paint(body, _ramp(depth - np.float32(self._skin_mm), canvas.edge_mm), FAT)
        for breast in self._breasts:
            tip = breast.point(0.0, 0.0, -1.0) + [0.0, 3.0, 0.0]
            index = canvas.box(tip, 7.0)
            dx, dy, dz = (p - np.float32(t) for p, t in zip(canvas.at(index), tip, strict=True))
            canvas.paint(index, _ramp(np.float32(5.0) - np.sqrt(dx**2 + dy**2 + dz**2), canvas.edge_mm), NIPPLE)
        canvas.values["proton_density"][body] *= np.maximum(inside, canvas.values["proton_density"][body] * 0)
        return body, depth

    def _paint_chest(self, canvas: _Canvas, body: NDArray[np.intp]) -> Float:
        """Pectoral muscle, ribs and intercostal muscle, lung, heart, great vessels, liver; returns the depth below the cage."""
        x, y, z = canvas.at(body)
        edge = canvas.edge_mm
        depth = self._cage.depth_mm(x, y, z)
        width = np.abs(x)
        bulge = np.exp(-(((width - 62.0) / 48.0) ** 4)).astype(np.float32)
        posterior = _ramp(y - np.float32(self._wall_y + 90.0), 40.0)
        muscle_mm = np.float32(self._pectoral_mm) * bulge * (1 - posterior) + np.float32(14.0) * posterior
        canvas.paint(body, _ramp(depth + muscle_mm, edge) * (muscle_mm > 1.0), MUSCLE)
        within = np.flatnonzero(depth > -4.0)
        inner, depth_in = body[within], depth[within]
        x, y, z, width = x[within], y[within], z[within], width[within]
        canvas.paint(inner, _ramp(depth_in, edge), MUSCLE)
        wave = np.cos((z + np.float32(0.45) * width + np.float32(0.2) * y) * np.float32(2 * np.pi / 26.0))
        rib = _ramp((wave - np.float32(0.25)) * 4, edge) * _ramp(4 - np.abs(depth_in - 5), edge)
        sternum = _ramp(16 - width, edge) * _ramp(5 - np.abs(depth_in - 3), edge) * (y < self._wall_y + 60)
        canvas.paint(inner, np.maximum(rib, sternum), BONE)
        canvas.paint(inner, _ramp(depth_in - np.float32(11.0), edge), LUNG)
        mediastinum = _Superellipsoid((6.0, self._wall_y + 95.0, 0.0), (34.0, 70.0, 400.0), 2.5)
        chest = _ramp(depth_in - np.float32(11.0), edge)
        heart = self._heart.depth_mm(x, y, z)
        canvas.paint(inner, chest * np.maximum(_ramp(mediastinum.depth_mm(x, y, z), edge), _ramp(heart + 6, edge)), FAT)
        canvas.paint(inner, chest * _ramp(self._liver.depth_mm(x, y, z), edge), LIVER)
        canvas.paint(inner, chest * _ramp(heart, edge), MYOCARDIUM)
        for pool in (self._left_ventricle, self._right_ventricle, self._atria, self._aorta):
            canvas.paint(inner, chest * _ramp(pool.depth_mm(x, y, z), edge), BLOOD)
        return depth

    def _paint_gland(self, canvas: _Canvas, body: NDArray[np.intp], depth: Float, cage_depth: Float) -> None:
        """Fibroglandular tissue behind the nipple, ligaments through the fat, and background enhancement."""
        chosen = np.flatnonzero((depth > 3.0) & (cage_depth < -self._pectoral_mm - 3.0))
        index, depth, cage_depth = body[chosen], depth[chosen], cage_depth[chosen]
        x, y, z = canvas.at(index)
        prior = np.full(index.size, -9.0, dtype=np.float32)
        for breast in self._breasts:
            u, v, w = breast.normalised(x, y, z)
            bowl = 1 - (u**2 + w**2) / np.float32(0.62**2) - ((v + np.float32(0.48)) / np.float32(0.45)) ** 2
            prior = np.maximum(prior, bowl)
        coarse, fine = self._coarse_texture.at(x, y, z), self._fine_texture.at(x, y, z)
        level = np.float32(1.3) * prior + np.float32(0.75) * coarse + np.float32(0.45) * fine + np.float32(self.density)
        gland = _ramp(level * 5, canvas.edge_mm)
        strand = np.exp(-((coarse - np.float32(0.35) * fine) ** 2) / np.float32(0.02)) * np.float32(0.4)
        strand *= _ramp(prior + np.float32(1.5), 1.0)
        clear = _ramp(depth - np.float32(self._skin_mm + 3.0), 3.0) * _ramp(-cage_depth - np.float32(self._pectoral_mm + 4.0), 3.0)
        gland = np.maximum(gland, strand) * clear
        uptake = np.exp(np.float32(0.45) * self._uptake_texture.at(x, y, z))
        ktrans = np.float32(self.background_ktrans_per_min) * uptake
        canvas.paint(index, gland, GLAND, ktrans)

    def _paint_vessels(self, canvas: _Canvas) -> None:
        weight = np.zeros(canvas.size, dtype=np.float32)
        for tube in self.vessels:
            axis = tube.end - tube.start
            length = max(float(np.linalg.norm(axis)), 1e-3)
            reach = 0.5 * length + max(tube.radius_start_mm, tube.radius_end_mm) + canvas.edge_mm
            index = canvas.box(0.5 * (tube.start + tube.end), reach)
            offset = np.stack(canvas.at(index), axis=-1) - tube.start.astype(np.float32)
            along = np.clip(offset @ (axis / length**2).astype(np.float32), 0, 1)
            distance = np.linalg.norm(offset - along[:, None] * axis.astype(np.float32), axis=1)
            radius = tube.radius_start_mm + along * np.float32(tube.radius_end_mm - tube.radius_start_mm)
            weight[index] = np.maximum(weight[index], _ramp(radius - distance, canvas.edge_mm))
        index = np.flatnonzero(weight)
        canvas.paint(index, weight[index], VESSEL)

    def _paint_mass(self, canvas: _Canvas, mass: Lesion, tissue: Tissue) -> None:
        index = canvas.box(np.asarray(mass.centre_mm), mass.reach_mm + 2 * canvas.edge_mm)
        if index.size == 0:
            return
        x, y, z = canvas.at(index)
        distance, surface = mass.polar(x, y, z)
        uptake = mass.uptake(distance / surface) * np.exp(0.15 * self._uptake_texture.at(x, y, z))
        weight = _ramp(np.asarray(surface - distance, dtype=np.float32), canvas.edge_mm)
        canvas.paint(index, weight, tissue, np.asarray(tissue.ktrans_per_min * uptake, dtype=np.float32))

    def labels(self, geometry: Geometry, subsamples: int = 5) -> NDArray[np.uint8]:
        """Malignant masses on the reconstruction grid: uint8 ``(z, y, x)``, 1 where at least half of a voxel is inside."""
        inside = np.zeros(geometry.shape, dtype=np.float32)
        for lesion in self.lesions:
            for place, fraction in _occupancy(lesion, geometry, subsamples):
                inside[place] = np.maximum(inside[place], fraction)
        return np.asarray(inside >= 0.5, dtype=np.uint8)


def _occupancy(lesion: Lesion, geometry: Geometry, n: int) -> Iterator[tuple[tuple[slice, slice, slice], Float]]:
    """The box of voxels around a lesion and the part of each voxel that lies inside, from n^3 sub-samples."""
    affine = geometry.affine_lps
    centre = (np.linalg.inv(affine) @ np.append(lesion.centre_mm, 1.0))[:3]
    low = [int(np.floor(c - lesion.reach_mm / v)) - 1 for c, v in zip(centre, geometry.voxel_size_mm, strict=True)]
    high = [int(np.ceil(c + lesion.reach_mm / v)) + 2 for c, v in zip(centre, geometry.voxel_size_mm, strict=True)]
    low, high = [max(a, 0) for a in low], [min(b, m) for b, m in zip(high, geometry.matrix, strict=True)]
    if any(b <= a for a, b in zip(low, high, strict=True)):
        return
    offsets = (np.arange(n) + 0.5) / n - 0.5
    index = [(np.arange(a, b)[:, None] + offsets).reshape(-1) for a, b in zip(low, high, strict=True)]
    ix, iy, iz = index[0][None, None, :], index[1][None, :, None], index[2][:, None, None]
    x, y, z = (a[0] * ix + a[1] * iy + a[2] * iz + a[3] for a in affine[:3])
    distance, surface = lesion.polar(x, y, z)
    sizes = [b - a for a, b in zip(low, high, strict=True)]
    blocks = (distance <= surface).reshape(sizes[2], n, sizes[1], n, sizes[0], n)
    place = (slice(low[2], high[2]), slice(low[1], high[1]), slice(low[0], high[0]))
    yield place, np.asarray(blocks.mean(axis=(1, 3, 5)), dtype=np.float32)
