"""Sines of coordinates as features of tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def sine_features(x: Tensor, n_frequencies: int) -> Tensor:
    """``[x, sin(2^i pi x), cos(2^i pi x)]`` for i below `n_frequencies` (Mildenhall et al., ECCV 2020, eq. 4).

    ``(..., n)`` becomes ``(..., n + 2 n n_frequencies)``.
    """
    scales = math.pi * 2.0 ** torch.arange(n_frequencies, device=x.device, dtype=x.dtype)
    angles = (x[..., None] * scales).flatten(-2)
    return torch.cat((x, angles.sin(), angles.cos()), dim=-1)


def padded(features: Tensor, width: int) -> Tensor:
    """Zeros after the features of each token, up to a width."""
    return functional.pad(features, (0, width - features.shape[-1]))
