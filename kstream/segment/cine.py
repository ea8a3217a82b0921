"""What the networks of a cine scan share: the model, the plan of the scan, and the findings at its end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..config import CineConfig
from ..engines.array_engine import ArrayEngine
from ..errors import ConfigError, ScanError
from ..models.bundle import INTENDED_USE, BundleInfo
from ..models.registry import architecture
from ..output.phenotypes import DISEASES, HEART_LABELS, PHENOTYPES, phenotypes
from ..types import Findings, Geometry, LabelMap, LabelTable, Notice, Scan

Labels = NDArray[np.uint8]
Kind = Literal["points", "lines"]
CINE_KINDS: Mapping[str, Kind] = {"disk": "points", "kmtr": "lines"}
"""Architectures that analyse cine scans, and what they take."""

MAX_SLICE_PIXELS = 2**24
"""Frames times pixels of a slice: 256 frames of 256 x 256. One readout is enough to have all of them labelled."""
MAX_PIXELS = 2**27
"""The same over all slices, whose labels are kept until the end, a byte each."""
MAX_KEPT_BYTES = 2**30
"""Samples that are kept for one scan; twelve slices of 50 frames, 128 lines and 256 samples are 0.4 GiB."""


@dataclass(frozen=True)
class CineModel:
    """A network for cine scans that is ready to run.

    Parameters
    ----------
    kind : ``points`` takes samples of one slice (DiSK), ``lines`` phase-encode lines of all slices (k-MTR).
    labels : names and colours of the classes.
    outputs : what the network gives, by the names of its bundle.
    arguments : of the network, defaults included.
    """

    name: str
    kind: Kind
    labels: LabelTable
    outputs: tuple[str, ...]
    arguments: Mapping[str, Any]
    engine: ArrayEngine

    @classmethod
    def of(cls, info: BundleInfo, engine: ArrayEngine) -> CineModel:
        """The model of a bundle.

        Raises
        ------
        ConfigError : the bundle holds a network of another kind, or one without labels.
        """
        if info.architecture not in CINE_KINDS:
            raise ConfigError(
                f"the model {info.name} is a {info.architecture}, which does not analyse cine scans",
                where="cine.model",
                hint=f"a bundle of one of: {', '.join(CINE_KINDS)}",
            )
        kind = CINE_KINDS[info.architecture]
        arguments = {**architecture(info.architecture).arguments, **info.arguments}
        outputs = tuple(spec.name for spec in info.outputs)
        if kind == "lines" and "segmentation" not in outputs:
            raise ConfigError(
                f"the model {info.name} gives {', '.join(outputs)}, but no segmentation",
                where="cine.model",
                hint="a bundle that was trained with the head segmentation",
            )
        return cls(info.name, kind, info.labels, outputs, arguments, engine)

    def provenance(self) -> dict[str, str]:
        return {**self.engine.describe(), "input": "k-space samples, no image was reconstructed"}


class KeptSamples:
    """Counts the bytes that a stage keeps of a scan."""

    def __init__(self, limit_bytes: int | None = None) -> None:
        self._limit_bytes = MAX_KEPT_BYTES if limit_bytes is None else limit_bytes
        self._n_bytes = 0

    def add(self, n_bytes: int) -> None:
        """Count what is kept.

        Raises
        ------
        ScanError : it would be more than the limit.
        """
        if self._n_bytes + n_bytes > self._limit_bytes:
            raise ScanError(
                f"the samples of this scan take more than {self._limit_bytes >> 20} MiB",
                likely="slices that never end, or many more readouts than the header promises",
                hint="fewer slices or frames in one scan, and --set coils.compress=1",
            )
        self._n_bytes += n_bytes

    def free(self, n_bytes: int) -> None:
        """Count what is kept no longer."""
        self._n_bytes -= n_bytes


@dataclass(frozen=True)
class CinePlan:
    """Sizes and names of a cine scan.

    Parameters
    ----------
    n_frames, n_slices, plane : frames of a heartbeat, slices, and ``(y, x)`` of the images.
    views : names of the slices; empty if nobody says.
    heart_rate_bpm : 0 if nobody says.
    """

    n_frames: int
    n_slices: int
    plane: tuple[int, int]
    views: tuple[str, ...]
    heart_rate_bpm: float

    @classmethod
    def of(cls, scan: Scan, config: CineConfig, n_frames: int) -> CinePlan:
        """The plan of a scan, from its header and the configuration.

        Raises
        ------
        ScanError : a volume, or more pixels than are labelled at once (`MAX_SLICE_PIXELS`, `MAX_PIXELS`).
        ConfigError : as many views as slices are needed, or none.
        """
        nx, ny, nz = scan.recon_matrix
        if nz != 1:
            raise ScanError(
                f"a cine scan is made of slices, and this one is a volume of {nz} partitions",
                where="recon space of the header, matrix z",
                likely="a three-dimensional scan with a preset for the heart",
                hint="--preset breast-dce-recon makes images of it",
            )
        n_slices = scan.limit("slice").size
        n_pixels = n_frames * ny * nx
        if n_pixels > MAX_SLICE_PIXELS or n_slices * n_pixels > MAX_PIXELS:
            raise ScanError(
                f"{n_slices} slices of {n_frames} frames of {ny} x {nx} pixels are too many to label; "
                f"{MAX_SLICE_PIXELS} pixels in a slice and {MAX_PIXELS} in all are the limits",
                where="encoding limits and recon space of the header",
                likely="the limit of the counter phase, or of slice, is wrong",
                hint="send the slices as several scans",
            )
        views = tuple((config.views or str(scan.user_parameters.get("views", ""))).split())
        if views and len(views) != n_slices:
            raise ConfigError(
                f"{len(views)} views are named, but the scan has {n_slices} slices",
                where="cine.views, or the header's user parameter views",
                hint='--set cine.views="4ch 2ch sax0 sax1"',
            )
        rate = scan.user_parameters.get("heart_rate_bpm", 0.0)
        return cls(n_frames, n_slices, (ny, nx), views, float(rate) if isinstance(rate, int | float) else 0.0)


class Heart:
    """Final labels of the slices, kept until the last one has come."""

    def __init__(self, plan: CinePlan, table: LabelTable) -> None:
        self._plan, self._table = plan, table
        self._labels: dict[int, Labels] = {}
        self._geometries: dict[int, Geometry] = {}

    def add(self, number: int, labels: Labels, geometry: Geometry) -> None:
        """Labels ``(frames, y, x)`` of a slice."""
        self._labels[number], self._geometries[number] = labels, geometry

    @property
    def is_whole(self) -> bool:
        return len(self._labels) == self._plan.n_slices

    def phenotypes(self) -> dict[str, float | None]:
        """Phenotypes of the slices that have come; None for what they do not show.

        Volumes need every short-axis slice, so they are None if one is missing.
        """
        numbers = sorted(self._labels)
        names = self._plan.views
        whole = {view for view in names if view.startswith("sax")}
        have = {names[n] for n in numbers} if names else set()
        if not names or not numbers or not whole <= have:
            return dict.fromkeys(PHENOTYPES)
        labels = np.stack([_as_heart_labels(self._labels[n], self._table) for n in numbers])
        measured = phenotypes(
            labels, [self._geometries[n] for n in numbers], [names[n] for n in numbers], self._plan.heart_rate_bpm
        )
        present = set(self._table.names)
        return {
            name: round(value, 2) if math.isfinite(value) and _structure(name) in present else None
            for name, value in measured.items()
        }


def _structure(phenotype: str) -> str:
    """The class that a phenotype is measured on."""
    starts = {"LVM": "LV myocardium", "LV": "LV cavity", "RV": "RV cavity", "LA": "left atrium", "RA": "right atrium"}
    return next(name for start, name in starts.items() if phenotype.startswith(start))


def _as_heart_labels(labels: Labels, table: LabelTable) -> Labels:
    """Labels of a model in the numbers of `HEART_LABELS`; classes of other names become background."""
    numbers = [HEART_LABELS.names.index(name) if name in HEART_LABELS.names else 0 for name in table.names]
    return np.asarray(np.array(numbers, np.uint8)[labels])


def no_signal(number: int) -> Notice:
    """Of a slice all of whose samples are zero: a network would show the mean heart there."""
    text = f"slice {number} has no signal in any of its readouts: there are no labels of it"
    return Notice("error", text)


def findings(
    model: CineModel,
    frames: tuple[int, int],
    measured: Mapping[str, float | None],
    predicted: Mapping[str, float | None] | None,
    probabilities: Mapping[str, float | None] | None,
    received_ns: int,
) -> Findings:
    """What is told at the end of a measurement.

    Parameters
    ----------
    frames : of all slices: how many have any signal, and how many were planned.
    measured : phenotypes from label maps.
    predicted : phenotypes that a network gave by itself; None if it gives none.
    probabilities : of the diseases.
    """
    values: dict[str, Any] = {"kind": "cine findings", "model": model.name}
    values |= {"frames_measured": frames[0], "frames_planned": frames[1], "phenotypes_from_labels": dict(measured)}
    if predicted is not None:
        values["phenotypes"] = dict(predicted)
    if probabilities is not None:
        values["probabilities"] = dict(probabilities)
    values["use"] = INTENDED_USE
    return Findings(values, received_ns)


def with_findings(maps: Sequence[LabelMap], found: Findings) -> list[LabelMap]:
    """Label maps whose provenance, and so the meta of their images, tells the findings."""
    told = {
        name: f"{value:.4g}"
        for group in ("phenotypes_from_labels", "phenotypes", "probabilities")
        for name, value in found.values.get(group, {}).items()
        if value is not None
    }
    for label_map in maps:
        label_map.provenance = {**label_map.provenance, **told}
    return list(maps)


def disease_probabilities(logits: NDArray[np.floating]) -> dict[str, float]:
    """Probability of each disease of `DISEASES` from its logit."""
    chances = 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
    return {name: round(float(p), 4) for name, p in zip(DISEASES, chances, strict=True)}
