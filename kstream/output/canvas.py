"""Drawing one slice: grey magnitude, label outlines, orientation letters, scale bar.

Positions inside a slice are in voxels measured from the outer edge of the first voxel, ``(x, y)``: the centre of voxel
``(0, 0)`` lies at ``(0.5, 0.5)``. Pictures keep millimetres square whatever the voxel size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..types import Geometry, Vector

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

PAPER: Colour = (11, 13, 16)
INK: Colour = (232, 235, 240)
MUTED: Colour = (139, 147, 160)
RULE: Colour = (44, 50, 60)

_SUPERSAMPLING = 3
FILL_ALPHA = 0.42
_TRUTH_COLOURS: tuple[Colour, ...] = ((64, 224, 255), (255, 226, 89), (255, 120, 222), (120, 150, 255))
_DISTINCT = 140.0  # distance in RGB from which two outlines are told apart at a glance
_NICE_LENGTHS_MM = (5, 10, 20, 50, 100, 200)
# Pillow's own typeface (Aileron) is complete for printable ASCII and a few signs only.
_BUILT_IN_GLYPHS = frozenset(chr(code) for code in range(32, 127)) | frozenset("·±")


@dataclass(frozen=True)
class Pane:
    """A window onto one slice: which part of it (voxels) is shown at which size (pixels)."""

    box: Box
    width_px: int
    height_px: int

    @classmethod
    def over(cls, box: Box, geometry: Geometry, side_px: int) -> Pane:
        """A pane whose longer side has `side_px`, and the other what millimetres require."""
        voxel_x_mm, voxel_y_mm, _ = geometry.voxel_size_mm
        x0, y0, x1, y1 = box
        width_mm, height_mm = (x1 - x0) * voxel_x_mm, (y1 - y0) * voxel_y_mm
        px_per_mm = side_px / max(width_mm, height_mm)
        return cls(box, max(1, round(width_mm * px_per_mm)), max(1, round(height_mm * px_per_mm)))

    @property
    def size(self) -> tuple[int, int]:
        return self.width_px, self.height_px

    def to_pixels(self, points: NDArray[np.float64], scale: int = 1) -> NDArray[np.float64]:
        """Pixel positions of voxel positions ``(points, xy)``."""
        x0, y0, x1, y1 = self.box
        return (points - (x0, y0)) * (scale * self.width_px / (x1 - x0), scale * self.height_px / (y1 - y0))


def grey_window(volume: NDArray[Any], percentiles: tuple[float, float]) -> tuple[float, float]:
    """Grey levels that become black and white: percentiles of the finite voxels."""
    finite = volume[np.isfinite(volume)]
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(level) for level in np.percentile(finite, percentiles))
    return (low, high) if high > low else (low, low + 1.0)


def draw_magnitude(magnitude: NDArray[Any], pane: Pane, window: tuple[float, float]) -> Image.Image:
    """The pane's part of a ``(y, x)`` magnitude in grey, bicubic, as RGB."""
    from PIL import Image

    low, high = window
    finite = np.nan_to_num(magnitude.astype(np.float32), nan=low, posinf=high, neginf=low)
    # A box outside the image is shown as black: only zoomed panes at the border of the field of view have one.
    x0, y0, x1, y1 = pane.box
    pad = int(max(0, np.ceil(max(-x0, -y0, x1 - finite.shape[1], y1 - finite.shape[0]))))
    padded = np.pad(finite, pad, constant_values=low)
    box = (x0 + pad, y0 + pad, x1 + pad, y1 + pad)
    enlarged = np.asarray(Image.fromarray(padded).resize(pane.size, Image.Resampling.BICUBIC, box=box))
    grey = np.clip((enlarged - low) / (high - low), 0, 1) ** 0.9 * 255
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def draw_labels(
    image: Image.Image, labels: NDArray[Any], pane: Pane, colours: tuple[Colour, ...], line_px: float
) -> None:
    """Translucent fill and outline of every class but background, in place."""
    for value in np.unique(labels[labels > 0]):
        colour = colours[int(value) % len(colours)]
        rings = list(contours(labels == value))
        _paint(image, colour, _fill_mask(rings, pane), FILL_ALPHA)
        _paint(image, (0, 0, 0), _line_mask(rings, pane, line_px + 1.6, dash_px=0), 0.45)
        _paint(image, colour, _line_mask(rings, pane, line_px, dash_px=0), 1.0)


def draw_classes(
    image: Image.Image, labels: NDArray[Any], pane: Pane, colours: tuple[Colour, ...], alpha: float
) -> None:
    """Translucent fill of every class but background, voxel by voxel, in place: for classes of many small parts."""
    from PIL import Image

    x0, y0, x1, y1 = pane.box
    plain = Image.fromarray(labels.astype(np.uint8)).resize(pane.size, Image.Resampling.NEAREST, box=(x0, y0, x1, y1))
    shown = np.asarray(plain)
    for value in np.unique(shown[shown > 0]):
        mask = Image.fromarray(np.where(shown == value, np.uint8(255), np.uint8(0)))
        _paint(image, colours[int(value) % len(colours)], mask, alpha)


def draw_truth(image: Image.Image, truth: NDArray[Any], pane: Pane, colour: Colour, line_px: float) -> None:
    """Dashed outline of every class but background, in place."""
    for value in np.unique(truth[truth > 0]):
        rings = list(contours(truth == value))
        _paint(image, (0, 0, 0), _line_mask(rings, pane, line_px + 1.2, dash_px=4 * line_px), 0.6)
        _paint(image, colour, _line_mask(rings, pane, line_px, dash_px=4 * line_px), 1.0)


def contours(mask: NDArray[np.bool_]) -> Iterator[NDArray[np.float64]]:
    """Closed outlines ``(points, xy)`` of a ``(y, x)`` mask in voxels.

    Marching squares at one half between voxel centres, then two rounds of corner cutting (Chaikin 1974). The line
    stays within half a voxel of the voxel edges and runs crisp at any enlargement.
    """
    from contourpy import contour_generator

    padded = np.pad(mask, 1).astype(np.float64)
    for ring in contour_generator(z=padded).lines(0.5):
        points = _canonical(np.asarray(ring)[:-1] - 0.5)
        for _ in range(2):
            following = np.roll(points, -1, axis=0)
            points = np.stack([0.75 * points + 0.25 * following, 0.25 * points + 0.75 * following], axis=1)
            points = points.reshape(-1, 2)
        yield np.concatenate([points, points[:1]])


def _canonical(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ring from its lowest point on, counter-clockwise: a line that two classes share is then dashed alike."""
    x, y = ring.T
    if np.dot(x, np.roll(y, -1)) < np.dot(y, np.roll(x, -1)):
        ring = ring[::-1]
    return np.roll(ring, -int(np.lexsort((ring[:, 0], ring[:, 1]))[0]), axis=0)


def truth_colour(colours: tuple[Colour, ...]) -> Colour:
    """The first outline colour for ground truth that is distinct from every class colour, or else the farthest.

    White is not among them: on bright tissue it would not be seen.
    """
    classes = np.array(colours[1:] or [(0, 0, 0)], dtype=np.float64)
    distances = [float(np.linalg.norm(classes - candidate, axis=1).min()) for candidate in _TRUTH_COLOURS]
    distinct = [colour for colour, away in zip(_TRUTH_COLOURS, distances, strict=True) if away >= _DISTINCT]
    return distinct[0] if distinct else _TRUTH_COLOURS[int(np.argmax(distances))]


def direction_letters(direction: Vector) -> tuple[str, str]:
    """Letters at the two ends of an axis, ``(start, end)``, from its LPS direction, such as ``("R", "L")``.

    An oblique axis gets a second letter where its second component exceeds 0.4 (about 24 degrees).
    """
    largest = np.argsort(-np.abs(direction))[:2]
    named = [(int(axis), direction[axis] > 0) for axis in largest if abs(direction[axis]) > 0.4]
    end = "".join("LPS"[axis] if positive else "RAI"[axis] for axis, positive in named)
    start = "".join("RAI"[axis] if positive else "LPS"[axis] for axis, positive in named)
    return start, end


def draw_letters(image: Image.Image, geometry: Geometry) -> None:
    """Orientation letters in the middle of each edge, in place."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(image)
    size = max(13, image.width // 36)
    left, right = direction_letters(geometry.read_dir)
    top, bottom = direction_letters(geometry.phase_dir)
    margin = size // 2
    for text, xy, anchor in (
        (left, (margin, image.height // 2), "lm"),
        (right, (image.width - margin, image.height // 2), "rm"),
        (top, (image.width // 2, margin), "ma"),
        (bottom, (image.width // 2, image.height - margin), "md"),
    ):
        shadowed_text(draw, xy, text, size, anchor)


def draw_scale_bar(image: Image.Image, pane: Pane, geometry: Geometry, corner: str = "right") -> None:
    """A bar of a round number of millimetres in the lower right or left corner, in place."""
    from PIL import ImageDraw

    mm_per_px = (pane.box[2] - pane.box[0]) * geometry.voxel_size_mm[0] / pane.width_px
    fitting = [length for length in _NICE_LENGTHS_MM if length / mm_per_px <= 0.24 * pane.width_px]
    length_mm = fitting[-1] if fitting else _NICE_LENGTHS_MM[0]
    length_px = round(length_mm / mm_per_px)
    size = max(12, image.width // 44)
    margin = max(8, image.width // 50)
    x0 = image.width - margin - length_px if corner == "right" else margin
    y = image.height - margin
    draw = ImageDraw.Draw(image)
    draw.rectangle((x0 - 1, y - 4, x0 + length_px + 1, y + 1), fill=(0, 0, 0))
    draw.rectangle((x0, y - 3, x0 + length_px, y), fill=INK)
    shadowed_text(draw, (x0 + length_px // 2, y - 7), f"{length_mm} mm", size, "md")


def shadowed_text(draw: ImageDraw.ImageDraw, xy: tuple[int, int], text: str, size: int, anchor: str) -> None:
    """Text that stays readable on bright tissue."""
    draw.text(
        xy, text, INK, font=font(size, text), anchor=anchor, stroke_width=1 if size < 15 else 2, stroke_fill=(0, 0, 0)
    )


def font(size: int, text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A typeface that has every sign of `text`."""
    return _font(size, _BUILT_IN_GLYPHS.issuperset(text))


@lru_cache(maxsize=32)
def _font(size: int, built_in: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    if built_in:
        return ImageFont.load_default(size)
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size - 1)


def _fill_mask(rings: list[NDArray[np.float64]], pane: Pane) -> Image.Image:
    """Antialiased inside of the rings; a ring within a ring is a hole (even-odd rule)."""
    from PIL import Image, ImageChops, ImageDraw

    mask = Image.new("1", (pane.width_px * _SUPERSAMPLING, pane.height_px * _SUPERSAMPLING))
    for ring in rings:
        one = Image.new("1", mask.size)
        ImageDraw.Draw(one).polygon([(x, y) for x, y in pane.to_pixels(ring, _SUPERSAMPLING)], fill=1)
        mask = ImageChops.logical_xor(mask, one)
    return mask.convert("L").resize(pane.size, Image.Resampling.BOX)


def _line_mask(rings: list[NDArray[np.float64]], pane: Pane, line_px: float, dash_px: float) -> Image.Image:
    """Antialiased outline of the rings, dashed if `dash_px` is positive."""
    from PIL import Image, ImageDraw

    mask = Image.new("L", (pane.width_px * _SUPERSAMPLING, pane.height_px * _SUPERSAMPLING))
    draw = ImageDraw.Draw(mask)
    width = max(1, round(line_px * _SUPERSAMPLING))
    for ring in rings:
        points = pane.to_pixels(ring, _SUPERSAMPLING)
        for piece in _dashes(points, dash_px * _SUPERSAMPLING) if dash_px else [points]:
            draw.line([(x, y) for x, y in piece], fill=255, width=width, joint="curve")
    return mask.resize(pane.size, Image.Resampling.BOX)


def _dashes(points: NDArray[np.float64], dash_px: float) -> Iterator[NDArray[np.float64]]:
    """Pieces of a closed line: an even number of equal dashes and gaps, so that the end meets the start."""
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    n_dashes = max(3, round(length[-1] / (1.7 * dash_px)))
    period = length[-1] / n_dashes
    for start in np.arange(n_dashes) * period:
        at = np.linspace(start, start + 0.59 * period, 9)
        yield np.stack([np.interp(at, length, points[:, axis]) for axis in (0, 1)], axis=1)


def _paint(image: Image.Image, colour: Colour, mask: Image.Image, alpha: float) -> None:
    image.paste(colour, (0, 0), mask.point([round(alpha * level) for level in range(256)]))
