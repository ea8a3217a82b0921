"""Takes a seed and positions, gives the signal of what surrounds the heart: wall, lungs, liver, spine, vessels.

Painted from the outside in, on the points of one plane, with margins one sample wide. Patient axes are LPS in
millimetres; the patient lies on the back. What breathing moves (liver, spleen) is shifted with the diaphragm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...types import Float, Vector
from ..fields import Texture
from ..raster import Superellipsoid, ramp
from .tissue import BLOOD, CARTILAGE, FAT, FLUID, LIVER, LUNG, MARROW, MUSCLE, SPLEEN, Water, steady_state

Positions = tuple[Float, Float, Float]


@dataclass(frozen=True)
class Chest:
    """One person's chest around the heart.

    Parameters
    ----------
    outline, cage : skin surface and inner surface of the ribs.
    fat_mm : thickness of fat under the skin.
    flip_angle_deg : of the sequence.
    """

    outline: Superellipsoid
    cage: Superellipsoid
    fat_mm: float
    liver: Superellipsoid
    left_lobe: Superellipsoid
    spleen: Superellipsoid
    stomach: Superellipsoid
    texture: Texture
    vessels: Texture
    flip_angle_deg: float

    @classmethod
    def random(cls, rng: np.random.Generator, flip_angle_deg: float) -> Chest:
        size = float(rng.uniform(0.94, 1.06))
        fat = float(rng.uniform(8.0, 22.0))
        cage = Superellipsoid((0.0, 31.0, 0.0), (138.0 * size, 98.0 * size, 4000.0), 2.5)
        outline = Superellipsoid(
            (0.0, 33.0, 0.0), (138.0 * size + 22.0 + fat, 98.0 * size + 16.0 + 0.7 * fat, 4000.0), 2.4
        )
        dome = float(rng.uniform(-44.0, -34.0))
        box = (170.0, 170.0, 170.0)
        return cls(
            outline=outline,
            cage=cage,
            fat_mm=fat,
            liver=Superellipsoid((-62.0, 26.0, dome - 92.0), (90.0, 88.0, 96.0), 2.3),
            left_lobe=Superellipsoid((30.0, -16.0, dome - 62.0), (86.0, 60.0, 50.0), 2.2),
            spleen=Superellipsoid((96.0, 62.0, dome - 72.0), (34.0, 42.0, 58.0)),
            stomach=Superellipsoid((76.0, 8.0, dome - 84.0), (46.0, 52.0, 66.0)),
            texture=Texture.random(rng, box, 14.0),
            vessels=Texture.random(rng, box, 11.0),
            flip_angle_deg=flip_angle_deg,
        )

    def signal(self, positions: Positions, edge_mm: float, breath_mm: Vector = (0.0, 0.0, 0.0)) -> Float:
        """Signal at positions of one plane, float32 of their shape; 0 outside of the body."""
        x, y, z = positions
        texture = 1.0 + 0.08 * self.texture.at(x, y, z)
        out = np.zeros_like(x)
        depth = self.outline.depth_mm(x, y, z)
        self._blend(out, ramp(depth, edge_mm), FAT, 1.0)
        self._blend(out, ramp(depth - np.float32(self.fat_mm), edge_mm), MUSCLE, texture)
        inner = self.cage.depth_mm(x, y, z)
        self._paint_wall(out, positions, inner, edge_mm)
        cavity = ramp(inner - 3.0, edge_mm)
        self._blend(out, cavity, LUNG, 1.0)
        branches = np.clip(1.6 * (self.vessels.at(x, y, z) - 1.5), 0, 1.0) * cavity
        self._blend(out, branches, BLOOD, 0.7)
        self._paint_middle(out, positions, cavity, edge_mm)
        moved = (x - np.float32(breath_mm[0]), y - np.float32(breath_mm[1]), z - np.float32(breath_mm[2]))
        self._paint_abdomen(out, moved, cavity, edge_mm, texture)
        self._paint_spine(out, positions, edge_mm)
        return out

    def _blend(self, out: Float, weight: Float, water: Water, factor: Float | float) -> None:
        """Replace by a tissue's signal, by membership `weight`."""
        value = np.float32(steady_state(water, self.flip_angle_deg)) * factor
        out += weight * (value - out)

    def _paint_wall(self, out: Float, positions: Positions, inner: Float, edge_mm: float) -> None:
        """Ribs that slant downwards, with marrow, in muscle; the sternum in front."""
        x, y, z = positions
        wave = np.cos((z + np.float32(0.4) * np.abs(x) + np.float32(0.25) * y) * np.float32(2 * np.pi / 27.0))
        rib = ramp((wave - np.float32(0.3)) * 5, edge_mm) * ramp(4.5 - np.abs(inner + 6.0), edge_mm)
        self._blend(out, rib, CARTILAGE, 1.0)
        marrow = ramp((wave - np.float32(0.55)) * 5, edge_mm) * ramp(2.5 - np.abs(inner + 6.0), edge_mm)
        self._blend(out, marrow, MARROW, 1.0)
        sternum = ramp(16 - np.abs(x), edge_mm) * ramp(5 - np.abs(inner + 6.0), edge_mm) * (y < 0)
        self._blend(out, sternum, MARROW, 0.9)

    def _paint_middle(self, out: Float, positions: Positions, cavity: Float, edge_mm: float) -> None:
        """Fat of the mediastinum with the great vessels and the airway."""
        x, y, z = positions
        middle = Superellipsoid((6.0, 30.0, 30.0), (30.0, 62.0, 4000.0), 2.2)
        self._blend(out, cavity * ramp(middle.depth_mm(x, y, z), edge_mm), FAT, 0.8)
        above = ramp(z - 25.0, 10.0)
        for cx, cy, radius in ((-22.0, -12.0, 13.0), (-34.0, 4.0, 9.0), (14.0, -18.0, 12.0)):
            vessel = ramp(np.float32(radius) - np.hypot(x - cx, y - cy), edge_mm)
            self._blend(out, vessel * above, BLOOD, 0.95)
        airway = ramp(9.0 - np.hypot(x - 2.0, y - 34.0), edge_mm) * ramp(z - 40.0, edge_mm)
        self._blend(out, airway, LUNG, 0.3)
        self._blend(out, ramp(11.5 - np.hypot(x - 26.0, y - 66.0), edge_mm), BLOOD, 0.95)
        self._blend(out, ramp(7.0 - np.hypot(x - 4.0, y - 52.0), edge_mm), MUSCLE, 0.9)

    def _paint_abdomen(self, out: Float, positions: Positions, cavity: Float, edge_mm: float, texture: Float) -> None:
        """Liver with its veins, spleen, stomach with gas on top, fat below the diaphragm."""
        x, y, z = positions
        lobes = np.asarray(np.maximum(self.liver.depth_mm(x, y, z), self.left_lobe.depth_mm(x, y, z)), np.float32)
        stomach, spleen = self.stomach.depth_mm(x, y, z), self.spleen.depth_mm(x, y, z)
        below = np.asarray(np.maximum(lobes, np.maximum(stomach, spleen)), np.float32)
        self._blend(out, cavity * ramp(below + np.float32(3.0), edge_mm), FAT, 0.8)
        self._blend(out, cavity * ramp(stomach, edge_mm), MUSCLE, 0.9)
        gas = ramp(stomach - 6.0, edge_mm)
        self._blend(out, cavity * gas, FLUID, np.where(y < self.stomach.centre[1] - 8.0, 0.02, 0.55))
        self._blend(out, cavity * ramp(spleen, edge_mm), SPLEEN, texture)
        self._blend(out, cavity * ramp(lobes, edge_mm), LIVER, texture)
        veins = np.clip(2.0 * (self.vessels.at(x, y, z) - 1.4), 0, 1.0) * ramp(lobes - np.float32(12.0), edge_mm)
        self._blend(out, cavity * veins, BLOOD, 0.8)

    def _paint_spine(self, out: Float, positions: Positions, edge_mm: float) -> None:
        """Vertebral bodies and discs, and the bright canal behind them."""
        x, y, z = positions
        body = ramp(19.0 - np.hypot(x, y - 88.0), edge_mm)
        disc = np.cos(z * np.float32(2 * np.pi / 31.0)) > 0.86
        self._blend(out, body, MARROW, np.where(disc, 0.55, 1.0))
        self._blend(out, ramp(8.5 - np.hypot(x, y - 116.0), edge_mm), FLUID, 0.8)
        self._blend(out, ramp(5.0 - np.hypot(x, y - 116.0), edge_mm), MUSCLE, 1.2)
