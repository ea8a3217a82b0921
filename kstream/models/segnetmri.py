"""SegNetMRI of Sun et al. (IPMI 2019), the closest competitor of paper 004: shared encoders, merged segmentations.

Trained in three steps: `reconstruct` by l2 to the fully sampled image; the segmentation decoders and `merge` by cross
entropy with the encoders frozen; everything together by both losses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .consistency import ConsistencyForm, DataConsistency
from .fourier import channels_to_image
from .frames import fold_slices, unfold_time
from .unet2d import Decoder2d, Encoder2d, pad_to_multiple


class SegNetMRI(nn.Module):
    """N blocks of encoder, image decoder and data consistency; a segmentation decoder on each encoder; their merger.

    Inputs and logits are those of `seranet.SERANet`.

    Parameters
    ----------
    n_blocks : reconstruction blocks; the publication's number is 5.
    n_classes : with the background.
    channels : features of every level of encoders and decoders.
    consistency, weight : as for `DataConsistency`.

    Raises
    ------
    ValueError : without a block.
    """

    def __init__(
        self,
        n_blocks: int = 5,
        n_classes: int = 4,
        channels: Sequence[int] = (64, 128, 256),
        consistency: ConsistencyForm = "hard",
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if n_blocks < 1:
            raise ValueError(f"a reconstruction needs at least one block, not {n_blocks}")
        self._divisor = 2 ** (len(channels) - 1)
        self.encoders = nn.ModuleList(Encoder2d(2, channels) for _ in range(n_blocks))
        self.image_decoders = nn.ModuleList(_decoder(channels, 2) for _ in range(n_blocks))
        self.consistency = nn.ModuleList(DataConsistency(consistency, weight) for _ in range(n_blocks))
        self.label_decoders = nn.ModuleList(_decoder(channels, n_classes) for _ in range(n_blocks))
        self.merge = nn.Conv2d(n_blocks * n_classes, n_classes, 1)

    def forward(self, kspace: Tensor, mask: Tensor | None = None) -> Tensor:
        slices, mask, n_slices = fold_slices(kspace, mask)
        return unfold_time(self.both(slices, mask)[1], n_slices)

    def reconstruct(self, kspace: Tensor, mask: Tensor) -> tuple[Tensor, list[list[Tensor]]]:
        """Image ``(batch, 2, y, x)`` and the features of every encoder."""
        image = channels_to_image(kspace)
        height, width = image.shape[-2:]
        seen: list[list[Tensor]] = []
        for encoder, decoder, consistency in zip(self.encoders, self.image_decoders, self.consistency, strict=True):
            seen.append(encoder(pad_to_multiple(image, self._divisor)))
            image = consistency(image + decoder(seen[-1])[..., :height, :width], kspace, mask)
        return image, seen

    def both(self, kspace: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Images and merged logits of single slices."""
        image, seen = self.reconstruct(kspace, mask)
        height, width = image.shape[-2:]
        votes = [decoder(features) for decoder, features in zip(self.label_decoders, seen, strict=True)]
        return image, self.merge(torch.cat(votes, dim=1))[..., :height, :width]


def _decoder(channels: Sequence[int], n_out: int) -> nn.Sequential:
    return nn.Sequential(Decoder2d(channels), nn.Conv2d(channels[0], n_out, 1))
