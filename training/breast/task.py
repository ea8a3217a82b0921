"""Breast lesions in difference k-space (paper 000): its patches, its loss, its validation, as a task for `fit`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...engines.torch_engine import TorchEngine
from ...errors import ConfigError, ModelError, ShapeError
from ...models.breast import NativeUNet
from ...models.fourier import as_complex, to_kspace
from ...models.reconstruct import ReconstructUNet
from ...models.registry import build
from ...segment.patches import cut_patch
from ...segment.volume import to_channels
from ...types import Complex
from ..experiment import Experiment
from ..fit import BEST, Picture, Stage, Task, Validation, load_weights, store_channels_last, to_device
from .augment import degrade, move
from .data import Exam
from .distill import Teacher
from .evaluate import ExamScore, evaluate, summarise
from .losses import breast_losses, distillation_loss, segmentation_losses
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

        `clean` is the patch before noise was added and lines were left out: what a reconstruction should give. For a
        distillation there is `full` too: `clean` of the whole scan, where `clean` may be from fewer spokes.
        """
        rng = np.random.default_rng([self._experiment.seed, number])
        patches = [self._patch(rng) for _ in range(self._experiment.schedule.batch)]
        return {name: torch.from_numpy(np.stack([patch[name] for patch in patches])) for name in patches[0]}

    def _patch(self, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        config = self._experiment
        depth, wanted = config.network.patch_depth, config.augment
        wants_lesion = rng.random() < config.schedule.positive_probability
        starts = self._positive if wants_lesion or not any(map(len, self._negative)) else self._negative
        weights = np.array([bool(len(choice)) * weight for choice, weight in zip(starts, self._weights, strict=True)])
        index = int(rng.choice(len(starts), p=weights / weights.sum()))
        start = int(rng.choice(starts[index]))
        exam = self._exams[index]
        labels = cut_patch(exam.labels, start, depth)
        drawn, whole = self._difference(exam, rng)
        same_move = copy.deepcopy(rng)
        kspace, moved = move(cut_patch(drawn, start, depth), labels, wanted, rng)
        patch: dict[str, NDArray[Any]] = {
            "kspace": to_channels(degrade(kspace, wanted, rng)),
            "clean": to_channels(kspace),
            "labels": moved.astype(np.int64),
        }
        if config.distill is not None:
            patch["full"] = to_channels(move(cut_patch(whole, start, depth), labels, wanted, same_move)[0])
        return patch

    def _difference(self, exam: Exam, rng: np.random.Generator) -> tuple[Complex, Complex]:
        """The frame that is segmented, or another (first-post augmentation), or it from fewer spokes; and it whole."""
        config = self._experiment
        frame = config.data.frame
        if rng.random() < config.augment.other_frame_probability:
            frame = int(rng.choice(exam.frames))
        thinner = sorted(name for name in exam.variants if name.startswith(config.augment.variant_kind))
        if thinner and rng.random() < config.augment.variant_probability:
            return exam.variants[str(rng.choice(thinner))], exam.differences[-1]
        whole = exam.difference(frame)
        return whole, whole


def check_network(experiment: Experiment) -> None:
    """Refuse a network that cannot be built; takes no memory for weights, so that it can be asked first of all.

    Raises
    ------
    ModelError : an unknown architecture, or arguments that it refuses.
    """
    with torch.device("meta"):
        build(experiment.network.architecture, experiment.network.arguments)


def check_exams(exams: Sequence[Exam], frame: int) -> None:
    """Refuse exams that would end a training at some later step.

    Raises
    ------
    ScanError : an exam without the frame that is segmented.
    ShapeError : exams whose planes have different sizes: patches of them cannot share a batch.
    """
    for exam in exams:
        exam.difference(frame)
        if exam.labels.shape[1:] != exams[0].labels.shape[1:]:
            raise ShapeError(
                f"planes of {exam.labels.shape[1:]} and {exams[0].labels.shape[1:]} voxels in one cohort",
                where=f"exams {exams[0].patient or exams[0].seed} and {exam.patient or exam.seed}",
                likely="exams of several protocols in one cache",
            )


def _starts(exam: Exam, depth: int, with_lesion: bool) -> NDArray[np.int64]:
    """First slices of all patches that hold a lesion voxel, or of all that hold none."""
    marked = exam.labels.reshape(len(exam.labels), -1).max(axis=1) > 0
    n_starts = max(len(marked) - depth + 1, 1)
    return np.array([s for s in range(n_starts) if marked[s : s + depth].any() == with_lesion], np.int64)


class BreastTask(Task[Batch]):
    """One network of the registry on difference k-space; the score is the mean lesion Dice of the validation exams.

    Raises
    ------
    ConfigError : if a cohort has no exam with a lesion, or a teacher does not fit.
    ScanError : as `check_exams`.
    ModelError : for an unknown network, or a teacher without weights.
    """

    def __init__(self, experiment: Experiment, train: Sequence[Exam], validation: Sequence[Exam]) -> None:
        if not any(exam.has_lesion for exam in validation):
            raise ConfigError("the validation cohort has no exam with a lesion", hint="add seeds to cohorts.validation")
        for exams in (train, validation):
            check_exams(exams, experiment.data.frame)
        self._experiment, self._validation = experiment, validation
        self._sampler = PatchSampler(train, experiment)
        self.name, self.seed = experiment.name, experiment.seed
        torch.manual_seed(experiment.seed)
        self.network = build(experiment.network.architecture, experiment.network.arguments)
        store_channels_last(self.network)
        self._teacher = None if experiment.distill is None else Teacher(experiment.distill, experiment)
        if self._teacher and isinstance(self.network, NativeUNet):
            raise ConfigError(
                f"{experiment.network.architecture} cannot be taught: its loss is of k-space, not of logits",
                where="distill",
            )

    def identity(self) -> str:
        said = self._experiment.model_dump_json(exclude={"schedule"}, exclude_defaults=True)
        return f"{said} teacher {self._teacher.sha256}" if self._teacher else said

    def batch(self, number: int) -> Batch:
        return self._sampler.batch(number)

    def loss(self, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        config, labels = self._experiment, batch["labels"]
        if self._teacher is None or config.distill is None:
            return breast_losses(network, batch["kspace"], labels, config.loss)
        logits, wanted = network(batch["kspace"]), self._teacher(batch["full"])
        distance = distillation_loss(logits, wanted, config.distill.temperature, config.loss.class_weights)
        return {**segmentation_losses(logits, labels, config.loss), "distillation": config.distill.weight * distance}

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
