from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from kstream.engines.phases import PhaseConvolution, is_worth_it
from kstream.engines.stages import NormaliseActivate, lower, split
from kstream.engines.transform import ToImage, ToImageByGemm, ToKspaceByGemm
from kstream.models.fourier import as_channels, as_complex, centring_signs, inverse_matrix, to_image, to_kspace
from kstream.models.registry import build

SMALL: Mapping[str, Mapping[str, Any]] = {
    "breast-magnitude": {"channels": (4, 6)},
    "breast-complex": {"channels": (4, 6)},
    "breast-native": {"channels": (4, 6)},
    "breast-native-per-class": {"channels": (4, 6), "n_classes": 3},
    "breast-hybrid": {"k_channels": (4, 6), "n_features": 3, "image_channels": (4, 6)},
}
RESIDUAL = {**SMALL["breast-hybrid"], "k_residual": True, "bridge_magnitude": True}
FRONTS: list[tuple[str, Mapping[str, Any]]] = [
    ("breast-gate", {"image_channels": (4, 6)}),
    ("breast-gate", {"image_channels": (4, 6), "bridge": "magnitude", "consistency_width": 4}),
    ("breast-reconstruct", {"channels": (4, 6), "width": 4}),
]
CASES = [*FRONTS, *SMALL.items(), ("breast-hybrid", RESIDUAL)]


def random_input(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def network_of(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return build(name, arguments).eval()


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())


@pytest.mark.parametrize("space", [(3, 10, 14), (3, 7, 11), (5, 9, 6)])
@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_stages_one_after_the_other_are_the_network(
    name: str, arguments: Mapping[str, Any], space: tuple[int, ...]
) -> None:
    network, kspace = network_of(name, arguments), random_input(2, 2, *space)
    kspace[..., ::3] = 0  # what was not measured
    with torch.inference_mode():
        expected = network(kspace)
        assert error(split(network)(kspace), expected) < 1e-5
        assert error(split(network, space[1:])(kspace), expected) < 1e-5


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_what_was_learnt_is_in_the_stages_that_an_engine_compiles(name: str, arguments: Mapping[str, Any]) -> None:
    network = network_of(name, arguments)
    stages = dict(split(network).named_children())
    compiled = {id(p) for key, stage in stages.items() if key != "transform" for p in stage.parameters()}
    left = [key for key, p in network.named_parameters() if id(p) not in compiled]
    # two numbers per class behind the transform; and what works on k-space and image in turns, in float32
    assert all(key.startswith(("head.", "gate.", "denoiser.", "blocks.")) for key in left)


@pytest.mark.parametrize(("name", "arguments"), FRONTS)
def test_what_weighs_kspace_stays_in_float32_before_a_lowered_image_stage(
    name: str, arguments: Mapping[str, Any]
) -> None:
    network, kspace = network_of(name, arguments), random_input(2, 2, 4, 12, 10)
    kspace[..., ::3, :] = 0  # lines that were not measured
    with torch.inference_mode():
        expected = network(kspace)
        assert error(split(network)(kspace), expected) < 1e-5
        low = lower(split(network), "bf16")
        assert 1e-4 < error(low(kspace), expected) < 2e-2
    assert {p.dtype for p in low.get_submodule("transform").parameters()} == {torch.float32}
    assert torch.bfloat16 in {p.dtype for p in low.get_submodule("image").parameters()}


def test_a_network_of_another_family_is_one_stage() -> None:
    network = nn.Conv2d(2, 3, 1)
    assert [name for name, _ in split(network).named_children()] == ["network"]


@pytest.mark.parametrize("n", [2, 6, 8])
def test_signs_take_the_place_of_shifts(n: int) -> None:
    before, after = centring_signs(n)
    kspace = torch.complex(random_input(1, n), random_input(1, n).flip(1))
    plain = torch.fft.ifft(kspace * before, norm="ortho") * after
    shifted = torch.fft.fftshift(torch.fft.ifft(torch.fft.ifftshift(kspace), norm="ortho"))
    torch.testing.assert_close(plain, shifted)


def test_an_odd_length_has_no_signs() -> None:
    with pytest.raises(ValueError, match="odd"):
        centring_signs(7)


@pytest.mark.parametrize("plane", [(6, 10), (5, 8), (7, 3)])
def test_both_transforms_are_the_one_pair(plane: tuple[int, int]) -> None:
    features = random_input(2, 6, 3, *plane)
    expected = as_channels(to_image(as_complex(features)))
    torch.testing.assert_close(ToImage()(features), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(ToImageByGemm(plane)(features), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(ToImage("magnitude")(features), to_image(as_complex(features)).abs())


def test_the_way_back_as_products_is_the_one_of_the_pair() -> None:
    features = random_input(2, 4, 3, 7, 10)
    expected = as_channels(to_kspace(as_complex(features)))
    torch.testing.assert_close(ToKspaceByGemm((7, 10))(features), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(ToImageByGemm((7, 10))(expected), features, atol=1e-5, rtol=0)


def test_the_matrix_is_unitary() -> None:
    matrix = inverse_matrix(9)
    torch.testing.assert_close(matrix @ matrix.conj().T, torch.eye(9, dtype=torch.complex128))


def test_products_in_half_precision_survive_the_centre_of_kspace() -> None:
    features = random_input(3, 4, 2, 8, 6)
    features[..., 4, 3] = 3e6  # 65504 is the largest half
    exact, found = ToImage()(features), ToImageByGemm((8, 6), dtype=torch.float16)(features)
    assert found.shape == exact.shape
    assert error(found, exact) < 2e-3


@pytest.mark.parametrize("way", ["eager", "sums", "plain"])
@pytest.mark.parametrize("n_channels", [2, 8, 12])
@pytest.mark.parametrize("is_last", [True, False])
def test_normalisations_agree_however_they_are_written(way: Any, n_channels: int, is_last: bool) -> None:
    norm = nn.GroupNorm(2, n_channels)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.uniform_(norm.bias, -1.0, 1.0)
    x = 3 + 2 * random_input(3, n_channels, 4, 5, 7)
    if is_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        expected = nn.functional.leaky_relu(norm(x), 0.1)
        torch.testing.assert_close(NormaliseActivate(norm, 0.1, way)(x.clone()), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-4), ("bf16", 5e-2)])
@pytest.mark.parametrize("way", ["eager", "sums", "plain"])
def test_a_lowered_network_takes_and_gives_float32(precision: str, limit: float, way: Any) -> None:
    network, kspace = network_of("breast-hybrid", SMALL["breast-hybrid"]), random_input(2, 2, 4, 12, 10)
    with torch.inference_mode():
        expected = network(kspace)
        found = lower(split(network), precision, way)(kspace)
        again = network(kspace)
    assert found.dtype == torch.float32
    assert error(found, expected) < limit
    assert (error(found, expected) > 1e-4) == (precision == "bf16")
    assert torch.equal(again, expected), "the network itself must not change"


@pytest.mark.parametrize("n_out", [1, 2, 4])
def test_a_transposed_convolution_by_phases_has_the_same_sums(n_out: int) -> None:
    torch.manual_seed(4)
    layer = nn.ConvTranspose3d(5, n_out, 3, 2, 1, 1)
    assert is_worth_it(layer)
    x = random_input(2, 5, 3, 4, 6)
    with torch.inference_mode():
        torch.testing.assert_close(PhaseConvolution(layer)(x), layer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose3d(5, 20, 3, 2, 1, 1),
        nn.ConvTranspose3d(5, 2, (3, 1, 1), (2, 1, 1), (1, 0, 0), (1, 0, 0)),
        nn.ConvTranspose3d(5, 2, 3, 2, 1, 0),
        nn.Conv3d(5, 2, 3, 2, 1),
    ],
)
def test_other_layers_stay_as_they_are(layer: nn.Module) -> None:
    assert not is_worth_it(layer)


def test_normalisation_keeps_float32_weights_beside_low_convolutions() -> None:
    lowered = lower(split(network_of("breast-hybrid", SMALL["breast-hybrid"])), "bf16")
    types = {(type(m), p.dtype) for m in lowered.modules() for p in m.parameters(recurse=False)}
    assert {t for kind, t in types if kind is nn.GroupNorm} == {torch.float32}
    assert {t for kind, t in types if kind in (nn.Conv3d, nn.ConvTranspose3d)} == {torch.bfloat16}
