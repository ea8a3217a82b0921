"""Takes a seed, gives a breast DCE-MRI phantom as continuous functions of position, and rasterises it.

Patient axes are LPS in millimetres about the isocentre; the patient lies prone, so the breasts hang towards anterior
(negative y). Tissue is painted from the outside in: breasts and thorax, skin, fat, chest wall, lungs, heart, liver,
fibroglandular tissue, vessels, cysts, benign masses, malignant masses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError
from ...types import Float, Geometry
from ..fields import SlowField, Texture
from ..raster import Canvas, Superellipsoid, TissueMaps, ramp, smooth_union
from ..tissue import (
    BLOOD,
    BONE,
    CYST,
    FAT,
    GLAND,
    LIVER,
    LUNG,
    MUSCLE,
    MYOCARDIUM,
    NIPPLE,
    PARAMETERS,
    SKIN,
    VESSEL,
    Tissue,
)
from .lesions import Lesion, random_benign, random_malignant

LesionCount = int | Literal["random"]

_BACKGROUND_KTRANS_PER_MIN = {
    "minimal": (0.004, 0.012),
    "mild": (0.012, 0.025),
    "moderate": (0.025, 0.040),
    "marked": (0.040, 0.060),
}


@dataclass(frozen=True)
class _Tube:
    """A piece of vessel between two points, of tapering radius."""

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    radius_start_mm: float
    radius_end_mm: float


class BreastPhantom:
    """Two breasts, chest wall, heart and what enhances in them, from a seed.

    Parameters
    ----------
    seed : everything about the anatomy follows from it.
    n_lesions : malignant masses, 0 to 3, or ``"random"``; the anatomy does not depend on it.
    """

    def __init__(self, seed: int, n_lesions: LesionCount = "random") -> None:
        if n_lesions != "random" and n_lesions not in range(4):
            raise ConfigError(f"n_lesions is {n_lesions!r}", likely="a typing error", hint="use 0, 1, 2, 3 or 'random'")
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
        self._thorax = Superellipsoid((0.0, self._wall_y + 108.0, 0.0), (146.0, 108.0, 400.0), 2.4)
        self._breasts = []
        for side in (-1.0, 1.0):
            local = size * float(rng.uniform(0.94, 1.06))
            axes = (62.0 * local, float(rng.uniform(80, 100)) * local, 66.0 * local)
            centre = (side * float(rng.uniform(71, 77)), self._wall_y + 14.0, float(rng.uniform(-6, 6)))
            self._breasts.append(Superellipsoid(centre, axes, float(rng.uniform(2.1, 2.6)), side * 0.10, 0.45))
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
        low, high = _BACKGROUND_KTRANS_PER_MIN[self.background_enhancement]
        self.background_ktrans_per_min = float(rng.uniform(low, high))

    def _draw_organs(self, rng: np.random.Generator) -> None:
        y0 = self._wall_y
        heart = np.array([28.0, y0 + 70.0, -12.0]) + rng.uniform(-6, 6, 3)
        self._cage = Superellipsoid((0.0, y0 + 112.0, 0.0), (124.0, 96.0, 400.0), 2.3)
        self._heart = Superellipsoid((heart[0], heart[1], heart[2]), (52.0, 42.0, 50.0))
        self._left_ventricle = Superellipsoid((heart[0] + 16, heart[1] + 6, heart[2] - 4), (22.0, 20.0, 30.0))
        self._right_ventricle = Superellipsoid((heart[0] - 18, heart[1] - 12, heart[2] - 2), (24.0, 18.0, 32.0))
        self._atria = Superellipsoid((heart[0] - 10, heart[1] + 16, heart[2] + 26), (34.0, 16.0, 18.0))
        self._aorta = Superellipsoid((18.0, y0 + 138.0, 0.0), (12.0, 12.0, 4000.0))
        self._mediastinum = Superellipsoid((6.0, y0 + 95.0, 0.0), (34.0, 70.0, 400.0), 2.5)
        self._liver = Superellipsoid((-52.0, y0 + 95.0, -108.0 + float(rng.uniform(-8, 8))), (74.0, 74.0, 78.0))
        self._pectoral_mm = float(rng.uniform(8.0, 14.0))
        self.arrival_delay_s = float(rng.uniform(12.0, 20.0))
        self.dose = float(rng.uniform(0.9, 1.1))
        self._transmit = SlowField.random(rng, 1.0, 0.10)
        self._fat_residual = SlowField.random(rng, float(rng.uniform(0.06, 0.12)), 0.03)

    def _vessel_tree(self, rng: np.random.Generator, breast: Superellipsoid) -> list[_Tube]:
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
            tubes += [_Tube(a, b, radius, radius) for a, b in pairwise(path)]
        return tubes

    def _draw_masses(self, rng: np.random.Generator, n_lesions: int) -> None:
        taken: list[tuple[NDArray[np.float64], float]] = []
        self.lesions: list[Lesion] = []
        for _ in range(n_lesions):
            diameter = 10.0 + 22.0 * float(rng.beta(1.5, 1.7))
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
        return replace(mass, centre_mm=(float(best[0]), float(best[1]), float(best[2])))

    def transmit_field(self, x: Float, y: Float, z: Float) -> Float:
        """Flip angle relative to the nominal one."""
        return np.asarray(np.clip(self._transmit.at(x, y, z), 0.6, 1.3), dtype=np.float32)

    def fat_residual(self, x: Float, y: Float, z: Float) -> Float:
        """Part of the fat signal that fat suppression leaves; it fails towards the edge of the field."""
        return np.asarray(np.clip(self._fat_residual.at(x, y, z), 0.02, 0.35), dtype=np.float32)

    def rasterise(self, geometry: Geometry, factor: tuple[int, int, int] = (2, 2, 2)) -> TissueMaps:
        """Paint the phantom on a grid `factor` times finer (along x, y, z) than the reconstruction grid."""
        canvas = Canvas(geometry, factor)
        body, depth = self._paint_body(canvas)
        cage_depth = self._paint_chest(canvas, body)
        self._paint_gland(canvas, body, depth, cage_depth)
        self._paint_vessels(canvas)
        for cyst in self.cysts:
            self._paint_mass(canvas, cyst, CYST)
        for mass in [*self.benign, *self.lesions]:
            self._paint_mass(canvas, mass, Tissue(1450, 38, 0.90, mass.ktrans_per_min, mass.ve, mass.vp))
        values = {name: array.reshape(canvas.shape) for name, array in canvas.values.items()}
        return TissueMaps(values, geometry, factor, canvas.positions)

    def _paint_body(self, canvas: Canvas) -> tuple[NDArray[np.intp], Float]:
        """Outline, skin and fat; returns the voxels of the body and their depth below the skin's surface."""
        x, y, z = canvas.flat_positions
        depth = self._thorax.depth_mm(x, y, z)
        for breast in self._breasts:
            near = np.flatnonzero(y < breast.centre[1] + breast.back * breast.axes[1] + 15.0)
            depth[near] = smooth_union(depth[near], breast.depth_mm(x[near], y[near], z[near]), 9.0)
        body = np.flatnonzero(depth > -6.0)
        depth = depth[body]
        x, y, z = canvas.at(body)
        depth += np.float32(1.5) * self._undulation.at(x, y, z)
        inside = ramp(depth, canvas.edge_mm)
        for name in PARAMETERS:
            canvas.values[name][body] = getattr(SKIN, name)
        canvas.paint(body, ramp(depth - np.float32(self._skin_mm), canvas.edge_mm), FAT)
        for breast in self._breasts:
            tip = breast.point(0.0, 0.0, -1.0) + np.array([0.0, 3.0, 0.0])
            index = canvas.box(tip, 7.0)
            dx, dy, dz = (p - np.float32(t) for p, t in zip(canvas.at(index), tip, strict=True))
            canvas.paint(index, ramp(np.float32(5.0) - np.sqrt(dx**2 + dy**2 + dz**2), canvas.edge_mm), NIPPLE)
        canvas.values["proton_density"][body] *= inside
        return body, depth

    def _paint_chest(self, canvas: Canvas, body: NDArray[np.intp]) -> Float:
        """Pectoral and back muscle, and what the cage holds; returns the depth below the cage of the body's voxels."""
        x, y, z = canvas.at(body)
        depth = self._cage.depth_mm(x, y, z)
        bulge = np.exp(-(((np.abs(x) - 62.0) / 48.0) ** 4)).astype(np.float32)
        posterior = ramp(y - np.float32(self._wall_y + 90.0), 40.0)
        muscle_mm = np.float32(self._pectoral_mm) * bulge * (1 - posterior) + np.float32(14.0) * posterior
        canvas.paint(body, ramp(depth + muscle_mm, canvas.edge_mm) * (muscle_mm > 1.0), MUSCLE)
        within = np.flatnonzero(depth > -4.0)
        self._paint_cage(canvas, body[within], depth[within])
        self._paint_organs(canvas, body[within], ramp(depth[within] - np.float32(11.0), canvas.edge_mm))
        return depth

    def _paint_cage(self, canvas: Canvas, index: NDArray[np.intp], depth: Float) -> None:
        """Intercostal muscle with ribs that slant downwards, and the sternum."""
        x, y, z = canvas.at(index)
        edge, width = canvas.edge_mm, np.abs(x)
        canvas.paint(index, ramp(depth, edge), MUSCLE)
        wave = np.cos((z + np.float32(0.45) * width + np.float32(0.2) * y) * np.float32(2 * np.pi / 26.0))
        rib = ramp((wave - np.float32(0.25)) * 4, edge) * ramp(4 - np.abs(depth - 5), edge)
        sternum = ramp(16 - width, edge) * ramp(5 - np.abs(depth - 3), edge) * (y < self._wall_y + 60)
        canvas.paint(index, np.maximum(rib, sternum), BONE)

    def _paint_organs(self, canvas: Canvas, index: NDArray[np.intp], chest: Float) -> None:
        """Lungs, fat around the heart, liver, heart with its blood pools, aorta, within the cavity `chest`."""
        x, y, z = canvas.at(index)
        edge = canvas.edge_mm
        heart = self._heart.depth_mm(x, y, z)
        fat = np.maximum(ramp(self._mediastinum.depth_mm(x, y, z), edge), ramp(heart + 6, edge))
        canvas.paint(index, chest, LUNG)
        canvas.paint(index, chest * fat, FAT)
        canvas.paint(index, chest * ramp(self._liver.depth_mm(x, y, z), edge), LIVER)
        canvas.paint(index, chest * ramp(heart, edge), MYOCARDIUM)
        for pool in (self._left_ventricle, self._right_ventricle, self._atria, self._aorta):
            canvas.paint(index, chest * ramp(pool.depth_mm(x, y, z), edge), BLOOD)

    def _paint_gland(self, canvas: Canvas, body: NDArray[np.intp], depth: Float, cage_depth: Float) -> None:
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
        gland = ramp(level * 5, canvas.edge_mm)
        strand = np.exp(-((coarse - np.float32(0.35) * fine) ** 2) / np.float32(0.02)) * np.float32(0.4)
        strand *= ramp(prior + np.float32(1.5), 1.0)
        clear = ramp(depth - np.float32(self._skin_mm + 3.0), 3.0) * ramp(
            -cage_depth - np.float32(self._pectoral_mm + 4.0), 3.0
        )
        gland = np.maximum(gland, strand) * clear
        uptake = np.exp(np.float32(0.45) * self._uptake_texture.at(x, y, z))
        ktrans = np.float32(self.background_ktrans_per_min) * uptake
        canvas.paint(index, gland, GLAND, ktrans)

    def _paint_vessels(self, canvas: Canvas) -> None:
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
            weight[index] = np.maximum(weight[index], ramp(radius - distance, canvas.edge_mm))
        index = np.flatnonzero(weight)
        canvas.paint(index, weight[index], VESSEL)

    def _paint_mass(self, canvas: Canvas, mass: Lesion, tissue: Tissue) -> None:
        index = canvas.box(np.asarray(mass.centre_mm), mass.reach_mm + 2 * canvas.edge_mm)
        if index.size == 0:
            return
        x, y, z = canvas.at(index)
        distance, surface = mass.polar(x, y, z)
        uptake = mass.uptake(distance / surface) * np.exp(0.15 * self._uptake_texture.at(x, y, z))
        weight = ramp(np.asarray(surface - distance, dtype=np.float32), canvas.edge_mm)
        canvas.paint(index, weight, tissue, np.asarray(tissue.ktrans_per_min * uptake, dtype=np.float32))

    def labels(self, geometry: Geometry, subsamples: int = 5) -> NDArray[np.uint8]:
        """Malignant masses on the reconstruction grid: uint8 ``(z, y, x)``, 1 where at least half is inside."""
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
