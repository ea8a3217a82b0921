"""Units that a network knows: k-space over a brightness of its own image, turned to the phase of its own centre."""

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


def unit(kspace: Complex) -> np.complex64:
    """What k-space ``(..., y, x)`` is divided by: `image_scale`, with the phase of the centre sample of all its planes.

    The phase of a receiver is arbitrary. A network that saw 17 heads lost the part of a new one whose phase none of
    them had; with the mean phase of the image set to 0, what is left is how the phase changes over it.
    """
    y, x = (n // 2 for n in kspace.shape[-2:])
    phase = np.angle(np.sum(kspace[..., y, x]))  # 0 where nothing was measured
    return np.complex64(image_scale(kspace) * np.exp(1j * phase))


def scaled(kspace: Complex) -> Complex:
    """K-space ``(..., y, x)`` over its `unit`: what networks are trained on and given."""
    return np.asarray(kspace / unit(kspace), np.complex64)


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
    scale = unit(item.data)
    data = np.asarray(item.data / scale, np.complex64)
    return ScaledKSpace(data, complex(scale), item.frame, item.slice, item.received_ns, item.geometry, early)
