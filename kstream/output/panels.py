"""One plane beside itself: as it was measured, with the label map, with the truth; as a picture, or as a film.

`overlay` shows a few lesions in a volume; this is for label maps that cover the picture: tissues of a head slice by
slice, a heart frame by frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ShapeError
from ..types import Geometry, LabelTable
from . import canvas, sheet
from .canvas import Pane

if TYPE_CHECKING:
    from PIL import Image

ALPHA = 0.55
"""How much of a class's colour covers the image where classes are filled voxel by voxel."""


@dataclass(frozen=True)
class Panel:
    """One picture of a sheet.

    Parameters
    ----------
    caption : in its corner.
    magnitude, labels : ``(y, x)``; labels are class indices, or None.
    geometry : of the plane; ``z`` is not looked at.
    window : grey levels that are black and white.
    """

    caption: str
    magnitude: NDArray[Any]
    labels: NDArray[Any] | None
    geometry: Geometry
    window: tuple[float, float]


@dataclass(frozen=True)
class Sheet:
    """Panels of one size in rows, and what is written above them on the right."""

    panels: Sequence[Panel]
    subtitle: str = ""


@dataclass(frozen=True)
class Look:
    """What all sheets of a picture or film share.

    Parameters
    ----------
    table : names and colours of the classes.
    title : above the picture.
    columns : panels in a row.
    is_outlined : classes are few smooth regions and get an outline; or else they are filled voxel by voxel.
    """

    table: LabelTable
    title: str = ""
    columns: int = 3
    is_outlined: bool = False

    @property
    def legend(self) -> sheet.Legend:
        classes = zip(self.table.colours[1:], self.table.names[1:], strict=True)
        return [(colour, name.replace("_", " "), False) for colour, name in classes]


def panels_png(path: str | Path, shown: Sheet, look: Look, *, side_px: int = 420) -> Path:
    """One sheet as PNG; missing folders are made.

    Raises
    ------
    ShapeError : a panel's arrays differ in shape, or contradict its geometry.
    """
    return sheet.save(_drawn(shown, look, side_px), path)


def panels_gif(path: str | Path, frames: Sequence[Sheet], look: Look, *, durations_ms: Sequence[int]) -> Path:
    """Sheets as an endless film, each for its duration; `panels_png` and `sheet.save_film` say the rest."""

    def draw(side_px: int) -> list[Image.Image]:
        return [_drawn(shown, look, min(side_px, 420)) for shown in frames]

    alpha = canvas.FILL_ALPHA if look.is_outlined else ALPHA
    return sheet.save_film(path, draw, sheet.film_colours(look.table, alpha), durations_ms)


def _drawn(shown: Sheet, look: Look, side_px: int) -> Image.Image:
    pictures = [
        _panel(panel, look, side_px, is_first=number % look.columns == 0) for number, panel in enumerate(shown.panels)
    ]
    return sheet.framed(sheet.grid(pictures, look.columns), look.title, shown.subtitle, look.legend)


def _panel(panel: Panel, look: Look, side_px: int, is_first: bool) -> Image.Image:
    expected = panel.geometry.shape[1:]
    for array in (panel.magnitude, panel.labels):
        if array is not None and array.shape != expected:
            raise ShapeError(f"a panel shows {array.shape}, but its geometry promises {expected}", where=panel.caption)
    ny, nx = expected
    pane = Pane.over((0.0, 0.0, float(nx), float(ny)), panel.geometry, side_px)
    image = canvas.draw_magnitude(panel.magnitude, pane, panel.window)
    if panel.labels is not None and look.is_outlined:
        canvas.draw_labels(image, panel.labels, pane, look.table.colours, max(1.2, side_px / 300))
    elif panel.labels is not None:
        canvas.draw_classes(image, panel.labels, pane, look.table.colours, ALPHA)
    if is_first:
        canvas.draw_letters(image, panel.geometry)
        canvas.draw_scale_bar(image, pane, panel.geometry)
    sheet.caption(image, panel.caption)
    return image


def window_of(images: NDArray[Any]) -> tuple[float, float]:
    """Grey levels for all planes of an array alike: air is black, the brightest half percent white."""
    return 0.0, float(np.percentile(images, 99.5)) or 1.0
