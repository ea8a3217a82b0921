"""Incremental gridding: each readout is added to a Cartesian grid when it arrives.

The adjoint of non-uniform sampling, ``x(r) = N^-1/2 sum_j w_j y_j exp(2 pi i k_j . r / n)``, is computed by
Kaiser-Bessel gridding (Jackson et al., IEEE TMI 1991; kernel shape by Beatty et al., IEEE TMI 2005, eq. 5). Because it
is a sum over samples, adding readouts one by one in any order gives the same grid.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import scipy.fft
import scipy.sparse
from numpy.typing import NDArray

from ..types import Complex, Float


class Kernel:
    """Kaiser-Bessel kernel on a grid that is `oversampling` times denser than the field of view needs.

    Parameters
    ----------
    oversampling : grid size over image size, > 1.
    width : support in grid cells.
    """

    def __init__(self, oversampling: float, width: int) -> None:
        self.width = width
        self.beta = np.pi * np.sqrt((width / oversampling) ** 2 * (oversampling - 0.5) ** 2 - 0.8)

    def __call__(self, distance: NDArray[np.float64]) -> NDArray[np.float64]:
        """Kernel value at a distance in cells; 0 beyond half the width."""
        inside = 1 - (2 * distance / self.width) ** 2
        value = np.where(inside >= 0, np.i0(self.beta * np.sqrt(np.maximum(inside, 0))), 0) / np.i0(self.beta)
        return np.asarray(value, np.float64)

    def transform(self, frequency: NDArray[np.float64]) -> NDArray[np.float64]:
        """Fourier transform of the kernel at a frequency in cycles per cell (the apodisation to divide by)."""
        argument = np.sqrt((self.beta**2 - (np.pi * self.width * frequency) ** 2).astype(np.complex128))
        return np.asarray(np.real(np.sinh(argument) / argument) * self.width / np.i0(self.beta), np.float64)


class PlaneGridder:
    """Geometry of gridding in one plane: where a readout's samples fall and how the grid becomes an image.

    Parameters
    ----------
    shape : image size ``(y, x)``.
    oversampling, width : of the kernel.
    """

    def __init__(self, shape: tuple[int, int], oversampling: float = 1.5, width: int = 5) -> None:
        self.shape = shape
        self.kernel = Kernel(oversampling, width)
        self.grid_shape = tuple(scipy.fft.next_fast_len(int(np.ceil(oversampling * n))) for n in shape)
        self.n_cells = self.grid_shape[0] * self.grid_shape[1]
        self._crop = [(np.arange(n) - n // 2) % m for n, m in zip(shape, self.grid_shape, strict=True)]
        self._deapodise = [
            (1 / self.kernel.transform((np.arange(n) - n // 2) / m)).astype(np.float32)
            for n, m in zip(shape, self.grid_shape, strict=True)
        ]
        self._cache: OrderedDict[bytes, tuple[NDArray[np.intp], scipy.sparse.csr_matrix]] = OrderedDict()

    def spread(self, trajectory: Float, weights: Float) -> tuple[NDArray[np.intp], scipy.sparse.csr_matrix]:
        """Cells that a readout touches and the matrix ``(cells, samples)`` that spreads its samples there.

        The last few hundred readout shapes are remembered: all partitions of a stack of stars share one.
        """
        key = trajectory.tobytes() + weights.tobytes()
        found = self._cache.get(key)
        if found is None:
            found = self._cache[key] = self._build_spread(trajectory, weights)
            if len(self._cache) > 256:
                self._cache.popitem(last=False)
        return found

    def _build_spread(self, trajectory: Float, weights: Float) -> tuple[NDArray[np.intp], scipy.sparse.csr_matrix]:
        n_samples = len(trajectory)
        offsets = np.arange(self.kernel.width)
        index, value = [], []
        for axis, component in ((0, 1), (1, 0)):  # grid axis y takes k_y, grid axis x takes k_x
            position = trajectory[:, component] * (self.grid_shape[axis] / self.shape[axis])
            first = np.ceil(position - self.kernel.width / 2).astype(np.int64)
            cell = first[:, None] + offsets
            index.append(cell % self.grid_shape[axis])
            value.append(self.kernel(cell - position[:, None].astype(np.float64)))
        cells = (index[0][:, :, None] * self.grid_shape[1] + index[1][:, None, :]).reshape(n_samples, -1)
        values = (value[0][:, :, None] * value[1][:, None, :] * weights[:, None, None]).reshape(n_samples, -1)
        touched, rows = np.unique(cells, return_inverse=True)
        columns = np.repeat(np.arange(n_samples), cells.shape[1])
        matrix = scipy.sparse.csr_matrix(
            (values.ravel().astype(np.float32), (rows.ravel(), columns)), shape=(len(touched), n_samples)
        )
        return touched, matrix

    def to_image(self, grid: Complex) -> Complex:
        """Image ``(coils, y, x)`` of a grid ``(cells, coils)``: transform, crop, divide by the kernel's transform."""
        planes = np.ascontiguousarray(grid.T).reshape(-1, *self.grid_shape)
        lines = scipy.fft.ifft(planes, axis=-1, norm="forward")[..., self._crop[1]]
        image = scipy.fft.ifft(lines, axis=-2, norm="forward")[..., self._crop[0], :]
        scale = np.outer(self._deapodise[0], self._deapodise[1]) / np.sqrt(self.shape[0] * self.shape[1])
        return np.asarray(image * scale.astype(np.float32), np.complex64)


class FrameGrid:
    """The running sum of one frame: a grid per partition, coils innermost.

    Memory is ``partitions x cells x coils x 8`` bytes. A readout costs ``samples x width^2 x coils`` multiplications.
    """

    def __init__(self, gridder: PlaneGridder, n_partitions: int, n_coils: int) -> None:
        self._gridder = gridder
        self._planes = np.zeros((n_partitions, gridder.n_cells, n_coils), np.complex64)

    def add(self, data: Complex, trajectory: Float, weights: Float, partition: int) -> None:
        """Add one readout, complex64 ``(coils, samples)``."""
        cells, matrix = self._gridder.spread(trajectory, weights)
        self._planes[partition, cells] += matrix @ np.ascontiguousarray(data.T)

    def to_images(self, partition_to_z: Complex) -> Complex:
        """Coil images ``(coils, z, y, x)``; `partition_to_z` ``(z, partitions)`` is the transform along kz."""
        planes = np.stack([self._gridder.to_image(plane) for plane in self._planes], axis=1)
        images = np.einsum("zp,cpyx->czyx", partition_to_z, planes, optimize=True)
        return np.ascontiguousarray(images, np.complex64)
