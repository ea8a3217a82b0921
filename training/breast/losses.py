"""The losses of paper 000: focal on every patch, Dice on patches with a lesion; the native network's own."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ...models.breast import NativeUNet
from ...models.fourier import as_channels, to_kspace
from ..experiment import LossConfig

SMOOTH = 1e-6


def focal_loss(logits: Tensor, labels: Tensor, gamma: float, class_weights: tuple[float, ...]) -> Tensor:
    """Softmax focal loss, mean over patches, classes and voxels.

    ``-w_c (1 - p_c)^gamma y_c log p_c`` with one-hot y (Lin et al. 2017, eq. 5, with a weight per class).

    Parameters
    ----------
    logits : ``(batch, classes, z, y, x)``.
    labels : int64 ``(batch, z, y, x)``.
    """
    log_p = functional.log_softmax(logits, dim=1)
    own = log_p.gather(1, labels[:, None])[:, 0]
    weights = torch.tensor(class_weights, dtype=own.dtype, device=own.device)[labels]
    return (-weights * (1 - own.exp()) ** gamma * own).mean() / logits.shape[1]


def dice_loss(logits: Tensor, labels: Tensor, pooled: bool = False) -> Tensor:
    """``1 - 2 |P Y| / (|P| + |Y|)`` of softmax probabilities, mean over foreground classes and patches.

    Parameters
    ----------
    pooled : treat the batch as one volume instead of averaging over its patches, so that false positives in patches
        without a lesion count too.
    """
    n_classes = logits.shape[1]
    probabilities = logits.softmax(dim=1)[:, 1:]
    truth = functional.one_hot(labels, n_classes).movedim(-1, 1)[:, 1:].to(logits.dtype)
    over = (0, 2, 3, 4) if pooled else (2, 3, 4)
    shared = (probabilities * truth).sum(over)
    total = probabilities.sum(over) + truth.sum(over)
    return (1 - (2 * shared + SMOOTH) / (total + SMOOTH)).mean()


def squared_dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """``1 - 2 |P Y| / (|P^2| + |Y|)``, mean over foreground classes and patches: the native network's, as published."""
    probabilities = logits.softmax(dim=1)[:, 1:]
    truth = functional.one_hot(labels, logits.shape[1]).movedim(-1, 1)[:, 1:].to(logits.dtype)
    shared = (probabilities * truth).sum((2, 3, 4))
    total = probabilities.square().sum((2, 3, 4)) + truth.sum((2, 3, 4))
    return (1 - (2 * shared + SMOOTH) / (total + SMOOTH)).mean()


def distillation_loss(
    logits: Tensor, teacher_logits: Tensor, temperature: float, class_weights: tuple[float, ...]
) -> Tensor:
    """How far a network is from its teacher: ``T^2 KL(softmax(teacher / T) || softmax(logits / T))``.

    Mean over voxels, weighted by `class_weights` of what the teacher sees in each, so that the few voxels of a lesion
    are not lost in the background. Hinton, Vinyals and Dean (2015), section 2; the weights are ours.

    Parameters
    ----------
    logits, teacher_logits : ``(batch, classes, z, y, x)``; no gradient goes to the teacher.
    """
    wanted = functional.log_softmax(teacher_logits.detach().float() / temperature, dim=1)
    given = functional.log_softmax(logits.float() / temperature, dim=1)
    divergence = (wanted.exp() * (wanted - given)).sum(dim=1)
    weights = torch.tensor(class_weights, dtype=wanted.dtype, device=wanted.device)
    importance = torch.einsum("c,bczyx->bzyx", weights, teacher_logits.detach().float().softmax(dim=1))
    return temperature**2 * (importance * divergence).sum() / importance.sum()


def segmentation_losses(logits: Tensor, labels: Tensor, config: LossConfig) -> dict[str, Tensor]:
    """Weighted focal and Dice loss by name; their sum is minimised.

    The published code's focal term was identically zero (a softmax over the one foreground channel); ``form = "code"``
    reproduces that, so that a batch without a lesion gives no gradient. ``form = "text"`` is what paper 000 describes.
    """
    logits = logits.float()
    parts = {}
    if config.form == "text":
        parts["focal"] = config.focal_weight * focal_loss(logits, labels, config.gamma, config.class_weights)
    has_lesion = labels.flatten(1).any(dim=1)
    if config.dice_over == "batch":
        parts["dice"] = config.dice_weight * dice_loss(logits, labels, pooled=True)
    elif has_lesion.any():
        parts["dice"] = config.dice_weight * dice_loss(logits[has_lesion], labels[has_lesion])
    else:
        parts["dice"] = logits.sum() * 0
    return parts


def segmentation_loss(logits: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """The sum of `segmentation_losses`."""
    return torch.stack(list(segmentation_losses(logits, labels, config).values())).sum()


def native_losses(network: NativeUNet, kspace: Tensor, labels: Tensor, config: LossConfig) -> dict[str, Tensor]:
    """The native network's: focal on every patch; Dice, and the error of the predicted k-space, on those with a lesion.

    The truth in k-space is the transform of the mask (of every class for the per-class form). The published code's
    Dice has squared probabilities in its denominator; its focal term is active, unlike that of the other networks.
    """
    predicted = network.predict_kspace(kspace).float()
    logits = network.to_logits(predicted).float()
    parts = {"focal": config.focal_weight * focal_loss(logits, labels, config.gamma, config.class_weights)}
    has_lesion = labels.flatten(1).any(dim=1)
    if not has_lesion.any():
        return parts
    dice = squared_dice_loss if config.form == "code" else dice_loss
    parts["dice"] = config.dice_weight * dice(logits[has_lesion], labels[has_lesion])
    masks = functional.one_hot(labels[has_lesion], logits.shape[1]).movedim(-1, 1)
    wanted = masks[:, 1:] if network.form == "fg_only" else masks
    truth = as_channels(to_kspace(wanted.to(torch.complex64)))
    parts["kspace"] = config.kspace_weight * functional.mse_loss(predicted[has_lesion], truth)
    return parts


def breast_losses(network: nn.Module, kspace: Tensor, labels: Tensor, config: LossConfig) -> dict[str, Tensor]:
    """The losses that belong to a network of the breast task, by name."""
    if isinstance(network, NativeUNet):
        return native_losses(network, kspace, labels, config)
    return segmentation_losses(network(kspace), labels, config)
