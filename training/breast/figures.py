"""Pictures of a breast study, as in paper 000: overlays, features of the k-space stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import ModelError
from ...models.breast import HybridUNet
from ...models.fourier import as_complex, to_image, to_kspace
from ...models.gate import GateUNet, bridge
from ...segment.volume import to_channels
from ...types import Complex
from ..curves import save_figure
from .pictures import blend, fullest_slice

Labels = NDArray[np.uint8]
Values = NDArray[np.float32]


def draw_overlays(rows: Sequence[tuple[str, Values, Labels, Mapping[str, tuple[Labels, float]]]], path: Path) -> Path:
    """Examples: a row for each exam and condition, a column for each arm.

    Parameters
    ----------
    rows : title, magnitude image ``(y, x)``, truth ``(y, x)``, and prediction ``(y, x)`` with the exam's Dice by arm.
    """
    names = list(rows[0][3])
    figure, grid = plt.subplots(
        len(rows), len(names) + 1, figsize=(1.9 * (len(names) + 1), 2.1 * len(rows)), squeeze=False
    )
    for line, (title, image, truth, predictions) in zip(grid, rows, strict=True):
        _picture(line[0], blend(image, truth), title)
        for axes, name in zip(line[1:], names, strict=True):
            predicted, value = predictions[name]
            _picture(axes, blend(image, truth, predicted), f"{name}  {value:.2f}")
    return save_figure(figure, path)


@dataclass(frozen=True)
class Features:
    """What a k-space stage makes of one patch (paper 000, figure 5).

    Parameters
    ----------
    image : input magnitude ``(z, y, x)``.
    coherent : magnitude of the sum of features after each was turned to the phase of the input.
    weighted : the same sum, each feature weighted by the gradient of the lesion class with respect to it.
    radii : of the profiles, in samples.
    input_profile, profiles : mean energy of k-space by radius; of the input, and ``(features, radii)``.
    """

    image: Values
    coherent: Values
    weighted: Values
    radii: Values
    input_profile: Values
    profiles: Values


def features_of(network: nn.Module, kspace: Complex) -> Features:
    """Features of a patch ``(z, y, x)``, whose sizes the network must take.

    Raises
    ------
    ModelError : for a network without a k-space stage.
    """
    network = network.eval()
    x = torch.from_numpy(to_channels(kspace))[None]
    features, logits = _bridge(network, x)
    foreground = logits[:, 1:].sum() - logits[:, :1].sum()
    (gradient,) = torch.autograd.grad(foreground, features)
    image = to_image(as_complex(x))[0, 0]
    maps, slopes = features.detach()[0], gradient[0]
    turned = torch.stack([m * torch.exp(-1j * torch.angle((m * image.conj()).sum())) for m in maps])
    weights = (slopes.abs() * maps.abs()).mean(dim=(1, 2, 3))
    weights = weights / weights.sum().clamp_min(1e-12)
    gains = (slopes.abs() / slopes.abs().amax().clamp_min(1e-12)) * weights[:, None, None, None]
    spectra = to_kspace(maps).abs().square().mean(dim=1).numpy()
    given = as_complex(x)[0, 0].abs().square().mean(dim=0).numpy()
    return Features(
        image=image.abs().numpy(),
        coherent=turned.sum(dim=0).abs().numpy(),
        weighted=(turned * gains).sum(dim=0).abs().numpy(),
        radii=np.arange(len(radial_profile(given)), dtype=np.float32),
        input_profile=radial_profile(given),
        profiles=np.stack([radial_profile(spectrum) for spectrum in spectra]),
    )


def _bridge(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Complex features in image space, which keep a gradient, and the logits that follow from them."""
    if isinstance(network, HybridUNet):
        with torch.no_grad():
            features = to_image(as_complex(network.k_stage(x)))
        features.requires_grad_()
        parts = torch.stack((features.real, features.imag), dim=2).flatten(1, 2)
        crossing = torch.cat((parts, features.abs()), dim=1) if network.bridge_magnitude else parts
        return features, network.image_stage(crossing)
    if isinstance(network, GateUNet):
        with torch.no_grad():
            features = to_image(network.gate(x))
        features.requires_grad_()
        return features, network.img_unet(bridge(to_kspace(features), x, network.denoiser, network.bridge_form))
    raise ModelError(f"{type(network).__name__} has no k-space stage to look at")


def radial_profile(energy: NDArray[np.floating]) -> Values:
    """Mean of ``(y, x)`` over rings of one sample about the centre, out to the nearer edge."""
    height, width = energy.shape
    y, x = np.indices(energy.shape)
    ring = np.rint(np.hypot(y - height // 2, x - width // 2)).astype(np.int64)
    n_rings = min(height, width) // 2
    inside = ring < n_rings
    sums = np.bincount(ring[inside], energy[inside], n_rings)
    return np.asarray(sums / np.bincount(ring[inside], minlength=n_rings), np.float32)


def draw_features(features: Features, labels: Labels, path: Path, title: str) -> Path:
    """Input, phase-coherent sum, gradient-weighted sum, radial energy profiles."""
    figure, grid = plt.subplots(1, 4, figsize=(13, 3.4))
    z = fullest_slice(labels)
    panels = (
        ("input", features.image),
        ("phase-coherent sum", features.coherent),
        ("gradient-weighted", features.weighted),
    )
    for axes, (name, volume) in zip(grid[:3], panels, strict=True):
        _picture(axes, blend(volume[z], labels[z]), f"{title}: {name}" if name == "input" else name)
    axes = grid[3]
    tiny = 1e-12
    for index, profile in enumerate(features.profiles):
        axes.semilogy(features.radii, profile / max(profile.sum(), tiny) + tiny, linewidth=1, label=f"feature {index}")
    mean = np.mean([p / max(p.sum(), tiny) for p in features.profiles], axis=0)
    axes.semilogy(features.radii, mean + tiny, color="red", linewidth=2, label="mean")
    axes.semilogy(
        features.radii, features.input_profile / features.input_profile.sum() + tiny, color="black", label="input"
    )
    axes.set_xlabel("radius in k-space (samples)")
    axes.set_ylabel("share of energy")
    axes.legend(fontsize=7)
    return save_figure(figure, path)


def _picture(axes: Axes, picture: NDArray[np.uint8], title: str) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set_title(title, fontsize=8)
    axes.axis("off")
