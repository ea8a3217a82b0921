"""A trained heart network as a bundle that a stream can load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...models.bundle import BundleInfo, TensorSpec, save_array_bundle
from .experiment import HeartExperiment
from .tasks import networks

STREAMED = {"disk": "disk", "kmtr": "kmtr", "mae": "kmtr"}
"""Methods that a stream can run, and their architecture."""

_DESCRIBED = {
    "coordinates": "place of each sample along y, x, t; index over size",
    "values": "real and imaginary part of each sample, or of each line",
    "queries": "place of each pixel that is asked for",
    "places": "slice, frame and number of each line",
    "logits": "class scores of every query",
    "segmentation": "class scores (batch, slice, class, frame, y, x)",
    "regression": "the eighteen phenotypes, in their units",
    "classification": "logits of the three diseases",
    "reconstruction": "images (batch, real and imaginary, slice, frame, y, x)",
}


def export_bundle(experiment: HeartExperiment, network: nn.Module, folder: Path, metrics: Mapping[str, Any]) -> str:
    """Write the network as a bundle with a tiny example; gives the hash of its weights."""
    rng = np.random.default_rng(0)
    name = STREAMED[experiment.method]
    if name == "disk":
        shapes = {"coordinates": (1, 48, 3), "values": (1, 48, 2), "queries": (1, 32, 3)}
        example = {name: rng.random(shape, np.float32) for name, shape in shapes.items()}
        outputs: tuple[str, ...] = ("logits",)
    else:
        protocol = experiment.protocol("train")
        sizes = (len(protocol.views), protocol.n_frames, protocol.matrix)
        places = np.stack([rng.integers(0, n, 24) for n in sizes], axis=-1)[None].astype(np.float32)
        example = {"values": rng.standard_normal((1, 24, 2 * protocol.matrix), np.float32), "places": places}
        outputs = experiment.network.heads
    inputs = tuple(example)
    with torch.inference_mode():
        made = network(*(torch.from_numpy(array) for array in example.values()))
    parts = made if isinstance(made, tuple) else (made,)
    example |= {name: part.numpy() for name, part in zip(outputs, parts, strict=True)}
    info = BundleInfo(
        name=experiment.name,
        description=experiment.description,
        architecture=name,
        arguments=networks(experiment)[name],
        labels=experiment.labels.table(),
        patch_depth=1,
        patch_stride=1,
        training={"experiment": experiment.model_dump(mode="json")},
        metrics=dict(metrics),
        inputs=tuple(_spec(n, example[n]) for n in inputs),
        outputs=tuple(_spec(n, example[n]) for n in outputs),
    )
    state = {key: value.cpu().numpy() for key, value in network.state_dict().items()}
    card = f"# {experiment.name}\n\n{experiment.description}\n\nTrained on simulated hearts. {info.intended_use}\n"
    return save_array_bundle(folder, info, state, example, card).info.sha256


def _spec(name: str, array: np.ndarray[Any, Any]) -> TensorSpec:
    axes = ("batch", *(f"axis{i}" for i in range(1, array.ndim)))
    return TensorSpec(name, axes, "float32", "1", _DESCRIBED[name])
