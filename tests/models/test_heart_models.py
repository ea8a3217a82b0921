"""DiSK, k-MTR and their baselines: counts of the papers, and what the texts promise about inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from kstream.models.companding import companded
from kstream.models.disk import DiSK
from kstream.models.fourier import to_kspace
from kstream.models.kgin import KGIN
from kstream.models.kmtr import HEADS, KMTR, Alignment, ImageMAE, LineMAE, Projector, position_code
from kstream.models.kmtr_heads import AreaHead, fold_patches, soft_areas, unfold_patches
from kstream.models.registry import build, cost
from kstream.models.resnet import CineResNet, ResNet50
from kstream.models.sines import sine_features

SHAPE = {"n_slices": 3, "n_long_axis": 1, "n_frames": 10, "plane": (24, 16), "width": 35, "n_layers": 3, "n_heads": 5}
DISK = {"width": 32, "n_latents": 7, "n_layers": 2, "n_classes": 3, "compand": 0.4}


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def lines(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and places of `n` different lines of two subjects."""
    rng = np.random.default_rng(seed)
    every = np.stack(np.meshgrid(np.arange(3), np.arange(10), np.arange(24), indexing="ij"), -1).reshape(-1, 3)
    places = np.stack([rng.permutation(every)[:n] for _ in range(2)]).astype(np.float32)
    return torch.from_numpy(rng.standard_normal((2, n, 32), np.float32)), torch.from_numpy(places)


# (millions of) parameters: reference of the papers' authors' code, and sums by hand from the stated sizes
COUNTS = {
    "disk": 1_211_908,
    "kmtr-image-mae": 103_338_065,
    "kmtr-line-mae": 102_550_481,
    "kmtr-alignment": 76_385_050 + 75_991_450 + 2 * 1_182_978,
    "heart-resnet50": 24_946_706,
    "heart-resnet50-kspace": 26_357_906,
    "kgin": 139_757_056,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_those_of_the_authors(name: str) -> None:
    with torch.device("meta"):
        assert count(build(name)) == COUNTS[name]


# by hand: DiSK 10.5 (keys and values) + 10.5 (looking at samples) + 125.8 (decoder) + .4; ResNet 1.33 (4.09 at 224)
# + 5.74 (stem of 450 channels); k-GIN tokens x blocks, and n^2 for attention: 1600 in the encoder, 6400 elsewhere
@pytest.mark.parametrize(("name", "giga"), [("disk", 147.2), ("heart-resnet50", 7.08), ("kgin", 2084.4)])
def test_costs_are_counted_for_the_declared_inputs(name: str, giga: float) -> None:
    assert cost(name).macs / 1e9 == pytest.approx(giga, rel=2e-3)


def test_parts_of_kmtr_have_the_counts_of_the_reference() -> None:
    with torch.device("meta"):
        image, line = ImageMAE(), LineMAE()
        millions = [count(m) / 1e6 for m in (image.image, image.decoder, line.lines, line.decoder, Projector(1025))]
    assert millions == pytest.approx([76.39, 26.95, 75.99, 26.56, 1.18], abs=0.006)


def test_resnet_is_that_of_torchvision() -> None:
    with torch.device("meta"):
        network = ResNet50()
    assert count(network) == 25_557_032
    keys = set(network.state_dict())
    assert {"conv1.weight", "layer1.0.downsample.1.running_mean", "layer4.2.bn3.bias", "fc.weight"} <= keys
    assert len(keys) == 320


# ---- DiSK ----


def test_sine_features_follow_their_formula() -> None:
    x = torch.tensor([[0.25, -0.5]])
    features = sine_features(x, 2)[0].numpy()
    angles = np.pi * np.array([0.25, 0.5, -0.5, -1.0])
    np.testing.assert_allclose(features, [0.25, -0.5, *np.sin(angles), *np.cos(angles)], atol=1e-6)


@pytest.fixture
def disk() -> DiSK:
    torch.manual_seed(1)
    return DiSK(**DISK).eval()


def points(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(2)
    shapes = (2, n, 3), (2, n, 2), (2, 41, 3)
    return tuple(torch.from_numpy(rng.random(shape, np.float32)) for shape in shapes)  # type: ignore[return-value]


def test_the_order_of_samples_does_not_matter(disk: DiSK) -> None:
    coordinates, values, queries = points(53)
    order = torch.randperm(53)
    with torch.inference_mode():
        straight = disk(coordinates, values, queries)
        shuffled = disk(coordinates[:, order], values[:, order], queries)
    torch.testing.assert_close(straight, shuffled, atol=1e-5, rtol=1e-5)


def test_any_number_of_samples_is_taken_and_each_one_matters(disk: DiSK) -> None:
    coordinates, values, queries = points(53)
    with torch.inference_mode():
        whole = disk(coordinates, values, queries)
        fewer = disk(coordinates[:, :17], values[:, :17], queries)
        other = disk(coordinates, values.clone().index_fill_(1, torch.tensor([5]), 0.9), queries)
    assert whole.shape == fewer.shape == (2, 3, 41)
    assert not torch.allclose(whole, fewer, atol=1e-4)
    assert not torch.equal(whole, other)


@pytest.mark.parametrize("chunk", [1, 7, 40, 41, 1000])
def test_the_result_does_not_depend_on_the_chunk_size(disk: DiSK, chunk: int) -> None:
    arguments = points(19)
    with torch.no_grad():
        expected = disk.decode_part(disk.encode(*arguments[:2]), arguments[2])
        disk.query_chunk = chunk
        torch.testing.assert_close(disk(*arguments), expected, atol=1e-5, rtol=1e-5)


def test_a_receiver_gain_changes_nothing_with_companding_and_something_without() -> None:
    coordinates, values, queries = points(23)
    for compand, same in ((0.4, True), (0.0, False)):
        torch.manual_seed(1)
        network = DiSK(**{**DISK, "compand": compand}).eval()
        with torch.inference_mode():
            first, louder = network(coordinates, values, queries), network(coordinates, 37.0 * values, queries)
        assert torch.allclose(first, louder, atol=1e-4) is same


def test_companding_keeps_phase_and_bounds_size() -> None:
    values = torch.randn(3, 29, 2) * torch.logspace(-4, 2, 29)[:, None]
    out = companded(values, 0.25)
    size = out.norm(dim=-1)
    torch.testing.assert_close(size.amax(dim=1), torch.ones(3))
    torch.testing.assert_close(torch.atan2(*values.unbind(-1)), torch.atan2(*out.unbind(-1)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(size, (values.norm(dim=-1) / values.norm(dim=-1).amax(1, keepdim=True)) ** 0.25)


def test_a_width_that_cannot_hold_the_features_is_refused() -> None:
    with pytest.raises(ValueError, match="does not hold"):
        DiSK(width=26)


# ---- k-MTR ----


def test_patches_fold_and_unfold() -> None:
    images = torch.randn(2, 2, 3, 10, 24, 16)
    patches = fold_patches(images, (5, 8, 8))
    assert patches.shape == (2, 3 * 2 * 3 * 2, 640)
    torch.testing.assert_close(patches[1, 7].reshape(2, 5, 8, 8), images[1, :, 0, 5:, :8, 8:])
    assert torch.equal(unfold_patches(patches, (3, 2, 3, 2), (5, 8, 8)), images)


def test_every_place_has_a_code_of_its_own_and_short_axes_are_marked() -> None:
    places = torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(5), torch.arange(2)).float()
    code = position_code(places, 1, 33)
    assert len(torch.unique(code, dim=0)) == len(places)
    assert torch.equal(code[:, -1], (places[:, 0] >= 1).float())


def test_tokens_and_targets_of_the_image_autoencoder_are_in_one_order() -> None:
    """With a tokenizer that averages, a patch's token is the mean of the target at the same index."""
    network = ImageMAE(**SHAPE, n_decoder_layers=1)
    nn.init.constant_(network.image.tokenize.weight, 1 / 640)
    nn.init.zeros_(network.image.tokenize.bias)  # type: ignore[arg-type]
    images = torch.randn(1, 2, 3, 10, 24, 16)
    tokens = network.image.tokenize(images.transpose(1, 2).flatten(0, 1)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens.reshape(-1, 35)[:, 0], network.targets(images)[0].mean(dim=-1))


def test_autoencoders_fill_all_places_from_some() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 2, 3, 10, 24, 16)
    kept = torch.stack([torch.randperm(36)[:11] for _ in range(2)])
    network = ImageMAE(**SHAPE, n_decoder_layers=1).eval()
    with torch.no_grad():
        some, everything = network(images, kept), network(images)
        hidden = images.clone()
        hidden_patch = int(next(i for i in range(36) if i not in kept[0]))
        s, rest = divmod(hidden_patch, 12)
        t, rest = divmod(rest, 6)
        y, x = divmod(rest, 2)
        hidden[0, :, s, 5 * t : 5 * t + 5, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = 9.0
        unseen = network(hidden, kept)
    assert some.shape == everything.shape == (2, 36, 640)
    torch.testing.assert_close(unseen, some)  # what is masked is not seen
    values, places = lines(31)
    assert LineMAE(**SHAPE, n_decoder_layers=1)(values, places).shape == (2, 3 * 10 * 24, 32)


def test_lines_in_any_order_give_the_same() -> None:
    torch.manual_seed(0)
    network = KMTR(HEADS, **SHAPE, n_decoder_layers=1, segmentation_width=12, feature_size=2).eval()
    values, places = lines(43)
    order = torch.randperm(43)
    with torch.no_grad():
        straight, shuffled = network(values, places), network(values[:, order], places[:, order])
    for a, b in zip(straight, shuffled, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    shapes = [tuple(a.shape) for a in straight]
    assert shapes == [(2, 3, 6, 10, 24, 16), (2, 18), (2, 3), (2, 2, 3, 10, 24, 16)]


def test_all_parameters_of_every_head_learn() -> None:
    network = KMTR(HEADS, **SHAPE, n_decoder_layers=1, segmentation_width=12, feature_size=2)
    sum(part.square().mean() for part in network(*lines(43))).backward()  # type: ignore[union-attr]
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_one_head_gives_one_tensor_in_the_units_of_the_phenotypes() -> None:
    network = KMTR(("regression",), **SHAPE)
    network.get_buffer("phenotype_mean").fill_(150.0)
    network.get_buffer("phenotype_spread").fill_(1e-6)
    out = network(*lines(13))
    assert isinstance(out, torch.Tensor)
    torch.testing.assert_close(out, torch.full((2, 18), 150.0), atol=1e-3, rtol=0)


def test_areas_are_those_of_the_label_map() -> None:
    labels = torch.randint(4, (2, 3, 5, 8, 6), generator=torch.Generator().manual_seed(1))
    logits = 100.0 * torch.nn.functional.one_hot(labels, 4).movedim(-1, 2)
    found = soft_areas(logits).reshape(2, 3, 3, 5)
    for chamber in range(3):
        share = (labels == chamber + 1).float().mean(dim=(-2, -1))
        torch.testing.assert_close(found[:, :, chamber], share)


def test_numbers_from_areas_are_linear_in_them_besides_what_both_give() -> None:
    torch.manual_seed(2)
    head = AreaHead(7, 5, 11, 3)
    cls, areas = torch.randn(4, 7), torch.randn(4, 5)
    both = head.both(torch.cat((cls, areas), dim=1))
    torch.testing.assert_close(head(cls, areas), both)
    nn.init.normal_(head.linear.weight)
    torch.testing.assert_close(head(cls, areas) - both, areas @ head.linear.weight.T)


def test_kmtr_reads_numbers_from_the_areas_that_it_found() -> None:
    torch.manual_seed(4)
    network = KMTR(("segmentation", "regression", "classification"), areas=True, segmentation_width=12, feature_size=2,
                   n_head_features=8, **SHAPE)  # fmt: skip
    labels, phenotypes, diseases = network(*lines(9))
    assert (phenotypes.shape, diseases.shape) == ((2, 18), (2, 3))
    (phenotypes.sum() + diseases.sum()).backward()
    assert all(p.grad is None for p in network.heads["segmentation"].parameters()), "numbers pull at no label"
    assert all(p.grad is not None and p.grad.any() for p in network.heads["regression"].parameters())
    found = soft_areas(labels.detach())
    network.get_buffer("area_mean").copy_(found[0])
    network.get_buffer("area_spread").copy_((found[1] - found[0]) / torch.linspace(-9, 9, found.shape[1]))
    with torch.no_grad():
        network.heads["regression"].linear.weight.copy_(torch.eye(18, found.shape[1]))
        nn.init.zeros_(network.heads["regression"].both.net[2].weight)
        nn.init.zeros_(network.heads["regression"].both.net[2].bias)
        told = network(*lines(9))[1]
    torch.testing.assert_close(told[0], torch.zeros(18), atol=1e-3, rtol=0)
    torch.testing.assert_close(told[1], torch.linspace(-9, 9, found.shape[1])[:18].clamp(-4, 4), atol=1e-2, rtol=0)


def test_projections_have_unit_length() -> None:
    images = torch.randn(2, 2, 3, 10, 24, 16)
    for z in Alignment(**SHAPE)(images, *lines(13)):
        torch.testing.assert_close(z.norm(dim=1), torch.ones(2))
        assert z.shape == (2, 128)


def test_wrong_heads_and_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="areas are those of the segmentation"):
        KMTR(("regression",), areas=True, **SHAPE)
    with pytest.raises(ValueError, match="heads are"):
        KMTR(("segmentation", "segmentation"), **SHAPE)
    with pytest.raises(ValueError, match="do not tile"):
        KMTR(**{**SHAPE, "n_frames": 12})


def test_kgin_gives_every_line_at_every_stage() -> None:
    network = KGIN(4, (10, 6), width=24, n_heads=4, n_encoder=1, n_decoder=1, n_refine=1, n_refinements=2)
    places = torch.tensor([[[0.0, 3.0], [2.0, 9.0]]])
    assert network(torch.randn(1, 2, 12), places).shape == (1, 3, 40, 12)


def test_resnet_sees_magnitudes_or_kspace() -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 6, 32, 24)
    kspace = to_kspace(image.to(torch.complex64))
    channels = torch.stack((kspace.real, kspace.imag), dim=1)
    turned = torch.stack((kspace.imag, -kspace.real), dim=1)  # times -i: another phase, the same magnitude
    for form, same in (("magnitude", True), ("kspace", False)):
        network = CineResNet(6, 5, form, width=4).eval()  # type: ignore[arg-type]
        with torch.no_grad():
            assert torch.allclose(network(channels), network(turned), atol=1e-4) is same
