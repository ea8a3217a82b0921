"""LI-Net of Schlemper et al. (MICCAI 2018): segmentation through a latent code of label maps.

Trained in three steps:

1. `autoencode`: label maps through `encoder` and `decoder`, cross entropy. The decoder is frozen afterwards.
2. `forward` on fully sampled k-space: `predictor` learns codes from images, cross entropy through the decoder.
3. `forward` on undersampled k-space: a copy of step 2's network (the teacher) sees the fully sampled data; the code of
   the student is held to the teacher's (l2) and its logits to the labels (cross entropy). For sequences, `temporal`
   mends codes from those of the neighbouring frames ("latent interpolation").

The publication leaves sizes open: four convolutions of stride 2 with 32 to 256 features and codes of 64 numbers are
this project's choice. So are leaky units: with plain ones, one of two seeds lost two classes for good.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from .frames import ImageForm, fold_time, image_channels, to_frames, unfold_time
from .initial import before_relu
from .unet2d import pad_to_multiple

SLOPE = 0.1
"""Of a unit below 0."""
TemporalForm = Literal["none", "gru", "conv"]


class CodeEncoder(nn.Module):
    """Convolutions of stride 2 and a linear layer: ``(n, n_in, y, x)`` to codes ``(n, n_latent)``.

    Parameters
    ----------
    shape : y and x of the images; others are refused, for the linear layer has one weight per position.
    """

    def __init__(self, n_in: int, shape: tuple[int, int], channels: Sequence[int], n_latent: int) -> None:
        super().__init__()
        self._shape = shape
        layers: list[nn.Module] = []
        for before, after in zip((n_in, *channels), channels, strict=False):
            layers += [before_relu(nn.Conv2d(before, after, 3, stride=2, padding=1)), nn.LeakyReLU(SLOPE, inplace=True)]
        self.net = nn.Sequential(*layers)
        self.code = nn.Linear(channels[-1] * math.prod(coarse_shape(shape, len(channels))), n_latent)

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[-2:]) != self._shape:
            raise ValueError(f"this network takes images of {self._shape}, not {tuple(images.shape[-2:])}")
        depth = len([layer for layer in self.net if isinstance(layer, nn.Conv2d)])
        features = self.net(pad_to_multiple(images, 2**depth))
        code: Tensor = self.code(features.flatten(1))
        return code


class CodeDecoder(nn.Module):
    """The mirror of `CodeEncoder`: codes ``(n, n_latent)`` to ``(n, n_out, y, x)``."""

    def __init__(self, n_out: int, shape: tuple[int, int], channels: Sequence[int], n_latent: int) -> None:
        super().__init__()
        self._shape = shape
        self._coarse = (channels[-1], *coarse_shape(shape, len(channels)))
        self.code = nn.Linear(n_latent, math.prod(self._coarse))
        layers: list[nn.Module] = []
        widths = (*reversed(channels), channels[0])
        for before, after in itertools.pairwise(widths):
            layers += [before_relu(nn.ConvTranspose2d(before, after, 2, stride=2)), nn.LeakyReLU(SLOPE, inplace=True)]
        self.net = nn.Sequential(*layers, nn.Conv2d(channels[0], n_out, 3, padding=1))

    def forward(self, codes: Tensor) -> Tensor:
        height, width = self._shape
        y: Tensor = self.net(leaky_relu(self.code(codes), SLOPE).reshape(-1, *self._coarse))
        return y[..., :height, :width]


def coarse_shape(shape: tuple[int, int], n_halvings: int) -> tuple[int, int]:
    """Size after `n_halvings` halvings, each rounded up."""
    divisor = 2**n_halvings
    return -(-shape[0] // divisor), -(-shape[1] // divisor)


class TemporalMending(nn.Module):
    """Codes ``(batch, time, n_latent)`` corrected by those of the other frames; at first it changes nothing.

    ``gru`` is bidirectional over the whole sequence, ``conv`` sees two frames to either side.
    """

    def __init__(self, n_latent: int, form: TemporalForm) -> None:
        super().__init__()
        self._form = form
        if form == "gru":
            self.gru = nn.GRU(n_latent, n_latent, batch_first=True, bidirectional=True)
            self.output = nn.Linear(2 * n_latent, n_latent)
        else:
            self.conv = nn.Conv1d(n_latent, n_latent, 5, padding=2)
            self.output = nn.Linear(n_latent, n_latent)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, codes: Tensor) -> Tensor:
        seen = self.gru(codes)[0] if self._form == "gru" else torch.relu(self.conv(codes.mT)).mT
        mended: Tensor = codes + self.output(seen)
        return mended


class LINet(nn.Module):
    """Image to code to label map.

    Takes float32 k-space ``(batch, 2, y, x)`` or ``(batch, 2, time, y, x)``, gives logits
    ``(batch, n_classes, [time,] y, x)``. The training steps are in the module's docstring.

    Parameters
    ----------
    shape : y and x of a frame.
    n_classes : with the background.
    channels : features of the strided convolutions.
    n_latent : length of a code.
    image : what the predictor sees of the image.
    temporal : how codes of a sequence mend each other; frames without a time axis go past it.

    Raises
    ------
    ValueError : for another form of image or temporal, or (forward) frames of another shape.
    """

    def __init__(
        self,
        shape: tuple[int, int] = (216, 180),
        n_classes: int = 4,
        channels: Sequence[int] = (32, 64, 128, 256),
        n_latent: int = 64,
        image: ImageForm = "complex",
        temporal: TemporalForm = "none",
    ) -> None:
        super().__init__()
        if temporal not in ("none", "gru", "conv"):
            raise ValueError(f"temporal is none, gru or conv, not {temporal!r}")
        shape = (shape[0], shape[1])
        self._form, self.n_classes = image, n_classes
        self.encoder = CodeEncoder(n_classes, shape, channels, n_latent)
        self.decoder = CodeDecoder(n_classes, shape, channels, n_latent)
        self.predictor = CodeEncoder(image_channels(image), shape, channels, n_latent)
        self.temporal = None if temporal == "none" else TemporalMending(n_latent, temporal)

    def forward(self, kspace: Tensor) -> Tensor:
        return self.decode(self.predict(kspace))

    def predict(self, kspace: Tensor) -> Tensor:
        """Codes ``(batch, n_latent)``, or ``(batch, time, n_latent)`` of sequences."""
        frames, n_frames = fold_time(to_frames(kspace, self._form))
        codes: Tensor = self.predictor(frames)
        if n_frames is None:
            return codes
        codes = codes.reshape(-1, n_frames, codes.shape[-1])
        return codes if self.temporal is None else self.temporal(codes)

    def decode(self, codes: Tensor) -> Tensor:
        """Logits of codes as `predict` gives them."""
        n_frames = codes.shape[1] if codes.ndim == 3 else None
        return unfold_time(self.decoder(codes.flatten(0, -2)), n_frames)

    def autoencode(self, one_hot: Tensor) -> Tensor:
        """Logits of label maps, one-hot ``(batch, n_classes, [time,] y, x)``, after their way through the code."""
        frames, n_frames = fold_time(one_hot)
        return unfold_time(self.decoder(self.encoder(frames)), n_frames)
