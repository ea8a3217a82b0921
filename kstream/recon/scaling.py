"""Units that a network knows: k-space over a brightness of its own image."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..types import Complex, EarlyKSpace, KSpace, ScaledKSpace
from .fourier import to_image

PERCENTILE = 99.0


def image_scale(kspace: Complex) -> float:
    """The 99th percentile of the magnitude of the zero-filled image; 1 for k-space without signal.

    A scanner's units say nothing, and prewhitening divides by its noise. The maximum would follow single voxels, the
    mean the share of air in the slice.
    """
    scale = float(np.percentile(np.abs(to_image(kspace)), PERCENTILE))
    return scale if scale > 0 else 1.0


def scaled(kspace: Complex) -> Complex:
    """K-space ``(..., y, x)`` over `image_scale`: what networks are trained on and given."""
    return np.asarray(kspace / np.float32(image_scale(kspace)), np.complex64)


class ScaleKSpace:
    """Besides each frame's k-space, the same in units that a network knows."""

    takes = (KSpace, EarlyKSpace)
    gives = (KSpace, ScaledKSpace)

    def push(self, item: KSpace | EarlyKSpace) -> list[Any]:
        if isinstance(item, EarlyKSpace):
            return [_scaled(item.kspace, (item.n_readouts, item.n_expected))]
        return [item, _scaled(item, None)]

    def finish(self) -> list[Any]:
        return []


def _scaled(item: KSpace, early: tuple[int, int] | None) -> ScaledKSpace:
    scale = image_scale(item.data)
    data = np.asarray(item.data / np.float32(scale), np.complex64)
    return ScaledKSpace(data, scale, item.frame, item.slice, item.received_ns, item.geometry, early)
