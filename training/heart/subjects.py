"""Tasks of whole examinations (paper 003): k-MTR's stages, ResNet-50, and the reconstructions beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ...errors import ConfigError
from ...models.fourier import channels_to_image, magnitude
from ...models.kmtr import KMTR, Alignment, ImageMAE, LineMAE
from ...models.registry import build
from ...recon.fourier import to_image
from ...segment.lines import line_values
from ...segment.scaling import sample_scale
from ...simulate.heart.lines import Lines
from ...types import Complex, Float
from ..fit import Validation
from .data import Subject, noisy_kspace
from .experiment import HeartExperiment
from .judge import Answers
from .losses import (
    alignment_loss,
    classification_loss,
    kgin_loss,
    masked_error,
    regression_loss,
    slices_loss,
)
from .tasks import NETWORKS, Batch, HeartTask, load_part, networks

SMALLEST_SPREAD = 1e-3
"""Of areas over subjects, as a share of the image; a chamber that a view does not show has none."""


def subject_lines(kspace: Complex, lines: Sequence[Lines]) -> tuple[Float, Float]:
    """Values ``(n, 2 nx)`` and places ``(n, 3)`` of the sampled lines of all views: k-MTR's tokens."""
    places = np.concatenate([np.insert(np.argwhere(mask), 0, number, axis=1) for number, mask in enumerate(lines)])
    values = [line_values(kspace[tuple(place)]) for place in places]
    return np.stack(values), places.astype(np.float32)


def check_alignment(experiment: HeartExperiment) -> None:
    """Stage II compares subjects.

    Raises
    ------
    ConfigError : a batch of one subject.
    """
    if experiment.schedule.batch < 2:
        raise ConfigError(
            "the alignment compares subjects", where="schedule.batch", hint="two subjects or more in a batch"
        )


def sampled_only(batch: Batch) -> Tensor:
    """K-space of a batch ``(batch, 2, views, frames, y, x)`` with zeros where no line was sampled."""
    kspace = batch["kspace"]
    mask = torch.zeros(kspace.shape[0], *kspace.shape[2:5], device=kspace.device)
    for subject, places in enumerate(batch["places"].long()):
        mask[subject, places[:, 0], places[:, 1], places[:, 2]] = 1.0
    return kspace * mask[:, None, ..., None]


def zero_filled(batch: Batch) -> Tensor:
    """Magnitudes ``(batch, views, frames, y, x)`` of zero-filled images."""
    return magnitude(channels_to_image(sampled_only(batch)))[:, 0]


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
            images = subject.images / (float(np.abs(subject.images).max()) or 1.0)
            lines = self.lines_of(subject, acceleration, rng)
            values, places = subject_lines(kspace, lines)
            scale = sample_scale(values)
            values, kspace = values / np.float32(scale), kspace / np.float32(scale)
            order = rng.permutation(len(values))
            columns["images"].append(np.stack((images.real, images.imag)))
            columns["kspace"].append(np.stack((kspace.real, kspace.imag)))
            columns["values"].append(values[order])
            columns["places"].append(places[order])
            columns["labels"].append(self.known_classes(subject.labels))
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
        check_alignment(experiment)
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


def true_areas(labels: NDArray[np.int64], n_classes: int) -> NDArray[np.float64]:
    """Areas of labels ``(views, frames, y, x)`` in the order of `kmtr_heads.soft_areas`."""
    shares = [(labels == index).mean(axis=(2, 3)) for index in range(1, n_classes)]
    return np.stack(shares, axis=1).ravel()


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
        network.get_buffer("phenotype_mean").copy_(torch.from_numpy(self.phenotype_mean))
        network.get_buffer("phenotype_spread").copy_(torch.from_numpy(self.phenotype_spread))
        if network.has_areas:
            areas = np.stack([true_areas(self.known_classes(one.labels), len(self.classes)) for one in train])
            network.get_buffer("area_mean").copy_(torch.from_numpy(areas.mean(axis=0)))
            network.get_buffer("area_spread").copy_(torch.from_numpy(areas.std(axis=0).clip(SMALLEST_SPREAD)))

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
                losses[name] = slices_loss(made, batch["labels"], self.experiment.entropy_weight)
            elif name == "regression":
                losses[name] = regression_loss(model.standardised(made), model.standardised(batch["phenotypes"]))
            elif name == "classification":
                losses[name] = classification_loss(made, batch["diseases"])
            else:
                losses[name] = nn.functional.mse_loss(made, batch["images"])
        return losses

    def validate(self, network: nn.Module) -> Validation:
        return HeartTask.validate(self, network)

    def answers(self, network: nn.Module, batch: Batch, subject: Subject) -> Answers:
        made = {name: part[0].cpu() for name, part in self.outputs(network, batch).items()}
        return Answers(
            labels=made["segmentation"].argmax(dim=1).numpy().astype(np.uint8) if "segmentation" in made else None,
            phenotypes=made["regression"].numpy() if "regression" in made else None,
            chances=made["classification"].sigmoid().numpy() if "classification" in made else None,
            image=made["reconstruction"].square().sum(dim=0).sqrt().numpy() if "reconstruction" in made else None,
        )


class ResNetTask(SubjectTask):
    """ResNet-50 on images (full or undersampled) or k-space: phenotypes or diseases, by the first of the heads."""

    def make_network(self) -> nn.Module:
        name = NETWORKS[self.experiment.method]
        n_outputs = 18 if self._is_regression else 3
        return build(name, {**self.arguments(name), "n_outputs": n_outputs})

    @property
    def _is_regression(self) -> bool:
        return self.experiment.network.heads[0] != "classification"

    def _seen(self, batch: Batch) -> Tensor:
        kspace = batch["kspace"]
        if self.experiment.method != "resnet50":
            kspace = sampled_only(batch)
        return kspace.flatten(2, 3)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        made = network(self._seen(batch))
        if not self._is_regression:
            return classification_loss(made, batch["diseases"])
        mean, spread = (torch.from_numpy(part).to(made) for part in (self.phenotype_mean, self.phenotype_spread))
        return regression_loss(made, (batch["phenotypes"] - mean) / spread)

    def validate(self, network: nn.Module) -> Validation:
        return HeartTask.validate(self, network)

    def answers(self, network: nn.Module, batch: Batch, subject: Subject) -> Answers:
        made = network(self._seen(batch))[0].cpu()
        if not self._is_regression:
            return Answers(chances=made.sigmoid().numpy())
        return Answers(phenotypes=made.numpy() * self.phenotype_spread + self.phenotype_mean)


class KGinTask(SubjectTask):
    """k-GIN: all lines of a slice from the sampled ones, then the inverse transform. Every view is a slice of its own.

    A training batch holds one random view of each subject. Measured lines are kept as they are in the result.

    Raises
    ------
    ConfigError : with `compand`, whose values have no way back to k-space.
    """

    def make_network(self) -> nn.Module:
        if self.experiment.network.arguments.get("compand"):
            raise ConfigError("k-GIN fills k-space itself, so its values are not companded", where="network.arguments")
        return super().make_network()

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        view = int(torch.randint(batch["images"].shape[2], ()))
        values, places, wanted = self._slice(batch, view)
        return kgin_loss(network(values, places), wanted)

    def validate(self, network: nn.Module) -> Validation:
        return HeartTask.validate(self, network)

    def answers(self, network: nn.Module, batch: Batch, subject: Subject) -> Answers:
        n_views, n_frames, ny, nx = subject.images.shape
        filled = []
        for view in range(n_views):
            values, places, _ = self._slice(batch, view)
            lines = network(values, places)[0, -1]
            frames, numbers = (part.long() for part in places[0].unbind(-1))
            lines[frames * ny + numbers] = values[0]
            filled.append(lines.reshape(n_frames, ny, 2, nx).cpu().numpy())
        parts = np.stack(filled)
        kspace = np.asarray(parts[..., 0, :] + 1j * parts[..., 1, :], np.complex64)
        return Answers(image=np.abs(to_image(kspace)))

    def _slice(self, batch: Batch, view: int) -> tuple[Tensor, Tensor, Tensor]:
        """Values and places of the sampled lines of one view, and all its lines; as many for each subject."""
        picked = [places[:, 0] == view for places in batch["places"]]
        n = min(int(mask.sum()) for mask in picked)
        values, places = (
            torch.stack([part[mask][:n] for part, mask in zip(batch[name], picked, strict=True)])
            for name in ("values", "places")
        )
        wanted = batch["kspace"][:, :, view].permute(0, 2, 3, 1, 4).flatten(1, 2).flatten(2)
        return values, places[..., 1:], wanted


class ZeroFilledTask(SubjectTask):
    """The inverse transform of what was sampled, which every reconstruction must beat; one gain is learned."""

    def make_network(self) -> nn.Module:
        return Gain()

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        wanted = batch["images"].square().sum(dim=1).sqrt()
        return functional.mse_loss(network(zero_filled(batch)), wanted)

    def validate(self, network: nn.Module) -> Validation:
        return HeartTask.validate(self, network)

    def answers(self, network: nn.Module, batch: Batch, subject: Subject) -> Answers:
        return Answers(image=network(zero_filled(batch))[0].cpu().numpy())


class Gain(nn.Module):
    """One factor."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.1))

    def forward(self, image: Tensor) -> Tensor:
        return image * self.factor
