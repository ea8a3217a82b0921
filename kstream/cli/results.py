"""What a replay leaves in its folder: images, volumes, pictures, run.json and the report."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError, ScanError
from ..models.bundle import Bundle
from ..mrd.images import frame_of, label_table
from ..mrd.messages import Image
from ..output.nifti import geometry_from_images, write_nifti
from ..output.nrrd import write_seg_nrrd
from ..output.overlay import montage_png, overlay_gif, overlay_png
from ..output.report import write_report
from ..output.runinfo import Histogram, ModelUsed, RunInfo, Score, Setting, StageTime, TimelineEvent
from ..segment.metrics import dice, false_positive_voxels, lesion_scores
from ..serve.replay import ReplayResult
from ..types import Geometry, LabelTable, Notice

PACKAGES = ("kstream", "numpy", "scipy", "torch", "h5py", "ismrmrd")


@dataclass(frozen=True)
class Volume:
    """A stack of returned images: pixels ``(z, y, x)`` and where they lie.

    Parameters
    ----------
    rescale_slope, rescale_intercept : value = slope * pixel + intercept.
    slice_thickness_mm : of one image; the slice distance is larger if there are gaps.
    provenance : what made a label map: attributes that begin with ``kstream_``, without that.
    """

    data: NDArray[Any]
    geometry: Geometry
    table: LabelTable | None
    rescale_slope: float = 1.0
    rescale_intercept: float = 0.0
    slice_thickness_mm: float = 0.0
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def magnitude(self) -> NDArray[np.float32]:
        """Values as float32: rescaled, and the magnitude of complex ones."""
        pixels = np.abs(self.data) if np.iscomplexobj(self.data) else self.data.astype(np.float64)
        return (self.rescale_slope * pixels + self.rescale_intercept).astype(np.float32)

    @property
    def named_table(self) -> LabelTable:
        """The label table, for files that cannot do without.

        Raises
        ------
        ScanError : the images carry none.
        """
        if self.table is None:
            raise ScanError(
                "the label images carry no LabelTable",
                likely="another program made them, or the series is no label map",
                hint="export as NIfTI, or name another --label-series",
            )
        return self.table


def volumes(images: list[Image]) -> dict[int, Volume]:
    """All frames of one series by number, slices in order of position."""
    frames: dict[int, list[Image]] = {}
    for image in images:
        frames.setdefault(frame_of(image), []).append(image)
    return {frame: _stacked(frames[frame]) for frame in sorted(frames)}


def newest_volume(images: list[Image]) -> Volume:
    """The last frame of one series."""
    newest = max(frame_of(image) for image in images)
    return _stacked([image for image in images if frame_of(image) == newest])


def _stacked(images: list[Image]) -> Volume:
    """One volume of the images of one frame: several of one slice each, or one of all slices."""
    geometry, order = geometry_from_images([image.header for image in images])
    first = images[order[0]]
    is_volume = len(images) == 1
    return Volume(
        data=first.data[0] if is_volume else np.stack([images[i].data[0, 0] for i in order]),
        geometry=geometry,
        table=label_table(first),
        rescale_slope=_number(first.meta, "RescaleSlope", 1.0),
        rescale_intercept=_number(first.meta, "RescaleIntercept", 0.0),
        slice_thickness_mm=geometry.voxel_size_mm[2] if is_volume else float(first.header["field_of_view"][2]),
        provenance={
            key.removeprefix("kstream_"): str(value) for key, value in first.meta.items() if key.startswith("kstream_")
        },
    )


def _number(meta: Mapping[str, Any], name: str, default: float) -> float:
    try:
        return float(meta.get(name, default))
    except (TypeError, ValueError):  # a list, or what a peer wrote in words
        return default


def write_results(
    folder: Path,
    recording: Path,
    result: ReplayResult,
    *,
    title: str,
    truth: NDArray[np.uint8] | None = None,
    magnitude_series: int = 1,
    label_series: int = 2,
) -> RunInfo:
    """Write everything that a user wants to look at after a replay, and give the account of the run.

    Files: ``magnitude.nii.gz``, ``labels.nii.gz`` and ``labels.seg.nrrd`` of the newest frame (`kstream export` writes
    all frames, and DICOM), ``overlay_z*.png`` for each slice with a lesion, ``overview.png``, ``volume.gif``,
    ``run.json``, ``report.html``. Those of an earlier run are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures: list[tuple[str, bytes]] = []
    labels: Volume | None = None
    if magnitude_series in result.images:
        magnitude = newest_volume(result.images[magnitude_series])
        write_nifti(folder / "magnitude.nii.gz", magnitude.magnitude, magnitude.geometry, overwrite=True)
        if label_series in result.images:
            labels = newest_volume(result.images[label_series])
            _write_labels(folder, labels)
            pictures = _pictures(folder, magnitude, labels, truth)
    info = _account(recording, result, title, labels, truth, label_series)
    (folder / "run.json").write_text(info.to_json(), encoding="utf-8")
    write_report(folder / "report.html", info, pictures)
    return info


def _write_labels(folder: Path, labels: Volume) -> None:
    pixels, place, table = labels.data.astype(np.uint8), labels.geometry, labels.table
    write_nifti(folder / "labels.nii.gz", pixels, place, table=table, overwrite=True)
    if table is not None:
        path = folder / "labels.seg.nrrd"
        write_seg_nrrd(path, pixels, place, table, provenance=labels.provenance, overwrite=True)


def _pictures(
    folder: Path, magnitude: Volume, labels: Volume, truth: NDArray[np.uint8] | None
) -> list[tuple[str, bytes]]:
    """Overlays of every slice with a lesion (found or true), a montage and a film; gives those for the report."""
    if labels.table is None:
        return []
    marked = labels.data > 0 if truth is None else (labels.data > 0) | (truth > 0)
    arguments = (magnitude.data, labels.data, truth, labels.table, magnitude.geometry)
    montage_png(folder / "overview.png", *arguments)
    overlay_gif(folder / "volume.gif", *arguments)
    window = (0.0, float(np.percentile(magnitude.data, 99.8)))
    pictures = [("the slices with the largest lesions", (folder / "overview.png").read_bytes())]
    for z in np.flatnonzero(marked.any(axis=(1, 2))):
        path = folder / f"overlay_z{z + 1:02d}.png"
        shown = None if truth is None else truth[z]
        overlay_png(
            path, magnitude.data[z], labels.data[z], shown, labels.table, magnitude.geometry, z=int(z), window=window
        )
        pictures.append((f"slice {z + 1}", path.read_bytes()))
    pictures.append(("through the volume", (folder / "volume.gif").read_bytes()))
    return pictures


def _account(
    recording: Path,
    result: ReplayResult,
    title: str,
    labels: Volume | None,
    truth: NDArray[np.uint8] | None,
    label_series: int,
) -> RunInfo:
    summary = result.summary
    latency = dict(summary.get("readout_latency", {}))
    set_aside = sum(summary.get("set_aside", {}).values())
    began = datetime.now(UTC).timestamp() - (result.end_ns - result.begin_ns) / 1e9
    return RunInfo(
        title=title,
        recording=recording.name,
        recording_sha256=_sha256(recording),
        started_at=datetime.fromtimestamp(began, UTC).isoformat(timespec="seconds"),
        preset=summary.get("preset", ""),
        received=summary.get("received", 0),
        readouts=summary.get("received", 0) - set_aside,
        frames=summary.get("frames", 0),
        images_sent=result.n_images,
        dropped=summary.get("dropped", 0),
        notices=tuple(_notice(text) for text in result.texts),
        no_image_reason="" if result.n_images else "; ".join(result.errors) or "the server sent none",
        label_latency_ms=(summary.get("latencies_ms", {}).get("labels") or [None])[-1],
        readout_latency=_trimmed(latency),
        stages=tuple(StageTime(**stage) for stage in summary.get("stages", ())),
        timeline=_timeline(summary.get("timeline", ())),
        settings=tuple(Setting(key=k, value=v, origin=o) for k, v, o in summary.get("config", ())),
        versions={name: version(name) for name in PACKAGES},
        model=_model(result, label_series),
        host_cpus=os.cpu_count() or 0,
        **_agreement(labels, truth),
    )


def _agreement(labels: Volume | None, truth: NDArray[np.uint8] | None) -> dict[str, Any]:
    if labels is None or truth is None:
        return {}
    predicted = labels.data.astype(np.uint8)
    voxel_ml = float(np.prod(labels.geometry.voxel_size_mm)) / 1000
    overall = dice(predicted, truth)
    scores = [
        Score(name=f"lesion {i}", dice=s.dice, volume_ml=s.n_predicted * voxel_ml, truth_ml=s.n_truth * voxel_ml)
        for i, s in enumerate(lesion_scores(predicted, truth), start=1)
    ]
    return {
        "scores": tuple(scores),
        "dice": None if np.isnan(overall) else overall,
        "false_positive_ml": false_positive_voxels(predicted, truth) * voxel_ml,
    }


def _trimmed(latency: dict[str, Any]) -> Histogram:
    """The server's histogram without its empty ends."""
    counts, edges = latency.pop("counts", []), latency.pop("edges_ms", [])
    used = np.flatnonzero(counts)
    if not used.size:
        return Histogram()
    first, last = int(used[0]), int(used[-1])
    return Histogram(edges_ms=edges[first : last + 2], counts=counts[first : last + 1], **latency)


def _timeline(marks: Any) -> tuple[TimelineEvent, ...]:
    """Lanes from the server's marks: acquisition of each frame, reconstruction, network."""
    at = {event: float(seconds) for event, seconds in marks}
    events = []
    begin = at.get("first acquisition", 0.0)
    for event, seconds in at.items():
        found = re.fullmatch(r"(last readout|magnitude|labels) of frame (\d+)", event)
        if not found:
            continue
        kind, frame = found[1], found[2]
        if kind == "last readout":
            events.append(TimelineEvent(name="acquisition", start_s=begin, end_s=seconds, detail=f"frame {frame}"))
            begin = seconds
        elif kind == "magnitude":
            after = at.get(f"last readout of frame {frame}", seconds)
            events.append(TimelineEvent(name="reconstruction", start_s=after, end_s=seconds, detail=f"frame {frame}"))
        else:
            after = at.get(f"magnitude of frame {frame}", seconds)
            events.append(TimelineEvent(name="network", start_s=after, end_s=seconds, detail=f"frame {frame}"))
    return tuple(events)


def _model(result: ReplayResult, label_series: int) -> ModelUsed | None:
    """What the label images say about the network that made them, and its card if the bundle is here."""
    if label_series not in result.images:
        return None
    meta = result.images[label_series][0].meta
    said = {key.removeprefix("kstream_"): str(value) for key, value in meta.items() if key.startswith("kstream_")}
    engine = ", ".join(said[key] for key in ("engine", "precision", "device") if key in said)
    name = said.get("model", "")
    return ModelUsed(name=name, sha256=said.get("sha256", ""), engine=engine, card=_card(name))


def _card(name: str) -> str:
    try:
        bundle = Bundle.load(name)
    except ModelError:
        return ""
    return f"{bundle.info.description} {bundle.info.intended_use}"


def _notice(text: str) -> Notice:
    if text.startswith("ERR"):
        return Notice("error", text[4:])
    if text.startswith("WRN"):
        return Notice("warning", text[4:])
    return Notice("info", text)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
