"""Label map and ground truth over the magnitude: a PNG per slice, a GIF through the volume, a montage of lesions.

The label map is a translucent fill with a solid outline in the colours of its table; ground truth is a dashed outline
in a colour of its own. Slices are shown as they are stored, x to the right and y down; the letters at the edges say
which side of the patient that is.
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
from .canvas import MUTED, PAPER, Pane
from .sheet import Legend

if TYPE_CHECKING:
    from PIL import Image

PERCENTILES = (1.0, 99.7)
_NO_LABELS = LabelTable(("background",), ((0, 0, 0),))
_ZOOM_MARGIN = 0.75  # of the lesion's extent, on each side


@dataclass(frozen=True)
class _Slice:
    """What one picture shows; `truth` is None where no ground truth is known."""

    magnitude: NDArray[Any]
    labels: NDArray[Any]
    truth: NDArray[Any] | None
    table: LabelTable
    geometry: Geometry
    window: tuple[float, float]

    @property
    def marked(self) -> NDArray[np.bool_]:
        """Voxels ``(y, x)`` that any label or the ground truth covers."""
        return self.labels > 0 if self.truth is None else (self.labels > 0) | (self.truth > 0)

    @property
    def full_box(self) -> canvas.Box:
        return 0.0, 0.0, float(self.magnitude.shape[1]), float(self.magnitude.shape[0])


def overlay_png(
    path: str | Path,
    magnitude: NDArray[Any],
    labels: NDArray[Any],
    truth: NDArray[Any] | None,
    table: LabelTable,
    geometry: Geometry,
    *,
    z: int = 0,
    title: str = "",
    window: tuple[float, float] | None = None,
    zoom: bool = True,
    side_px: int = 760,
) -> Path:
    """One slice with label map and ground truth, and the lesion enlarged with each of them beside it.

    Parameters
    ----------
    path : PNG to write; missing folders are made.
    magnitude : ``(y, x)``, any real unit.
    labels, truth : ``(y, x)`` class indices of `table`; `truth` may be None.
    geometry : of the volume that the slice belongs to.
    z : index of the slice in that volume.
    title : shown above the picture.
    window : grey levels shown as black and white; None takes the percentiles 1 and 99.7 of this slice. Pass
        ``canvas.grey_window(volume, PERCENTILES)`` to show all slices of a volume alike.
    zoom : enlarge the marked region beside the slice, where there is one.
    side_px : longer side of the slice itself.

    Raises
    ------
    ShapeError : the arrays differ in shape, or contradict the geometry.
    """
    _check_shapes((magnitude, labels, truth), geometry.shape[1:])
    shown = _Slice(magnitude, labels, truth, table, geometry, window or canvas.grey_window(magnitude, PERCENTILES))
    body = _slice_with_zoom(shown, side_px) if zoom and shown.marked.any() else _slice_image(shown, side_px)
    picture = sheet.framed(body, title or "Label map over magnitude", slice_name(geometry, z), _legend(shown))
    return sheet.save(picture, path)


def montage_png(
    path: str | Path,
    volume: NDArray[Any],
    labels: NDArray[Any],
    truth: NDArray[Any] | None,
    table: LabelTable,
    geometry: Geometry,
    *,
    title: str = "",
    max_slices: int = 6,
    columns: int = 3,
    panel_px: int = 420,
) -> Path:
    """The slices that hold a label or ground truth side by side; the middle slice if none does.

    Where there are more than `max_slices`, those with the most marked voxels are shown, in anatomical order.
    Arrays are ``(z, y, x)``; everything else as in `overlay_png`.
    """
    _check_shapes((volume, labels, truth), geometry.shape)
    window = canvas.grey_window(volume, PERCENTILES)
    chosen = _largest_slices(labels, truth, max_slices)
    slices = [_volume_slice(volume, labels, truth, table, geometry, window, z) for z in chosen]
    box = _common_box(slices)
    panels = [_slice_image(shown, panel_px, box, letters=False) for shown in slices]
    for z, panel in zip(chosen, panels, strict=True):
        sheet.caption(panel, slice_name(geometry, z))
    n_rows = -(-len(panels) // columns)
    body = sheet.grid(panels, -(-len(panels) // n_rows))
    return sheet.save(sheet.framed(body, title or "Label map over magnitude", "", _legend(slices[0])), path)


def magnitude_png(
    path: str | Path, volume: NDArray[Any], geometry: Geometry, *, title: str = "Magnitude", max_slices: int = 6
) -> Path:
    """Evenly spaced slices of a volume without labels, side by side; everything else as in `montage_png`."""
    _check_shapes((volume, None, None), geometry.shape)
    nothing = np.zeros(geometry.shape[1:], np.uint8)
    window = canvas.grey_window(volume, PERCENTILES)
    n_shown = min(max_slices, geometry.matrix[2])
    panels = []
    for z in (int((2 * i + 1) * geometry.matrix[2] / (2 * n_shown)) for i in range(n_shown)):
        panel = _slice_image(_Slice(volume[z], nothing, None, _NO_LABELS, geometry, window), 420)
        sheet.caption(panel, slice_name(geometry, z).removeprefix("slice "))  # room for the letter in the middle
        panels.append(panel)
    n_rows = -(-n_shown // 3)
    return sheet.save(sheet.framed(sheet.grid(panels, -(-n_shown // n_rows)), title, "", []), path)


def magnitude_gif(path: str | Path, volume: NDArray[Any], geometry: Geometry, *, title: str = "") -> Path:
    """All slices of a volume without labels as a film; everything else as in `overlay_gif`."""
    nothing = np.zeros(geometry.shape, np.uint8)
    return overlay_gif(path, volume, nothing, None, _NO_LABELS, geometry, title=title)


def overlay_gif(
    path: str | Path,
    volume: NDArray[Any],
    labels: NDArray[Any],
    truth: NDArray[Any] | None,
    table: LabelTable,
    geometry: Geometry,
    *,
    title: str = "",
    max_bytes: int = 4_000_000,
    frame_ms: int = 160,
) -> Path:
    """All slices as an endless film; slices that hold a label or ground truth stay longer.

    It begins at the slice with the largest marked area (the middle one if there is none): many viewers show only the
    first picture of a film, and the first slice of a volume is often air.
    Arrays are ``(z, y, x)``; everything else as in `overlay_png`. The film is made smaller until it fits `max_bytes`
    (640 to 200 pixels at the longer side).
    """
    _check_shapes((volume, labels, truth), geometry.shape)
    window = canvas.grey_window(volume, PERCENTILES)
    n_slices = geometry.matrix[2]
    begin = max(_largest_slices(labels, truth, 1))
    order = [(begin + step) % n_slices for step in range(n_slices)]
    slices = [_volume_slice(volume, labels, truth, table, geometry, window, z) for z in order]
    durations = [3 * frame_ms if shown.marked.any() else frame_ms for shown in slices]

    def draw(side_px: int) -> list[Image.Image]:
        return [
            sheet.framed(_slice_image(shown, side_px), title, slice_name(geometry, z), _legend(shown))
            for z, shown in zip(order, slices, strict=True)
        ]

    return sheet.save_film(path, draw, sheet.film_colours(table), durations, max_bytes)


def _volume_slice(
    volume: NDArray[Any],
    labels: NDArray[Any],
    truth: NDArray[Any] | None,
    table: LabelTable,
    geometry: Geometry,
    window: tuple[float, float],
    z: int,
) -> _Slice:
    return _Slice(volume[z], labels[z], None if truth is None else truth[z], table, geometry, window)


def _slice_image(shown: _Slice, side_px: int, box: canvas.Box | None = None, letters: bool = True) -> Image.Image:
    """The slice, or the part of it in `box`, with everything drawn on it."""
    pane = Pane.over(box or shown.full_box, shown.geometry, side_px)
    image = canvas.draw_magnitude(shown.magnitude, pane, shown.window)
    line_px = max(1.2, side_px / 420)
    canvas.draw_labels(image, shown.labels, pane, shown.table.colours, line_px)
    if shown.truth is not None:
        canvas.draw_truth(image, shown.truth, pane, canvas.truth_colour(shown.table.colours), line_px)
    if letters:
        canvas.draw_letters(image, shown.geometry)
    canvas.draw_scale_bar(image, pane, shown.geometry)
    return image


def _slice_with_zoom(shown: _Slice, side_px: int) -> Image.Image:
    """The slice, and to its right the marked region twice: as the network saw it and as it is (or plain)."""
    from PIL import Image, ImageDraw

    main = _slice_image(shown, side_px)
    crop_px = (main.height - sheet.GAP_PX) // 2
    box = _zoom_box(shown)
    frame = Pane.over(shown.full_box, shown.geometry, side_px).to_pixels(np.array([box[:2], box[2:]]))
    ImageDraw.Draw(main).rectangle([(x, y) for x, y in frame.round()], outline=MUTED)
    pane = Pane(box, crop_px, crop_px)
    if shown.truth is None:
        captions = ("Magnitude", "Label map")
        plain, labelled = _zoomed(shown, pane, False, False), _zoomed(shown, pane, True, False)
        crops = (plain, labelled)
    else:
        captions = ("Label map", "Ground truth")
        crops = (_zoomed(shown, pane, True, False), _zoomed(shown, pane, False, True))
    picture = Image.new("RGB", (main.width + sheet.GAP_PX + crop_px, main.height), PAPER)
    picture.paste(main, (0, 0))
    for row, (crop, caption) in enumerate(zip(crops, captions, strict=True)):
        sheet.caption(crop, caption)
        canvas.draw_scale_bar(crop, pane, shown.geometry)
        picture.paste(crop, (main.width + sheet.GAP_PX, row * (main.height - crop_px)))
    return picture


def _zoomed(shown: _Slice, pane: Pane, with_labels: bool, with_truth: bool) -> Image.Image:
    image = canvas.draw_magnitude(shown.magnitude, pane, shown.window)
    if with_labels:
        canvas.draw_labels(image, shown.labels, pane, shown.table.colours, 2.0)
    if with_truth and shown.truth is not None:
        canvas.draw_truth(image, shown.truth, pane, canvas.truth_colour(shown.table.colours), 2.0)
    return image


def _zoom_box(shown: _Slice) -> canvas.Box:
    """A box around all marked voxels with a margin, square in millimetres, at least 24 mm wide."""
    rows, columns = np.nonzero(shown.marked)
    voxel_mm = np.array(shown.geometry.voxel_size_mm[:2])
    low = np.array([columns.min(), rows.min()]) * voxel_mm
    high = (np.array([columns.max(), rows.max()]) + 1) * voxel_mm
    side_mm = max(24.0, float((high - low).max()) * (1 + 2 * _ZOOM_MARGIN))
    field_mm = np.array(shown.magnitude.shape[::-1]) * voxel_mm
    side_mm = min(side_mm, float(field_mm.min()))
    start = np.clip((low + high) / 2 - side_mm / 2, 0, field_mm - side_mm) / voxel_mm
    stop = start + side_mm / voxel_mm
    return float(start[0]), float(start[1]), float(stop[0]), float(stop[1])


def _common_box(slices: Sequence[_Slice]) -> canvas.Box:
    """One part of the field of view, of its proportions and at least 0.7 of its size, that holds all marked voxels."""
    marked = np.any([shown.marked for shown in slices], axis=0)
    field = np.array(marked.shape[::-1], dtype=np.float64)
    if not marked.any():
        return slices[0].full_box
    rows, columns = np.nonzero(marked)
    low, high = np.array([columns.min(), rows.min()]), np.array([columns.max(), rows.max()]) + 1
    side = field * np.clip(1.35 * ((high - low) / field).max(), 0.7, 1.0)
    start = np.clip((low + high) / 2 - side / 2, 0, field - side)
    return float(start[0]), float(start[1]), float(start[0] + side[0]), float(start[1] + side[1])


def _largest_slices(labels: NDArray[Any], truth: NDArray[Any] | None, max_slices: int) -> list[int]:
    """Slices with the most marked voxels, in order; the middle slice if nothing is marked."""
    marked = labels > 0 if truth is None else (labels > 0) | (truth > 0)
    area = marked.sum(axis=(1, 2))
    if not area.any():
        return [len(area) // 2]
    largest = np.argsort(-area, kind="stable")[:max_slices]
    return sorted(int(z) for z in largest if area[z])


def slice_name(geometry: Geometry, z: int) -> str:
    """Such as ``slice 12 of 24 · 14.3 mm H``: number from 1, and position along the patient axis it is nearest to."""
    axis = int(np.argmax(np.abs(geometry.slice_dir)))
    position = geometry.slice_position_mm(z)[axis]
    letter = ("LPS" if position >= 0 else "RAI")[axis]
    return f"slice {z + 1} of {geometry.matrix[2]} · {letter} {abs(position):.1f} mm"


def _legend(shown: _Slice) -> Legend:
    """Colour, name and whether dashed, of everything that can be drawn."""
    classes = list(zip(shown.table.colours, shown.table.names, strict=True))[1:]
    entries = [(colour, name, False) for colour, name in classes]
    if shown.truth is not None:
        entries.append((canvas.truth_colour(shown.table.colours), "ground truth", True))
    return entries


def _check_shapes(arrays: Sequence[NDArray[Any] | None], expected: tuple[int, ...]) -> None:
    for name, array in zip(("magnitude", "label map", "ground truth"), arrays, strict=True):
        if array is not None and array.shape != expected:
            raise ShapeError(
                f"the {name} has shape {array.shape}, but its geometry promises {expected}",
                likely="slices are missing from the series, or the axes were swapped",
            )
