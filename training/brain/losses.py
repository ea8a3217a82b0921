"""What the networks of paper 004 minimise, step by step of their training."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ...errors import ConfigError
from ...models.fourier import channels_to_image
from ...models.frames import sampled
from ...models.linet import LINet
from ...models.segnetmri import SegNetMRI
from ...models.seranet import SERANet
from ...models.synnet import SynNet
from ...models.unrolled import ReconstructThenSegment
from .experiment import BrainLoss

STEPS: dict[str, tuple[str, ...]] = {
    "brain-two-step": ("reconstruction", "segmentation"),
    "brain-segnetmri": ("reconstruction", "segmentation", "joint"),
    "brain-syn-net": ("full", "undersampled"),
    "brain-li-net": ("labels", "full", "undersampled"),
}
"""Steps of the networks that are pre-trained; all others have one, ``undersampled``."""


def steps_of(architecture: str) -> tuple[str, ...]:
    """Names of the training steps of a network."""
    return STEPS.get(architecture, ("undersampled",))


def frozen_parts(network: nn.Module, step: str) -> tuple[nn.Module, ...]:
    """What a step leaves as the step before trained it."""
    if isinstance(network, ReconstructThenSegment) and step == "segmentation":
        return (network.reconstruction,)
    if isinstance(network, SegNetMRI) and step == "segmentation":
        return network.encoders, network.image_decoders, network.consistency
    if isinstance(network, LINet) and step != "labels":
        return network.encoder, network.decoder
    return ()


def brain_losses(
    network: nn.Module, batch: dict[str, Tensor], step: str, config: BrainLoss, teacher: LINet | None = None
) -> dict[str, Tensor]:
    """Losses by name, whose sum is minimised.

    Parameters
    ----------
    batch : float32 `kspace` (undersampled) and `full` ``(batch, 2, y, x)``, int64 `labels` ``(batch, y, x)``.
    step : one of `steps_of` the network.
    teacher : for the last step of LI-Net, its network after the step before.

    Raises
    ------
    ConfigError : a network that this task does not know.
    """
    kspace, labels = batch["kspace"], batch["labels"]
    if step == "full":
        return {"entropy": functional.cross_entropy(network(batch["full"]).float(), labels)}
    if isinstance(network, SynNet):
        return {"entropy": functional.cross_entropy(network(kspace).float(), labels)}
    if isinstance(network, LINet):
        return _latent_losses(network, batch, step, config, teacher)
    mask, truth = sampled(kspace), channels_to_image(batch["full"])
    if step == "reconstruction":
        return {"image": functional.mse_loss(reconstructed(network, kspace, mask), truth)}
    if isinstance(network, SERANet):
        made = network.unroll(kspace, mask)
        wanted = made.logits if config.form == "all" else made.logits[-1:]
        parts = {"entropy": _sum([functional.cross_entropy(logits.float(), labels) for logits in wanted])}
        image = made.images[-1]
    elif isinstance(network, ReconstructThenSegment | SegNetMRI):
        image, logits = network.both(kspace, mask)
        parts = {"entropy": functional.cross_entropy(logits.float(), labels)}
    else:
        raise ConfigError(f"the brain task does not know {type(network).__name__}", where="network.architecture")
    if step == "joint" or config.form == "last+image":
        parts["image"] = config.image_weight * functional.mse_loss(image, truth)
    return parts


def reconstructed(network: nn.Module, kspace: Tensor, mask: Tensor) -> Tensor:
    """The image of a network that makes one.

    Raises
    ------
    ConfigError : it makes none.
    """
    if isinstance(network, ReconstructThenSegment):
        image: Tensor = network.reconstruction(kspace, mask)
        return image
    if isinstance(network, SegNetMRI):
        return network.reconstruct(kspace, mask)[0]
    raise ConfigError(f"{type(network).__name__} reconstructs nothing", where="network.architecture")


def _latent_losses(
    network: LINet, batch: dict[str, Tensor], step: str, config: BrainLoss, teacher: LINet | None
) -> dict[str, Tensor]:
    labels = batch["labels"]
    if step == "labels":
        logits = network.autoencode(one_hot(labels, network))
        return {"entropy": functional.cross_entropy(logits.float(), labels)}
    code = network.predict(batch["kspace"])
    parts = {"entropy": functional.cross_entropy(network.decode(code).float(), labels)}
    if teacher is not None:
        with torch.no_grad():
            wanted = teacher.predict(batch["full"])
        parts["code"] = config.image_weight * functional.mse_loss(code, wanted)
    return parts


def one_hot(labels: Tensor, network: LINet) -> Tensor:
    """Label maps ``(batch, y, x)`` as LI-Net's encoder takes them."""
    return functional.one_hot(labels, network.n_classes).movedim(-1, 1).float()


def _sum(values: list[Tensor]) -> Tensor:
    total: Any = sum(values[1:], values[0])
    return torch.as_tensor(total)
