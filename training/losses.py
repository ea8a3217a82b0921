"""The loss of paper 000: focal on every patch, Dice on patches with a lesion."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from .experiment import LossConfig

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


def segmentation_loss(logits: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """Weighted sum of focal and Dice loss.

    The published code's focal term was identically zero (a softmax over the one foreground channel); ``form = "code"``
    reproduces that, so that a batch without a lesion gives no gradient. ``form = "text"`` is what paper 000 describes.
    """
    logits = logits.float()
    loss = logits.sum() * 0
    if config.form == "text":
        loss = loss + config.focal_weight * focal_loss(logits, labels, config.gamma, config.class_weights)
    has_lesion = labels.flatten(1).any(dim=1)
    if config.dice_over == "batch":
        loss = loss + config.dice_weight * dice_loss(logits, labels, pooled=True)
    elif has_lesion.any():
        loss = loss + config.dice_weight * dice_loss(logits[has_lesion], labels[has_lesion])
    return loss
