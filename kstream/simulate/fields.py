"""Takes a random generator, gives smooth random functions of position: texture and slowly varying fields."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

Points = NDArray[np.float32]


@dataclass(frozen=True)
class Texture:
    """Band-limited Gaussian random field of zero mean and unit variance, periodic, a function of position.

    Parameters
    ----------
    values : float32 ``(z, y, x)`` on a grid of `spacing_mm`.
    spacing_mm : grid spacing.
    """

    values: NDArray[np.float32]
    spacing_mm: float

    @classmethod
    def random(cls, rng: np.random.Generator, size_mm: tuple[float, float, float], feature_mm: float) -> Texture:
        """Noise with structures of about `feature_mm`, in a box of `size_mm` along x, y, z.

        The spectrum is a ring (a difference of two Gaussians), so that there is no trend over the breast.
        """
        spacing = feature_mm / 4.0
        shape = tuple(max(8, int(np.ceil(size / spacing))) for size in reversed(size_mm))
        spectrum = np.fft.rfftn(rng.standard_normal(shape, dtype=np.float32))
        axes = [np.fft.fftfreq(n, spacing) for n in shape[:-1]] + [np.fft.rfftfreq(shape[-1], spacing)]
        squared = sum(np.square(k).reshape([-1 if i == d else 1 for i in range(3)]) for d, k in enumerate(axes))
        band = np.exp(-squared * (0.6 * feature_mm) ** 2 * 2.0) - np.exp(-squared * (2.4 * feature_mm) ** 2 * 2.0)
        values = np.fft.irfftn(spectrum * band, s=shape, axes=(0, 1, 2))
        return cls(np.asarray(values / values.std(), dtype=np.float32), spacing)

    def at(self, x: Points, y: Points, z: Points) -> NDArray[np.float32]:
        """Values at patient positions in millimetres."""
        coordinates = np.stack([z, y, x]) * np.float32(1.0 / self.spacing_mm)
        out = map_coordinates(self.values, coordinates, order=1, mode="grid-wrap", output=np.float32)
        return np.asarray(out)


@dataclass(frozen=True)
class SlowField:
    """A polynomial of second degree in position: what varies over the whole body, such as a transmit field.

    Parameters
    ----------
    offset : value at the isocentre.
    linear : per metre along x, y, z.
    quadratic : per square metre along x, y, z.
    """

    offset: float
    linear: tuple[float, float, float]
    quadratic: tuple[float, float, float]

    @classmethod
    def random(cls, rng: np.random.Generator, offset: float, spread: float) -> SlowField:
        """A field that deviates from `offset` by about `spread` at the edge of the breasts (0.12 m)."""
        linear = rng.standard_normal(3) * spread / 0.12 * 0.6
        quadratic = rng.standard_normal(3) * spread / 0.12**2 * 0.5
        return cls(offset, (linear[0], linear[1], linear[2]), (quadratic[0], quadratic[1], quadratic[2]))

    def at(self, x: Points, y: Points, z: Points) -> NDArray[np.float32]:
        """Values at patient positions in millimetres."""
        result = np.full_like(x, self.offset)
        for axis, a, b in zip((x, y, z), self.linear, self.quadratic, strict=True):
            metres = axis * np.float32(1e-3)
            result = result + metres * (np.float32(a) + np.float32(b) * metres)
        return np.asarray(result, dtype=np.float32)
