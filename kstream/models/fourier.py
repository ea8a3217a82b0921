"""The centred, orthonormal 2-D Fourier pair for tensors; ``recon.fourier`` is its twin for arrays."""

from __future__ import annotations

import math

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

    The cast to float32 keeps the transform that follows in full precision under autocast; float64 gives complex128.
    """
    batch, n_channels, *space = channels.shape
    exact = channels if channels.dtype == torch.float64 else channels.float()
    pairs = exact.reshape(batch, n_channels // 2, 2, *space)
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


def centring_signs(n: int) -> Tensor:
    """What centring multiplies by, before and after an inverse transform of even length `n`: float32 ``(2, n)``.

    With the centre ``c = n / 2``, the kernel ``exp(2 pi i (k - c)(j - c) / n)`` is that of the plain transform times
    ``(-1)**k``, ``(-1)**j`` and ``(-1)**c``: no sample has to move.

    Raises
    ------
    ValueError : `n` is odd; centring is then no matter of signs.
    """
    if n % 2:
        raise ValueError(f"{n} is odd")
    before = 1.0 - 2.0 * (torch.arange(n) % 2)
    return torch.stack((before, before * (-1) ** (n // 2)))


def signed_to_image(kspace: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """`to_image` of real ``(batch, 2 n, z, y, x)`` by signs ``(y, x)`` in place of shifts.

    Returns
    -------
    real ``(batch, n, z, y, x, 2)``, float32.
    """
    # one buffer, one pass: signs, cast and order of axes together
    signed = torch.empty(kspace.shape, dtype=torch.float32, device=kspace.device)
    torch.mul(kspace, before, out=signed)
    pairs = torch.complex(signed[:, 0::2], signed[:, 1::2])
    image = torch.view_as_real(torch.fft.ifft2(pairs, norm="ortho"))
    return image * after[:, :, None]


def inverse_matrix(n: int) -> Tensor:
    """The matrix of the centred, orthonormal inverse transform of length `n`: complex128, symmetric ``(n, n)``."""
    steps = torch.arange(n, dtype=torch.float64) - n // 2
    phase = 2 * math.pi / n * torch.outer(steps, steps)
    return torch.polar(torch.full_like(phase, n**-0.5), phase)
