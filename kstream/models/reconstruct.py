"""Reconstruct, then segment: a small unrolled network and the magnitude U-Net, the baseline that must be beaten.

Morshuis, Hein and Baumgartner (2025) find that two simple stages with data consistency beat specialised ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .fourier import as_complex, to_image
from .gate import ConsistentDenoiser, sampled
from .unet import UNet3d

HALVE = (2, 2, 2)


class ReconstructUNet(nn.Module):
    """Unrolled reconstruction of every slice, then a U-Net on its magnitude.

    Each block is a residual denoiser and agreement with the measured samples (learned trust); what was measured is read
    from the samples that are not zero. The U-Net is that of the magnitude baseline.

    Parameters
    ----------
    n_blocks, width : of the reconstruction.
    channels, n_classes : of the U-Net.
    """

    def __init__(
        self, n_blocks: int = 3, width: int = 16, channels: Sequence[int] = (24, 48, 96, 192), n_classes: int = 2
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ConsistentDenoiser(width) for _ in range(n_blocks))
        self.net = UNet3d(1, n_classes, channels, (HALVE,) * (len(channels) - 1))

    def reconstruct(self, kspace: Tensor) -> Tensor:
        """Complex image ``(batch, 1, z, y, x)`` of k-space ``(batch, 2, z, y, x)``."""
        return unroll(kspace, self.blocks)

    def forward(self, kspace: Tensor) -> Tensor:
        logits: Tensor = self.net(self.reconstruct(kspace).abs())
        return logits


def unroll(kspace: Tensor, blocks: nn.ModuleList) -> Tensor:
    """Complex image ``(batch, 1, z, y, x)`` of k-space ``(batch, 2, z, y, x)``, block after block.

    It works in units of the RMS of the zero-filled image, which noise and missing lines change.
    """
    scale = rms_of(kspace)
    mask, measured = sampled(kspace), kspace / scale
    image = to_image(as_complex(measured))
    for block in blocks:
        image = block(image, measured, mask)
    return torch.mul(image, scale)


def rms_of(kspace: Tensor) -> Tensor:
    """RMS of each patch, ``(batch, 1, 1, 1, 1)``, never zero."""
    return kspace.square().mean(dim=(1, 2, 3, 4), keepdim=True).sqrt().clamp_min(1e-12)
