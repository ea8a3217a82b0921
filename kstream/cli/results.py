"""What a replay leaves in its folder: images, volumes, pictures, run.json and the report."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from ..models.bundle import Bundle
from ..mrd.images import label_table
from ..mrd.messages import Image
from ..output.nifti import geometry_from_images, write_nifti
from ..output.overlay import montage_png, overlay_gif, overlay_png
from ..output.report import write_report
from ..output.runinfo import Histogram, ModelUsed, RunInfo, Score, Setting, StageTime, TimelineEvent
from ..segment.metrics import dice, false_positive_voxels, lesion_scores
from ..serve.replay import ReplayResult
from ..types import Geometry, LabelTable, Notice

PACKAGES = ("kstream", "numpy", "scipy", "torch", "h5py", "ismrmrd")


@dataclass(frozen=True)
class Volume:
    """A stack of returned images: pixels ``(z, y, x)`` and where they lie."""

    data: NDArray[Any]
    geometry: Geometry
    table: LabelTable | None


def newest_volume(images: list[Image]) -> Volume:
    """The frame with the highest repetition of one series, slices in order of position."""
    frame = max(int(image.header["repetition"]) for image in images)
    slices = [image for image in images if int(image.header["repetition"]) == frame]
    geometry, order = geometry_from_images([image.header for image in slices])
    data = np.stack([slices[i].data[0, 0] for i in order])
    return Volume(data, geometry, label_table(slices[0]))


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

    Files: ``magnitude.nii.gz``, ``labels.nii.gz``, ``overlay_z*.png`` for each slice with a lesion, ``overview.png``,
    ``volume.gif``, ``run.json``, ``report.html``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures: list[tuple[str, bytes]] = []
    labels: Volume | None = None
    if magnitude_series in result.images:
        magnitude = newest_volume(result.images[magnitude_series])
        write_nifti(folder / "magnitude.nii.gz", magnitude.data.astype(np.float32), magnitude.geometry)
        if label_series in result.images:
            labels = newest_volume(result.images[label_series])
            write_nifti(folder / "labels.nii.gz", labels.data.astype(np.uint8), labels.geometry)
            pictures = _pictures(folder, magnitude, labels, truth)
    info = _account(recording, result, title, labels, truth, label_series)
    (folder / "run.json").write_text(info.to_json(), encoding="utf-8")
    write_report(folder / "report.html", info, pictures)
    return info


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
