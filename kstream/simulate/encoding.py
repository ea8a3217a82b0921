"""Takes an object on a fine grid and a stack-of-stars trajectory, gives k-space samples in absolute units.

The convention: ``y(k) = (nx ny nz)^(-1/2) * sum over fine samples of rho(r) exp(-2 pi i k.r / FOV) / (fx fy fz)``
with r measured from recon voxel ``n // 2`` and fine sample j of factor f at recon index ``j / f``. For a band-limited
object this equals the centred orthonormal Fourier transform of the object on the reconstruction grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import finufft
import numpy as np
from numpy.typing import NDArray

from ..types import Complex

# FINUFFT at upsampling 1.25 and eps 2e-5 measured 6e-6 on a disc of 256 x 256, seven times faster than upsampling 2.
_EPS = 2e-5
_UPSAMPLING = 1.25


def partition_transform(kz: NDArray[np.floating], n_z: int, factor: int) -> Complex:
    """Matrix ``(partitions, fine z)`` of the Fourier sum along z, with its share of the scale."""
    position = np.arange(n_z * factor) / factor - n_z // 2
    return np.asarray(np.exp(-2j * np.pi * np.outer(kz, position) / n_z) / (factor * np.sqrt(n_z)), dtype=np.complex64)


@dataclass(frozen=True)
class SpokeTransform:
    """In-plane non-uniform Fourier sum from a fine grid to the samples of spokes, for one number of partitions.

    Parameters
    ----------
    kx, ky : float64 ``(spokes, samples)`` in cycles per field of view.
    matrix : recon voxels along x and y.
    factor : fine samples per recon voxel along x and y.
    n_partitions : images transformed at once.
    n_threads : threads of the transform.
    """

    kx: NDArray[np.float64]
    ky: NDArray[np.float64]
    matrix: tuple[int, int]
    factor: tuple[int, int]
    n_partitions: int
    n_threads: int = 1
    _plan: Any = field(init=False, repr=False)
    _phase: Complex = field(init=False, repr=False)

    def __post_init__(self) -> None:
        nx, ny = (n * f for n, f in zip(self.matrix, self.factor, strict=True))
        plan = finufft.Plan(
            2, (ny, nx), self.n_partitions, _EPS, -1, dtype="complex64", nthreads=self.n_threads, upsampfac=_UPSAMPLING
        )
        x, y = (2.0 * np.pi * k.reshape(-1) / n for k, n in zip((self.kx, self.ky), (nx, ny), strict=True))
        plan.setpts(y.astype(np.float32), x.astype(np.float32))
        # FINUFFT counts from sample n//2 of the fine grid; the object's origin is recon voxel n//2.
        turns = np.zeros_like(self.kx)
        for k, n, f in zip((self.kx, self.ky), self.matrix, self.factor, strict=True):
            turns = turns + k * ((n * f) // 2 - f * (n // 2)) / (n * f)
        scale = 1.0 / (np.sqrt(np.prod(self.matrix)) * np.prod(self.factor))
        object.__setattr__(self, "_plan", plan)
        object.__setattr__(self, "_phase", np.asarray(scale * np.exp(-2j * np.pi * turns), dtype=np.complex64))

    def __call__(self, images: Complex) -> Complex:
        """complex64 ``(partitions, y, x)`` on the fine grid to ``(partitions, spokes, samples)``."""
        samples = self._plan.execute(np.ascontiguousarray(images))
        result: Complex = samples.reshape(self.n_partitions, *self.kx.shape)
        result *= self._phase
        return result
