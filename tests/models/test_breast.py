from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks.nets.unet import UNet

from kstream.models.breast import ComplexUNet, HybridUNet, MagnitudeUNet, NativeUNet
from kstream.models.fourier import as_channels, as_complex, channels_to_image, magnitude, to_image, to_kspace
from kstream.models.registry import build
from kstream.recon import fourier as arrays

SHAPE = (2, 2, 5, 7, 11)


def random_kspace(shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("space", [(3, 5, 7), (2, 6, 8), (1, 7, 10)])
def test_the_pair_is_its_own_inverse_and_that_of_the_arrays(space: tuple[int, int, int]) -> None:
    kspace = torch.complex(random_kspace((3, *space)), random_kspace((3, *space)).flip(0))
    image = to_image(kspace)
    torch.testing.assert_close(to_kspace(image), kspace, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(image.numpy(), arrays.to_image(kspace.numpy()), atol=1e-5)
    assert float(image.abs().square().sum()) == pytest.approx(float(kspace.abs().square().sum()), rel=1e-5)


def test_channels_are_interleaved_real_and_imaginary_parts() -> None:
    x = random_kspace((2, 6, 3, 5, 7))
    values = as_complex(x)
    assert torch.equal(values[:, 1].real, x[:, 2])
    assert torch.equal(values[:, 1].imag, x[:, 3])
    assert torch.equal(as_channels(values), x)


def test_the_bridge_inverts_the_forward_transform() -> None:
    image = random_kspace((2, 4, 3, 5, 7))
    assert (channels_to_image(as_channels(to_kspace(as_complex(image)))) - image).abs().max() < 1e-5


def test_the_bridge_stays_float32_under_autocast() -> None:
    kspace = random_kspace((1, 4, 3, 5, 7))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(channels_to_image(kspace), channels_to_image(kspace.clone()))
        assert channels_to_image(kspace.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    "network",
    [
        MagnitudeUNet((4, 6, 8)),
        ComplexUNet((4, 6), n_classes=4),
        NativeUNet((4, 6, 8)),
        NativeUNet((4, 6), n_classes=4, form="per_class"),
        HybridUNet((4, 6, 8), 3, (4, 6)),
        HybridUNet((4, 6), 3, (4, 6), k_residual=True, bridge_magnitude=True, n_classes=4),
    ],
    ids=["magnitude", "complex", "native", "native-per-class", "hybrid", "hybrid-extended"],
)
def test_every_network_takes_odd_sizes_and_learns_in_every_parameter(network: torch.nn.Module) -> None:
    logits = network(random_kspace())
    assert logits.shape[2:] == SHAPE[2:]
    assert logits.shape[1] in (2, 4)
    torch.autograd.backward((logits * random_kspace(tuple(logits.shape))).mean())
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_magnitude_ignores_a_global_phase_and_complex_does_not() -> None:
    torch.manual_seed(2)
    kspace = random_kspace((1, 2, 4, 6, 8))
    turned = as_channels(as_complex(kspace) * 1j)
    magnitude_, complex_ = MagnitudeUNet((4, 6)), ComplexUNet((4, 6))
    assert (magnitude_(kspace) - magnitude_(turned)).abs().max() < 1e-3
    assert (complex_(kspace) - complex_(turned)).abs().max() > 1e-2


def test_native_foreground_probability_is_magnitude_over_its_maximum() -> None:
    torch.manual_seed(3)
    network = NativeUNet((4, 6))
    kspace = random_kspace((2, 2, 4, 6, 8))
    image = as_complex(channels_to_image(network.predict_kspace(kspace))).abs()[:, 0]
    expected = image / image.amax(dim=(1, 2, 3), keepdim=True)
    probability = network(kspace).softmax(1)[:, 1]
    torch.testing.assert_close(probability, expected, atol=1e-4, rtol=1e-3)
    assert (network(kspace).argmax(1).flatten(1).sum(1) > 0).all()


def test_native_per_class_softmax_is_share_of_magnitude() -> None:
    torch.manual_seed(3)
    network = NativeUNet((4, 6), n_classes=3, form="per_class")
    kspace = random_kspace((1, 2, 4, 6, 8))
    image = as_complex(channels_to_image(network.predict_kspace(kspace))).abs()
    torch.testing.assert_close(network(kspace).softmax(1), image / image.sum(1, keepdim=True), atol=1e-4, rtol=1e-3)


def test_native_forms_are_checked() -> None:
    with pytest.raises(ValueError, match="fg_only or per_class"):
        NativeUNet(form="both")
    with pytest.raises(ValueError, match="two classes"):
        NativeUNet(n_classes=3)


def test_hybrid_is_its_three_stages() -> None:
    torch.manual_seed(4)
    network = HybridUNet((4, 6), 3, (4, 6), bridge_magnitude=True)
    kspace = random_kspace()
    features = network.k_stage(kspace)
    image = network.bridge(features)
    assert features.shape[1] == 6
    assert image.shape[1] == 9
    torch.testing.assert_close(image[:, :6], channels_to_image(features))
    torch.testing.assert_close(image[:, 6:], as_complex(image[:, :6]).abs())
    torch.testing.assert_close(network.image_stage(image), network(kspace))


def test_k_residual_adds_the_input_to_the_first_feature_only() -> None:
    torch.manual_seed(5)
    plain = HybridUNet((4, 6), 3, (4, 6))
    residual = HybridUNet((4, 6), 3, (4, 6), k_residual=True)
    residual.load_state_dict(plain.state_dict())
    kspace = random_kspace()
    added = residual.k_stage(kspace) - plain.k_stage(kspace)
    torch.testing.assert_close(added[:, :2], kspace, atol=1e-5, rtol=1e-5)
    assert not added[:, 2:].any()


def monai_unet(n_in: int, n_out: int, channels: tuple[int, ...], stride: tuple[int, int, int], up: object) -> UNet:
    return UNet(
        spatial_dims=3,
        in_channels=n_in,
        out_channels=n_out,
        channels=channels,
        strides=(stride,) * (len(channels) - 1),
        kernel_size=3,
        up_kernel_size=up,
        num_res_units=2,
        act=("LeakyReLU", {"negative_slope": 0.1, "inplace": True}),
        norm=("group", {"num_groups": 2}),
    )


def prefixed(network: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{key}": value for key, value in network.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "n_in", "n_out"), [("breast-magnitude", 1, 2), ("breast-complex", 2, 2), ("breast-native", 2, 2)]
)
def test_paper_size_networks_load_monais_weights_and_agree(name: str, n_in: int, n_out: int) -> None:
    torch.manual_seed(6)
    oracle, network = monai_unet(n_in, n_out, (24, 48, 96, 192), (2, 2, 2), 3), build(name)
    network.load_state_dict(prefixed(oracle, "net"))
    kspace = random_kspace((1, 2, 8, 16, 16))
    image = channels_to_image(kspace)
    given = {"breast-magnitude": magnitude(image), "breast-complex": image, "breast-native": kspace}[name]
    with torch.no_grad():
        theirs = oracle(given)
        ours = network.predict_kspace(kspace) if isinstance(network, NativeUNet) else network(kspace)
    assert (ours - theirs).abs().max() < 1e-5


def test_the_paper_size_hybrid_loads_monais_weights_and_agrees() -> None:
    torch.manual_seed(7)
    k_stage = monai_unet(2, 8, (20, 40, 80), (2, 1, 1), (3, 1, 1))
    image_stage, network = monai_unet(8, 2, (20, 40, 80, 160), (2, 2, 2), 3), build("breast-hybrid")
    network.load_state_dict({**prefixed(k_stage, "k_unet"), **prefixed(image_stage, "img_unet")})
    kspace = random_kspace((1, 2, 8, 16, 16))
    with torch.no_grad():
        theirs = image_stage(channels_to_image(k_stage(kspace)))
        assert (network(kspace) - theirs).abs().max() < 1e-5
