"""What a replay leaves in its folder: volumes, run.json, and by `report` pictures and the page."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ModelError, ScanError
from ..models.bundle import Bundle
from ..output.nifti import write_nifti
from ..output.nrrd import write_seg_nrrd
from ..output.runinfo import Histogram, ModelUsed, RunInfo, Setting, StageTime, TimelineEvent, file_sha256
from ..serve.replay import ReplayResult
from ..types import Notice
from .report import rebuild
from .report_cine import views_of, write_short_axes
from .report_files import remove_overlays, told
from .stacks import Volume, newest_volume

PACKAGES = ("kstream", "numpy", "scipy", "torch", "h5py", "ismrmrd")


_LABELS = ("labels.nii.gz", "labels.seg.nrrd", "labels_diastole.nii.gz", "labels_systole.nii.gz")
MADE = ("magnitude.nii.gz", *_LABELS, "overview.png", "volume.gif", "beating.gif")
"""What only some runs leave in their folder."""


def write_results(
    folder: Path,
    recording: Path,
    result: ReplayResult,
    *,
    title: str,
    images: Path | None = None,
    magnitude_series: int = 1,
    label_series: int = 2,
) -> RunInfo:
    """Write everything that a user wants to look at after a replay, and give the account of the run.

    Files: ``magnitude.nii.gz``, ``labels.nii.gz`` and ``labels.seg.nrrd`` of the newest frame (`kstream export` writes
    all frames, and DICOM), and what `rebuild` adds: ``overlay_z*.png`` for each slice with something to see,
    ``overview.png``, ``volume.gif``, ``run.json``, ``report.html``. Those of an earlier run are replaced. Of a cine
    scan, ``labels_diastole.nii.gz`` and ``labels_systole.nii.gz`` hold the short axes, and the film is ``beating.gif``.
    Images that do not stack to a volume, as where a slice never came, are told, and drawn where that needs none.

    Parameters
    ----------
    images : where the replay has left what came back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in MADE:
        (folder / name).unlink(missing_ok=True)
    remove_overlays(folder, keep=set())
    info, notices = _account(recording, result, title, label_series), list[Notice]()
    if magnitude_series in result.images:
        with _told_if_no_volume("magnitudes", notices):
            magnitude = newest_volume(result.images[magnitude_series])
            write_nifti(folder / "magnitude.nii.gz", magnitude.magnitude, magnitude.geometry, overwrite=True)
    if label_series in result.images:
        with _told_if_no_volume("labels", notices):
            if info.findings:
                write_short_axes(folder, result.images[label_series], views_of(info, recording))
            else:
                _write_labels(folder, newest_volume(result.images[label_series]))
    info = told(info, notices)
    (folder / "run.json").write_text(info.to_json(), encoding="utf-8")
    return rebuild(folder, recording=recording, images=images if result.n_images else None)


@contextlib.contextmanager
def _told_if_no_volume(what: str, notices: list[Notice]) -> Iterator[None]:
    """Images that do not stack are no reason to leave a run without its account."""
    try:
        yield
    except ScanError as error:
        notices.append(Notice("warning", f"no volume of {what} was written: {error.what}"))


def _write_labels(folder: Path, labels: Volume) -> None:
    pixels, place, table = labels.data.astype(np.uint8), labels.geometry, labels.table
    write_nifti(folder / "labels.nii.gz", pixels, place, table=table, overwrite=True)
    if table is not None:
        path = folder / "labels.seg.nrrd"
        write_seg_nrrd(path, pixels, place, table, provenance=labels.provenance, overwrite=True)


def _account(
    recording: Path,
    result: ReplayResult,
    title: str,
    label_series: int,
) -> RunInfo:
    summary = result.summary
    latency = dict(summary.get("readout_latency", {}))
    findings, texts = _split_findings(result.texts)
    label_latencies = tuple(summary.get("latencies_ms", {}).get("labels", ()))
    set_aside = sum(summary.get("set_aside", {}).values())
    began = datetime.now(UTC).timestamp() - (result.end_ns - result.begin_ns) / 1e9
    return RunInfo(
        title=title,
        recording=recording.name,
        recording_sha256=file_sha256(recording),
        started_at=datetime.fromtimestamp(began, UTC).isoformat(timespec="seconds"),
        preset=summary.get("preset", ""),
        received=summary.get("received", 0),
        readouts=summary.get("received", 0) - set_aside,
        frames=summary.get("frames", 0),
        images_sent=result.n_images,
        dropped=summary.get("dropped", 0),
        notices=tuple(_notice(text) for text in texts),
        no_image_reason="" if result.n_images else "; ".join(result.errors) or "the server sent none",
        label_latency_ms=label_latencies[-1] if label_latencies else None,
        label_latencies_ms=label_latencies,
        findings=findings,
        readout_latency=_trimmed(latency),
        stages=tuple(StageTime(**stage) for stage in summary.get("stages", ())),
        timeline=_timeline(summary.get("timeline", ())),
        settings=tuple(Setting(key=k, value=v, origin=o) for k, v, o in summary.get("config", ())),
        versions={name: version(name) for name in PACKAGES},
        model=_model(result, label_series),
        host_cpus=os.cpu_count() or 0,
    )


def _split_findings(texts: list[str]) -> tuple[dict[str, Any], list[str]]:
    """What the server found out about the whole measurement (the last such text counts), and its other texts."""
    found: dict[str, Any] = {}
    others = []
    for text in texts:
        values = _json_object(text) if text.startswith("{") else {}
        if str(values.get("kind", "")).endswith("findings"):
            found = values
        else:
            others.append(text)
    return found, others


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # somebody else's text that only looks like it
        return {}
    return found if isinstance(found, dict) else {}


def _trimmed(latency: dict[str, Any]) -> Histogram:
    """The server's histogram without its empty ends."""
    counts, edges = latency.pop("counts", []), latency.pop("edges_ms", [])
    used = np.flatnonzero(counts)
    if not used.size:
        return Histogram()
    first, last = int(used[0]), int(used[-1])
    return Histogram(edges_ms=edges[first : last + 2], counts=counts[first : last + 1], **latency)


def _timeline(marks: Any) -> tuple[TimelineEvent, ...]:
    """Lanes from the server's marks: acquisition of each frame, reconstruction, network.

    Slices share the names of their frames; their images come in the order of their last readouts. Labels that come
    once more (of all frames, at the end of a cine slice) began at the newest last readout.
    """
    events: list[TimelineEvent] = []
    begin = next((float(seconds) for event, seconds in marks if event == "first acquisition"), 0.0)
    since: dict[tuple[str, str], list[float]] = {}
    for event, moment in marks:
        found = re.fullmatch(r"(last readout|magnitude|labels) of frame (\d+)", event)
        if not found:
            continue
        kind, frame, seconds = found[1], found[2], float(moment)
        if kind == "last readout":
            events.append(TimelineEvent(name="acquisition", start_s=begin, end_s=seconds, detail=f"frame {frame}"))
            begin = seconds
            for made in ("magnitude", "labels"):
                since.setdefault((made, frame), []).append(seconds)
            continue
        waiting = since.get((kind, frame))
        start, lane = waiting.pop(0) if waiting else begin, "reconstruction" if kind == "magnitude" else "network"
        events.append(TimelineEvent(name=lane, start_s=min(start, seconds), end_s=seconds, detail=f"frame {frame}"))
        if kind == "magnitude" and since.get(("labels", frame)):
            since[("labels", frame)][0] = seconds  # the network begins when the image is there
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
