from __future__ import annotations

import pytest
import torch
from monai.networks.nets.unet import UNet

from kstream.models.unet import UNet3d

PLANS = {
    "paper-image": (1, 2, (24, 48, 96, 192), ((2, 2, 2),) * 3, (3, 3, 3), (8, 16, 24)),
    "paper-k-stage": (2, 8, (20, 40, 80), ((2, 1, 1),) * 2, (3, 1, 1), (4, 5, 7)),
    "two-levels": (3, 4, (6, 10), ((1, 2, 2),), (1, 3, 3), (3, 6, 10)),
}


def ours_and_monai(plan: str) -> tuple[UNet3d, UNet, torch.Tensor]:
    n_in, n_out, channels, strides, up_kernel, space = PLANS[plan]
    torch.manual_seed(0)
    oracle = UNet(
        spatial_dims=3,
        in_channels=n_in,
        out_channels=n_out,
        channels=channels,
        strides=strides,
        kernel_size=3,
        up_kernel_size=up_kernel,
        num_res_units=2,
        act=("LeakyReLU", {"negative_slope": 0.1, "inplace": True}),
        norm=("group", {"num_groups": 2}),
        dropout=0.0,
    )
    return UNet3d(n_in, n_out, channels, strides, up_kernel), oracle, torch.randn(2, n_in, *space)


@pytest.mark.parametrize("plan", PLANS)
def test_state_dict_keys_order_and_shapes_are_monais(plan: str) -> None:
    ours, oracle, _ = ours_and_monai(plan)
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [
        (k, v.shape) for k, v in oracle.state_dict().items()
    ]


@pytest.mark.parametrize("plan", PLANS)
def test_forward_and_gradient_agree_with_monai(plan: str) -> None:
    ours, oracle, x = ours_and_monai(plan)
    ours.load_state_dict(oracle.state_dict())
    mine, theirs = ours(x), oracle(x)
    assert (mine - theirs).abs().max() < 1e-5
    for network, y in ((ours, mine), (oracle, theirs)):
        torch.autograd.backward(y.square().mean())
        assert next(network.parameters()).grad is not None
    torch.testing.assert_close(next(ours.parameters()).grad, next(oracle.parameters()).grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("space", [(5, 7, 11), (8, 9, 16), (1, 1, 1)])
def test_any_size_goes_in_and_comes_out(space: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    network = UNet3d(3, 2, (4, 6, 8), ((2, 2, 2), (1, 2, 2)))
    assert network(torch.randn(2, 3, *space)).shape == (2, 2, *space)


def test_levels_and_strides_must_fit() -> None:
    with pytest.raises(ValueError, match="3 levels need 2 strides"):
        UNet3d(1, 2, (4, 6, 8), ((2, 2, 2),))


def test_odd_numbers_of_channels_and_classes_are_fine() -> None:
    network = UNet3d(1, 3, (5, 7, 9), ((2, 2, 2), (2, 2, 2)))
    assert network(torch.randn(1, 1, 4, 8, 8)).shape == (1, 3, 4, 8, 8)
