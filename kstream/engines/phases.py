"""Transposed convolutions with few output channels as plain convolutions: the same sums, in an order that is fast.

A transposed convolution of stride 2, kernel 3, padding 1 and output padding 1 gives every even output the middle tap of
its own input, and every odd output the last tap of its own and the first of the next input. So along such an axis it is
a convolution with 2 taps that gives both phases as channels, which are then put side by side. oneDNN is slow where a
convolution has few output channels, as at the top of the papers' U-Nets: 48 to 2 channels took 11.0 ms, and 6.4 ms by
phases (bfloat16, one core, 12 x 80 x 80 inputs).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

FEW_OUTPUTS = 4


TAPS = ((1, -1), (2, 0))
"""Which taps the even and the odd outputs of an axis take of their own input and of the next; -1 is a zero."""


def is_worth_it(layer: nn.Module) -> bool:
    """True for the layers that `PhaseConvolution` is for."""
    if not isinstance(layer, nn.ConvTranspose3d) or layer.groups != 1 or layer.bias is None:
        return False
    axes = zip(layer.kernel_size, layer.stride, layer.padding, layer.output_padding, layer.dilation, strict=True)
    return set(axes) == {(3, 2, 1, 1, 1)} and layer.out_channels <= FEW_OUTPUTS


class PhaseConvolution(nn.Module):
    """A `ConvTranspose3d` (one that `is_worth_it`) by phases: ``(batch, n, z, y, x)`` to twice the size."""

    def __init__(self, layer: nn.ConvTranspose3d) -> None:
        super().__init__()
        self.n_out = layer.out_channels
        weight = layer.weight.detach().transpose(0, 1)
        parts = [_pick(weight, taps) for taps in itertools.product(TAPS, repeat=3)]
        bias = layer.bias.detach() if layer.bias is not None else weight.new_zeros(self.n_out)
        self.weight = nn.Parameter(torch.cat(parts), requires_grad=False)
        self.bias = nn.Parameter(bias.repeat(len(parts)), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        both = functional.conv3d(x, self.weight, self.bias, padding=1)[:, :, 1:, 1:, 1:]  # taps: own and next
        batch, (z, y, width) = x.shape[0], x.shape[2:]
        parts = both.reshape(batch, 2, 2, 2, self.n_out, z, y, width)
        ordered = parts.permute(0, 5, 1, 6, 2, 7, 3, 4)  # batch, z, phase, y, phase, x, phase, channel
        return ordered.reshape(batch, 2 * z, 2 * y, 2 * width, self.n_out).permute(0, 4, 1, 2, 3)


def _pick(weight: Tensor, taps: tuple[tuple[int, int], ...]) -> Tensor:
    """Weights ``(out, in, kz, ky, kx)`` at some taps of each axis."""
    for axis, chosen in enumerate(taps, start=2):
        zero = torch.zeros_like(weight.select(axis, 0))
        weight = torch.stack([weight.select(axis, tap) if tap >= 0 else zero for tap in chosen], dim=axis)
    return weight
