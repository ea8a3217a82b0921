"""The four networks of paper 000 for breast DCE.

All take float32 ``(batch, 2, z, y, x)``: real and imaginary part of the contrast difference k-space, whose y and x are
centred Fourier axes while z is already a slice axis. All give logits ``(batch, classes, z, y, x)`` in image space.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .fourier import as_channels, as_complex, channels_to_image, magnitude, to_image
from .unet import Triple, UNet3d

HALVE: Triple = (2, 2, 2)
HALVE_DEPTH: Triple = (2, 1, 1)
TINY = 1e-6


def _unet(n_in: int, n_out: int, channels: Sequence[int]) -> UNet3d:
    return UNet3d(n_in, n_out, channels, (HALVE,) * (len(channels) - 1))


class MagnitudeUNet(nn.Module):
    """U-Net on the magnitude of the difference image (paper 000, image-space baseline)."""

    def __init__(self, channels: Sequence[int] = (24, 48, 96, 192), n_classes: int = 2) -> None:
        super().__init__()
        self.net = _unet(1, n_classes, channels)

    def forward(self, kspace: Tensor) -> Tensor:
        logits: Tensor = self.net(magnitude(channels_to_image(kspace)))
        return logits


class ComplexUNet(nn.Module):
    """U-Net on real and imaginary part of the difference image (paper 000)."""

    def __init__(self, channels: Sequence[int] = (24, 48, 96, 192), n_classes: int = 2) -> None:
        super().__init__()
        self.net = _unet(2, n_classes, channels)

    def forward(self, kspace: Tensor) -> Tensor:
        logits: Tensor = self.net(channels_to_image(kspace))
        return logits


class NativeUNet(nn.Module):
    """U-Net that stays in k-space and predicts k-space; the inverse transform makes it a label map.

    `form` chooses between the two networks that paper 000 has under this name:

    - ``fg_only`` (its published code): one complex k-space, whose magnitude image over its maximum in the patch is the
      foreground probability. A patch therefore always holds at least one foreground voxel.
    - ``per_class`` (its text): one complex k-space per class; logits are an affine map, one per class, of the log
      magnitude, so that the softmax at initialisation is the magnitude over the sum of magnitudes.

    Raises
    ------
    ValueError : for another form, or ``fg_only`` with more than two classes.
    """

    def __init__(self, channels: Sequence[int] = (24, 48, 96, 192), n_classes: int = 2, form: str = "fg_only") -> None:
        super().__init__()
        if form not in ("fg_only", "per_class"):
            raise ValueError(f"form is fg_only or per_class, not {form!r}")
        if form == "fg_only" and n_classes != 2:
            raise ValueError(f"the fg_only form has two classes, not {n_classes}")
        self.form = form
        self.net = _unet(2, 2 if form == "fg_only" else 2 * n_classes, channels)
        if form == "per_class":
            self.head = nn.Conv3d(n_classes, n_classes, 1, groups=n_classes)
            nn.init.ones_(self.head.weight)
            if self.head.bias is not None:
                nn.init.zeros_(self.head.bias)

    def predict_kspace(self, kspace: Tensor) -> Tensor:
        """Predicted k-space, real ``(batch, 2 n, z, y, x)``; the native loss compares it with that of the mask."""
        predicted: Tensor = self.net(kspace)
        return predicted

    def to_logits(self, predicted: Tensor) -> Tensor:
        """Logits of a predicted k-space."""
        return self.read_image(magnitude(channels_to_image(predicted)))

    def read_image(self, image: Tensor) -> Tensor:
        """Logits of the magnitude image of a predicted k-space."""
        if self.form == "per_class":
            logits: Tensor = self.head(torch.log(image + TINY))
            return logits
        foreground = image / (image.amax(dim=(1, 2, 3, 4), keepdim=True) + TINY)
        return torch.log(torch.cat((1 - foreground, foreground), dim=1).clamp_min(TINY))

    def forward(self, kspace: Tensor) -> Tensor:
        return self.to_logits(self.predict_kspace(kspace))


class HybridUNet(nn.Module):
    """K-space U-Net, fixed inverse transform, image U-Net (paper 000): the three stages are attributes.

    Parameters
    ----------
    k_channels : features of the k-space stage; it strides along z only, so that no frequency is ever pooled.
    n_features : complex k-space features that cross the bridge.
    image_channels : features of the image stage.
    n_classes : classes of the output, background included.
    k_residual : add the input k-space to the first complex feature of the k-space stage (not in the paper).
    bridge_magnitude : append the magnitude of every complex feature to its real and imaginary part (not in the paper).
    """

    def __init__(
        self,
        k_channels: Sequence[int] = (20, 40, 80),
        n_features: int = 4,
        image_channels: Sequence[int] = (20, 40, 80, 160),
        n_classes: int = 2,
        k_residual: bool = False,
        bridge_magnitude: bool = False,
    ) -> None:
        super().__init__()
        self.k_residual = k_residual
        self.bridge_magnitude = bridge_magnitude
        k_strides = (HALVE_DEPTH,) * (len(k_channels) - 1)
        self.k_unet = UNet3d(2, 2 * n_features, k_channels, k_strides, up_kernel=(3, 1, 1))
        self.img_unet = _unet((3 if bridge_magnitude else 2) * n_features, n_classes, image_channels)

    def k_stage(self, kspace: Tensor) -> Tensor:
        """Features in k-space, real ``(batch, 2 n_features, z, y, x)``."""
        features: Tensor = self.k_unet(kspace)
        if self.k_residual:
            features = torch.cat((features[:, :2] + kspace, features[:, 2:]), dim=1)
        return features

    def bridge(self, features: Tensor) -> Tensor:
        """Features in image space; without parameters."""
        if not self.bridge_magnitude:
            return channels_to_image(features)
        image = to_image(as_complex(features))
        return torch.cat((as_channels(image), image.abs()), dim=1)

    def image_stage(self, features: Tensor) -> Tensor:
        """Logits from image-space features."""
        logits: Tensor = self.img_unet(features)
        return logits

    def forward(self, kspace: Tensor) -> Tensor:
        return self.image_stage(self.bridge(self.k_stage(kspace)))
