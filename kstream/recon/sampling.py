"""How a scan samples k-space, as far as the whole of it is known before the first readout."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ScanError
from ..types import Complex, Float, Notice, Readout, Scan
from . import density
from .fourier import dft_matrix


def kz_step(scan: Scan, n_partitions: int) -> float:
    """Distance of partitions in cycles per field of view of the recon space: below 1 with slice oversampling.

    A single partition is a slice that was excited, not encoded; it stands for all of its kz.
    """
    return scan.recon_fov_mm[2] / scan.encoded_fov_mm[2] if n_partitions > 1 else 1.0


def kz_positions(scan: Scan, n_partitions: int) -> NDArray[np.float64]:
    """kz of each partition in cycles per field of view of the recon space, 0 where the header's centre is."""
    limit = scan.limit("kspace_encode_step_2")
    position = np.arange(n_partitions) + limit.minimum - limit.center
    return np.asarray(position * kz_step(scan, n_partitions), np.float64)


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
        self._cut = self._doubted = False
        self._radii: NDArray[np.float64] | None = None
        if nz > 1 and n_partitions == 1:
            raise ScanError(
                f"{nz} slices cannot be made from one partition",
                where="reconSpace and kspace_encoding_step_2",
                hint="slices that are excited apart are numbered by idx.slice, with a recon matrix of one along z",
            )

    def partition_to_z(self) -> Complex:
        """Adjoint DFT ``(z, partitions)``, weighted by the kz for which a partition stands.

        Partitions finer than the slices can show are left out.
        """
        n_z = self.shape[0]
        kz, step = kz_positions(self.scan, self.n_partitions), kz_step(self.scan, self.n_partitions)
        return np.where(np.abs(kz) <= n_z / 2, step * dft_matrix(kz, n_z), 0).astype(np.complex64)

    def weights(self, readout: Readout, n_readouts: float = 0.0) -> tuple[Float, list[Any]]:
        """Density weights; 0 for samples finer than the image can show, which would fold back on the grid.

        Parameters
        ----------
        n_readouts : that share the plane; 0 for those of a full frame.

        Raises
        ------
        ScanError : if the readout leaves its plane.
        """
        told: list[Any] = []
        trajectory = readout.trajectory
        if np.ptp(trajectory[:, 2]) > 0.01:
            raise ScanError(
                "a readout leaves its plane: three-dimensional trajectories are not supported",
                where=f"frame {readout.frame}, slice {readout.slice}, readout {readout.key}",
                hint="acquire a stack of planes (stack of stars), or separate slices",
            )
        if self._density_method == "polar":
            told += self._doubts(readout)
            step = self._plan.step_rad(readout, n_readouts or self.readouts_per_plane)
            weights = density.polar_weights(trajectory, step, self._aspect)
        else:
            weights = self._uniform(trajectory) / np.float32(self.n_averages)
        half = np.array(self.scan.recon_matrix[:2], np.float32) / 2
        inside = (np.abs(trajectory[:, :2]) <= half + 1e-3).all(axis=1)
        if inside.all():
            return weights, told
        if not self._cut:
            told.append(Notice("info", "samples finer than the recon matrix can show are not used"))
        self._cut = True
        return np.where(inside, weights, 0).astype(np.float32), told

    def came(self, readout: Readout) -> None:
        """A readout has come that takes the weights of another partition of its spoke."""
        self._plan.came(readout)

    def _doubts(self, readout: Readout) -> list[Any]:
        """Tell once of readouts for which polar weights are wrong."""
        if self._doubted:
            return []
        if self._radii is None:
            self._radii = density.radii(readout.trajectory, self._aspect)
        if density.suits_polar(readout.trajectory, self._radii, self._aspect):
            return []
        self._doubted = True
        text = (
            "density weights are those of spokes or interleaves that turn about the centre, and a readout is neither "
            f"(frame {readout.frame}, slice {readout.slice}, readout {readout.key}): brightness and resolution may be "
            "wrong; iterative.method=cg-sense with iterative.density=voronoi suits any trajectory in a plane"
        )
        return [Notice("warning", text, kind="wrong_density")]

    def _uniform(self, trajectory: Float) -> Float:
        """Areas of the samples of a line along x or y; readouts that are no such line weigh 1 everywhere."""
        extent = np.ptp(trajectory[:, :2], axis=0)
        across = int(extent.argmin())
        if extent[across] > 0.01:
            return np.ones(len(trajectory), np.float32)
        spacing = self.scan.recon_fov_mm[across] / self.scan.encoded_fov_mm[across]
        return density.line_weights(trajectory, spacing)
