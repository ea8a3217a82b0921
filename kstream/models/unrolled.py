"""Takes undersampled k-space, gives an image: regularisation blocks, each followed by data consistency (paper 004).

All take float32 images ``(batch, 2, y, x)``, real and imaginary part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from .consistency import ConsistencyForm, DataConsistency
from .fourier import channels_to_image
from .frames import fold_slices, unfold_time
from .unet2d import UNet2d

BlockType = Literal["A", "B"]
CASCADE_FEATURES = 64
AUTOENCODER_CHANNELS = (64, 128, 256)


def regularisation(block: BlockType, n_in: int = 2, width: float = 1.0) -> nn.Module:
    """The learned part of a block: ``(batch, n_in, y, x)`` to the change of an image ``(batch, 2, y, x)``.

    ``A`` is five 3x3 convolutions with 64 features and ReLU between them; ``B`` is an encoder and decoder of 64, 128
    and 256 features (paper 004, figure 7).

    Parameters
    ----------
    width : multiple of the publication's features, for small experiments.

    Raises
    ------
    ValueError : for another type.
    """
    if block == "B":
        return UNet2d(n_in, 2, [max(round(width * n), 1) for n in AUTOENCODER_CHANNELS])
    if block != "A":
        raise ValueError(f"a regularisation block is of type A or B, not {block!r}")
    features = max(round(width * CASCADE_FEATURES), 1)
    layers: list[nn.Module] = [nn.Conv2d(n_in, features, 3, padding=1), nn.ReLU(inplace=True)]
    for _ in range(3):
        layers += [nn.Conv2d(features, features, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(features, 2, 3, padding=1))


class Reconstruction(nn.Module):
    """A cascade of regularisation and data consistency (Schlemper et al., IEEE TMI 2018; paper 004, figure 1a).

    Each block adds its change to the image: the publication draws no such skip, the cascade that it cites has it.

    Parameters
    ----------
    n_blocks : number of blocks, at least one.
    block, width : as for `regularisation`.
    consistency, weight : as for `DataConsistency`.

    Raises
    ------
    ValueError : without a block.
    """

    def __init__(
        self,
        n_blocks: int,
        block: BlockType = "A",
        consistency: ConsistencyForm = "hard",
        weight: float = 1.0,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if n_blocks < 1:
            raise ValueError(f"a reconstruction needs at least one block, not {n_blocks}")
        self.blocks = nn.ModuleList(regularisation(block, width=width) for _ in range(n_blocks))
        self.consistency = nn.ModuleList(DataConsistency(consistency, weight) for _ in range(n_blocks))

    def forward(self, kspace: Tensor, mask: Tensor) -> Tensor:
        return self.last_two(kspace, mask)[1]

    def last_two(self, kspace: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Images after the last block but one (the zero-filled image, if there is one block) and after the last."""
        image = channels_to_image(kspace)
        before = image
        for block, consistency in zip(self.blocks, self.consistency, strict=True):
            before, image = image, consistency(image + block(image), kspace, mask)
        return before, image


class ReconstructThenSegment(nn.Module):
    """A reconstruction and a U-Net on its image, without attention: the Two-step and Joint models of paper 004.

    Two-step trains `reconstruction` alone (l2 to the fully sampled image), then `segmentation` on its images; Joint
    trains both together by the segmentation loss only. Inputs and logits are those of `seranet.SERANet`.

    Parameters
    ----------
    n_blocks, block, consistency, weight, width : as for `Reconstruction`.
    n_classes : with the background.
    channels : features of every level of the segmentation U-Net.
    """

    def __init__(
        self,
        n_blocks: int = 2,
        n_classes: int = 4,
        block: BlockType = "A",
        channels: Sequence[int] = (64, 128, 256, 512),
        consistency: ConsistencyForm = "hard",
        weight: float = 1.0,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        self.reconstruction = Reconstruction(n_blocks, block, consistency, weight, width)
        self.segmentation = UNet2d(2, n_classes, channels)

    def forward(self, kspace: Tensor, mask: Tensor | None = None) -> Tensor:
        slices, mask, n_slices = fold_slices(kspace, mask)
        return unfold_time(self.both(slices, mask)[1], n_slices)

    def both(self, kspace: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``(batch, 2, y, x)`` and logits of single slices."""
        image = self.reconstruction(kspace, mask)
        return image, self.segmentation(image)
