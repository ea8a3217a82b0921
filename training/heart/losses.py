"""Losses of papers 001 and 003: DiSK's, and those of k-MTR's three stages."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

SMOOTH = 1e-5


def soft_dice_loss(logits: Tensor, labels: Tensor, with_background: bool = True) -> Tensor:
    """``1 - (2 |P Y| + e) / (|P| + |Y| + e)`` of softmax probabilities, mean over classes and batch.

    Parameters
    ----------
    logits : ``(batch, classes, ...)``.
    labels : int64 ``(batch, ...)``.
    """
    truth = functional.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    probabilities = logits.softmax(dim=1)
    shared = (probabilities * truth).flatten(2).sum(dim=2)
    total = (probabilities + truth).flatten(2).sum(dim=2)
    scores = (2 * shared + SMOOTH) / (total + SMOOTH)
    return 1 - (scores if with_background else scores[:, 1:]).mean()


def disk_loss(logits: Tensor, labels: Tensor, network: nn.Module, l2: float = 1e-5) -> dict[str, Tensor]:
    """Dice and binary cross-entropy of the class probabilities, and the sum of squared weights (paper 001, section 3).

    Parameters
    ----------
    logits : ``(batch, classes, n)``.
    labels : int64 ``(batch, n)``.
    """
    truth = functional.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    probabilities = logits.softmax(dim=1).clamp(1e-7, 1 - 1e-7)
    entropy = -(truth * probabilities.log() + (1 - truth) * (1 - probabilities).log()).mean()
    squares = torch.stack([p.square().sum() for p in network.parameters()]).sum()
    return {"dice": soft_dice_loss(logits, labels), "entropy": entropy, "l2": l2 * squares}


def alignment_loss(
    image: Tensor,
    lines: Tensor,
    temperature: float = 0.1,
    weight: float = 0.5,
    form: Literal["standard", "decoupled"] = "standard",
) -> Tensor:
    """Contrastive loss between projections of the same subjects (paper 003, eq. 3), mean over subjects.

    Parameters
    ----------
    image, lines : ``(batch, n)``; row i of both is one subject.
    weight : of the image-to-k-space part (lambda).
    form : ``decoupled`` leaves the subject itself out of the denominator, as eq. 3 is printed; ``standard`` keeps it
        (cross-entropy, as the authors' earlier code does).

    Raises
    ------
    ValueError : fewer than two subjects.
    """
    if len(image) < 2:
        raise ValueError("a contrastive loss needs at least two subjects in a batch")
    similar = functional.cosine_similarity(image[:, None], lines[None], dim=-1) / temperature
    own = similar.diagonal()
    losses = []
    for table in (similar, similar.T):
        others = table
        if form == "decoupled":
            others = table.masked_fill(torch.eye(len(table), dtype=torch.bool, device=table.device), float("-inf"))
        losses.append((others.logsumexp(dim=1) - own).mean())
    return weight * losses[0] + (1 - weight) * losses[1]


def masked_error(predicted: Tensor, target: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Mean squared error over all tokens ``(batch, n, values)``, or over the `hidden` ones (bool ``(batch, n)``)."""
    error = (predicted - target).square().mean(dim=-1)
    return error.mean() if hidden is None else (error * hidden).sum() / hidden.sum().clamp_min(1)


def regression_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """Huber loss of standardised phenotypes ``(batch, 18)``."""
    return functional.huber_loss(predicted, truth)


def classification_loss(logits: Tensor, truth: Tensor, positive_weight: float = 2.0) -> Tensor:
    """Binary cross-entropy of the diseases ``(batch, 3)``; the rarer class weighs more."""
    weight = torch.full((logits.shape[1],), positive_weight, device=logits.device)
    return functional.binary_cross_entropy_with_logits(logits, truth, pos_weight=weight)


def slices_loss(logits: Tensor, labels: Tensor, entropy_weight: float = 0.0) -> Tensor:
    """Dice loss of ``(batch, slices, classes, frames, y, x)``, each slice a volume of its own.

    Parameters
    ----------
    entropy_weight : of the cross-entropy beside it, which brings back a class that has been lost: its Dice loss is flat
        where its probabilities are small.
    """
    of_slices, truth = logits.flatten(0, 1), labels.flatten(0, 1)
    loss = soft_dice_loss(of_slices, truth)
    return loss + entropy_weight * functional.cross_entropy(of_slices, truth) if entropy_weight else loss


def kgin_loss(stages: Tensor, target: Tensor, decay: float = 0.6, epsilon: float = 0.5) -> Tensor:
    """L1 and high-dynamic-range error of every stage of `KGIN`, earlier ones weighing less (Pan et al., 2023).

    The high-dynamic-range error is relative: ``(|k - y| / (|k| + e))^2`` with k taken as constant in the denominator.

    Parameters
    ----------
    stages : ``(batch, stages, n, values)``; the last is the result.
    target : ``(batch, n, values)``.
    """
    n = stages.shape[1]
    total = stages.new_zeros(())
    for number, predicted in enumerate(stages.unbind(1)):
        relative = ((predicted - target).abs() / (predicted.detach().abs() + epsilon)).square().mean()
        total = total + decay ** (n - 1 - number) * ((predicted - target).abs().mean() + relative)
    return total
