"""Tiny bundles whose example is what their network gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kstream.models.bundle import Bundle, BundleInfo, save_bundle
from kstream.models.registry import build
from kstream.types import LabelTable

TABLE = LabelTable(("background", "lesion"), ((0, 0, 0), (255, 64, 64)))

HYBRID: Mapping[str, Any] = {"k_channels": (4, 6), "n_features": 2, "image_channels": (8, 12)}
SPACE = (4, 12, 10)


def toy(
    folder: Path,
    architecture: str = "breast-hybrid",
    arguments: Mapping[str, Any] = HYBRID,
    space: tuple[int, ...] = SPACE,
    bias: float = 0.0,
) -> Bundle:
    """A bundle with random weights; k-space of its example has a strong centre, as k-space has.

    Parameters
    ----------
    bias : added to the background's logits by the last convolution: large, and the example has no lesion.
    """
    torch.manual_seed(3)
    network = build(architecture, arguments).eval()
    for norm in (module for module in network.modules() if isinstance(module, torch.nn.GroupNorm)):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.uniform_(norm.bias, -0.5, 0.5)
    last = [module for module in network.modules() if isinstance(module, torch.nn.Conv3d | torch.nn.Conv2d)][-1]
    assert last.bias is not None
    with torch.no_grad():
        last.bias[0] += bias
    rng = np.random.default_rng(5)
    distance = np.linalg.norm(
        np.stack(np.meshgrid(*(np.arange(n) - n // 2 for n in space[-2:]), indexing="ij")), axis=0
    )
    kspace = rng.standard_normal((1, 2, *space)) * 200 / (1 + distance) ** 2
    kspace = kspace.astype(np.float32)
    with torch.inference_mode():
        logits = network(torch.from_numpy(kspace)).numpy()
    info = BundleInfo("toy", "for tests", architecture, dict(arguments), TABLE, space[0], space[0])
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    return save_bundle(folder, info, state, (kspace, logits), "# toy\n")
