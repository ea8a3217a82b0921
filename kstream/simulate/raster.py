"""Takes bodies with smooth surfaces, gives their tissue parameters on a fine grid.

Every margin is a ramp as wide as a voxel of the grid, so that partial volume is right to first order and sums over the
grid converge quickly.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..types import Float, Geometry
from .tissue import PARAMETERS, Tissue


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
    x, y, z = (np.asarray((a[0] * ix + (a[3] + a[1] * iy + a[2] * iz)), dtype=np.float32) for a in affine[:3])
    return x, y, z


def ramp(depth_mm: Float, edge_mm: float) -> Float:
    """Membership of a region from the depth below its surface: 0.5 on the surface, linear over one voxel."""
    return np.asarray(np.clip(depth_mm * np.float32(1.0 / edge_mm) + np.float32(0.5), 0.0, 1.0), dtype=np.float32)


def smooth_union(first: Float, second: Float, blend_mm: float) -> Float:
    """Depth below the union of two bodies with a rounded crease (polynomial smooth maximum)."""
    h = np.clip(np.float32(0.5) + (first - second) * np.float32(0.5 / blend_mm), 0.0, 1.0)
    return np.asarray(second + (first - second) * h + np.float32(blend_mm) * h * (1 - h), dtype=np.float32)


@dataclass(frozen=True)
class Superellipsoid:
    """A body ``(|u|^2 + |w|^2)^(p/2) + |v|^p = 1``; u, v, w are x, y, z in units of the semi-axes.

    Parameters
    ----------
    centre, axes : millimetres along x, y, z.
    power : 2 is an ellipsoid, more is boxier.
    lean : shear of x with y, so that a breast may point sideways.
    back : the semi-axis towards posterior relative to that towards anterior.
    """

    centre: tuple[float, float, float]
    axes: tuple[float, float, float]
    power: float = 2.0
    lean: float = 0.0
    back: float = 1.0

    def normalised(self, x: Float, y: Float, z: Float) -> tuple[Float, Float, Float]:
        """Coordinates in units of the semi-axes."""
        dy = y - np.float32(self.centre[1])
        dx = x - np.float32(self.centre[0]) + np.float32(self.lean) * dy
        dz = z - np.float32(self.centre[2])
        a, b, c = (np.float32(1.0 / axis) for axis in self.axes)
        if self.back != 1.0:
            dy = np.where(dy > 0, dy * np.float32(1.0 / self.back), dy)
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


class Canvas:
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
