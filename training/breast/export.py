"""From a finished run to a bundle that kstream ships."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ...engines.torch_engine import TorchEngine
from ...models.bundle import INTENDED_USE, Bundle, BundleInfo, save_bundle
from ...models.registry import architecture, cost
from ...segment.volume import to_channels
from ..experiment import Experiment, FoldConfig
from .data import Exam
from .evaluate import ExamScore, summarise, to_csv, to_markdown
from .task import load_best

EXAMPLE_SIZE = 32
SIMULATED = "simulated breast DCE exams (kstream simulate), through the streaming pipeline"
NO_PATIENT = (
    "Trained on simulated exams only; it has never seen a patient, and its numbers say\nnothing about patients."
)
SEGMENTED = "fully sampled, segmented by the pipeline's own code."
UNSEEN = f"Exams that were used neither in training nor in selection, {SEGMENTED}"
PUBLISHED_SPLIT = f"Exams on which the best weights were chosen too (the published split), {SEGMENTED}"


def export(
    experiment: Experiment,
    source: Path,
    run: Path,
    folder: Path,
    scores: Mapping[str, Sequence[ExamScore]],
    example_exam: Exam,
) -> Bundle:
    """Write the bundle of a run: weights, description, card, example, and beside them the experiment and its tables.

    Parameters
    ----------
    source : the experiment file, copied into the bundle.
    run : folder of `fit`.
    folder : of the bundle; its last part should be the bundle's name.
    scores : of every test cohort, from `evaluate.evaluate`.
    example_exam : its lesion's slices, cut to the centre of k-space, become the bundle's example.
    """
    network = load_best(experiment, run)
    kspace = tiny_example(example_exam, experiment)
    logits = TorchEngine(network, {}).run(kspace)
    info = _describe(experiment, source, folder.name, scores)
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    tables = {cohort: to_markdown(list(rows)) for cohort, rows in scores.items()}
    bundle = save_bundle(folder, info, state, (kspace, logits), model_card(info, source.name, tables, experiment.folds))
    (folder / source.name).write_text(source.read_text("utf-8"), encoding="utf-8")
    (folder / "training.jsonl").write_text((run / "metrics.jsonl").read_text("utf-8"), encoding="utf-8")
    for cohort, rows in scores.items():
        (folder / f"evaluation-{cohort}.csv").write_text(to_csv(list(rows)), encoding="utf-8")
    return bundle


def tiny_example(exam: Exam, experiment: Experiment) -> NDArray[np.float32]:
    """Input ``(1, 2, depth / 2, 32, 32)``: low frequencies of the slices about an exam's lesion.

    Noise of the same size for exams of people: their data do not travel in a bundle.
    """
    kspace = exam.difference(experiment.data.frame)
    if exam.source != "simulated":
        noise = np.random.default_rng(0).standard_normal((*kspace.shape, 2), np.float32)
        kspace = noise.view(np.complex64)[..., 0]
    depth = min(max(experiment.network.patch_depth // 2, 1), len(kspace))
    middle = int(np.mean(np.flatnonzero(exam.labels.any(axis=(1, 2))))) if exam.has_lesion else len(kspace) // 2
    z = min(max(middle - depth // 2, 0), len(kspace) - depth)
    y, x = (max(n // 2 - EXAMPLE_SIZE // 2, 0) for n in kspace.shape[1:])
    return to_channels(kspace[z : z + depth, y : y + EXAMPLE_SIZE, x : x + EXAMPLE_SIZE])[None]


def _describe(experiment: Experiment, source: Path, name: str, scores: Mapping[str, Sequence[ExamScore]]) -> BundleInfo:
    network, schedule = experiment.network, experiment.schedule
    return BundleInfo(
        name=name,
        description=experiment.description,
        architecture=network.architecture,
        arguments={**architecture(network.architecture).arguments, **network.arguments},
        labels=experiment.labels.table(),
        patch_depth=network.patch_depth,
        patch_stride=network.patch_stride,
        training={
            "experiment": source.name,
            "command": f"kstream train {source.name}",
            "data": _patients(experiment.folds) if experiment.folds else SIMULATED,
            "seeds": {cohort: _seed_text(config.seeds) for cohort, config in experiment.cohorts.items()},
            "seed": experiment.seed,
            "steps": schedule.steps,
            "batch": schedule.batch,
            **({"teacher": experiment.distill.model_dump()} if experiment.distill else {}),
            "torch": version("torch"),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        },
        metrics={cohort: _rounded(asdict(summarise(list(rows)))) for cohort, rows in scores.items()},
    )


def _patients(folds: FoldConfig) -> str:
    split = "validated on the test part, as published" if folds.published else "validation apart from test"
    return f"patients, fold {folds.fold} of {folds.n_folds} (seed {folds.seed}; {split})"


def _seed_text(seeds: Sequence[int]) -> str:
    """``(3, 4, 5, 9)`` as ``"3-5, 9"``: the inverse of `experiment.parse_seeds`."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and runs[-1][-1] == seed - 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _rounded(values: Mapping[str, float]) -> dict[str, float | None]:
    """Four digits; NaN, which JSON lacks, as null."""
    return {key: None if value != value else round(value, 4) for key, value in values.items()}


def model_card(info: BundleInfo, experiment_file: str, tables: Mapping[str, str], folds: FoldConfig | None) -> str:
    """Text of the card, in Markdown; `folds` are those of the patients it was trained on, None for simulated exams."""
    counted = cost(info.architecture, info.arguments, ((1, 2, info.patch_depth, 128, 128),))
    entry = architecture(info.architecture)
    arguments = ", ".join(f"{key} {value}" for key, value in info.arguments.items())
    with_tables = "\n".join(f"### {cohort}\n\n{table}" for cohort, table in tables.items())
    return f"""# {info.name}

{info.description}

**Intended use.** {INTENDED_USE} {f"Trained on {info.training['data']}." if folds else NO_PATIENT}

**Network.** `{info.architecture}`: {entry.description} ({entry.paper}); {arguments}.
{counted.parameters:,} parameters, {counted.macs / 1e9:.2f} G multiply-accumulates per patch of
{info.patch_depth} x 128 x 128.

**Input.** {info.inputs[0].description}; {info.inputs[0].dtype} ({", ".join(info.inputs[0].axes)}).
**Output.** {info.outputs[0].description}; classes: {", ".join(info.labels.names)}.
Patches of {info.patch_depth} slices every {info.patch_stride}, joined by strict majority.

**Training.** {info.training["data"]}; {info.training["steps"]} steps of {info.training["batch"]} patches.
The experiment is `{experiment_file}` in this folder; it is run by

    {info.training["command"]}

**Licence.** {info.licence}.

## Evaluation

{PUBLISHED_SPLIT if folds and folds.published else UNSEEN}

{with_tables}"""
