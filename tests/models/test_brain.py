"""The networks of paper 004: counts of the reference, shapes, and what each part promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kstream.models.consistency import DataConsistency
from kstream.models.convlstm import ConvLSTM
from kstream.models.fourier import as_channels, as_complex, channels_to_image, to_kspace
from kstream.models.frames import sampled
from kstream.models.linet import LINet
from kstream.models.registry import build, cost
from kstream.models.segnetmri import SegNetMRI
from kstream.models.seranet import SERANet
from kstream.models.synnet import SynNet
from kstream.models.unet2d import UNet2d
from kstream.models.unrolled import Reconstruction, ReconstructThenSegment, regularisation

SPACE = (13, 22)
SMALL: dict[str, Any] = {"channels": (3, 4, 6), "width": 0.1}

# Reference counts, from the paper's figure 7: U-Net 7 696 964, ConvLSTM on 64 features 295 168, blocks as below.
U_NET, MEMORY, BLOCK_A, BLOCK_B, ATTENTION_A, ATTENTION_B = 7_696_964, 295_168, 113_154, 1_862_338, 116_610, 1_865_794


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def undersampled(batch: int = 2, space: tuple[int, int] = SPACE) -> tuple[Tensor, Tensor]:
    """K-space with every third line left out, and its mask."""
    mask = torch.ones(batch, 1, *space)
    mask[:, :, ::3] = 0
    return random(batch, 2, *space) * mask, mask


def n_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("brain-seranet-2", {}, 2 * BLOCK_A + ATTENTION_A + U_NET + MEMORY),
        ("brain-seranet-4", {}, 4 * BLOCK_A + ATTENTION_A + U_NET + MEMORY),
        ("brain-seranet-7", {}, 7 * BLOCK_A + ATTENTION_A + U_NET + MEMORY),
        ("brain-seranet-2", {"memory": "none"}, 8_039_882),
        ("brain-seranet-7", {"memory": "none"}, 8_605_652),
        ("brain-seranet-7", {"memory": "none", "block": "B"}, 7 * BLOCK_B + ATTENTION_B + U_NET),
        ("brain-seranet-2", {"memory": "bottleneck"}, 8_039_882 + 18_876_416),
        ("brain-seranet-2", {"memory": "input"}, 8_039_882 + 152_320 + 62 * 64 * 9),
        ("brain-seranet-2", {"memory": "none", "consistency": "learned"}, 8_039_882 + 3),
        ("brain-joint", {}, 2 * BLOCK_A + U_NET),
        ("brain-two-step", {"n_blocks": 7, "block": "B"}, 7 * BLOCK_B + U_NET),
        ("brain-one-step", {}, U_NET),
        ("brain-syn-net", {"image": "magnitude"}, U_NET - 64 * 9),
        ("brain-segnetmri", {}, 12_899_954),
        ("brain-li-net", {}, 9_255_044),
    ],
)
def test_parameters_are_those_of_the_reference(name: str, arguments: Mapping[str, Any], expected: int) -> None:
    assert cost(name, arguments).parameters == expected


def test_blocks_of_both_types_have_the_counts_of_the_figure() -> None:
    with torch.device("meta"):
        counted = [n_parameters(regularisation(block, n_in)) for block in ("A", "B") for n_in in (2, 8)]
    assert counted == [BLOCK_A, ATTENTION_A, BLOCK_B, ATTENTION_B]


def test_recurrences_cost_work_and_no_parameters() -> None:
    once, twice, thrice = (cost("brain-seranet-2", {"n_recurrences": n}) for n in (1, 2, 3))
    assert once.parameters == twice.parameters == thrice.parameters
    assert once.macs < twice.macs < thrice.macs
    assert thrice.macs - twice.macs == twice.macs - once.macs


NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "seranet": ("brain-seranet-2", SMALL),
    "seranet-b": ("brain-seranet-2", {**SMALL, "block": "B", "attention": "previous", "consistency": "learned"}),
    "seranet-input": ("brain-seranet-4", {**SMALL, "memory": "input", "consistency": "soft"}),
    "seranet-bottleneck": ("brain-seranet-7", {**SMALL, "memory": "bottleneck", "n_recurrences": 1}),
    "joint": ("brain-joint", SMALL),
    "segnetmri": ("brain-segnetmri", {"channels": (3, 4, 6), "n_blocks": 2}),
}


@pytest.mark.parametrize("key", NETWORKS)
def test_every_network_takes_odd_sizes_and_learns_in_every_parameter(key: str) -> None:
    torch.manual_seed(1)
    name, arguments = NETWORKS[key]
    network = build(name, arguments)
    logits = network(*undersampled())
    assert logits.shape == (2, 4, *SPACE)
    torch.autograd.backward((logits * random(*logits.shape)).mean())
    still = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    # The last image of SegNetMRI is for its l2 loss; what is segmented are the encoders' features.
    assert all(key == "segnetmri" and name.startswith("image_decoders.1") for name in still)


@pytest.mark.parametrize("network", [SynNet(3, (3, 4)), SynNet(3, (3, 4), "magnitude")], ids=["complex", "magnitude"])
def test_frames_of_a_sequence_are_segmented_one_by_one(network: SynNet) -> None:
    kspace = random(2, 2, 5, *SPACE)
    logits = network(kspace)
    assert logits.shape == (2, 3, 5, *SPACE)
    torch.testing.assert_close(logits[:, :, 3], network(kspace[:, :, 3]))


def test_magnitude_networks_ignore_a_global_phase() -> None:
    torch.manual_seed(2)
    network = SynNet(3, (3, 4), "magnitude")
    kspace = random(2, 2, *SPACE)
    turned = as_channels(as_complex(kspace) * 1j)
    torch.testing.assert_close(network(kspace), network(turned), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_a_signal_reaches_the_end_of_an_untrained_unet(seed: int) -> None:
    torch.manual_seed(seed)
    net = UNet2d(2, 4, (16, 32, 64, 128))
    image = torch.randn(2, 2, 24, 40)
    spread = net.decoder(net.encoder(image)).var(dim=(0, 2, 3)).mean().item()
    assert 0.05 < spread < 5  # of unit variance; 2e-4 with the weights that torch begins with


def test_the_unet_sees_beyond_its_padding_only_zeros() -> None:
    """Sizes that do not divide give what the padded image gives."""
    torch.manual_seed(3)
    network = UNet2d(2, 3, (3, 4, 5))
    image = random(1, 2, *SPACE)
    padded = torch.zeros(1, 2, 16, 24)
    padded[..., :13, :22] = image
    torch.testing.assert_close(network(image), network(padded)[..., :13, :22])


def test_hard_consistency_returns_the_measurement_and_leaves_the_rest() -> None:
    kspace, mask = undersampled()
    image = random(2, 2, *SPACE, seed=2)
    made = as_channels(to_kspace(as_complex(DataConsistency()(image, kspace, mask))))
    own = as_channels(to_kspace(as_complex(image)))
    torch.testing.assert_close(made, torch.where(mask.bool(), kspace, own), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", ["soft", "learned"])
def test_soft_consistency_weighs_both_sides(form: Any) -> None:
    kspace, mask = undersampled()
    image = random(2, 2, *SPACE, seed=2)
    made = as_channels(to_kspace(as_complex(DataConsistency(form, 3.0)(image, kspace, mask))))
    own = as_channels(to_kspace(as_complex(image)))
    expected = torch.where(mask.bool(), (own + 3 * kspace) / 4, own)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-4)


def test_consistency_is_checked() -> None:
    with pytest.raises(ValueError, match="hard, soft or learned"):
        DataConsistency("firm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be positive"):
        DataConsistency("soft", 0.0)


def test_a_reconstruction_that_learned_nothing_gives_the_zero_filled_image() -> None:
    network = Reconstruction(3, width=0.1)
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    kspace, mask = undersampled()
    before, image = network.last_two(kspace, mask)
    zero_filled = channels_to_image(kspace)
    torch.testing.assert_close(before, zero_filled, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(image, zero_filled, atol=1e-5, rtol=1e-4)


def test_images_of_a_hard_cascade_keep_what_was_measured() -> None:
    torch.manual_seed(4)
    kspace, mask = undersampled()
    made = SERANet(**SMALL).unroll(kspace, mask)
    for image in made.images:
        again = as_channels(to_kspace(as_complex(image))) * mask
        torch.testing.assert_close(again, kspace, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("key", ["seranet", "joint", "segnetmri"])
def test_slices_of_a_volume_are_segmented_one_by_one_and_lines_of_zeros_count_as_not_measured(key: str) -> None:
    torch.manual_seed(1)
    name, arguments = NETWORKS[key]
    network = build(name, arguments)
    kspace, mask = undersampled(3)
    volume = kspace.movedim(0, 1)[None]
    expected = network(kspace, mask)
    torch.testing.assert_close(network(kspace), expected)
    torch.testing.assert_close(network(volume)[0].movedim(1, 0), expected)
    torch.testing.assert_close(network(volume, mask.movedim(0, 1)[None])[0].movedim(1, 0), expected)
    torch.testing.assert_close(sampled(volume).expand_as(volume[:, :1])[0, 0], mask[:, 0])


def test_attention_multiplies_the_image_with_every_class_in_turn() -> None:
    torch.manual_seed(5)
    network = SERANet(n_classes=3, **SMALL)
    image, probabilities = random(2, 2, *SPACE), random(2, 3, *SPACE, seed=2).softmax(1)
    seen: list[Tensor] = []
    network.attention.block.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    kspace, mask = undersampled()
    network.attention(image, probabilities, kspace, mask)
    expected = torch.cat([probabilities[:, c : c + 1] * image for c in range(3)], dim=1)  # equation 1
    assert torch.equal(seen[0], expected)
    torch.testing.assert_close(expected.unflatten(1, (3, 2)).sum(1), image, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("source", "attended"), [("first", (0, 0)), ("previous", (1, 2))])
def test_attention_reads_the_image_that_its_form_names(source: Any, attended: tuple[int, int]) -> None:
    """Algorithm 1 attends to x_0 of block N - 1 at every t; equation 1 to x_(t-1)."""
    torch.manual_seed(6)
    network = SERANet(n_blocks=2, attention=source, **SMALL)
    kspace, mask = undersampled()
    before, after = network.reconstruction.last_two(kspace, mask)
    seen: list[Tensor] = []
    network.attention.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    images = [before, after, network.unroll(kspace, mask).images[1]]
    for given, index in zip(seen, attended, strict=True):
        torch.testing.assert_close(given, images[index])
    assert (before - after).abs().max() > 1e-4


def test_the_memory_makes_a_difference_after_the_first_pass_only() -> None:
    torch.manual_seed(7)
    network = UNet2d(2, 3, (3, 4), memory="decoder")
    image = random(1, 2, *SPACE)
    first, state = network.step(image, None)
    second, _ = network.step(image, state)
    torch.testing.assert_close(first, network(image))
    assert (first - second).abs().max() > 1e-4


@pytest.mark.parametrize("is_scaled", [True, False])
def test_features_of_any_size_leave_a_scaled_memory_as_it_was(is_scaled: bool) -> None:
    torch.manual_seed(6)
    net = UNet2d(2, 3, (5, 7), "decoder", scaled_memory=is_scaled)
    assert sum(p.numel() for p in net.parameters()) == sum(
        p.numel() for p in UNet2d(2, 3, (5, 7), "decoder").parameters()
    )
    image = torch.randn(2, 2, 8, 6)
    with torch.no_grad():
        before = net(image)
        last = [layer for layer in net.decoder.levels[-1] if isinstance(layer, nn.Conv2d)][-1]
        for parameter in last.parameters():
            parameter *= 1e4
        after = net(image)
    assert torch.allclose(before, after, atol=1e-5) is is_scaled


def test_the_cell_forgets_and_remembers_as_its_gates_say() -> None:
    cell = ConvLSTM(1, 1)
    nn.init.zeros_(cell.gates.weight)
    assert cell.gates.bias is not None
    cell.gates.bias.data = torch.tensor([0.0, 1.0, 2.0, 0.5])  # input, forget, output, candidate
    x = random(1, 1, 3, 5)
    before = (random(1, 1, 3, 5, seed=2), random(1, 1, 3, 5, seed=3))
    hidden, memory = cell(x, before)
    gate = torch.tensor([0.0, 1.0, 2.0]).sigmoid()
    expected = gate[1] * before[1] + gate[0] * torch.tensor(0.5).tanh()
    torch.testing.assert_close(memory, expected)
    torch.testing.assert_close(hidden, gate[2] * expected.tanh())


def test_joint_and_two_step_segment_the_image_of_their_reconstruction() -> None:
    torch.manual_seed(8)
    network = ReconstructThenSegment(**SMALL)
    kspace, mask = undersampled()
    image, logits = network.both(kspace, mask)
    torch.testing.assert_close(network.segmentation(image), logits)
    torch.testing.assert_close(network.reconstruction(kspace, mask), image)


def test_segnetmri_segments_with_the_encoders_of_its_reconstruction() -> None:
    torch.manual_seed(9)
    network = SegNetMRI(2, 3, (3, 4))
    kspace, mask = undersampled()
    image, logits = network.both(kspace, mask)
    for parameter in network.image_decoders[1].parameters():
        nn.init.zeros_(parameter)
    changed, same = network.both(kspace, mask)
    assert (changed - image).abs().max() > 1e-4
    assert torch.equal(same, logits)


def test_latent_network_takes_label_maps_images_and_sequences() -> None:
    torch.manual_seed(10)
    network = LINet(SPACE, 3, (3, 4), 7, temporal="gru")
    kspace = random(2, 2, 5, *SPACE)
    assert network.predict(kspace).shape == (2, 5, 7)
    assert network(kspace).shape == (2, 3, 5, *SPACE)
    assert network(kspace[:, :, 0]).shape == (2, 3, *SPACE)
    assert network.autoencode(random(2, 3, *SPACE)).shape == (2, 3, *SPACE)
    assert network.autoencode(random(2, 3, 5, *SPACE)).shape == (2, 3, 5, *SPACE)


@pytest.mark.parametrize("form", ["gru", "conv"])
def test_temporal_mending_begins_as_nothing_and_then_sees_neighbours(form: Any) -> None:
    torch.manual_seed(11)
    network = LINet(SPACE, 3, (3, 4), 7, temporal=form)
    kspace = random(1, 2, 5, *SPACE)
    alone = torch.stack([network.predict(kspace[:, :, t]) for t in range(5)], dim=1)
    torch.testing.assert_close(network.predict(kspace), alone)
    assert network.temporal is not None
    nn.init.ones_(network.temporal.output.weight)
    other = kspace.clone()
    other[:, :, 4] = 0
    assert (network.predict(kspace)[:, 2] - network.predict(other)[:, 2]).abs().max() > 1e-5


def test_an_autoencoder_learns_to_give_back_what_it_was_given() -> None:
    torch.manual_seed(12)
    network = LINet(SPACE, 2, (8, 16), 8)
    labels = torch.zeros(3, *SPACE, dtype=torch.long)
    for number in range(3):
        labels[number, 2 : 6 + 2 * number, 3 + 4 * number : 10 + 4 * number] = 1
    one_hot = nn.functional.one_hot(labels, 2).movedim(-1, 1).float()
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(120):
        loss = nn.functional.cross_entropy(network.autoencode(one_hot), labels)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    right = (network.autoencode(one_hot).argmax(1) == labels).float().mean()
    assert right > 0.98


def test_arguments_that_no_network_has_are_refused() -> None:
    with pytest.raises(ValueError, match="complex or magnitude"):
        SynNet(image="phase")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="none, gru or conv"):
        LINet(temporal="lstm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="takes images of"):
        LINet(SPACE, 3, (3, 4), 7)(random(1, 2, 13, 21))
    with pytest.raises(ValueError, match="first or previous"):
        SERANet(attention="last")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="type A or B"):
        regularisation("C")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="none, input"):
        UNet2d(2, 3, memory="top")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one block"):
        Reconstruction(0)
