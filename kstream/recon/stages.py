"""Array mathematics as steps of the stream."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ScanError
from ..types import CoilImages, FrameEnd, FrameImage, KSpace, Notice, Readout, Scan
from . import density
from .fourier import dft_matrix, to_image
from .gridding import FrameGrid, PlaneGridder


class GridReadouts:
    """Adds every readout to its frame's grid when it comes; gives coil images when the frame ends.

    Parameters
    ----------
    readouts_per_plane : readouts that share one plane of k-space; sets the angle between spokes.
    density_method : ``polar`` or ``uniform``.
    """

    takes = (Readout, FrameEnd)
    gives = (CoilImages, FrameEnd, Notice)

    def __init__(
        self,
        scan: Scan,
        readouts_per_plane: int,
        n_partitions: int,
        density_method: density.Method,
        oversampling: float,
        width: int,
    ) -> None:
        nx, ny, nz = scan.recon_matrix
        self._gridder = PlaneGridder((ny, nx), oversampling, width)
        self._readouts_per_plane, self._n_partitions = readouts_per_plane, n_partitions
        self._density_method = density_method
        limit = scan.limit("kspace_encode_step_2")
        kz = np.arange(n_partitions) + limit.minimum - limit.center
        step = scan.recon_fov_mm[2] / scan.encoded_fov_mm[2] if n_partitions > 1 else 1.0
        self._partition_to_z = dft_matrix(kz * step, nz)
        self._grids: dict[tuple[int, int], FrameGrid] = {}

    def push(self, item: Readout | FrameEnd) -> list[Any]:
        if isinstance(item, FrameEnd):
            grid = self._grids.pop((item.frame, item.slice))
            images = grid.to_images(self._partition_to_z)
            return [item, CoilImages(images, item.frame, item.slice, item.received_ns, item.geometry)]
        if np.ptp(item.trajectory[:, 2]) > 0.01:
            raise ScanError(
                "a readout leaves its plane: three-dimensional trajectories are not supported",
                where=f"frame {item.frame}, slice {item.slice}, readout {item.key}",
                hint="acquire a stack of planes (stack of stars), or separate slices",
            )
        self._grid(item).add(item.data, item.trajectory, self._weights(item), item.partition)
        return []

    def finish(self) -> list[Any]:
        return []

    def _grid(self, readout: Readout) -> FrameGrid:
        place = (readout.frame, readout.slice)
        if place not in self._grids:
            self._grids[place] = FrameGrid(self._gridder, self._n_partitions, readout.data.shape[0])
        return self._grids[place]

    def _weights(self, readout: Readout) -> np.ndarray[Any, np.dtype[np.float32]]:
        step = density.angle_step_rad(readout.trajectory, self._readouts_per_plane)
        return density.weights(readout.trajectory, self._density_method, step)


class ToImageSpace:
    """Combined k-space of a frame to its complex image, for those who look at it."""

    takes = (KSpace,)
    gives = (FrameImage,)

    def push(self, kspace: KSpace) -> list[Any]:
        image = to_image(kspace.data)
        return [FrameImage(image, kspace.frame, kspace.slice, kspace.received_ns, kspace.geometry)]

    def finish(self) -> list[Any]:
        return []
