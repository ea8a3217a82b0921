"""Brings k-space values into the range that a network resolves."""

from __future__ import annotations

import torch
from torch import Tensor


def companded(values: Tensor, power: float) -> Tensor:
    """Magnitudes over the largest of each subject, raised to a power; phases stay.

    K-space falls off so steeply that only a power well below 1 spreads it evenly, and the division makes a receiver's
    gain irrelevant.

    Parameters
    ----------
    values : ``(batch, ..., 2)``, real and imaginary part.
    power : 0 leaves values as they are.
    """
    if not power:
        return values
    size = values.square().sum(dim=-1, keepdim=True).sqrt()
    tiny = torch.finfo(size.dtype).tiny
    largest = size.flatten(1).amax(dim=1).clamp_min(tiny).reshape(-1, *([1] * (size.ndim - 1)))
    return values / size.clamp_min(tiny) * (size / largest).clamp_min(1e-12) ** power
