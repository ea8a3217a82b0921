"""A trained heart network as a bundle that a stream can load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...models.bundle import BundleInfo, TensorSpec, save_array_bundle
from ...models.registry import architecture
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
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    return save_array_bundle(folder, info, state, example, model_card(info, experiment, n_parameters)).info.sha256


def model_card(info: BundleInfo, experiment: HeartExperiment, n_parameters: int) -> str:
    """Text of the card, in Markdown."""
    entry, data, protocol = architecture(info.architecture), experiment.data, experiment.protocol("train")
    arguments = ", ".join(f"{key} {value}" for key, value in info.arguments.items())
    factors = ", ".join(f"{factor:g}" for factor in data.accelerations)
    tables = "\n".join(_table(cohort, metrics) for cohort, metrics in info.metrics.items())
    return f"""# {info.name}

{info.description}

**Intended use.** {info.intended_use} Trained on simulated scans of simulated hearts only; it has never seen a
person, and its numbers say nothing about patients.

**Network.** `{info.architecture}`: {entry.description} ({entry.paper}); {arguments}. {n_parameters:,} parameters.

**Input.** {"; ".join(f"{spec.name}: {spec.description}" for spec in info.inputs)}.
**Output.** {"; ".join(f"{spec.name}: {spec.description}" for spec in info.outputs)}.
**Classes.** {", ".join(info.labels.names)}.

**Training.** {len(experiment.cohorts["train"].seeds)} simulated subjects (kstream simulate --case heart), views
{", ".join(data.views)}, {protocol.matrix} x {protocol.matrix} x {protocol.n_frames}, accelerations {factors}
({data.density}); {experiment.schedule.steps} steps of {experiment.schedule.batch}. The experiment is
`{experiment.name}.toml` in this folder; it is run by

    kstream train {experiment.name}.toml

**Licence.** {info.licence}.

## Evaluation

Subjects that were used neither in training nor in selection. `dice_swapped` is the Dice when the samples are those of
another subject: what a network reaches that way comes from where hearts usually lie, and only what it adds with the
right samples comes from the measurement (`docs/heart-study.md`).

{tables}"""


def _table(cohort: str, metrics: Mapping[str, Any]) -> str:
    """Numbers of a cohort, and the errors of its phenotypes or areas if there are."""
    lines = [f"### {cohort}", "", "| metric | value |", "|---|---|"]
    lines += [f"| {name} | {value:.4g} |" for name, value in metrics.items() if not isinstance(value, dict)]
    for kind in ("phenotype", "area"):
        if errors := metrics.get(f"{kind}_errors"):
            lines += ["", f"| {kind} | mean absolute error | its deviation | bias | r |", "|---|---|---|---|---|"]
            lines += [
                f"| {n} | {e['mae']:.3g} | {e['mae_sd']:.3g} | {e['bias']:.3g} | {e['r']:.2f} |"
                for n, e in errors.items()
            ]
    return "\n".join(lines) + "\n"


def _spec(name: str, array: np.ndarray[Any, Any]) -> TensorSpec:
    axes = ("batch", *(f"axis{i}" for i in range(1, array.ndim)))
    return TensorSpec(name, axes, "float32", "1", _DESCRIBED[name])
