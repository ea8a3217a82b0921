"""How a scan samples k-space, as far as the whole of it is known before the first readout."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ScanError
from ..types import Complex, Float, Notice, Readout, Scan
from . import density
from .fourier import dft_matrix


class Sampling:
    """Density weights of a readout and the transform along kz.

    Parameters
    ----------
    readouts_per_plane : readouts that share one plane of k-space; sets the angle between spokes.
    n_partitions : planes.
    n_averages : readouts that measure the same line, for uniform density.
    density_method : ``polar`` or ``uniform``.
    plan : planned angles of a frame, where they are known before its readouts; else all readouts weigh the same.

    Raises
    ------
    ScanError : the header asks for several slices from one plane of k-space.
    """

    def __init__(
        self,
        scan: Scan,
        readouts_per_plane: float,
        n_partitions: int,
        n_averages: int,
        density_method: density.Method,
        plan: density.AnglePlan | None = None,
    ) -> None:
        nx, ny, nz = scan.recon_matrix
        self.scan, self.shape = scan, (nz, ny, nx)
        self.n_partitions, self.n_averages = n_partitions, n_averages
        self.readouts_per_plane = readouts_per_plane
        self._density_method, self._plan = density_method, plan or density.AnglePlan()
        self._aspect = scan.recon_fov_mm[1] / scan.recon_fov_mm[0]
        self._cut = False
        if nz > 1 and n_partitions == 1:
            raise ScanError(
                f"{nz} slices cannot be made from one partition",
                where="reconSpace and kspace_encoding_step_2",
                hint="slices that are excited apart are numbered by idx.slice, with a recon matrix of one along z",
            )

    def partition_to_z(self) -> Complex:
        """Adjoint DFT ``(z, partitions)``; partitions finer than the slices can show are left out."""
        n_z, limit = self.shape[0], self.scan.limit("kspace_encode_step_2")
        step = self.scan.recon_fov_mm[2] / self.scan.encoded_fov_mm[2] if self.n_partitions > 1 else 1.0
        kz = (np.arange(self.n_partitions) + limit.minimum - limit.center) * step
        return np.where(np.abs(kz) <= n_z / 2, dft_matrix(kz, n_z), 0).astype(np.complex64)

    def weights(self, readout: Readout, n_readouts: float = 0.0) -> tuple[Float, list[Any]]:
        """Density weights; 0 for samples finer than the image can show, which would fold back on the grid.

        Parameters
        ----------
        n_readouts : that share the plane; 0 for those of a full frame.

        Raises
        ------
        ScanError : if the readout leaves its plane.
        """
        trajectory = readout.trajectory
        if np.ptp(trajectory[:, 2]) > 0.01:
            raise ScanError(
                "a readout leaves its plane: three-dimensional trajectories are not supported",
                where=f"frame {readout.frame}, slice {readout.slice}, readout {readout.key}",
                hint="acquire a stack of planes (stack of stars), or separate slices",
            )
        if self._density_method == "polar":
            step = self._plan.step_rad(readout, n_readouts or self.readouts_per_plane)
            weights = density.polar_weights(trajectory, step, self._aspect)
        else:
            weights = np.full(len(trajectory), 1 / self.n_averages, np.float32)
        half = np.array(self.scan.recon_matrix[:2], np.float32) / 2
        inside = (np.abs(trajectory[:, :2]) <= half + 1e-3).all(axis=1)
        if inside.all():
            return weights, []
        told = [] if self._cut else [Notice("info", "samples finer than the recon matrix can show are not used")]
        self._cut = True
        return np.where(inside, weights, 0).astype(np.float32), told
