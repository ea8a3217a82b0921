"""Labels on the magnitude, as a scanner's display can show them: in colours, or as closed polygons."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..types import LabelMap, LabelTable
from .messages import Meta

OPACITY = 0.35
"""Of a label's colour inside its outline."""

BRIGHTEST = 99.8
"""Percentile of the magnitude that is shown as white."""

THICKNESS_PIXELS, SOLID, VISIBLE = 1, 0, 1


def coloured(magnitude: NDArray[Any], labels: LabelMap) -> NDArray[np.uint16]:
    """Grey values with the labels in their colours: uint16 ``(z, 3, y, x)`` of 0 to 255.

    Parameters
    ----------
    magnitude : ``(z, y, x)``; what is not finite is black.
    """
    finite = np.where(np.isfinite(magnitude), magnitude, 0)
    white = float(np.percentile(finite, BRIGHTEST)) or 1.0
    grey = np.clip(finite * (255 / white), 0, 255).astype(np.float32)
    pixels = np.repeat(grey[:, None], 3, axis=1)
    inside = labels.labels > 0
    opacity = np.where(outline(labels.labels), 1.0, OPACITY)[inside].astype(np.float32)
    table = np.array(labels.table.colours, np.float32)
    for channel in range(3):
        plane = pixels[:, channel]
        plane[inside] += opacity * (table[labels.labels[inside], channel] - plane[inside])
    return np.rint(pixels).astype(np.uint16)


def outline(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Voxels of a class that touch another class in their slice: bool ``(z, y, x)``."""
    edged = np.pad(labels, ((0, 0), (1, 1), (1, 1)))
    shifted = (edged[:, 2:, 1:-1], edged[:, :-2, 1:-1], edged[:, 1:-1, 2:], edged[:, 1:-1, :-2])
    touches = np.zeros(labels.shape, np.bool_)
    for neighbour in shifted:
        touches |= neighbour != labels
    return touches & (labels > 0)


def contours(labels: NDArray[np.uint8], table: LabelTable, axes: Literal["xy", "yx"] = "xy") -> Meta:
    """``ROI_CLASS_NAME_n`` attributes of one slice: a closed polygon for each outline of each class.

    The number of the class keeps apart names that differ only in characters that a key cannot have.

    The values are red, green, blue (0 to 1), thickness, style, visibility, and then the coordinates of the corners in
    pixels, the first of them again at the end.

    Parameters
    ----------
    labels : ``(y, x)``.
    axes : which coordinate of a corner comes first.
    """
    from contourpy import contour_generator

    attributes: Meta = {}
    for number, (name, colour) in enumerate(zip(table.names, table.colours, strict=True)):
        if number == 0 or not (labels == number).any():
            continue
        generator = contour_generator(z=np.pad((labels == number).astype(np.float64), 1))
        head = [*(f"{part / 255:.4g}" for part in colour), str(THICKNESS_PIXELS), str(SOLID), str(VISIBLE)]
        for index, line in enumerate(generator.lines(0.5)):
            corners = np.asarray(line) - 1  # without the padding
            ordered = corners if axes == "xy" else corners[:, ::-1]
            safe = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
            attributes[f"ROI_{number}_{safe}_{index}"] = [*head, *(f"{value:g}" for value in ordered.ravel())]
    return attributes
