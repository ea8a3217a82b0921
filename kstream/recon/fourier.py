"""The one Fourier pair of the project: centred and orthonormal; k-space to image is the inverse."""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from ..types import Complex

IN_PLANE = (-2, -1)


def to_image(kspace: Complex, axes: tuple[int, ...] = IN_PLANE) -> Complex:
    """Image of centred k-space along `axes`; orthonormal, so the energy is the same on both sides."""
    shifted = scipy.fft.ifftshift(kspace, axes)
    return np.asarray(scipy.fft.fftshift(scipy.fft.ifftn(shifted, axes=axes, norm="ortho"), axes), kspace.dtype)


def to_kspace(image: Complex, axes: tuple[int, ...] = IN_PLANE) -> Complex:
    """Centred k-space of an image along `axes`: the inverse of `to_image`."""
    shifted = scipy.fft.ifftshift(image, axes)
    return np.asarray(scipy.fft.fftshift(scipy.fft.fftn(shifted, axes=axes, norm="ortho"), axes), image.dtype)


def dft_matrix(k: NDArray[np.floating], n: int) -> Complex:
    """Adjoint DFT from sampled frequencies to a line of `n` voxels: complex64 ``(n, len(k))``.

    ``M[r, j] = exp(2 pi i k_j (r - n // 2) / n) / sqrt(n)``; `k` in cycles per field of view.
    """
    position = np.arange(n) - n // 2
    phase = 2j * np.pi / n * np.outer(position, np.asarray(k, np.float64))
    return np.asarray(np.exp(phase) / np.sqrt(n), np.complex64)


def fast_length(n: float) -> int:
    """Smallest length of at least `n` whose transform is fast."""
    return int(scipy.fft.next_fast_len(int(np.ceil(n))))


def line_profiles(samples: Complex, n: int) -> Complex:
    """Adjoint DFT of lines of samples onto `n` points of one period: ``P[j] = sum_i y_i exp(2 pi i (i - N//2) j / n)``.

    Parameters
    ----------
    samples : complex64 ``(..., samples)``; the middle one, ``N // 2``, has frequency 0.
    n : points of the period, at least as many as there are samples; point j and point j - n are the same.
    """
    n_samples = samples.shape[-1]
    middle = n_samples // 2
    wrapped = np.zeros((*samples.shape[:-1], n), samples.dtype)
    wrapped[..., : n_samples - middle] = samples[..., middle:]
    wrapped[..., n - middle :] = samples[..., :middle]
    return np.asarray(scipy.fft.ifft(wrapped, axis=-1, norm="forward"), samples.dtype)
