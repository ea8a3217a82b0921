"""What every volume file has in common: pixels that fit their geometry, labels that have a name, files that are new."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RecordingError, ScanError, ShapeError
from ..types import Geometry, LabelTable

RESEARCH_ONLY = "research use only"
PRODUCT = "kstream"


def check_shape(volume: NDArray[Any], geometry: Geometry, where: str | Path) -> None:
    """Raise ShapeError unless `volume` is ``(z, y, x)`` of `geometry`."""
    if volume.shape != geometry.shape:
        raise ShapeError(
            f"the volume has shape {volume.shape} (z, y, x), but its geometry promises {geometry.shape}",
            where=str(where),
            likely="slices are missing from the series, or the axes were swapped",
        )


def as_labels(volume: NDArray[Any], where: str | Path, table: LabelTable | None = None) -> NDArray[np.uint8]:
    """A label map as uint8, every label of which has an entry in `table` (if there is one).

    Raises
    ------
    ShapeError : not whole numbers, or outside 0..255.
    ScanError : a label beyond the table, or a table with more names than colours.
    """
    if volume.dtype.kind not in "biu":
        raise ShapeError(f"a label map holds whole numbers, not {volume.dtype}", where=str(where))
    if volume.size and (volume.min() < 0 or volume.max() > 255):
        raise ShapeError(
            f"labels run from {volume.min()} to {volume.max()}, but a label map is uint8 (0..255)",
            where=str(where),
            likely="an integer magnitude was written as a label map",
            hint="pass magnitudes as float32",
        )
    labels = volume.astype(np.uint8)
    if table is not None:
        _check_table(labels, table, where)
    return labels


def _check_table(labels: NDArray[np.uint8], table: LabelTable, where: str | Path) -> None:
    n_classes = len(table.names)
    if n_classes != len(table.colours):
        raise ScanError(f"the label table has {n_classes} names and {len(table.colours)} colours", where=str(where))
    if labels.size and int(labels.max()) >= n_classes:
        raise ScanError(
            f"the label map has class {int(labels.max())}, but its table has {n_classes} classes",
            where=str(where),
            likely="the table belongs to another model",
        )


def one_line(text: str) -> str:
    """A text without line breaks and control characters, for header fields that end at the line."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def new_file(path: str | Path, *, overwrite: bool) -> Path:
    """The path of a file that is about to be written; its folder is made.

    Raises
    ------
    RecordingError : there is a file already, and `overwrite` is False.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise RecordingError(f"{target.name} exists already", where=str(target), hint="another folder, or --overwrite")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
