"""Weights to begin with, for networks without normalisation."""

from __future__ import annotations

from torch import nn


def before_relu(layer: nn.Conv2d | nn.ConvTranspose2d) -> nn.Module:
    """The layer with weights of He et al. (ICCV 2015, equation 10) and no bias, for a ReLU that follows.

    A signal keeps its size from layer to layer that way. Torch's own weights have a third of the gain, and after 16
    layers without normalisation next to nothing is left: under SERANet's attention and memory such a U-Net gives the
    frequencies of the classes, whatever the image, and stays there.

    Parameters
    ----------
    layer : a transposed convolution must not overlap itself (stride = kernel), so that each of its outputs sums over
        its input channels only.
    """
    inputs = layer.in_channels
    if isinstance(layer, nn.Conv2d):
        inputs *= layer.weight[0, 0].numel()
    nn.init.normal_(layer.weight, std=(2 / inputs) ** 0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
