"""Syn-Net of Schlemper et al. (MICCAI 2018): a U-Net from the zero-filled image straight to the label map.

Paper 004's One-step model is the same network; Syn-Net differs by its training, which begins on fully sampled images.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .frames import ImageForm, fold_time, image_channels, to_frames, unfold_time
from .unet2d import UNet2d


class SynNet(nn.Module):
    """U-Net on zero-filled images.

    Takes float32 k-space ``(batch, 2, y, x)``, or ``(batch, 2, time, y, x)`` whose frames it segments one by one; gives
    logits ``(batch, n_classes, [time,] y, x)``. Samples that were not measured are zero.

    Parameters
    ----------
    n_classes : with the background.
    channels : features of every level of the U-Net.
    image : what the U-Net sees of the image.
    """

    def __init__(
        self, n_classes: int = 4, channels: Sequence[int] = (64, 128, 256, 512), image: ImageForm = "complex"
    ) -> None:
        super().__init__()
        self._form = image
        self.net = UNet2d(image_channels(image), n_classes, channels)

    def forward(self, kspace: Tensor) -> Tensor:
        frames, n_frames = fold_time(to_frames(kspace, self._form))
        return unfold_time(self.net(frames), n_frames)
