"""Array mathematics as steps of the stream."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from ..errors import ScanError
from ..types import CoilImages, Complex, Float, FrameEnd, FrameImage, KSpace, Notice, Readout, Scan
from . import density
from .fourier import dft_matrix, to_image
from .gridding import FrameGrid, PlaneGridder


class GridReadouts:
    """Adds every readout to its frame's grid when it comes; gives coil images when the frame ends.

    Parameters
    ----------
    readouts_per_plane : readouts that share one plane of k-space; sets the angle between spokes.
    n_averages : readouts that measure the same line, for uniform density.
    density_method : ``polar`` or ``uniform``.
    memory_gib : grids and coil images of frames that are open at the same time may take so much.

    Raises
    ------
    ScanError : the header asks for more memory than that, or for several slices from one plane of k-space.
    """

    takes = (Readout, FrameEnd)
    gives = (CoilImages, FrameEnd, Notice)

    def __init__(
        self,
        scan: Scan,
        readouts_per_plane: float,
        n_partitions: int,
        n_averages: int,
        density_method: Literal["polar", "uniform"],
        oversampling: float,
        width: int,
        memory_gib: float,
    ) -> None:
        nx, ny, nz = scan.recon_matrix
        self._scan, self._memory_gib = scan, memory_gib
        self._n_partitions, self._n_averages = n_partitions, n_averages
        self._readouts_per_plane, self._density_method = readouts_per_plane, density_method
        self._aspect = scan.recon_fov_mm[1] / scan.recon_fov_mm[0]
        self._grid_bytes = n_partitions * int(nx * ny * oversampling**2) * 8
        self._image_bytes = 3 * max(nz, n_partitions) * ny * nx * 8
        self._grids: dict[tuple[int, int], FrameGrid] = {}
        self._cut = False
        self._check_memory(max(scan.n_coils, 1))
        if nz > 1 and n_partitions == 1:
            raise ScanError(
                f"{nz} slices cannot be made from one partition",
                where="reconSpace and kspace_encoding_step_2",
                hint="slices that are excited apart are numbered by idx.slice, with a recon matrix of one along z",
            )
        self._gridder = PlaneGridder((ny, nx), oversampling, width)
        self._partition_to_z = self._transform_along_z(nz)

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
        weights, told = self._weights(item)
        self._grid(item).add(item.data, item.trajectory, weights, item.partition)
        return told

    def finish(self) -> list[Any]:
        return []

    def _transform_along_z(self, n_z: int) -> Complex:
        """Adjoint DFT ``(z, partitions)``; partitions finer than the slices can show are left out."""
        limit = self._scan.limit("kspace_encode_step_2")
        step = self._scan.recon_fov_mm[2] / self._scan.encoded_fov_mm[2] if self._n_partitions > 1 else 1.0
        kz = (np.arange(self._n_partitions) + limit.minimum - limit.center) * step
        return np.where(np.abs(kz) <= n_z / 2, dft_matrix(kz, n_z), 0).astype(np.complex64)

    def _grid(self, readout: Readout) -> FrameGrid:
        place = (readout.frame, readout.slice)
        if place not in self._grids:
            self._check_memory(readout.data.shape[0])
            self._grids[place] = FrameGrid(self._gridder, self._n_partitions, readout.data.shape[0])
        return self._grids[place]

    def _check_memory(self, n_coils: int) -> None:
        n_open = len(self._grids) + 1
        needed_gib = n_coils * (n_open * self._grid_bytes + self._image_bytes) / 2**30
        if needed_gib > self._memory_gib:
            raise ScanError(
                f"{n_open} open frames of {n_coils} coils, matrix {self._scan.recon_matrix} and {self._n_partitions} "
                f"partitions need {needed_gib:.1f} GiB, more than {self._memory_gib:g}",
                likely="the header is wrong, or frames that never become full pile up",
                hint="--set gridding.memory_gib=N, or --set frames.readouts_per_frame=N",
            )

    def _weights(self, readout: Readout) -> tuple[Float, list[Any]]:
        """Density weights; 0 for samples finer than the image can show, which would fold back on the grid."""
        if self._density_method == "polar":
            step = density.angle_step_rad(readout.trajectory, self._readouts_per_plane)
            weights = density.polar_weights(readout.trajectory, step, self._aspect)
        else:
            weights = np.full(len(readout.trajectory), 1 / self._n_averages, np.float32)
        half = np.array(self._scan.recon_matrix[:2], np.float32) / 2
        inside = (np.abs(readout.trajectory[:, :2]) <= half + 1e-3).all(axis=1)
        if inside.all():
            return weights, []
        told = [] if self._cut else [Notice("info", "samples finer than the recon matrix can show are not used")]
        self._cut = True
        return np.where(inside, weights, 0).astype(np.float32), told


class ToImageSpace:
    """Combined k-space of a frame to its complex image, for those who look at it."""

    takes = (KSpace,)
    gives = (FrameImage,)

    def push(self, kspace: KSpace) -> list[Any]:
        image = to_image(kspace.data)
        return [FrameImage(image, kspace.frame, kspace.slice, kspace.received_ns, kspace.geometry)]

    def finish(self) -> list[Any]:
        return []
