"""The heart's networks as tasks for `fit`: DiSK and Syn-Net on slices, k-MTR's stages and ResNet on whole subjects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...errors import ConfigError
from ...models.kmtr import KMTR, Alignment, ImageMAE, LineMAE
from ...models.registry import architecture, build
from ...segment.lines import line_values
from ...segment.points import frame_queries, real_values, sample_coordinates
from ...simulate.heart.lines import Lines
from ...types import Complex, Float
from ..fit import BEST, Task, Validation
from .data import Subject, draw_lines, moved, noisy_kspace
from .experiment import HeartExperiment
from .losses import (
    alignment_loss,
    classification_loss,
    disk_loss,
    masked_error,
    regression_loss,
    slices_dice_loss,
    soft_dice_loss,
)
from .metrics import absolute_errors, class_dice, classification_score, mean_hausdorff, peak_signal_to_noise_db

Batch = dict[str, Tensor]

_NETWORKS = {
    "disk": "disk", "syn-net": "heart-syn-net", "resnet50": "heart-resnet50", "resnet50u": "heart-resnet50",
    "resnet50k": "heart-resnet50-kspace", "kmtr": "kmtr", "mae": "kmtr",
}  # fmt: skip


def slice_points(kspace: Complex, lines: Lines) -> tuple[Float, Float]:
    """DiSK's tokens: coordinates ``(n, 3)`` and values ``(n, 2)`` of the sampled lines of ``(frames, y, x)``."""
    n_frames, ny, nx = kspace.shape
    coordinates, values = [], []
    for frame, line in np.argwhere(lines):
        k = np.zeros((nx, 3), np.float32)
        k[:, 0], k[:, 1] = np.arange(nx) - nx // 2, line - ny // 2
        coordinates.append(sample_coordinates(k, int(frame), n_frames, (ny, nx)))
        values.append(real_values(kspace[frame, line]))
    return np.concatenate(coordinates), np.concatenate(values)


def subject_lines(kspace: Complex, lines: Sequence[Lines]) -> tuple[Float, Float]:
    """Values ``(n, 2 nx)`` and places ``(n, 3)`` of the sampled lines of all views: k-MTR's tokens."""
    places = np.concatenate([np.insert(np.argwhere(mask), 0, number, axis=1) for number, mask in enumerate(lines)])
    values = [line_values(kspace[tuple(place)]) for place in places]
    return np.stack(values), places.astype(np.float32)


def network_arguments(experiment: HeartExperiment, name: str) -> dict[str, Any]:
    """Arguments of the experiment for a network, and the sizes of the scan where the network knows them."""
    known = architecture(name).arguments
    protocol = experiment.protocol("train")
    n_views = len(protocol.views)
    sizes = {
        "n_slices": n_views,
        "n_long_axis": protocol.n_long_axis,
        "n_frames": protocol.n_frames,
        "plane": (protocol.matrix, protocol.matrix),
        "n_images": n_views * protocol.n_frames,
        "n_classes": len(experiment.labels.names),
    }
    filled = {key: value for key, value in sizes.items() if key in known}
    given = {key: value for key, value in experiment.network.arguments.items() if key in known}
    return {**filled, **given}


def networks(experiment: HeartExperiment) -> dict[str, dict[str, Any]]:
    """Names and arguments of all networks that an experiment builds, in the order of its stages."""
    before = {
        "kmtr": ("kmtr-image-mae", "kmtr-line-mae", "kmtr-alignment"),
        "mae": ("kmtr-line-mae",),
    }.get(experiment.method, ())
    made = {name: network_arguments(experiment, name) for name in (*before, _NETWORKS[experiment.method])}
    if "kmtr" in made:
        made["kmtr"] |= {"heads": list(experiment.network.heads), "n_classes": len(experiment.labels.names)}
    return made


def check_alignment(experiment: HeartExperiment, validation: Sequence[Subject]) -> None:
    """Stage II compares subjects.

    Raises
    ------
    ConfigError : a batch, or the validation cohort, of one subject.
    """
    if experiment.schedule.batch < 2 or len(validation) < 2:
        raise ConfigError(
            "the alignment compares subjects",
            where="schedule.batch, cohorts.validation",
            hint="two subjects or more in each",
        )


class HeartTask(Task[Batch]):
    """What all of the heart's tasks share: subjects, sampling, and a network of the registry.

    Raises
    ------
    ModelError : for arguments that the network refuses.
    """

    def __init__(
        self, experiment: HeartExperiment, train: Sequence[Subject], validation: Sequence[Subject], name: str = ""
    ) -> None:
        self.experiment, self.name, self.seed = experiment, f"{experiment.name} {name}".strip(), experiment.seed
        self._train, self._validation = train, validation
        torch.manual_seed(experiment.seed)
        self.network = self.make_network()

    def make_network(self) -> nn.Module:
        """A fresh network."""
        return build(_NETWORKS[self.experiment.method], self.arguments(_NETWORKS[self.experiment.method]))

    def arguments(self, name: str) -> dict[str, Any]:
        """Arguments of the experiment, and the sizes of the scan where the network knows them."""
        return network_arguments(self.experiment, name)

    def identity(self) -> str:
        """The experiment without its schedules (`fit` adds the stage's own); what batches and losses take from them."""
        experiment = self.experiment
        plain = experiment.model_dump_json(exclude={"schedule", "stages"}, exclude_defaults=True)
        stages = experiment.stages.model_dump_json(include={"masking_ratio", "temperature", "form"})
        return f"{self.name} {plain} {stages} batch {experiment.schedule.batch}"

    def batch(self, number: int) -> Batch:
        config = self.experiment
        rng = np.random.default_rng([config.seed, number])
        acceleration = float(rng.choice(config.data.accelerations))
        picks = rng.choice(len(self._train), config.schedule.batch, replace=config.schedule.batch > len(self._train))
        chosen = [moved(self._train[int(i)], config.data, rng) for i in picks]
        return self.make_batch(chosen, acceleration, rng)

    def make_batch(self, subjects: Sequence[Subject], acceleration: float, rng: np.random.Generator) -> Batch:
        """Tensors of some subjects at an acceleration."""
        raise NotImplementedError

    def held_out(self) -> Iterator[tuple[float, Batch, Subject]]:
        """Validation subjects at every acceleration, always with the same lines; one at a time, so that they fit."""
        for acceleration in self.experiment.data.accelerations:
            for subject in self._validation:
                rng = np.random.default_rng([subject.seed, round(1000 * acceleration), 77])
                yield acceleration, self.make_batch([subject], acceleration, rng), subject

    def lines_of(self, subject: Subject, acceleration: float, rng: np.random.Generator) -> list[Lines]:
        """Lines of every view."""
        _, n_frames, ny, _ = subject.images.shape
        return [draw_lines(self.experiment.data, ny, n_frames, acceleration, rng) for _ in subject.images]

    def _device(self, network: nn.Module) -> torch.device:
        return next(network.parameters()).device


class SliceTask(HeartTask):
    """Labels of single slices; classes that the experiment does not name are background."""

    def labels_of(self, subject: Subject, view: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        labels = subject.labels[view].astype(np.int64)
        return np.where(labels < len(self.experiment.labels.names), labels, 0)

    def predict(self, network: nn.Module, batch: Batch) -> Tensor:
        """Logits ``(1, classes, ...)`` of a batch of one subject."""
        raise NotImplementedError

    def validate(self, network: nn.Module) -> Validation:
        """Mean Dice of the foreground over subjects, views and accelerations; Hausdorff distances in pixels."""
        scores: dict[float, list[float]] = {}
        distances: dict[float, list[float]] = {}
        n_classes = len(self.experiment.labels.names)
        for acceleration, batch, subject in self.held_out():
            found = self.predict(network, batch).argmax(dim=1).cpu().numpy().reshape(subject.labels[0].shape)
            truth = self.labels_of(subject, 0)
            scores.setdefault(acceleration, []).append(float(np.nanmean(class_dice(found, truth, n_classes))))
            distances.setdefault(acceleration, []).append(mean_hausdorff(found, truth, n_classes, (1.0, 1.0)))
        metrics = {f"dice_{a:g}x": float(np.mean(v)) for a, v in scores.items()}
        metrics |= {f"hausdorff_{a:g}x_px": float(np.nanmean(v)) if np.isfinite(v).any() else float("nan")
                    for a, v in distances.items()}  # fmt: skip
        return Validation(float(np.mean([m for k, m in metrics.items() if k.startswith("dice")])), metrics)


class PointsTask(SliceTask):
    """DiSK: samples of one slice in, labels of queried pixels out. The first view of the experiment is used."""

    def make_batch(self, subjects: Sequence[Subject], acceleration: float, rng: np.random.Generator) -> Batch:
        made = [self._one(subject, acceleration, rng) for subject in subjects]
        n = min(len(coordinates) for coordinates, *_ in made)
        names = ("coordinates", "values", "queries", "labels")
        columns = [[m[i][:n] if i < 2 else m[i] for m in made] for i in range(4)]
        return {name: torch.from_numpy(np.stack(parts)) for name, parts in zip(names, columns, strict=True)}

    def _one(self, subject: Subject, acceleration: float, rng: np.random.Generator) -> tuple[np.ndarray[Any, Any], ...]:
        kspace = noisy_kspace(subject.images[:1], self.experiment.data, rng)[0]
        lines = self.lines_of(subject.of_views((0,)), acceleration, rng)[0]
        coordinates, values = slice_points(kspace, lines)
        n_frames, ny, nx = kspace.shape
        queries = frame_queries(np.arange(n_frames), n_frames, (ny, nx))
        labels = self.labels_of(subject, 0).reshape(-1)
        if self.network.training:
            asked = rng.choice(len(queries), min(self.experiment.data.queries, len(queries)), replace=False)
            queries, labels = queries[asked], labels[asked]
        order = rng.permutation(len(coordinates))  # so that cutting to one length leaves lines out at random
        return coordinates[order], values[order], queries, labels

    def loss(self, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        logits = network(batch["coordinates"], batch["values"], batch["queries"])
        return disk_loss(logits, batch["labels"], network)

    def predict(self, network: nn.Module, batch: Batch) -> Tensor:
        device = self._device(network)
        made: Tensor = network(*(batch[name].to(device) for name in ("coordinates", "values", "queries")))
        return made


class FramesTask(SliceTask):
    """Syn-Net: zero-filled k-space of one slice in, labels of all its frames out."""

    def make_batch(self, subjects: Sequence[Subject], acceleration: float, rng: np.random.Generator) -> Batch:
        filled, labels = [], []
        for subject in subjects:
            kspace = noisy_kspace(subject.images[:1], self.experiment.data, rng)[0]
            masked = kspace * self.lines_of(subject.of_views((0,)), acceleration, rng)[0][..., None]
            masked /= float(np.sqrt(np.mean(np.abs(masked) ** 2))) or 1.0
            filled.append(np.stack((masked.real, masked.imag)).astype(np.float32))
            labels.append(self.labels_of(subject, 0))
        return {"kspace": torch.from_numpy(np.stack(filled)), "labels": torch.from_numpy(np.stack(labels))}

    def loss(self, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        logits = network(batch["kspace"])
        return {"dice": soft_dice_loss(logits, batch["labels"]),
                "entropy": nn.functional.cross_entropy(logits, batch["labels"])}  # fmt: skip

    def predict(self, network: nn.Module, batch: Batch) -> Tensor:
        made: Tensor = network(batch["kspace"].to(self._device(network)))
        return made


class SubjectTask(HeartTask):
    """All views of a subject: images, sampled lines, labels, phenotypes and diseases in one batch.

    Subjects of a batch are cut to equally many lines.
    """

    def make_batch(self, subjects: Sequence[Subject], acceleration: float, rng: np.random.Generator) -> Batch:
        columns: dict[str, list[Any]] = {
            name: [] for name in ("images", "kspace", "values", "places", "labels", "phenotypes", "diseases")
        }
        for subject in subjects:
            kspace = noisy_kspace(subject.images, self.experiment.data, rng)
            kspace /= float(np.sqrt(np.mean(np.abs(kspace) ** 2))) or 1.0
            images = subject.images / (float(np.abs(subject.images).max()) or 1.0)
            lines = self.lines_of(subject, acceleration, rng)
            values, places = subject_lines(kspace, lines)
            order = rng.permutation(len(values))
            columns["images"].append(np.stack((images.real, images.imag)))
            columns["kspace"].append(np.stack((kspace.real, kspace.imag)))
            columns["values"].append(values[order])
            columns["places"].append(places[order])
            columns["labels"].append(subject.labels.astype(np.int64))
            columns["phenotypes"].append(subject.phenotypes)
            columns["diseases"].append(subject.diseases.astype(np.float32))
        n = min(len(values) for values in columns["values"])
        for name in ("values", "places"):
            columns[name] = [part[:n] for part in columns[name]]
        return {
            name: torch.from_numpy(np.ascontiguousarray(np.stack(parts)))
            if name == "labels"
            else torch.from_numpy(np.stack(parts).astype(np.float32))
            for name, parts in columns.items()
        }

    def _mean_loss(self, network: nn.Module) -> Validation:
        """The loss of the validation subjects, negative; for stages that have no score of their own."""
        device = self._device(network)
        losses = []
        for _, batch, _ in self.held_out():
            torch.manual_seed(7)
            given = self.loss(network, {name: part.to(device) for name, part in batch.items()})
            parts = given.values() if isinstance(given, Mapping) else [given]
            losses.append(sum(float(part) for part in parts))
        return Validation(-float(np.mean(losses)), {"loss": float(np.mean(losses))})

    def validate(self, network: nn.Module) -> Validation:
        return self._mean_loss(network)


class ImageMaeTask(SubjectTask):
    """k-MTR, stage I: image patches back from the few that are seen."""

    def make_network(self) -> nn.Module:
        return build("kmtr-image-mae", self.arguments("kmtr-image-mae"))

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        model, images = cast(ImageMAE, network), batch["images"]
        n_patches = len(model.image.get_buffer("code"))
        n_kept = max(round(n_patches * (1 - self.experiment.stages.masking_ratio)), 1)
        kept = torch.rand(len(images), n_patches, device=images.device).argsort(dim=1)[:, :n_kept]
        return masked_error(model(images, kept), model.targets(images))


class LineMaeTask(SubjectTask):
    """k-MTR, stage I: all lines back from the sampled ones."""

    def make_network(self) -> nn.Module:
        return build("kmtr-line-mae", self.arguments("kmtr-line-mae"))

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        model = cast(LineMAE, network)
        wanted = batch["kspace"].permute(0, 2, 3, 4, 1, 5).flatten(1, 3).flatten(2)
        return masked_error(model(batch["values"], batch["places"]), model.lines.scaled(wanted))


class AlignmentTask(SubjectTask):
    """k-MTR, stage II: both encoders from stage I, brought together."""

    def __init__(
        self,
        experiment: HeartExperiment,
        train: Sequence[Subject],
        validation: Sequence[Subject],
        image_weights: Path,
        line_weights: Path,
    ) -> None:
        check_alignment(experiment, validation)
        super().__init__(experiment, train, validation, "alignment")
        network = cast(Alignment, self.network)
        load_part(network.image, image_weights, "image.")
        load_part(network.lines, line_weights, "lines.")

    def make_network(self) -> nn.Module:
        return build("kmtr-alignment", self.arguments("kmtr-alignment"))

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        image, lines = network(batch["images"], batch["values"], batch["places"])
        stages = self.experiment.stages
        return alignment_loss(image, lines, stages.temperature, 0.5, stages.form)

    def validate(self, network: nn.Module) -> Validation:
        """Share of validation subjects whose lines are closest to their own image, among those as accelerated."""
        device = self._device(network)
        pairs: dict[float, list[tuple[Tensor, Tensor]]] = {}
        for acceleration, batch, _ in self.held_out():
            made = network(*(batch[name].to(device) for name in ("images", "values", "places")))
            pairs.setdefault(acceleration, []).append(made)
        shares = [matched(*(torch.cat(parts) for parts in zip(*group, strict=True))) for group in pairs.values()]
        share = float(np.mean(shares))
        return Validation(share, {"matched": share})


def matched(image: Tensor, lines: Tensor) -> float:
    """Share of the images ``(subjects, width)`` whose closest lines ``(subjects, width)`` are their own."""
    found = (image @ lines.T).argmax(dim=1)
    return float((found == torch.arange(len(found), device=found.device)).float().mean())


class AnalysisTask(SubjectTask):
    """k-MTR, stage III (or its MAE baseline): labels, phenotypes, diseases or images from sampled lines."""

    def __init__(
        self, experiment: HeartExperiment, train: Sequence[Subject], validation: Sequence[Subject], encoder: Path | None
    ) -> None:
        super().__init__(experiment, train, validation, "analysis")
        network = cast(KMTR, self.network)
        if encoder is not None:
            load_part(network.lines, encoder, "lines.")
        known = np.stack([subject.phenotypes for subject in train])
        network.get_buffer("phenotype_mean").copy_(torch.from_numpy(known.mean(axis=0)))
        network.get_buffer("phenotype_spread").copy_(torch.from_numpy(known.std(axis=0) + 1e-6))

    def make_network(self) -> nn.Module:
        return build("kmtr", networks(self.experiment)["kmtr"])

    def outputs(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        made = network(batch["values"], batch["places"])
        parts = made if isinstance(made, tuple) else (made,)
        return dict(zip(cast(KMTR, network).names, parts, strict=True))

    def loss(self, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        model, losses = cast(KMTR, network), {}
        for name, made in self.outputs(network, batch).items():
            if name == "segmentation":
                losses[name] = slices_dice_loss(made, self._classes(batch["labels"]))
            elif name == "regression":
                losses[name] = regression_loss(model.standardised(made), model.standardised(batch["phenotypes"]))
            elif name == "classification":
                losses[name] = classification_loss(made, batch["diseases"])
            else:
                losses[name] = nn.functional.mse_loss(made, batch["images"])
        return losses

    def validate(self, network: nn.Module) -> Validation:
        return judged(self, network, self.held_out())

    def _classes(self, labels: Tensor) -> Tensor:
        return torch.where(labels < len(self.experiment.labels.names), labels, 0)


def judged(task: AnalysisTask, network: nn.Module, cases: Iterable[tuple[float, Batch, Subject]]) -> Validation:
    """Scores of all heads over subjects: Dice, errors of phenotypes relative to guessing the mean, AUC, PSNR."""
    device = next(network.parameters()).device
    dice, found, chances, psnr, truths, sick = [], [], [], [], [], []
    for _, batch, subject in cases:
        truths.append(subject.phenotypes)
        sick.append(subject.diseases)
        made = task.outputs(network, {name: part.to(device) for name, part in batch.items()})
        if "segmentation" in made:
            labels = made["segmentation"][0].argmax(dim=1).cpu().numpy()
            truth = np.where(subject.labels < made["segmentation"].shape[2], subject.labels, 0)
            dice.append(float(np.nanmean(class_dice(labels, truth, made["segmentation"].shape[2]))))
        if "regression" in made:
            found.append(made["regression"][0].cpu().numpy())
        if "classification" in made:
            chances.append(made["classification"][0].sigmoid().cpu().numpy())
        if "reconstruction" in made:
            image, wanted = (part[0].square().sum(dim=0).sqrt().cpu().numpy()
                             for part in (made["reconstruction"], batch["images"]))  # fmt: skip
            psnr.append(peak_signal_to_noise_db(image, wanted))
    metrics: dict[str, float] = {}
    if dice:
        metrics["dice"] = float(np.mean(dice))
    if found:
        true = np.stack(truths)
        mean = cast(KMTR, network).get_buffer("phenotype_mean").cpu().numpy()
        ratio = absolute_errors(np.stack(found), true) / absolute_errors(np.broadcast_to(mean, true.shape), true)
        metrics["phenotype_error_over_mean_guess"] = float(ratio.mean())
    if chances:
        ill = np.stack(sick)
        areas = [classification_score(np.stack(chances)[:, i], ill[:, i]).auc for i in range(ill.shape[1])]
        metrics["auc"] = float(np.nanmean(areas)) if np.isfinite(areas).any() else 0.5
    if psnr:
        metrics["psnr_db"] = float(np.mean(psnr))
    gains = {"dice": 1.0, "phenotype_error_over_mean_guess": -1.0, "auc": 1.0, "psnr_db": 0.02}
    return Validation(sum(gains[name] * value for name, value in metrics.items()), metrics)


class ResNetTask(SubjectTask):
    """ResNet-50 on images (full or undersampled) or k-space: phenotypes or diseases, by the first of the heads."""

    def make_network(self) -> nn.Module:
        name = _NETWORKS[self.experiment.method]
        n_outputs = 18 if self._is_regression else 3
        return build(name, {**self.arguments(name), "n_outputs": n_outputs})

    @property
    def _is_regression(self) -> bool:
        return self.experiment.network.heads[0] != "classification"

    def _seen(self, batch: Batch) -> Tensor:
        kspace = batch["kspace"]
        if self.experiment.method != "resnet50":
            mask = torch.zeros(kspace.shape[0], *kspace.shape[2:5], device=kspace.device)
            for subject, places in enumerate(batch["places"].long()):
                mask[subject, places[:, 0], places[:, 1], places[:, 2]] = 1.0
            kspace = kspace * mask[:, None, ..., None]
        return kspace.flatten(2, 3)

    def _standardised(self, phenotypes: Tensor) -> Tensor:
        known = torch.from_numpy(np.stack([subject.phenotypes for subject in self._train])).to(phenotypes.device)
        return (phenotypes - known.mean(dim=0)) / (known.std(dim=0) + 1e-6)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        made = network(self._seen(batch))
        if self._is_regression:
            return regression_loss(made, self._standardised(batch["phenotypes"]))
        return classification_loss(made, batch["diseases"])


def load_part(part: nn.Module, weights: Path, prefix: str) -> None:
    """Put those weights of a file that begin with a prefix into a part of a network."""
    state = {key.removeprefix(prefix): value for key, value in load_file(weights).items() if key.startswith(prefix)}
    part.load_state_dict(state)


def sibling(weights: Path | None, stage: str) -> Path:
    """Best weights of another stage of the same run."""
    if weights is None:
        raise ConfigError(f"stage {stage} must come first")
    return weights.parent.parent / stage / BEST
