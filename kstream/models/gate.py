"""The efficient hybrid: a pointwise gate in k-space that knows the sampling, then the image U-Net.

Paper 000's hybrid spends nine tenths of its work on convolutions in k-space. A small kernel there is a very smooth
window in image space; what helps a segmentation is to weigh frequencies by how well they were measured. So each sample
gets gains that depend on what is known at it: its magnitude, its radius, whether it was sampled, and how densely its
neighbourhood was. Four such weighings (one of them the measurement itself) cross the bridge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from .consistency import DataConsistency
from .fourier import as_channels, as_complex, to_image
from .unet import NEGATIVE_SLOPE, UNet3d

HALVE = (2, 2, 2)
FLOOR = 1e-3
N_CUES = 5

Bridge = Literal["both", "magnitude"]


def exact(kspace: Tensor) -> torch.dtype:
    """Type of what is computed from k-space: float64 for float64 (a reference), float32 for anything else."""
    return torch.float64 if kspace.dtype == torch.float64 else torch.float32


def sampled(kspace: Tensor) -> Tensor:
    """Where a patch was measured: 1 where any of its slices holds anything, else 0.

    Parameters
    ----------
    kspace : real ``(batch, 2, z, y, x)``.

    Returns
    -------
    ``(batch, 1, 1, y, x)``, of the type that `exact` gives.
    """
    return kspace.abs().amax(dim=(1, 2), keepdim=True).gt(0).to(exact(kspace))


def local_density(mask: Tensor, window: int) -> Tensor:
    """Share of the positions within ``window x window`` (odd, cut off at the border) that were sampled.

    Parameters
    ----------
    mask : float ``(batch, 1, 1, y, x)``; so is the result.
    """
    plane = mask[:, :, 0]
    return functional.avg_pool2d(plane, window, 1, window // 2, count_include_pad=False)[:, :, None]


def radius(height: int, width: int, like: Tensor) -> Tensor:
    """Distance from the centre of k-space, 1 at the middle of an edge: ``(1, 1, 1, y, x)``."""
    y, x = ((torch.arange(n, device=like.device, dtype=exact(like)) - n // 2) / max(n // 2, 1) for n in (height, width))
    return torch.sqrt(y[:, None].square() + x[None, :].square())[None, None, None]


class PlaneConv3d(nn.Conv3d):
    """Convolution within slices, kernel ``(1, k, k)``, padded to the same size.

    It is computed as a 2-D one: for one patch of few channels torch's 3-D convolution on a CPU leaves its fast library
    (three fifths of the time of a whole `GateUNet` in bfloat16 otherwise).
    """

    def __init__(self, n_in: int, n_out: int, kernel: int = 1) -> None:
        super().__init__(n_in, n_out, (1, kernel, kernel), padding=(0, kernel // 2, kernel // 2))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, n_in, z, y, x)`` to ``(batch, n_out, z, y, x)``."""
        batch, n_in, depth, height, width = x.shape
        weight, pad = self.weight[:, :, 0], self.kernel_size[-1] // 2
        if not pad:
            flat = functional.conv2d(x.reshape(batch, n_in, depth * height, width), weight, self.bias)
            return flat.reshape(batch, self.out_channels, depth, height, width)
        slices = x.transpose(1, 2).reshape(batch * depth, n_in, height, width)
        planes = functional.conv2d(slices, weight, self.bias, padding=pad)
        return planes.reshape(batch, depth, self.out_channels, height, width).transpose(1, 2)


class KSpaceGate(nn.Module):
    """Gains for each sample of k-space from what is known at it.

    Cues, each ``(batch, 1, z, y, x)``: log magnitude over the RMS of what was sampled, radius, sampled (0 or 1), local
    density, share of the plane that was sampled. Three pointwise layers give one real gain for each feature. Feature i
    is ``gain_i * k / density^a_i`` with a learned exponent, 0 at first (the measurement as it is) up to 1 (the
    density-compensated one). The first feature is the measurement itself.

    Parameters
    ----------
    n_features : complex features, the measurement included.
    hidden : channels between the pointwise layers.
    window : of the local density, in samples.
    """

    def __init__(self, n_features: int = 4, hidden: int = 16, window: int = 9) -> None:
        super().__init__()
        self.window = window
        n_gated = n_features - 1
        self.layers = nn.Sequential(
            PlaneConv3d(N_CUES, hidden),
            nn.LeakyReLU(NEGATIVE_SLOPE),
            PlaneConv3d(hidden, hidden),
            nn.LeakyReLU(NEGATIVE_SLOPE),
            PlaneConv3d(hidden, n_gated),
        )
        self.exponents = nn.Parameter(torch.linspace(0, 1, n_gated))

    def cues(self, kspace: Tensor, mask: Tensor, density: Tensor) -> Tensor:
        """What the gains depend on: ``(batch, 5, z, y, x)``, float32 (float64 for k-space in it)."""
        power = kspace.to(exact(kspace)).square().sum(dim=1, keepdim=True)
        rate = mask.mean(dim=(-2, -1), keepdim=True)
        mean_power = power.mean(dim=(1, 2, 3, 4), keepdim=True) / rate.clamp_min(FLOOR)
        log_magnitude = 0.5 * torch.log(power / mean_power.clamp_min(1e-20) + FLOOR**2)
        rest = (radius(kspace.shape[-2], kspace.shape[-1], kspace), mask, density, rate)
        return torch.cat((log_magnitude, *(cue.expand_as(log_magnitude) for cue in rest)), dim=1)

    def forward(self, kspace: Tensor, density: Tensor | None = None) -> Tensor:
        """Complex features ``(batch, n_features, z, y, x)`` of k-space ``(batch, 2, z, y, x)``.

        Parameters
        ----------
        density : share of the neighbourhood that was sampled, ``(batch, 1, 1, y, x)`` in 0..1; None: from the samples
            of the patch that are zero, which is right for Cartesian masks.
        """
        measured = as_complex(kspace)
        return torch.cat((measured, measured * self.weights(kspace, density)), dim=1)

    def weights(self, kspace: Tensor, density: Tensor | None = None) -> Tensor:
        """What the measurement is multiplied by for all features but the first: ``(batch, n_features - 1, z, y, x)``.

        Parameters
        ----------
        density : as for `forward`.
        """
        mask = sampled(kspace)
        density = local_density(mask, self.window) if density is None else density
        gains: Tensor = self.layers(self.cues(kspace, mask, density))
        compensation = torch.exp(-self.exponents.reshape(1, -1, 1, 1, 1) * density.clamp_min(FLOOR).log())
        return (1 + gains) * compensation


class ConsistentDenoiser(nn.Module):
    """A small residual denoiser of each slice, then agreement with what was measured."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            PlaneConv3d(2, width, 3),
            nn.LeakyReLU(NEGATIVE_SLOPE),
            PlaneConv3d(width, width, 3),
            nn.LeakyReLU(NEGATIVE_SLOPE),
            PlaneConv3d(width, 2, 3),
        )
        self.consistency = DataConsistency("learned", weight=10.0)

    def forward(self, image: Tensor, kspace: Tensor, mask: Tensor) -> Tensor:
        """Denoised image, complex ``(batch, 1, z, y, x)``, from one and its measured k-space (real, 2 channels)."""
        channels = as_channels(image)
        better: Tensor = self.consistency(channels + self.layers(channels), kspace, mask)
        return as_complex(better)


class GateUNet(nn.Module):
    """K-space gate, fixed inverse transform, image U-Net: the efficient hybrid.

    Takes k-space ``(batch, 2, z, y, x)`` as every breast network, any size; gives logits ``(batch, classes, z, y, x)``.

    Parameters
    ----------
    n_features : complex features that cross the bridge, the measurement itself first.
    hidden, window : see `KSpaceGate`.
    image_channels : features of the image stage.
    n_classes : classes of the output, background included.
    bridge : what the image stage sees of each feature: real part, imaginary part and magnitude (``both``), or the
        magnitude alone, which does not change with the phase of coils and receiver.
    consistency_width : features of one denoising step with data consistency on the last feature; 0: none.

    Raises
    ------
    ValueError : for another bridge, or fewer than two features.
    """

    def __init__(
        self,
        n_features: int = 4,
        hidden: int = 16,
        window: int = 9,
        image_channels: Sequence[int] = (22, 44, 88, 176),
        n_classes: int = 2,
        bridge: Bridge = "both",
        consistency_width: int = 0,
    ) -> None:
        super().__init__()
        if bridge not in ("both", "magnitude"):
            raise ValueError(f"bridge is both or magnitude, not {bridge!r}")
        if n_features < 2:
            raise ValueError(f"a gate needs at least two features, not {n_features}")
        if window % 2 == 0:
            raise ValueError(f"the window must be odd, not {window}")
        self.bridge_form = bridge
        self.gate = KSpaceGate(n_features, hidden, window)
        self.denoiser = ConsistentDenoiser(consistency_width) if consistency_width else None
        n_in = n_features * (3 if bridge == "both" else 1)
        self.img_unet = UNet3d(n_in, n_classes, image_channels, (HALVE,) * (len(image_channels) - 1))

    def forward(self, kspace: Tensor, density: Tensor | None = None) -> Tensor:
        features = bridge(self.gate(kspace, density), kspace, self.denoiser, self.bridge_form)
        logits: Tensor = self.img_unet(features)
        return logits


def bridge(features: Tensor, kspace: Tensor, denoiser: nn.Module | None, form: Bridge) -> Tensor:
    """What the image stage sees of complex features in k-space, of which a denoiser may better the last."""
    image = to_image(features)
    if denoiser is not None:
        better = denoiser(image[:, -1:], kspace, sampled(kspace))
        image = torch.cat((image[:, :-1], better), dim=1)
    if form == "magnitude":
        return image.abs()
    return torch.cat((as_channels(image), image.abs()), dim=1)
