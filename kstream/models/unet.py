"""Residual 3-D U-Net with the block semantics and state-dict keys of MONAI's ``UNet`` (two residual units per level).

Settings fixed by paper 000: 3x3x3 kernels, group normalisation with two groups (one where the channels are odd), leaky
ReLU of slope 0.1, no dropout, biased convolutions. Checkpoints trained with MONAI load unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

Triple = tuple[int, int, int]
KERNEL = 3
N_GROUPS = 2
NEGATIVE_SLOPE = 0.1


def _normalise(n_channels: int) -> nn.Sequential:
    layers = nn.Sequential()
    layers.add_module("N", nn.GroupNorm(math.gcd(N_GROUPS, n_channels), n_channels))
    layers.add_module("A", nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True))
    return layers


def _unit(convolution: nn.Module, n_channels: int, conv_only: bool = False) -> nn.Sequential:
    layers = nn.Sequential()
    layers.add_module("conv", convolution)
    if not conv_only:
        layers.add_module("adn", _normalise(n_channels))
    return layers


class ResidualUnit(nn.Module):
    """``conv(x) + residual(x)`` without an activation after the sum.

    The skip is a strided convolution where the unit strides, a 1x1x1 convolution where only the number of channels
    changes, else the identity.
    """

    def __init__(
        self, n_in: int, n_out: int, stride: Triple = (1, 1, 1), n_units: int = 2, last_conv_only: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Sequential()
        for index in range(n_units):
            first = index == 0
            convolution = nn.Conv3d(n_in if first else n_out, n_out, KERNEL, stride if first else 1, KERNEL // 2)
            bare = last_conv_only and index == n_units - 1
            self.conv.add_module(f"unit{index}", _unit(convolution, n_out, bare))
        self.residual: nn.Module = nn.Identity()
        if math.prod(stride) > 1:
            self.residual = nn.Conv3d(n_in, n_out, KERNEL, stride, KERNEL // 2)
        elif n_in != n_out:
            self.residual = nn.Conv3d(n_in, n_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.conv(x) + self.residual(x)
        return total


class SkipConnection(nn.Module):
    """Concatenate the input before the output of a submodule, along channels."""

    def __init__(self, submodule: nn.Module) -> None:
        super().__init__()
        self.submodule = submodule

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.submodule(x)), dim=1)


class UNet3d(nn.Module):
    """U-Net on ``(batch, in_channels, z, y, x)`` that gives ``(batch, out_channels, z, y, x)``.

    Sizes that the strides do not divide are zero-padded at their ends and cropped again.

    Parameters
    ----------
    in_channels, out_channels : channels of input and output.
    channels : features of every level, the bottom last.
    strides : one ``(z, y, x)`` stride between neighbouring levels, so ``len(channels) - 1`` of them.
    up_kernel : kernel ``(z, y, x)`` of the transposed convolutions.

    Raises
    ------
    ValueError : if the numbers of levels and strides do not fit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        strides: Sequence[Triple],
        up_kernel: Triple = (3, 3, 3),
    ) -> None:
        super().__init__()
        if len(strides) != len(channels) - 1 or not strides:
            raise ValueError(
                f"{len(channels)} levels need {len(channels) - 1} strides, at least one; got {len(strides)}"
            )
        self.divisor: Triple = (
            math.prod(s[0] for s in strides),
            math.prod(s[1] for s in strides),
            math.prod(s[2] for s in strides),
        )
        self.model = _level(in_channels, out_channels, tuple(channels), tuple(strides), up_kernel, is_top=True)

    def forward(self, x: Tensor) -> Tensor:
        space = x.shape[2:]
        missing = [-size % divisor for size, divisor in zip(space, self.divisor, strict=True)]
        if any(missing):
            x = functional.pad(x, [pad for m in reversed(missing) for pad in (0, m)])
        y: Tensor = self.model(x)
        return y[:, :, : space[0], : space[1], : space[2]] if any(missing) else y


def _level(
    n_in: int, n_out: int, channels: tuple[int, ...], strides: tuple[Triple, ...], up_kernel: Triple, is_top: bool
) -> nn.Sequential:
    """Down unit, everything below it beside a skip, up unit: MONAI's recursion and therefore its key names."""
    width, stride = channels[0], strides[0]
    below: nn.Module
    if len(channels) > 2:
        below = _level(width, width, channels[1:], strides[1:], up_kernel, is_top=False)
        n_below = width
    else:
        below, n_below = ResidualUnit(width, channels[1]), channels[1]
    return nn.Sequential(
        ResidualUnit(n_in, width, stride),
        SkipConnection(below),
        _up(width + n_below, n_out, stride, up_kernel, is_top),
    )


def _up(n_in: int, n_out: int, stride: Triple, kernel: Triple, is_top: bool) -> nn.Sequential:
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    output_padding = (stride[0] - 1, stride[1] - 1, stride[2] - 1)
    transpose = nn.ConvTranspose3d(n_in, n_out, kernel, stride, padding, output_padding)
    return nn.Sequential(_unit(transpose, n_out), ResidualUnit(n_out, n_out, n_units=1, last_conv_only=is_top))
