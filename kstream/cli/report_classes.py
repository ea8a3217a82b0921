"""The part of the report for label maps that name tissues: agreement class by class, every slice beside its truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..output.panels import Look, Panel, Sheet, panels_gif, panels_png, window_of
from ..output.runinfo import ClassScore, RunInfo
from ..segment.metrics import dice
from .report_files import remove_overlays

if TYPE_CHECKING:
    from ..types import LabelTable
    from .stacks import Volume

Labels = NDArray[np.uint8]
N_ROWS = 3
"""Slices of the overview."""

FRAME_MS = 350


def measured(folder: Path, info: RunInfo, magnitude: Volume, labels: Volume, truth: Labels | None) -> RunInfo:
    """The account with Dice of every class and their mean; draws ``overview.png``, ``overlay_z*.png``, ``volume.gif``.

    Parameters
    ----------
    magnitude, labels : the newest of each, of one grid; `labels` has a table.
    truth : on the same grid, or None.
    """
    if labels.table is None:
        return info
    _draw(folder, magnitude, labels, labels.table, truth)
    if truth is None:
        return info
    voxel_ml = float(np.prod(labels.geometry.voxel_size_mm)) / 1000
    scores = class_scores(labels.data.astype(np.uint8), truth, labels.table, voxel_ml)
    return info.model_copy(update={"classes": scores, "dice": mean_dice(scores)})


def class_scores(found: Labels, truth: Labels, table: LabelTable, voxel_ml: float) -> tuple[ClassScore, ...]:
    """One score for every class but the background, over all voxels."""
    scores = []
    for index, (name, colour) in enumerate(zip(table.names, table.colours, strict=True)):
        ours, theirs = (found == index).astype(np.uint8), (truth == index).astype(np.uint8)
        value = dice(ours, theirs)
        volumes = (float(part.sum()) * voxel_ml for part in (ours, theirs))
        volume_ml, truth_ml = volumes
        score = ClassScore(
            name=name, dice=None if np.isnan(value) else value, volume_ml=volume_ml, truth_ml=truth_ml, colour=colour
        )
        scores.append(score)
    return tuple(scores[1:])


def mean_dice(scores: tuple[ClassScore, ...]) -> float | None:
    """Mean over the classes that the labels or the truth have."""
    known = [score.dice for score in scores if score.dice is not None]
    return float(np.mean(known)) if known else None


def _draw(folder: Path, magnitude: Volume, labels: Volume, table: LabelTable, truth: Labels | None) -> None:
    from ..output.overlay import slice_name

    images, found, place = magnitude.magnitude, labels.data, labels.geometry
    window = window_of(images)
    look = Look(table, "Tissues from undersampled lines", 2 if truth is None else 3)

    def row(z: int) -> list[Panel]:
        kinds = [("measured", None), ("labels", found[z])]
        kinds += [("truth", truth[z])] if truth is not None else []
        return [Panel(caption, images[z], shown, place, window) for caption, shown in kinds]

    sheets = {z: Sheet(row(z), slice_name(place, z)) for z in range(len(found))}
    remove_overlays(folder, keep={z + 1 for z in sheets})
    for z, sheet in sheets.items():
        panels_png(folder / f"overlay_z{z + 1:02d}.png", sheet, look)
    n_rows = min(N_ROWS, len(sheets))
    chosen = [int((2 * i + 1) * len(sheets) / (2 * n_rows)) for i in range(n_rows)]
    rows = [panel for z in chosen for panel in row(z)]
    panels_png(folder / "overview.png", Sheet(rows, "slices " + ", ".join(str(z + 1) for z in chosen)), look)
    panels_gif(folder / "volume.gif", list(sheets.values()), look, durations_ms=[FRAME_MS] * len(sheets))
