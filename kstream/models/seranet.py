"""SERANet (paper 004): segmentation that guides a reconstruction that is segmented again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor, nn

from .consistency import ConsistencyForm, DataConsistency
from .frames import fold_slices, unfold_time
from .unet2d import MemoryPlace, UNet2d
from .unrolled import BlockType, Reconstruction, regularisation

AttentionSource = Literal["first", "previous"]


class Recurrences(NamedTuple):
    """Images ``(batch, 2, y, x)`` and logits ``(batch, classes, y, x)`` of t = 0 to T."""

    images: list[Tensor]
    logits: list[Tensor]


class Attention(nn.Module):
    """Image features guided by class probabilities (equations 1 and 2, without the segmentation).

    Every class's probability map multiplies the image; the products, one image per class, go through a regularisation
    block and data consistency. The block adds to the image itself, which is the sum of the products.
    """

    def __init__(
        self, n_classes: int, block: BlockType, consistency: ConsistencyForm, weight: float, width: float
    ) -> None:
        super().__init__()
        self.block = regularisation(block, 2 * n_classes, width)
        self.consistency = DataConsistency(consistency, weight)

    def forward(self, image: Tensor, probabilities: Tensor, kspace: Tensor, mask: Tensor) -> Tensor:
        attended = (probabilities[:, :, None] * image[:, None]).flatten(1, 2)
        guided: Tensor = self.consistency(image + self.block(attended), kspace, mask)
        return guided


class SERANet(nn.Module):
    """Segmentation with end-to-end recurrent attention (paper 004, algorithm 1).

    1. N blocks of regularisation and data consistency give the image x_0.
    2. The U-Net gives the logits s_0.
    3. T times: attention by the softmax of s_(t-1), data consistency, the same U-Net: x_t and s_t.

    Takes float32 k-space ``(batch, 2, [z,] y, x)``, 0 where nothing was measured, and mask ``(batch, 1, [z,] y, x)``
    (without it, lines of zeros count as not measured); gives the logits s_T ``(batch, n_classes, [z,] y, x)``. A
    ConvLSTM in the U-Net remembers earlier t and forgets between slices.

    Parameters
    ----------
    n_blocks : N, the number after SERANet's name.
    n_recurrences : T.
    n_classes : with the background.
    block : regularisation of type A (cascade of convolutions) or B (encoder and decoder).
    channels : features of every level of the U-Net.
    memory : where the ConvLSTM sits (see `UNet2d`); the paper does not say.
    attention : ``first`` attends to the image of block N-1 at every t, as algorithm 1 does; ``previous`` to x_(t-1), as
        equation 1 does.
    consistency, weight : as for `DataConsistency`; the paper's is hard.
    width : multiple of the features of the regularisation blocks.
    scaled_memory : as for `UNet2d`; not in the paper, and it makes trainings reliable.

    Raises
    ------
    ValueError : for a source of attention that does not exist, or a negative T.
    """

    def __init__(
        self,
        n_blocks: int = 2,
        n_recurrences: int = 2,
        n_classes: int = 4,
        block: BlockType = "A",
        channels: Sequence[int] = (64, 128, 256, 512),
        memory: MemoryPlace = "decoder",
        attention: AttentionSource = "first",
        consistency: ConsistencyForm = "hard",
        weight: float = 1.0,
        width: float = 1.0,
        scaled_memory: bool = False,
    ) -> None:
        super().__init__()
        if attention not in ("first", "previous"):
            raise ValueError(f"attention is first or previous, not {attention!r}")
        if n_recurrences < 0:
            raise ValueError(f"the number of recurrences cannot be {n_recurrences}")
        self._n_recurrences, self._source = n_recurrences, attention
        self.reconstruction = Reconstruction(n_blocks, block, consistency, weight, width)
        self.attention = Attention(n_classes, block, consistency, weight, width)
        self.segmentation = UNet2d(2, n_classes, channels, memory, scaled_memory)

    def forward(self, kspace: Tensor, mask: Tensor | None = None) -> Tensor:
        slices, mask, n_slices = fold_slices(kspace, mask)
        return unfold_time(self.unroll(slices, mask).logits[-1], n_slices)

    def unroll(self, kspace: Tensor, mask: Tensor) -> Recurrences:
        """Images and logits of every t of single slices, for losses that look at more than the last."""
        before, image = self.reconstruction.last_two(kspace, mask)
        logits, state = self.segmentation.step(image, None)
        made = Recurrences([image], [logits])
        for _ in range(self._n_recurrences):
            source = before if self._source == "first" else made.images[-1]
            image = self.attention(source, made.logits[-1].softmax(dim=1), kspace, mask)
            logits, state = self.segmentation.step(image, state)
            made.images.append(image)
            made.logits.append(logits)
        return made
