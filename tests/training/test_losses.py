from __future__ import annotations

import math

import pytest
import torch
from monai.losses.dice import DiceLoss
from monai.losses.focal_loss import FocalLoss

from kstream.training.experiment import LossConfig
from kstream.training.losses import dice_loss, focal_loss, segmentation_loss

GENERATOR = torch.Generator().manual_seed(3)
LOGITS = torch.randn((3, 2, 4, 5, 7), generator=GENERATOR)
LABELS = (torch.rand((3, 4, 5, 7), generator=GENERATOR) < 0.3).long()
LABELS[1] = 0


def two_voxels() -> tuple[torch.Tensor, torch.Tensor]:
    """Foreground probability 0.8 where the lesion is and 0.25 where it is not."""
    logits = torch.zeros((1, 2, 1, 1, 2))
    logits[0, 1, 0, 0] = torch.tensor([math.log(4.0), math.log(1 / 3)])
    return logits, torch.tensor([[[[1, 0]]]])


def test_focal_loss_of_two_voxels_by_hand() -> None:
    logits, labels = two_voxels()
    by_hand = (0.95 * 0.2**1.5 * -math.log(0.8) + 0.05 * 0.25**1.5 * -math.log(0.75)) / 4
    assert float(focal_loss(logits, labels, 1.5, (0.05, 0.95))) == pytest.approx(by_hand, rel=1e-5)


def test_dice_loss_of_two_voxels_by_hand() -> None:
    logits, labels = two_voxels()
    assert float(dice_loss(logits, labels)) == pytest.approx(1 - 2 * 0.8 / (0.8 + 0.25 + 1), rel=1e-5)


def test_both_agree_with_monai() -> None:
    target = LABELS[:, None]
    focal = FocalLoss(to_onehot_y=True, use_softmax=True, gamma=1.5, weight=torch.tensor([0.05, 0.95]))
    dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, smooth_nr=1e-6, smooth_dr=1e-6)
    assert float(focal_loss(LOGITS, LABELS, 1.5, (0.05, 0.95))) == pytest.approx(float(focal(LOGITS, target)), rel=1e-5)
    assert float(dice_loss(LOGITS, LABELS)) == pytest.approx(float(dice(LOGITS, target)), rel=1e-5)


def test_text_form_is_the_weighted_sum_with_dice_on_positive_patches() -> None:
    positive = torch.tensor([0, 2])
    expected = 0.3 * focal_loss(LOGITS, LABELS, 1.5, (0.05, 0.95)) + 0.7 * dice_loss(LOGITS[positive], LABELS[positive])
    assert float(segmentation_loss(LOGITS, LABELS, LossConfig())) == pytest.approx(float(expected), rel=1e-6)


def test_code_form_learns_nothing_from_patches_without_a_lesion() -> None:
    logits = LOGITS[1:2].clone().requires_grad_()
    loss = segmentation_loss(logits, LABELS[1:2], LossConfig(form="code"))
    torch.autograd.backward(loss)
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_pooled_dice_also_counts_false_positives_of_empty_patches() -> None:
    worse = LOGITS.clone()
    worse[1, 1] += 5
    config = LossConfig(form="code", dice_over="batch")
    assert segmentation_loss(worse, LABELS, config) > segmentation_loss(LOGITS, LABELS, config)
    paper = LossConfig(form="code")
    assert segmentation_loss(worse, LABELS, paper) == segmentation_loss(LOGITS, LABELS, paper)


def test_weights_apply_to_each_of_three_classes() -> None:
    logits = torch.zeros((1, 3, 1, 1, 1))
    labels = torch.full((1, 1, 1, 1), 2)
    assert float(focal_loss(logits, labels, 0.0, (0.1, 0.2, 0.6))) == pytest.approx(0.6 * math.log(3) / 3)
