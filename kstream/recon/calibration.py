"""Coil maps from the first spokes of a frame: a small image of the centre of k-space, and ESPIRiT on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..stream.crew import Crew
from ..types import Complex, Float, Notice
from .espirit import CoilMaps, Weighting, coil_maps
from .fourier import fast_length, to_kspace
from .gridding import FrameGrid, PlaneGridder

MARGIN = 2.5
"""The small image reaches this much further in k-space than the calibration region: what lies beyond leaks into the
region only through the side lobes of the field of view."""

FindMaps = Callable[..., CoilMaps]


def map_finder(device: str) -> FindMaps:
    """Where ESPIRiT is computed: on the processor, or with torch on a GPU.

    Raises
    ------
    ConfigError : if this machine has no such device.
    """
    if device == "cpu":
        return coil_maps
    from .gpu import on_device  # torch takes seconds to import, and most reconstructions need none of it

    return on_device(device)


@dataclass(frozen=True)
class EspiritSettings:
    """How maps are made; see `espirit.coil_maps`.

    Parameters
    ----------
    calibration_size : centre of k-space used, in samples.
    n_sets : sets of maps; more than one for objects that fold over themselves.
    find : `espirit.coil_maps`, or the same on another device.
    """

    calibration_size: int
    kernel: int
    threshold: float
    crop: float
    map_size: int
    iterations: int
    weighting: Weighting = "hard"
    n_sets: int = 1
    find: FindMaps = coil_maps

    def maps(self, centre: Complex, shape: tuple[int, int], crew: Crew | None = None) -> CoilMaps:
        """Maps of all slices from the centre of k-space ``(coils, z, y, x)``."""
        return self.find(
            centre,
            shape,
            kernel=self.kernel,
            threshold=self.threshold,
            crop=self.crop,
            map_size=self.map_size,
            iterations=self.iterations,
            weighting=self.weighting,
            n_sets=self.n_sets,
            crew=crew,
        )

    def centre(self, images: Complex) -> Complex:
        """Centre of the k-space of coil images ``(coils, z, y, x)``."""
        kspace = to_kspace(images)
        ny, nx = images.shape[2:]
        size_y, size_x = min(self.calibration_size, ny), min(self.calibration_size, nx)
        y, x = ny // 2 - size_y // 2, nx // 2 - size_x // 2
        return kspace[:, :, y : y + size_y, x : x + size_x]


class Calibration:
    """The centre of k-space of one frame, gridded as its spokes come.

    Parameters
    ----------
    shape : ``(z, y, x)`` of the maps.
    partition_to_z : complex64 ``(z, partitions)``.
    """

    def __init__(self, settings: EspiritSettings, shape: tuple[int, int, int], partition_to_z: Complex) -> None:
        self._settings, self._shape, self._to_z = settings, shape, partition_to_z
        wide = fast_length(MARGIN * settings.calibration_size)
        self._small = min(shape[1], wide), min(shape[2], wide)
        self._gridder = PlaneGridder(self._small)
        self._grid: FrameGrid | None = None
        self.n_readouts = 0

    @staticmethod
    def n_bytes(settings: EspiritSettings, shape: tuple[int, int, int], n_partitions: int, n_coils: int) -> int:
        """Memory of the grid, its images and the maps."""
        nz, ny, nx = shape
        points = np.prod([min(n, MARGIN * settings.calibration_size) for n in (ny, nx)])
        nodes = min(ny, settings.map_size) * min(nx, settings.map_size)
        per_coil = points * (1.5**2 * n_partitions + n_partitions + 2 * nz) + settings.n_sets * nodes * nz
        return int(8 * n_coils * per_coil) + 4 * settings.n_sets * nz * ny * nx

    def add(self, data: Complex, trajectory: Float, weights: Float, partition: int) -> None:
        """Add the middle of a readout ``(coils, samples)``."""
        if self._grid is None:
            self._grid = FrameGrid(self._gridder, self._to_z.shape[1], data.shape[0])
        half = np.array(self._small[::-1], np.float32) / 2
        inside = (np.abs(trajectory[:, :2]) <= half + 1e-3).all(axis=1)
        self._grid.add(data[:, inside], trajectory[inside], weights[inside], partition)
        self.n_readouts += 1

    def maps(self, crew: Crew | None = None) -> tuple[CoilMaps, list[Notice]]:
        """The maps, and what the user should know about them. Frees the grid."""
        if self._grid is None:
            raise ValueError("no readout was added")
        centre = self._settings.centre(self._grid.to_images(self._to_z))
        self._grid = None
        return self._settings.maps(centre, self._shape[1:], crew), _warnings(centre)


def _warnings(centre: Complex) -> list[Notice]:
    """Coils without signal."""
    energy = np.array([np.sum(np.abs(coil) ** 2, dtype=np.float64) for coil in centre])
    dead = np.flatnonzero(energy <= 1e-12 * energy.max(initial=0))
    if len(dead) == len(energy):
        return [Notice("error", "the calibration frame has no signal in any coil: its images will be empty")]
    if len(dead):
        return [Notice("warning", f"coils without signal: {', '.join(str(c) for c in dead)}; they are left out")]
    return []
