"""The account of one run, as it is written to ``run.json`` and shown in the report.

Whoever runs a measurement (demo, replay, server) fills a `RunInfo`; it holds plain numbers and texts only, so that it
can be read without kstream. Times are milliseconds where a step is meant, seconds where the clock of the scan is meant.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import RecordingError
from ..types import Notice


class _Record(BaseModel):
    """Frozen, strict about names, and without NaN or infinity, which JSON does not have."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Histogram(_Record):
    """How a quantity in ms is distributed: `counts` has one entry fewer than `edges_ms`, and quantiles are exact."""

    edges_ms: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    max_ms: float = 0.0

    @classmethod
    def of(cls, samples_ms: Iterable[float], n_bins: int = 40) -> Histogram:
        """Summary of the samples in `n_bins` bins of equal ratio; the default of no samples is empty.

        Latencies spread over orders of magnitude (a readout that closes a frame takes far longer than the others),
        hence the ratio. Samples under one microsecond count as one microsecond.
        """
        samples = np.maximum(np.fromiter(samples_ms, dtype=np.float64), 1e-3)
        if not samples.size:
            return cls()
        low, high = float(samples.min()), float(samples.max())
        edges = np.geomspace(low, max(high, low * 1.1), n_bins + 1)
        edges[0], edges[-1] = low, max(high, low * 1.1)
        counts, _ = np.histogram(samples, edges)
        p50, p95 = np.percentile(samples, (50, 95))
        return cls(
            edges_ms=tuple(edges.tolist()),
            counts=tuple(counts.tolist()),
            p50_ms=float(p50),
            p95_ms=float(p95),
            max_ms=high,
        )

    @property
    def n_samples(self) -> int:
        return sum(self.counts)


class StageTime(_Record):
    """Time that one step of the pipeline took: per call (quantiles) and in all."""

    name: str
    n_calls: int
    total_ms: float
    p50_ms: float
    p95_ms: float
    max_ms: float

    @classmethod
    def of(cls, name: str, samples_ms: Iterable[float]) -> StageTime:
        """Summary of one duration per call; no calls give zeros."""
        samples = np.fromiter(samples_ms, dtype=np.float64)
        p50, p95, worst = np.percentile(samples, (50, 95, 100)) if samples.size else (0.0, 0.0, 0.0)
        return cls(
            name=name,
            n_calls=int(samples.size),
            total_ms=float(samples.sum()),
            p50_ms=float(p50),
            p95_ms=float(p95),
            max_ms=float(worst),
        )


class TimelineEvent(_Record):
    """Something that lasted from `start_s` to `end_s` after the start of the run.

    `name` is the lane it is drawn in, such as ``acquisition``, ``frame``, ``recon``, ``network`` or ``images back``;
    events of equal name share a lane. `detail` says which one, such as ``frame 2``. Merge what is shorter than the
    eye can see: hundreds of events are fine, one per readout is not.
    """

    name: str
    start_s: float
    end_s: float
    detail: str = ""


class Score(_Record):
    """Agreement with the ground truth of one exam or one lesion, such as ``exam`` or ``lesion 2``."""

    name: str
    dice: float = Field(ge=0, le=1)
    volume_ml: float = 0.0
    truth_ml: float = 0.0


class ClassScore(_Record):
    """Agreement with the ground truth of one class of a label map of several; `dice` is None if neither has it."""

    name: str
    dice: float | None = Field(default=None, ge=0, le=1)
    volume_ml: float = 0.0
    truth_ml: float = 0.0
    colour: tuple[int, int, int] = (0, 0, 0)


class Phenotype(_Record):
    """A number about the heart.

    Parameters
    ----------
    from_labels : measured on the label maps; None if these views or classes do not show it.
    from_network : what a network gave by itself; None if it has no such output.
    truth : of the simulated heart, where it is known.
    labels_error, network_error : mean absolute error over the model's test cohort, from its bundle; None if that does
        not say.
    """

    name: str
    unit: str
    from_labels: float | None = None
    from_network: float | None = None
    truth: float | None = None
    labels_error: float | None = Field(default=None, ge=0)
    network_error: float | None = Field(default=None, ge=0)


class Chance(_Record):
    """Probability of a disease, and whether the simulated person has it, where that is known."""

    name: str
    probability: float = Field(ge=0, le=1)
    truth: bool | None = None


class Lesion(_Record):
    """One connected region of the label map.

    Parameters
    ----------
    label : class.
    volume_ml, inner_ml, outer_ml : as labelled, and with the outline half a voxel further in and out.
    centre_mm : LPS.
    slices, largest_slice : first and last slice, and that with the largest area; numbers from 1.
    enhancement_percent, low_percent, high_percent : one per frame, against the first: mean and quartiles over voxels.
    touches : lesions of the ground truth that it overlaps; None where no ground truth is known.
    """

    name: str
    label: str
    volume_ml: float
    inner_ml: float
    outer_ml: float
    centre_mm: tuple[float, float, float]
    slices: tuple[int, int]
    largest_slice: int
    enhancement_percent: tuple[float, ...] = ()
    low_percent: tuple[float, ...] = ()
    high_percent: tuple[float, ...] = ()
    touches: tuple[str, ...] | None = None


class Setting(_Record):
    """One value of the configuration and where it came from: ``default``, ``preset breast_dce``, ``--set``, ..."""

    key: str
    value: str
    origin: str


class ModelUsed(_Record):
    """Which network made the labels, on what, and what its card says: in short, and all of it (Markdown)."""

    name: str
    sha256: str = ""
    engine: str = ""
    card: str = ""
    readme: str = ""


class RunInfo(_Record):
    """What went in, what came out, and how long it took.

    Parameters
    ----------
    recording, recording_sha256 : name (no folder) and hash of the raw data; the hash is empty for a live scan.
    started_at : ISO 8601 with zone.
    preset : configuration that the client asked for.
    received : acquisitions that arrived, noise and navigators included.
    readouts : of these, the ones that became image data.
    frames : frames that were closed.
    images_sent : MRD images that went back to the client.
    dropped : acquisitions that arrived and had no use, by any rule. Each reason deserves a notice.
    notices : what the user should read; warnings and errors come first in the report.
    no_image_reason : why nothing went back; empty if something did.
    label_latency_ms : from the last sample of a frame to its label map, for the last frame; None without a label map.
    label_latencies_ms : the same of all label maps, in the order in which they were sent.
    readout_latency : from arrival of each readout to the end of its work.
    scores, dice, false_positive_ml : against ground truth, where known; `dice` is that of all lesions of the exam, None
        without lesions; false-positive volume counts voxels in components that touch no lesion.
    lesions : what was labelled, largest first.
    classes : of a label map that names tissues or chambers; then `dice` is the mean over them.
    findings : what the server told about the whole measurement, as it told it.
    phenotypes, probabilities : of a cine scan; `phenotypes_note` says where errors and truth come from.
    frame_times_s : beginning of each frame after that of the first; empty if the recording does not say.
    settings : configuration with origins, in its own order.
    versions : of Python and of the packages that matter.
    """

    schema_version: Literal[1] = 1
    recording: str
    recording_sha256: str = ""
    started_at: str
    preset: str
    title: str = ""
    received: int = Field(default=0, ge=0)
    readouts: int = Field(default=0, ge=0)
    frames: int = Field(default=0, ge=0)
    images_sent: int = Field(default=0, ge=0)
    dropped: int = Field(default=0, ge=0)
    notices: tuple[Notice, ...] = ()
    no_image_reason: str = ""
    label_latency_ms: float | None = None
    label_latencies_ms: tuple[float, ...] = ()
    readout_latency: Histogram = Histogram()
    stages: tuple[StageTime, ...] = ()
    timeline: tuple[TimelineEvent, ...] = ()
    scores: tuple[Score, ...] = ()
    dice: float | None = Field(default=None, ge=0, le=1)
    false_positive_ml: float | None = Field(default=None, ge=0)
    lesions: tuple[Lesion, ...] = ()
    classes: tuple[ClassScore, ...] = ()
    findings: dict[str, Any] = Field(default_factory=dict)
    phenotypes: tuple[Phenotype, ...] = ()
    phenotypes_note: str = ""
    probabilities: tuple[Chance, ...] = ()
    frame_times_s: tuple[float, ...] = ()
    settings: tuple[Setting, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)
    model: ModelUsed | None = None
    host_cpus: int = Field(default=0, ge=0)

    @property
    def is_slice_by_slice(self) -> bool:
        """Slices were segmented one after another, each with a latency of its own."""
        return bool(self.classes) and not self.findings and len(self.label_latencies_ms) > 1

    def to_json(self) -> str:
        """The text of ``run.json``."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> RunInfo:
        """Read ``run.json``.

        Raises
        ------
        RecordingError : not JSON, or not this schema.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the text itself"
            raise RecordingError(
                f"not the account of a run: {first['msg']}",
                where=where,
                likely="the file was edited, cut short, or written by another version of kstream",
            ) from error

    def summary(self) -> str:
        """The one line with which every run ends; says why if no image went back."""
        parts = [
            f"received {self.received}",
            f"frames {self.frames}",
            f"images sent {self.images_sent}",
            f"dropped {self.dropped}",
        ]
        if self.is_slice_by_slice:
            median, longest = np.median(self.label_latencies_ms), max(self.label_latencies_ms)
            parts.append(f"last line of a slice to its labels {median:.0f} ms, longest {longest:.0f} ms")
        elif self.label_latency_ms is not None:
            parts.append(f"last readout to label {self.label_latency_ms:.0f} ms")
        if self.dice is not None:
            by_class = ", ".join(f"{c.name.replace('_', ' ')} {c.dice:.3f}" for c in self.classes if c.dice is not None)
            parts.append(f"Dice {self.dice:.3f}" + (f" ({by_class})" if by_class else ""))
        if not self.images_sent:
            parts.append(f"no image: {self.no_image_reason or 'reason unknown'}")
        return ", ".join(parts)


def file_sha256(path: Path) -> str:
    """Checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
