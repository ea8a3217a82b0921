from __future__ import annotations

import math

import pytest
import torch
from monai.losses.dice import DiceLoss
from monai.losses.focal_loss import FocalLoss

from kstream.models.breast import NativeUNet
from kstream.models.fourier import as_channels, to_kspace
from kstream.training.breast.losses import (
    breast_losses,
    dice_loss,
    focal_loss,
    native_losses,
    segmentation_loss,
    squared_dice_loss,
)
from kstream.training.experiment import LossConfig

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


@pytest.mark.parametrize("form", ["fg_only", "per_class"])
def test_a_perfect_native_prediction_has_next_to_no_loss(form: str) -> None:
    """A network that gives the k-space of the mask itself."""

    class Perfect(NativeUNet):
        def predict_kspace(self, kspace: torch.Tensor) -> torch.Tensor:
            masks = torch.stack((LABELS == 0, LABELS == 1), dim=1)
            wanted = masks[:, 1:] if self.form == "fg_only" else masks
            return as_channels(to_kspace(wanted.to(torch.complex64)))

    network = Perfect((4, 6), form=form)
    with torch.no_grad():
        parts = native_losses(network, torch.zeros(3, 2, 4, 5, 7), LABELS, LossConfig())
    assert set(parts) == {"focal", "dice", "kspace"}
    assert float(parts["kspace"]) < 1e-8
    assert float(parts["dice"]) < 1e-3
    assert float(parts["focal"]) < 1e-3


def test_native_losses_learn_from_empty_patches_by_focal_alone() -> None:
    torch.manual_seed(0)
    network = NativeUNet((4, 6))
    kspace = torch.randn(1, 2, 4, 6, 8)
    empty = torch.zeros(1, 4, 6, 8, dtype=torch.long)
    assert set(breast_losses(network, kspace, empty, LossConfig())) == {"focal"}
    half = empty.clone()
    half[0, :2] = 1
    parts = breast_losses(network, kspace, half, LossConfig(kspace_weight=2.0))
    once = breast_losses(network, kspace, half, LossConfig(kspace_weight=1.0))
    assert float(parts["kspace"].detach()) == pytest.approx(2 * float(once["kspace"].detach()), rel=1e-5)


def test_squared_dice_of_two_voxels_by_hand() -> None:
    logits, labels = two_voxels()
    by_hand = 1 - 2 * 0.8 / (0.8**2 + 0.25**2 + 1)
    assert float(squared_dice_loss(logits, labels)) == pytest.approx(by_hand, rel=1e-5)
