"""Takes planes of magnetisation, gives the samples of Cartesian lines, and which lines a scan keeps.

Samples are those of the continuous object, up to its representation on a finer grid: the k-space of the fine grid,
cropped to the acquired matrix. So edges ring and small structures fade as they do in a scanner, and no image that a
network sees was ever the ground truth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...types import Complex, Float

Lines = NDArray[np.bool_]


def gaussian_lines(
    n_lines: int, fraction: float, n_centre: int, rng: np.random.Generator, width: float = 0.17
) -> Lines:
    """Which phase-encoding lines are kept: the centre, and others drawn by a Gaussian density (paper 004, section 3).

    Exactly ``round(fraction * n_lines)`` lines are kept (at least the centre); others than those of the centre are
    drawn without replacement with the density of a Gaussian of mean 0.

    Parameters
    ----------
    fraction : of the lines that is kept, centre included.
    n_centre : lines around k = 0 that are always kept.
    width : standard deviation over `n_lines`; the paper does not give it.
    """
    kept = np.zeros(n_lines, np.bool_)
    n_centre = min(n_centre, n_lines)
    first = (n_lines - n_centre + 1) // 2
    kept[first : first + n_centre] = True
    n_more = min(round(fraction * n_lines), n_lines) - n_centre
    if n_more > 0:
        others = np.flatnonzero(~kept)
        density = np.exp(-0.5 * ((others - n_lines // 2) / (width * n_lines)) ** 2)
        kept[rng.choice(others, n_more, replace=False, p=density / density.sum())] = True
    return kept


@dataclass(frozen=True)
class Imperfections:
    """What happens to the magnetisation of a plane during the readout; maps ``(y, x)`` on the fine grid.

    Parameters
    ----------
    off_resonance_hz : shifts along the readout, towards larger x, by its value over the bandwidth per pixel.
    decay_per_ms : 1/T2, irreversible: falls through the readout.
    dephasing_per_ms : 1/T2* - 1/T2, reversible: falls to both sides of the echo.
    """

    off_resonance_hz: Float
    decay_per_ms: Float
    dephasing_per_ms: Float


@dataclass(frozen=True)
class LineReadout:
    """From a plane on a fine grid to Cartesian lines: ``(y, x * oversampling)`` samples in orthonormal units.

    Parameters
    ----------
    matrix : recon voxels along x and y.
    factor : fine samples per voxel along x and y; sample j sits at voxel index ``j / factor``.
    oversampling : of the readout, along x.
    dwell_us : between samples.
    """

    matrix: tuple[int, int]
    factor: tuple[int, int]
    oversampling: int
    dwell_us: float

    def sample(self, plane: Complex, imperfections: Imperfections | None = None) -> Complex:
        """Samples ``(y, x * oversampling)`` of a plane ``(y, x)`` on the fine grid.

        Raises
        ------
        ValueError : if the plane has another size.
        """
        (nx, ny), (fx, fy) = self.matrix, self.factor
        if plane.shape != (ny * fy, nx * fx):
            raise ValueError(f"a plane of {plane.shape}, expected {(ny * fy, nx * fx)}")
        readout = fourier_matrix(nx, fx, self.oversampling)
        along_x = plane @ readout.T if imperfections is None else self._while_reading(plane, readout, imperfections)
        return np.asarray(fourier_matrix(ny, fy) @ along_x, np.complex64)

    def _while_reading(self, plane: Complex, matrix: Complex, imperfections: Imperfections) -> Complex:
        """The sum along x of magnetisation that turns and decays from sample to sample; the echo is the middle one."""
        echo, dwell_ms = len(matrix) // 2, self.dwell_us * 1e-3
        turn = np.exp(-2j * np.pi * imperfections.off_resonance_hz * dwell_ms * 1e-3)
        result = np.empty((plane.shape[0], len(matrix)), np.complex64)
        for direction in (1, -1):
            rate = direction * imperfections.decay_per_ms + imperfections.dephasing_per_ms
            step = ((turn if direction > 0 else turn.conj()) * np.exp(-rate * dwell_ms)).astype(np.complex64)
            current = plane.copy()
            samples = range(echo, len(matrix)) if direction > 0 else range(echo - 1, -1, -1)
            for number in samples:
                if number != echo:
                    current *= step
                result[:, number] = current @ matrix[number]
        return result


def fourier_matrix(n: int, factor: int, oversampling: int = 1) -> Complex:
    """Fourier sum of a fine axis in orthonormal units of the coarse one: complex64 ``(n * oversampling, n * factor)``.

    ``exp(-2 pi i k r / n) / (factor sqrt(n))``, r in voxels from voxel ``n // 2``, k in steps of ``1 / oversampling``.
    """
    n_samples = n * oversampling
    k = (np.arange(n_samples) - n_samples // 2) / oversampling
    position = np.arange(n * factor) / factor - n // 2
    return np.asarray(np.exp(-2j * np.pi / n * np.outer(k, position)) / (factor * np.sqrt(n)), np.complex64)
