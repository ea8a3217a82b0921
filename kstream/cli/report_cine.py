"""The part of the report for cine scans: a beating heart beside its truth, phenotypes with errors, probabilities."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import KstreamError
from ..mrd.images import frame_of, label_table
from ..mrd.recovering import open_recording
from ..output.nifti import geometry_from_images, write_nifti
from ..output.panels import Look, Panel, Sheet, panels_gif, panels_png, window_of
from ..output.phenotypes import HEART_LABELS, PHENOTYPES, SLICE_MEASURES, pixel_area_mm2, slice_measures
from ..output.runinfo import Chance, ClassScore, Phenotype, RunInfo
from ..types import Geometry, LabelTable, Notice
from .report_classes import class_scores, mean_dice
from .report_files import Found, bundle_of, remove_overlays, told
from .stacks import volumes
from .underlay import Underlay, cine_underlay

if TYPE_CHECKING:
    from ..mrd.messages import Image

Labels = NDArray[np.uint8]

_UNITS = {"_mL": "ml", "_percent": "%", "_L_per_min": "l/min", "_g": "g", "_cm2": "cm²"}
_TITLE = "Chambers from undersampled lines"


@dataclass(frozen=True)
class Cine:
    """Labels of the slices of a cine scan that have come, and what is known about it.

    Parameters
    ----------
    numbers : of the slices.
    labels, truth : ``(slices, frames, y, x)``, indices of `table`; no truth: None.
    geometries, views : of the slices; views are empty if nobody names them.
    n_short_axes : that were planned.
    heart_rate_bpm : 0 if nobody says.
    """

    numbers: tuple[int, ...]
    labels: Labels
    truth: Labels | None
    table: LabelTable
    geometries: tuple[Geometry, ...]
    views: tuple[str, ...]
    n_short_axes: int
    heart_rate_bpm: float

    @property
    def short_axes(self) -> tuple[int, ...]:
        """Which of the slices are short axes, base first."""
        return tuple(number for number, view in enumerate(self.views) if view.startswith("sax"))

    @property
    def middle(self) -> int:
        """The slice that shows most: the middle short axis, or else the first slice."""
        short = self.short_axes
        return short[len(short) // 2] if short else 0

    @property
    def extremes(self) -> tuple[int, int]:
        """Frames with the largest and the smallest left ventricle in the middle slice."""
        area = (self.labels[self.middle] == _index(self.table, "LV cavity")).sum(axis=(1, 2))
        return int(area.argmax()), int(area.argmin())


def measured(folder: Path, info: RunInfo, found: Found, images: list[Image]) -> RunInfo:
    """The account with Dice, phenotypes and probabilities; draws ``beating.gif`` and ``overview.png``.

    Parameters
    ----------
    images : final labels, one image for each slice and frame.
    """
    table = label_table(images[0])
    if table is None:
        return info
    facts = _facts(found.recording)
    cine = _cine(images, table, found.recording, views_of(info, found.recording))
    scores: tuple[ClassScore, ...] = ()
    if cine.truth is not None:
        voxel_ml = float(np.prod(cine.geometries[0].voxel_size_mm)) / 1000 / cine.labels.shape[1]
        scores = class_scores(cine.labels, cine.truth, table, voxel_ml)
    phenotypes, note = _phenotypes(info, cine, facts)
    info = told(info, _draw(folder, cine, found.recording))
    return info.model_copy(
        update={
            "classes": scores,
            "dice": mean_dice(scores),
            "phenotypes": phenotypes,
            "phenotypes_note": note,
            "probabilities": _chances(info, facts),
        }
    )


def views_of(info: RunInfo, recording: Path | None) -> tuple[str, ...]:
    """Names of the slices: those that the server was told, or those of the header; empty if nobody names them."""
    named = next((setting.value.strip('"') for setting in info.settings if setting.key == "cine.views"), "")
    if not named and recording is not None:
        with open_recording(recording) as source:
            named = str(source.scan.user_parameters.get("views", ""))
    return tuple(named.split())


def write_short_axes(folder: Path, images: list[Image], views: tuple[str, ...]) -> None:
    """``labels_diastole.nii.gz`` and ``labels_systole.nii.gz``: the short axes with the largest and smallest cavity.

    Nothing is written where no slice is named as a short axis.
    """
    short = {number for number, view in enumerate(views) if view.startswith("sax")}
    frames = volumes([image for image in images if int(image.header["slice"]) in short])
    if not frames:
        return
    sizes = {frame: int(np.count_nonzero(volume.data == _cavity(volume.table))) for frame, volume in frames.items()}
    chosen = {"diastole": max(sizes, key=sizes.__getitem__), "systole": min(sizes, key=sizes.__getitem__)}
    for name, frame in chosen.items():
        stack = frames[frame]
        path = folder / f"labels_{name}.nii.gz"
        write_nifti(path, stack.data.astype(np.uint8), stack.geometry, table=stack.table, overwrite=True)


def _cine(images: list[Image], table: LabelTable, recording: Path | None, views: tuple[str, ...]) -> Cine:
    numbers = tuple(sorted({int(image.header["slice"]) for image in images}))
    n_frames = 1 + max(frame_of(image) for image in images)
    labels = np.zeros((len(numbers), n_frames, *images[0].data.shape[-2:]), np.uint8)
    geometries: dict[int, Geometry] = {}
    for image in images:
        number = int(image.header["slice"])
        labels[numbers.index(number), frame_of(image)] = image.data[0, 0]
        geometries.setdefault(number, geometry_from_images([image.header])[0])
    rate = 0.0
    if recording is not None:
        with open_recording(recording) as source:
            rate = float(source.scan.user_parameters.get("heart_rate_bpm", 0.0))
    truth = _truth(recording, table, numbers, labels.shape)
    places = tuple(geometries[number] for number in numbers)
    came = tuple(views[n] for n in numbers if n < len(views))
    return Cine(numbers, labels, truth, table, places, came, sum(v.startswith("sax") for v in views), rate)


def _truth(
    recording: Path | None, table: LabelTable, numbers: tuple[int, ...], shape: tuple[int, ...]
) -> Labels | None:
    """True labels of some slices, in the numbers of the model's classes; what it does not know is background."""
    path = recording.with_suffix(".truth.npz") if recording is not None else None
    if path is None or not path.is_file():
        return None
    with np.load(path) as file:
        labels = file["labels"]
    if labels.shape[1:] != shape[1:] or numbers[-1] >= len(labels):
        return None
    classes = [table.names.index(name) if name in table.names else 0 for name in HEART_LABELS.names]
    return np.asarray(np.array(classes, np.uint8)[labels[list(numbers)]])


def _facts(recording: Path | None) -> dict[str, Any]:
    """What the simulator knows about the subject; empty for a real scan."""
    path = recording.with_suffix(".truth.json") if recording is not None else None
    if path is None or not path.is_file():
        return {}
    found = json.loads(path.read_text("utf-8"))
    return found if isinstance(found, dict) else {}


# ---- phenotypes ----


def _phenotypes(info: RunInfo, cine: Cine, facts: dict[str, Any]) -> tuple[tuple[Phenotype, ...], str]:
    """The table, and a text that says where truth and errors come from."""
    network = info.findings.get("phenotypes") or {}
    single = cine.n_short_axes == len(cine.short_axes) == 1 and not network
    if single:
        number = cine.short_axes[0]
        from_labels = _areas(cine.labels[number], cine, number)
        truth = _areas(cine.truth[number], cine, number) if cine.truth is not None else {}
        names: tuple[str, ...] = SLICE_MEASURES
        source = (
            "One short-axis slice was scanned: it has areas, and no volumes. The truth is measured on its true labels."
        )
    else:
        from_labels = info.findings.get("phenotypes_from_labels") or {}
        truth = facts.get("phenotypes") or {}
        names = PHENOTYPES
        source = "The truth is that of the simulated three-dimensional heart, not of its slices."
    errors, cohort = _test_errors(info)
    rows = []
    for name in names:
        from_network = network.get(name)
        if from_labels.get(name) is None and from_network is None:
            continue
        shown, unit = _named(name)
        row = Phenotype(
            name=shown,
            unit=unit,
            from_labels=from_labels.get(name),
            from_network=from_network,
            truth=truth.get(name),
            labels_error=errors.get(name) if not network else None,
            network_error=errors.get(name) if network else None,
        )
        rows.append(row)
    if any(row.labels_error is not None or row.network_error is not None for row in rows):
        bars = "The error bars (±) are the mean absolute errors over the model's test cohort"
        bars += f" ({cohort}), which its bundle tells."
    else:
        bars = "There are no error bars: the model's bundle tells no test errors of these numbers."
    return tuple(rows), f"{bars} {source}" if truth else bars


def _areas(labels: Labels, cine: Cine, number: int) -> dict[str, float | None]:
    """`slice_measures` of labels ``(frames, y, x)`` of the model's classes; None where nothing is seen."""
    numbers = [HEART_LABELS.names.index(n) if n in HEART_LABELS.names else 0 for n in cine.table.names]
    found = slice_measures(np.array(numbers, np.uint8)[labels], pixel_area_mm2(cine.geometries[number]))
    return {name: round(value, 2) if np.isfinite(value) else None for name, value in found.items()}


def _test_errors(info: RunInfo) -> tuple[dict[str, float], str]:
    """Mean absolute test errors of phenotypes or areas in the model's bundle, by name; and of which cohort they are."""
    bundle = bundle_of(info)
    for cohort, metrics in (bundle.info.metrics if bundle is not None else {}).items():
        if errors := dict(_errors_in(metrics)):
            return errors, cohort
    return {}, ""


def _errors_in(metrics: Any) -> Iterator[tuple[str, float]]:
    """``NAME = error`` and ``NAME = {"mae": error, ...}``, at any depth of a bundle's metrics."""
    if not isinstance(metrics, Mapping):
        return
    for name, value in metrics.items():
        error = value.get("mae") if isinstance(value, Mapping) else value
        if name in PHENOTYPES + SLICE_MEASURES and isinstance(error, int | float) and np.isfinite(error):
            yield name, float(error)
        else:
            yield from _errors_in(value)


def _named(name: str) -> tuple[str, str]:
    """``LVEDV_mL`` as name and unit."""
    suffix = next((suffix for suffix in _UNITS if name.endswith(suffix)), "")
    return name.removesuffix(suffix).replace("_", " "), _UNITS.get(suffix, "")


def _chances(info: RunInfo, facts: dict[str, Any]) -> tuple[Chance, ...]:
    ill = facts.get("diseases") or {}
    return tuple(
        Chance(name=name.replace("_", " "), probability=value, truth=ill.get(name))
        for name, value in (info.findings.get("probabilities") or {}).items()
        if value is not None
    )


def _index(table: LabelTable, name: str) -> int:
    """Number of a class; the first after the background if the model has none of this name."""
    return table.names.index(name) if name in table.names else 1


def _cavity(table: LabelTable | None) -> int:
    return 1 if table is None else _index(table, "LV cavity")


# ---- pictures ----


def _draw(folder: Path, cine: Cine, recording: Path | None) -> list[Notice]:
    """``beating.gif`` and ``overview.png``; gives what could not be drawn."""
    under, notices = _under(cine, recording)
    remove_overlays(folder, keep=set())
    table = replace(cine.table, names=tuple(name.replace("_", " ") for name in cine.table.names))
    look = Look(table, _TITLE, 2 if cine.truth is None else 3, is_outlined=True)
    n_frames = cine.labels.shape[1]
    ms = round(60_000 / cine.heart_rate_bpm / n_frames) if cine.heart_rate_bpm > 0 else 100
    film = [_sheet(cine, under, frame) for frame in range(n_frames)]
    panels_gif(folder / "beating.gif", film, look, durations_ms=[max(ms, 40)] * n_frames)
    large, small = cine.extremes
    both = [*_row(cine, under, cine.middle, large), *_row(cine, under, cine.middle, small)]
    panels_png(folder / "overview.png", Sheet(both, f"frames {large + 1} and {small + 1}, largest and smallest"), look)
    return notices


def _under(cine: Cine, recording: Path | None) -> tuple[Underlay, list[Notice]]:
    """Images of the slices that have come, or zeros and why."""
    blank = np.zeros(cine.labels.shape, np.float32)
    if recording is None:
        return Underlay(blank, blank), []
    try:
        whole = cine_underlay(recording)
        expected, found = cine.labels.shape[1:], whole.measured.shape
        if expected == found[1:] and cine.numbers[-1] < found[0]:
            only = list(cine.numbers)
            return Underlay(whole.measured[only], whole.shared[only]), []
        why = f"those of the recording are {found}, of slices, frames, y and x"
    except KstreamError as error:
        why = error.what
    return Underlay(blank, blank), [Notice("info", f"the labels are drawn without an image under them: {why}")]


def _sheet(cine: Cine, under: Underlay, frame: int) -> Sheet:
    """The middle slice in full, and the labels of all other slices below it."""
    n_frames = cine.labels.shape[1]
    panels = _row(cine, under, cine.middle, frame)
    others = (number for number in range(len(cine.labels)) if number != cine.middle)
    panels += [_panel(cine, under.shared, number, frame, cine.labels, _view(cine, number)) for number in others]
    return Sheet(panels, f"frame {frame + 1} of {n_frames}")


def _row(cine: Cine, under: Underlay, number: int, frame: int) -> list[Panel]:
    """One slice: from the lines of this frame alone, with its labels, with the truth."""
    view = _view(cine, number)
    row = [
        _panel(cine, under.measured, number, frame, None, f"{view}, measured"),
        _panel(cine, under.shared, number, frame, cine.labels, "labels"),
    ]
    return row if cine.truth is None else [*row, _panel(cine, under.shared, number, frame, cine.truth, "truth")]


def _panel(
    cine: Cine, images: NDArray[np.float32], number: int, frame: int, labels: Labels | None, caption: str
) -> Panel:
    shown = None if labels is None else labels[number, frame]
    return Panel(caption, images[number, frame], shown, cine.geometries[number], window_of(images[number]))


def _view(cine: Cine, number: int) -> str:
    return cine.views[number] if number < len(cine.views) else f"slice {cine.numbers[number] + 1}"
