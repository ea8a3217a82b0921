"""The centred, orthonormal 2-D Fourier pair for tensors; ``recon.fourier`` is its twin for arrays."""

from __future__ import annotations

import torch
from torch import Tensor

IN_PLANE = (-2, -1)


def to_image(kspace: Tensor) -> Tensor:
    """Inverse transform over y and x.

    Parameters
    ----------
    kspace : complex ``(..., y, x)``, centre at index ``n // 2``.
    """
    image: Tensor = torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(kspace, IN_PLANE), norm="ortho"), IN_PLANE)
    return image


def to_kspace(image: Tensor) -> Tensor:
    """Forward transform over y and x; the inverse of `to_image`."""
    kspace: Tensor = torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(image, IN_PLANE), norm="ortho"), IN_PLANE)
    return kspace


def as_complex(channels: Tensor) -> Tensor:
    """Real ``(batch, 2 n, z, y, x)``, ordered f0.re, f0.im, f1.re, ..., to complex64 ``(batch, n, z, y, x)``.

    The cast to float32 keeps the transform that follows in full precision under autocast.
    """
    batch, n_channels, *space = channels.shape
    pairs = channels.float().reshape(batch, n_channels // 2, 2, *space)
    return torch.complex(pairs[:, :, 0], pairs[:, :, 1])


def as_channels(values: Tensor) -> Tensor:
    """Complex ``(batch, n, z, y, x)`` to real ``(batch, 2 n, z, y, x)``; the inverse of `as_complex`."""
    return torch.stack((values.real, values.imag), dim=2).flatten(1, 2)


def channels_to_image(kspace: Tensor) -> Tensor:
    """The fixed bridge of paper 000: `to_image` on every complex feature.

    Parameters
    ----------
    kspace : real ``(batch, 2 n, z, y, x)``, real and imaginary parts interleaved; so is the result.
    """
    return as_channels(to_image(as_complex(kspace)))


def magnitude(channels: Tensor) -> Tensor:
    """Magnitude ``(batch, n, z, y, x)`` of interleaved real and imaginary parts ``(batch, 2 n, z, y, x)``."""
    return as_complex(channels).abs()
