"""Takes 2-D images, gives images: the plain U-Net of paper 004 and the parts that its networks share.

Two 3x3 convolutions with ReLU per level, maximum pooling down, 2x2 transposed convolutions up, skips by concatenation,
a 1x1 convolution at the end, no normalisation (paper 004, figure 7; the figure leaves kernels of the way up open).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from .convlstm import ConvLSTM, State
from .initial import before_relu

MemoryPlace = Literal["none", "input", "bottleneck", "decoder"]


def double_convolution(n_in: int, n_out: int) -> nn.Sequential:
    """Two 3x3 convolutions, each followed by a ReLU."""
    return nn.Sequential(
        before_relu(nn.Conv2d(n_in, n_out, 3, padding=1)),
        nn.ReLU(inplace=True),
        before_relu(nn.Conv2d(n_out, n_out, 3, padding=1)),
        nn.ReLU(inplace=True),
    )


class Encoder2d(nn.Module):
    """The way down: features of every level, finest first.

    Parameters
    ----------
    n_in : channels of the image.
    channels : features of every level; each level after the first halves the size.

    Raises
    ------
    ValueError : if there is no level.
    """

    def __init__(self, n_in: int, channels: Sequence[int]) -> None:
        super().__init__()
        if not channels:
            raise ValueError("an encoder needs at least one level")
        self.levels = nn.ModuleList(
            double_convolution(before, after) for before, after in zip((n_in, *channels), channels, strict=False)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        for level in self.levels:
            x = level(functional.max_pool2d(x, 2) if features else x)
            features.append(x)
        return features


class Decoder2d(nn.Module):
    """The way up, from the features of an `Encoder2d` to ``(batch, channels[0], y, x)``."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        pairs = list(zip(channels[-2::-1], channels[:0:-1], strict=True))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(below, own, 2, stride=2) for own, below in pairs)
        self.levels = nn.ModuleList(double_convolution(2 * own, own) for own, _ in pairs)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x = features[-1]
        for up, level, skip in zip(self.ups, self.levels, features[-2::-1], strict=True):
            x = level(torch.cat((skip, up(x)), dim=1))
        return x


class UNet2d(nn.Module):
    """U-Net on ``(batch, n_in, y, x)`` that gives ``(batch, n_out, y, x)``, with an optional memory.

    Sizes that the levels do not divide are zero-padded at their ends and cropped again.

    Parameters
    ----------
    n_in, n_out : channels of input and output.
    channels : features of every level, the bottom last.
    memory : where a `ConvLSTM` sits that remembers earlier passes over the same slice: before the first level, at the
        bottom, or after the last level of the way up. Paper 004 integrates one without saying where.
    scaled_memory : divide what the memory takes by its root mean square over each image, which costs no parameter.
        Nothing else bounds the features of a U-Net without normalisation, and where they grow until the gates
        saturate, no gradient comes back through them: one of 15 trainings of the brain study stopped there.

    Raises
    ------
    ValueError : for a place that does not exist, or without levels.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        channels: Sequence[int] = (64, 128, 256, 512),
        memory: MemoryPlace = "none",
        scaled_memory: bool = False,
    ) -> None:
        super().__init__()
        if memory not in ("none", "input", "bottleneck", "decoder"):
            raise ValueError(f"memory is none, input, bottleneck or decoder, not {memory!r}")
        self.divisor = 2 ** (len(channels) - 1)
        self._place, self._scales = memory, scaled_memory
        first = channels[0] if memory == "input" else n_in
        self.encoder = Encoder2d(first, channels)
        self.decoder = Decoder2d(channels)
        self.output = nn.Conv2d(channels[0], n_out, 1)
        self.memory = _memory(memory, n_in, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x, None)[0]

    def step(self, x: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        """One pass with the memory of the one before; the state to begin with is None."""
        height, width = x.shape[-2:]
        x, state = self._remember("input", pad_to_multiple(x, self.divisor), state)
        features = self.encoder(x)
        features[-1], state = self._remember("bottleneck", features[-1], state)
        x, state = self._remember("decoder", self.decoder(features), state)
        y: Tensor = self.output(x)
        return y[..., :height, :width], state

    def _remember(self, place: MemoryPlace, x: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        if self.memory is None or place != self._place:
            return x, state
        if self._scales:
            x = x * (x.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-12).rsqrt()
        new: State = self.memory(x, state)
        return new[0], new


def _memory(place: MemoryPlace, n_in: int, channels: Sequence[int]) -> ConvLSTM | None:
    if place == "none":
        return None
    if place == "input":
        return ConvLSTM(n_in, channels[0])
    n_features = channels[-1] if place == "bottleneck" else channels[0]
    return ConvLSTM(n_features, n_features)


def pad_to_multiple(x: Tensor, divisor: int) -> Tensor:
    """Zeros after the ends of y and x, up to the next multiple of `divisor`."""
    missing_y, missing_x = (-size % divisor for size in x.shape[-2:])
    return functional.pad(x, (0, missing_x, 0, missing_y)) if missing_y or missing_x else x
