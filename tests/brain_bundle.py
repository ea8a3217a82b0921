"""A tiny SERANet in a bundle, for tests: random weights, which no product ships."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from kstream.models.bundle import OUTPUT, Bundle, BundleInfo, save_bundle
from kstream.models.registry import architecture, build
from kstream.simulate.brain.scanner import LABELS
from kstream.training.brain.export import INPUT

NAME = "brain-seranet-2"
ARGUMENTS = {"channels": [4, 6], "width": 0.1}


def tiny_network() -> torch.nn.Module:
    """The network of the bundle."""
    torch.manual_seed(5)
    network = build(NAME, ARGUMENTS).eval()
    for part in network.get_submodule("segmentation").modules():  # as it begins, all voxels would be of one class
        if isinstance(part, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            torch.nn.init.kaiming_normal_(part.weight)
            torch.nn.init.zeros_(part.bias)  # type: ignore[arg-type]
    return network


def save_tiny(folder: Path) -> Bundle:
    """Write the bundle."""
    network = tiny_network()
    kspace = np.random.default_rng(1).standard_normal((1, 2, 1, 32, 32)).astype(np.float32)
    kspace[:, :, :, ::3] = 0
    with torch.no_grad():
        logits = network(torch.from_numpy(kspace)).numpy()
    arguments = {**architecture(NAME).arguments, **ARGUMENTS}
    info = BundleInfo("tiny", "random weights", NAME, arguments, LABELS, 1, 1, inputs=(INPUT,), outputs=(OUTPUT,))
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    return save_bundle(folder, info, state, (kspace, logits), "# tiny")
