"""From a finished run of the brain task to a bundle."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ...models.bundle import INTENDED_USE, OUTPUT, Bundle, BundleInfo, TensorSpec, save_bundle
from ...models.linet import LINet
from ...models.registry import architecture, cost
from ...recon.scaling import scaled
from ...segment.volume import to_channels
from ...simulate.brain.scanner import LABELS
from .experiment import BrainExperiment
from .heads import HeadExam
from .task import HeadScore, best_weights, load_best, measured_head, summarise, to_csv, to_markdown

EXAMPLE_SIZE = 32

INPUT = TensorSpec(
    "kspace",
    ("batch", "real_imag", "z", "y", "x"),
    "float32",
    "1 (99th percentile of the zero-filled image)",
    "k-space of one slice over the brightness of its zero-filled image; y and x centred Fourier axes, lines that were "
    "not measured exactly 0",
)


def export(
    experiment: BrainExperiment,
    source: Path,
    run: Path,
    folder: Path,
    scores: Mapping[str, Sequence[HeadScore]],
    example_head: HeadExam,
) -> Bundle:
    """Write the bundle of a run: weights, description, card, example, and beside them the experiment and its tables.

    Parameters
    ----------
    source : the experiment file, copied into the bundle.
    run : folder of `fit`.
    folder : of the bundle; its last part should be the bundle's name.
    scores : of every test cohort.
    example_head : its middle slice becomes the bundle's example, cut to the centre of k-space where the network allows.
    """
    network = load_best(experiment, run)
    middle = measured_head(example_head, experiment, experiment.data.noise[0])[len(example_head.samples) // 2]
    kspace = tiny_example(middle.under, whole=isinstance(network, LINet))
    with torch.no_grad():
        logits = network(torch.from_numpy(kspace)).numpy()
    info = _describe(experiment, source, folder.name, scores)
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    tables = {cohort: to_markdown(list(rows)) for cohort, rows in scores.items()}
    bundle = save_bundle(folder, info, state, (kspace, logits), model_card(info, source.name, tables))
    (folder / source.name).write_text(source.read_text("utf-8"), encoding="utf-8")
    metrics = best_weights(experiment, run).parent / "metrics.jsonl"
    (folder / "training.jsonl").write_text(metrics.read_text("utf-8"), encoding="utf-8")
    for cohort, rows in scores.items():
        (folder / f"evaluation-{cohort}.csv").write_text(to_csv(list(rows)), encoding="utf-8")
    return bundle


def tiny_example(kspace: NDArray[np.complex64], whole: bool) -> NDArray[np.float32]:
    """Input ``(1, 2, 1, y, x)`` of a slice ``(y, x)``, of 32 x 32 low frequencies or the `whole` of it."""
    if not whole:
        y, x = (max(n // 2 - EXAMPLE_SIZE // 2, 0) for n in kspace.shape)
        kspace = scaled(kspace[y : y + EXAMPLE_SIZE, x : x + EXAMPLE_SIZE])
    return to_channels(kspace[None])[None]


def _describe(
    experiment: BrainExperiment, source: Path, name: str, scores: Mapping[str, Sequence[HeadScore]]
) -> BundleInfo:
    network, schedule = experiment.network, experiment.schedule
    return BundleInfo(
        name=name,
        description=experiment.description,
        architecture=network.architecture,
        arguments={**architecture(network.architecture).arguments, **network.arguments},
        labels=LABELS,
        patch_depth=1,
        patch_stride=1,
        training={
            "experiment": source.name,
            "command": f"kstream train {source.name}",
            "data": "simulated spin-echo scans of simulated heads (kstream simulate --case brain)",
            "heads": {cohort: len(config.seeds) for cohort, config in experiment.cohorts.items()},
            "noise": list(experiment.data.noise),
            "fraction": experiment.data.fraction,
            "seed": experiment.seed,
            "steps": schedule.steps,
            "batch": schedule.batch,
            "torch": version("torch"),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        },
        metrics={
            cohort: {key: round(value, 4) for key, value in summarise(rows).items()} for cohort, rows in scores.items()
        },
        inputs=(INPUT,),
        outputs=(OUTPUT,),
    )


def model_card(info: BundleInfo, experiment_file: str, tables: Mapping[str, str]) -> str:
    """Text of the card, in Markdown."""
    counted = cost(info.architecture, info.arguments)
    entry = architecture(info.architecture)
    arguments = ", ".join(f"{key} {value}" for key, value in info.arguments.items())
    levels = ", ".join(f"{100 * level:g} %" for level in info.training["noise"])
    with_tables = "\n".join(f"### {cohort}\n\n{table}" for cohort, table in tables.items())
    return f"""# {info.name}

{info.description}

**Intended use.** {INTENDED_USE} Trained on simulated scans of simulated heads only; it has never seen a person, and its
numbers say nothing about patients.

**Network.** `{info.architecture}`: {entry.description} ({entry.paper}); {arguments}.
{counted.parameters:,} parameters, {counted.macs / 1e9:.2f} G multiply-accumulates per slice of 180 x 216.

**Input.** {info.inputs[0].description}; {info.inputs[0].dtype} ({", ".join(info.inputs[0].axes)}).
**Output.** {info.outputs[0].description}; classes: {", ".join(info.labels.names)}.

**Training.** {info.training["data"]}; {info.training["steps"]} steps of {info.training["batch"]} slices,
{100 * info.training["fraction"]:g} % of the lines, noise of {levels}.
The experiment is `{experiment_file}` in this folder; it is run by

    {info.training["command"]}

**Licence.** {info.licence}.

## Evaluation

Dice over all voxels of a head, mean over heads that were used neither in training nor in selection.

{with_tables}"""
