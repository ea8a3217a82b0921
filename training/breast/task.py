"""Breast lesions in difference k-space (paper 000): its patches, its loss, its validation, as a task for `fit`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...engines.torch_engine import TorchEngine
from ...errors import ConfigError, ModelError
from ...models.fourier import as_complex, to_kspace
from ...models.reconstruct import ReconstructUNet
from ...models.registry import build
from ...segment.patches import cut_patch
from ...segment.volume import to_channels
from ...types import Complex
from ..experiment import Experiment, load_experiment
from ..fit import BEST, Picture, Stage, Task, Validation, load_weights, store_channels_last, to_device
from .augment import degrade, move
from .data import Exam, build_cache, load_cohort
from .evaluate import ExamScore, evaluate, summarise, to_csv, to_markdown
from .losses import breast_losses
from .pictures import overlay

N_PICTURES = 3
N_RECONSTRUCTED = 16

Batch = dict[str, Tensor]


class PatchSampler:
    """Random patches of which a given share holds a lesion (paper 000: half of them).

    A patch with a lesion is drawn exam first, so that large lesions do not crowd out small ones.

    Raises
    ------
    ConfigError : if there are no exams, or patches with a lesion are asked for and no exam has one.
    """

    def __init__(self, exams: Sequence[Exam], experiment: Experiment) -> None:
        self._exams, self._experiment = exams, experiment
        depth = experiment.network.patch_depth
        self._positive = [_starts(exam, depth, with_lesion=True) for exam in exams]
        self._negative = [_starts(exam, depth, with_lesion=False) for exam in exams]
        self._weights = [experiment.schedule.positive_exams if exam.has_lesion else 1 for exam in exams]
        share = experiment.schedule.positive_probability
        if not exams or (share > 0 and not any(map(len, self._positive))):
            raise ConfigError("the training cohort has no exam with a lesion", hint="add seeds to cohorts.train")

    def batch(self, number: int) -> Batch:
        """Float32 `kspace` and `clean` ``(batch, 2, z, y, x)`` and int64 `labels` ``(batch, z, y, x)`` of a number.

        `clean` is the patch before noise was added and lines were left out: what a reconstruction should give.
        """
        rng = np.random.default_rng([self._experiment.seed, number])
        patches = [self._patch(rng) for _ in range(self._experiment.schedule.batch)]
        kspace, clean, labels = (np.stack(parts) for parts in zip(*patches, strict=True))
        return {
            "kspace": torch.from_numpy(kspace),
            "clean": torch.from_numpy(clean),
            "labels": torch.from_numpy(labels.astype(np.int64)),
        }

    def _patch(self, rng: np.random.Generator) -> tuple[NDArray[Any], ...]:
        config = self._experiment
        depth, wanted = config.network.patch_depth, config.augment
        wants_lesion = rng.random() < config.schedule.positive_probability
        starts = self._positive if wants_lesion or not any(map(len, self._negative)) else self._negative
        weights = np.array([bool(len(choice)) * weight for choice, weight in zip(starts, self._weights, strict=True)])
        index = int(rng.choice(len(starts), p=weights / weights.sum()))
        start = int(rng.choice(starts[index]))
        exam = self._exams[index]
        labels = cut_patch(exam.labels, start, depth)
        kspace, labels = move(cut_patch(self._difference(exam, rng), start, depth), labels, wanted, rng)
        return to_channels(degrade(kspace, wanted, rng)), to_channels(kspace), labels

    def _difference(self, exam: Exam, rng: np.random.Generator) -> Complex:
        """The frame that is segmented, or another (first-post augmentation), or it from fewer spokes."""
        config = self._experiment
        frame = config.data.frame
        if rng.random() < config.augment.other_frame_probability:
            frame = int(rng.choice(exam.frames))
        thinner = sorted(name for name in exam.variants if name.startswith(config.augment.variant_kind))
        if thinner and rng.random() < config.augment.variant_probability:
            return exam.variants[str(rng.choice(thinner))]
        return exam.difference(frame)


def _starts(exam: Exam, depth: int, with_lesion: bool) -> NDArray[np.int64]:
    """First slices of all patches that hold a lesion voxel, or of all that hold none."""
    marked = exam.labels.reshape(len(exam.labels), -1).max(axis=1) > 0
    n_starts = max(len(marked) - depth + 1, 1)
    return np.array([s for s in range(n_starts) if marked[s : s + depth].any() == with_lesion], np.int64)


class BreastTask(Task[Batch]):
    """One network of the registry on difference k-space; the score is the mean lesion Dice of the validation exams.

    Raises
    ------
    ConfigError : if a cohort has no exam with a lesion.
    ModelError : for an unknown network.
    """

    def __init__(self, experiment: Experiment, train: Sequence[Exam], validation: Sequence[Exam]) -> None:
        if not any(exam.has_lesion for exam in validation):
            raise ConfigError("the validation cohort has no exam with a lesion", hint="add seeds to cohorts.validation")
        self._experiment, self._validation = experiment, validation
        self._sampler = PatchSampler(train, experiment)
        self.name, self.seed = experiment.name, experiment.seed
        torch.manual_seed(experiment.seed)
        self.network = build(experiment.network.architecture, experiment.network.arguments)
        store_channels_last(self.network)

    def identity(self) -> str:
        return self._experiment.model_dump_json(exclude={"schedule"}, exclude_defaults=True)

    def batch(self, number: int) -> Batch:
        return self._sampler.batch(number)

    def loss(self, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return breast_losses(network, batch["kspace"], batch["labels"], self._experiment.loss)

    def validate(self, network: nn.Module) -> Validation:
        summary = summarise(score_cohort(self._experiment, self._validation, network))
        return Validation(summary.mean_dice, asdict(summary))

    def pictures(self, network: nn.Module) -> Mapping[str, Picture]:
        config, shown = self._experiment, [exam for exam in self._validation if exam.has_lesion][:N_PICTURES]
        engine = TorchEngine(network, {}, _device_of(network))
        return {f"exam-{exam.seed}": overlay(exam, engine, config.data.frame, config.network) for exam in shown}


class ReconstructionTask(BreastTask):
    """The first stage of a network that reconstructs: its image against that of the clean patch, relative to it."""

    def __init__(self, experiment: Experiment, train: Sequence[Exam], validation: Sequence[Exam]) -> None:
        super().__init__(experiment, train, validation)
        if not isinstance(self.network, ReconstructUNet):
            raise ConfigError(
                f"{experiment.network.architecture} does not reconstruct", hint="leave [reconstruction] away"
            )
        self._held_out = PatchSampler(validation, experiment)

    def identity(self) -> str:
        return f"reconstruction {super().identity()}"

    def loss(self, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return {"reconstruction": _relative_error(network, batch)}

    def validate(self, network: nn.Module) -> Validation:
        device = next(network.parameters()).device
        batches = [self._held_out.batch(number) for number in range(N_RECONSTRUCTED)]
        error = float(np.mean([float(_relative_error(network, to_device(batch, device))) for batch in batches]))
        return Validation(-error, {"relative_error": error})

    def pictures(self, network: nn.Module) -> Mapping[str, Picture]:
        return {}

    def parameter_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        return [{"params": list(cast(ReconstructUNet, network).blocks.parameters())}]


class SegmentReconstructed(BreastTask):
    """The second stage: the U-Net learns on images of a reconstruction that is no longer changed."""

    def __init__(
        self, experiment: Experiment, train: Sequence[Exam], validation: Sequence[Exam], weights: Path
    ) -> None:
        super().__init__(experiment, train, validation)
        load_weights(self.network, weights)

    def identity(self) -> str:
        return f"segmentation {super().identity()}"

    def parameter_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        whole = cast(ReconstructUNet, network)
        whole.blocks.requires_grad_(False)
        return [{"params": list(whole.net.parameters())}]


def _relative_error(network: nn.Module, batch: Batch) -> Tensor:
    """Squared error of the reconstruction over the energy of the clean patch, mean over patches."""
    wanted = as_complex(batch["clean"])  # the transform is orthonormal: energies may be compared in k-space
    image = to_kspace(cast(ReconstructUNet, network).reconstruct(batch["kspace"]))
    return ((image - wanted).abs().square().sum((1, 2, 3, 4)) / wanted.abs().square().sum((1, 2, 3, 4))).mean()


def score_cohort(experiment: Experiment, exams: Sequence[Exam], network: nn.Module) -> list[ExamScore]:
    """Segment and score exams where the network is."""
    patch = experiment.network
    engine = TorchEngine(network, {"model": experiment.name}, _device_of(network))
    return evaluate(exams, engine, experiment.data.frame, patch.patch_depth, patch.patch_stride)


def _device_of(network: nn.Module) -> str:
    return str(next(network.parameters()).device)


def load_best(experiment: Experiment, folder: Path) -> nn.Module:
    """The network of a run with its best weights, on the CPU.

    Raises
    ------
    ModelError : if the run has no validated weights, or those of another architecture.
    """
    return load_weights(build(experiment.network.architecture, experiment.network.arguments), folder / BEST)


def breast_stages(experiment: Experiment, train: Sequence[Exam], validation: Sequence[Exam]) -> list[Stage]:
    """What to train, in order: one stage, or a reconstruction before it."""
    if experiment.reconstruction is None:
        task = BreastTask(experiment, train, validation)
        return [Stage("", lambda _: task, experiment.schedule)]
    first = ReconstructionTask(experiment, train, validation)
    schedule = experiment.schedule.model_copy(update=experiment.reconstruction.model_dump())

    def second(weights: Path | None) -> BreastTask:
        if weights is None:
            raise ModelError("there is no reconstruction to segment")
        return SegmentReconstructed(experiment, train, validation, weights)

    return [Stage("reconstruct", lambda _: first, schedule), Stage("", second, experiment.schedule)]


class BreastRecipe:
    """An experiment file of the breast task, for the commands (see `recipes.Recipe`)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.experiment = load_experiment(path)
        self.name = self.experiment.name

    def prepare(self, cache: Path, workers: int) -> Iterator[tuple[str, int, int]]:
        for path, done, total in build_cache(self.experiment, cache, workers):
            yield path.stem, done, total

    def stages(self, cache: Path) -> Sequence[Stage]:
        experiment = self.experiment
        train, validation = (load_cohort(experiment, cohort, cache) for cohort in ("train", "validation"))
        return breast_stages(experiment, train, validation)

    def evaluate(self, cache: Path, run: Path, cohorts: Sequence[str]) -> str:
        scores = self._scores(cache, run, cohorts)
        for name, rows in scores.items():
            (run / f"evaluation-{name}.csv").write_text(to_csv(rows), encoding="utf-8")
            (run / f"evaluation-{name}.md").write_text(to_markdown(rows), encoding="utf-8")
        return "\n".join(f"{name}\n{to_markdown(rows)}" for name, rows in scores.items())

    def export(self, cache: Path, run: Path, bundle: Path) -> str:
        from .export import export

        scores = self._scores(cache, run, ())
        validation = load_cohort(self.experiment, "validation", cache)
        example = next((exam for exam in validation if exam.has_lesion), validation[0])
        written = export(self.experiment, self._path, run, bundle, scores, example)
        return f"{written.folder}: sha256 {written.info.sha256[:12]}"

    def _scores(self, cache: Path, run: Path, cohorts: Sequence[str]) -> dict[str, list[ExamScore]]:
        experiment = self.experiment
        if unknown := set(cohorts) - set(experiment.cohort_names):
            raise ConfigError(
                f"no cohort {', '.join(sorted(unknown))}", hint="one of: " + ", ".join(experiment.cohort_names)
            )
        network = load_best(experiment, run)
        return {
            cohort: score_cohort(experiment, load_cohort(experiment, cohort, cache), network)
            for cohort in cohorts or experiment.test_cohorts
        }
