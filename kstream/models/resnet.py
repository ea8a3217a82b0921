"""ResNet-50 for numbers about a heart, with torchvision's architecture and state-dict keys (He et al., CVPR 2016)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn

from .fourier import to_image

Form = Literal["magnitude", "kspace"]
EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided), 1x1 convolutions around a skip: torchvision's ``Bottleneck``, version 1.5."""

    def __init__(self, n_in: int, n_mid: int, stride: int) -> None:
        super().__init__()
        n_out = EXPANSION * n_mid
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_mid, 1, bias=False), nn.BatchNorm2d(n_mid)
        self.conv2, self.bn2 = nn.Conv2d(n_mid, n_mid, 3, stride, 1, bias=False), nn.BatchNorm2d(n_mid)
        self.conv3, self.bn3 = nn.Conv2d(n_mid, n_out, 1, bias=False), nn.BatchNorm2d(n_out)
        self.downsample: nn.Module | None = None
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(y)))))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    """``(batch, n_in, y, x)`` to ``(batch, n_out)``.

    Parameters
    ----------
    n_in : channels of the stem; 3 gives torchvision's network.
    width : channels of the stem's output; 64 gives torchvision's network.
    """

    def __init__(self, n_in: int = 3, n_out: int = 1000, width: int = 64) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        n_last = width
        stages = []
        for number, n_blocks in enumerate((3, 4, 6, 3)):
            n_mid, stride = width * 2**number, 1 if number == 0 else 2
            blocks = [Bottleneck(n_last, n_mid, stride)]
            n_last = EXPANSION * n_mid
            blocks += [Bottleneck(n_last, n_mid, 1) for _ in range(n_blocks - 1)]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(n_last, n_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        out: Tensor = self.fc(x.mean(dim=(2, 3)))
        return out


class CineResNet(nn.Module):
    """Baseline of paper 003: all frames of all views as channels of a ResNet-50.

    Takes float32 k-space ``(batch, 2, views * frames, y, x)``, zero where nothing was sampled. Fully sampled k-space
    makes ``magnitude`` the paper's ResNet-50, undersampled k-space its ResNet-50u; ``kspace`` is its ResNet-50k.

    Parameters
    ----------
    n_images : views times frames.
    n_outputs : phenotypes or diseases.
    form : what the network sees: magnitudes of the images, or real and imaginary part of k-space.
    width : channels of the stem's output.
    """

    def __init__(self, n_images: int = 450, n_outputs: int = 18, form: Form = "magnitude", width: int = 64) -> None:
        super().__init__()
        if form not in ("magnitude", "kspace"):
            raise ValueError(f"form is magnitude or kspace, not {form!r}")
        self.form = form
        self.net = ResNet50(n_images if form == "magnitude" else 2 * n_images, n_outputs, width)

    def forward(self, kspace: Tensor) -> Tensor:
        if self.form == "kspace":
            seen = kspace.flatten(1, 2)
        else:
            seen = to_image(torch.complex(kspace[:, 0].float(), kspace[:, 1].float())).abs()
        out: Tensor = self.net(seen)
        return out


def torchvision_keys(state: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
    """A `CineResNet`'s weights under the names of torchvision's ``resnet50``."""
    return OrderedDict((key.removeprefix("net."), value) for key, value in state.items())
