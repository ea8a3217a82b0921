from __future__ import annotations

from typing import Any

import pytest
import torch

from kstream.errors import ModelError
from kstream.models.fourier import as_channels, as_complex, to_kspace
from kstream.models.gate import ConsistentDenoiser, GateUNet, KSpaceGate, PlaneConv3d, local_density, radius, sampled
from kstream.models.registry import build, cost

MAGNITUDE_BASELINE_MACS = 32.2e9
SHAPE = (2, 2, 5, 7, 11)


def random_kspace(shape: tuple[int, ...] = SHAPE, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def thinned(kspace: torch.Tensor, columns: list[int]) -> torch.Tensor:
    mask = torch.zeros(kspace.shape[-1])
    mask[columns] = 1
    return kspace * mask


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("batch", [1, 2])
def test_convolution_of_planes_is_the_3d_one(kernel: int, batch: int) -> None:
    layer, x = PlaneConv3d(3, 5, kernel).double(), random_kspace((batch, 3, 4, 7, 6)).double()
    exact = torch.nn.functional.conv3d(x, layer.weight, layer.bias, padding=(0, kernel // 2, kernel // 2))
    torch.testing.assert_close(layer(x), exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"bridge": "magnitude", "consistency_width": 8},
        {"image_channels": (20, 40, 80, 160), "consistency_width": 12},
    ],
    ids=["default", "magnitudes-and-consistency", "consistency"],
)
def test_it_costs_no_more_than_the_magnitude_baseline(arguments: dict[str, Any]) -> None:
    counted = cost("breast-gate", arguments)
    assert counted.inputs == ((1, 2, 24, 320, 320),)
    assert counted.macs <= MAGNITUDE_BASELINE_MACS
    assert counted.macs < cost("breast-hybrid").macs / 8


@pytest.mark.parametrize(
    "network",
    [
        GateUNet(3, 4, 3, (4, 6)),
        GateUNet(2, 4, 5, (5, 7, 9), n_classes=3, bridge="magnitude"),
        GateUNet(3, 4, 3, (4, 6), consistency_width=3),
    ],
    ids=["both", "magnitude-odd", "consistency"],
)
def test_any_size_goes_through_and_every_parameter_learns(network: GateUNet) -> None:
    logits = network(thinned(random_kspace(), [0, 3, 4, 5, 8]))
    assert logits.shape[2:] == SHAPE[2:]
    torch.autograd.backward((logits * random_kspace(tuple(logits.shape), 2)).mean())
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_what_was_sampled_is_read_from_the_patch() -> None:
    kspace = thinned(random_kspace(), [1, 4, 5, 6])
    kspace[:, :, 0] = 0  # an empty slice says nothing about the mask
    mask = sampled(kspace)
    assert mask.shape == (2, 1, 1, 7, 11)
    assert mask[0, 0, 0, 3].nonzero()[:, 0].tolist() == [1, 4, 5, 6]


def test_local_density_is_the_share_of_sampled_neighbours() -> None:
    mask = sampled(thinned(random_kspace(), [1, 4, 5, 6]))
    density = local_density(mask, 3)[0, 0, 0, 2]
    expected = [1 / 2, 1 / 3, 1 / 3, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3, 0, 0, 0]
    torch.testing.assert_close(density, torch.tensor(expected), atol=1e-6, rtol=0)


def test_radius_is_zero_at_the_centre_and_one_at_an_edge() -> None:
    distance = radius(6, 9, torch.zeros(1))[0, 0, 0]
    assert distance[3, 4] == 0
    assert distance[0, 4] == 1
    assert distance[3, 0] == 1


def test_the_first_feature_is_the_measurement_and_gaps_stay_empty() -> None:
    torch.manual_seed(0)
    kspace = thinned(random_kspace(), [2, 5, 6])
    features = KSpaceGate(4, 6, 3)(kspace)
    assert features.shape == (2, 4, 5, 7, 11)
    torch.testing.assert_close(features[:, :1], as_complex(kspace))
    assert not features[..., [0, 1, 3, 4, 7, 8, 9, 10]].any()
    phase = torch.angle(features[:, 1:, ..., [2, 5, 6]] / features[:, :1, ..., [2, 5, 6]])
    assert torch.sin(phase).abs().max() < 1e-4  # real gains


def test_gains_do_not_depend_on_the_unit_of_the_signal() -> None:
    torch.manual_seed(0)
    gate = KSpaceGate(3, 6, 3)
    kspace = random_kspace()
    torch.testing.assert_close(gate(kspace * 40), gate(kspace) * 40, atol=1e-3, rtol=1e-3)


def test_the_same_sample_gets_another_gain_where_its_neighbours_are_missing() -> None:
    torch.manual_seed(0)
    gate = KSpaceGate(3, 6, 3)
    kspace = random_kspace()
    full, thin = gate(kspace)[..., 5], gate(thinned(kspace, [1, 5]))[..., 5]
    torch.testing.assert_close(full[:, 0], thin[:, 0])
    assert (full[:, 1:] - thin[:, 1:]).abs().max() > 0.1


def test_a_density_that_is_given_replaces_the_one_that_is_read() -> None:
    torch.manual_seed(0)
    gate = KSpaceGate(3, 6, 3)
    kspace = thinned(random_kspace(), [1, 5, 6, 7])
    read = local_density(sampled(kspace), 3)
    assert torch.equal(gate(kspace), gate(kspace, read))
    assert not torch.equal(gate(kspace), gate(kspace, torch.full_like(read, 0.5)))


def test_the_denoiser_returns_to_what_was_measured() -> None:
    torch.manual_seed(0)
    kspace = thinned(random_kspace((1, 2, 3, 6, 8)), [1, 4, 5])
    image = as_complex(random_kspace((1, 2, 3, 6, 8), 5))
    denoiser = ConsistentDenoiser(4)
    with torch.no_grad():
        assert denoiser.consistency.log_weight is not None
        denoiser.consistency.log_weight.fill_(20.0)  # full trust
    again = as_channels(to_kspace(denoiser(image, kspace, sampled(kspace))))
    torch.testing.assert_close(again[..., [1, 4, 5]], kspace[..., [1, 4, 5]], atol=1e-4, rtol=1e-4)
    assert again[..., [0, 2, 3]].abs().max() > 0.1


def test_wrong_arguments_are_refused() -> None:
    for wrong in ({"bridge": "phase"}, {"n_features": 1}, {"window": 4}):
        with pytest.raises(ModelError, match="refuses its arguments"):
            build("breast-gate", wrong)
