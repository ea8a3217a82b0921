"""Takes a random generator, gives a smooth phase for images that have none: a Gaussian-filtered field variation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..recon.fourier import to_image


def gaussian_phase_rad(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """A smooth phase over a plane ``(y, x)``, in ``(-pi, pi]``.

    The phase of the inverse transform of a Gaussian window times real noise of mean 4 and spread 0.5, the window
    ``max(1, round(y / 200))`` samples wide (DiSK's code; papers 001 and 003 call it Gaussian B0 variations).
    """
    ny, nx = shape
    sigma = max(1, round(ny / 200))
    y, x = (np.arange(n) - n // 2 for n in (ny, nx))
    window = np.exp(-0.5 * (np.square(y)[:, None] + np.square(x)) / sigma**2)
    spectrum = (window * rng.normal(4.0, 0.5, shape)).astype(np.complex64)
    return np.asarray(np.angle(to_image(spectrum)), np.float32)


def complex_image(magnitude: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.complex64]:
    """Magnitude images ``(..., y, x)`` in ``[0, sqrt 2]`` with one smooth phase for all: complex64 of the same shape.

    Images are shifted and scaled together, so that their least value is 0 and their largest sqrt 2 (DiSK's code).
    """
    low, high = float(magnitude.min()), float(magnitude.max())
    scaled = (magnitude - low) * (np.sqrt(2.0) / max(high - low, 1e-12))
    phase = gaussian_phase_rad((magnitude.shape[-2], magnitude.shape[-1]), rng)
    return np.asarray(scaled * np.exp(1j * phase), np.complex64)
