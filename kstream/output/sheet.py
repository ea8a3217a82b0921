"""The sheet that pictures are put on: a title, panels in a grid, a legend and the notice below; and films of sheets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..types import LabelTable
from . import canvas
from .canvas import INK, MUTED, PAPER, RULE, Colour

if TYPE_CHECKING:
    from PIL import Image

NOTICE = "research use only"
GAP_PX = 6
FILM_SIDES_PX = (640, 520, 420, 340, 260, 200)

Legend = Sequence[tuple[Colour, str, bool]]
"""Colour and name of what is drawn, and whether it is drawn dashed."""


def framed(body: Image.Image, title: str, subtitle: str, legend: Legend) -> Image.Image:
    """The picture with a line above (title, slice) and a line below (legend, notice)."""
    from PIL import Image, ImageDraw

    size = int(np.clip(body.width / 42, 11, 24))
    margin, band = round(0.9 * size), round(2.5 * size)
    picture = Image.new("RGB", (body.width + 2 * margin, body.height + 2 * band), PAPER)
    picture.paste(body, (margin, band))
    draw = ImageDraw.Draw(picture)
    right, top, bottom = picture.width - margin, band // 2, picture.height - band // 2
    draw.text((right, top), subtitle, MUTED, font=canvas.font(size, subtitle), anchor="rm")
    room = right - margin - draw.textlength(subtitle, canvas.font(size, subtitle)) - 2 * size
    shown_title = _shortened(draw, title, size, room)
    draw.text((margin, top), shown_title, INK, font=canvas.font(size, shown_title), anchor="lm")
    small = size - 1
    draw.text((right, bottom), NOTICE, MUTED, font=canvas.font(small, NOTICE), anchor="rm")
    room = right - draw.textlength(NOTICE, canvas.font(small, NOTICE)) - size
    _draw_legend(picture, legend, margin, bottom, small, room)
    return picture


def _draw_legend(picture: Image.Image, legend: Legend, x: float, y: int, size: int, room: float) -> None:
    """Swatches and names from left to right; smaller where they do not fit, cut off under 9 pixels."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)

    def widths(at_size: int) -> list[float]:
        return [3.2 * at_size + draw.textlength(name, canvas.font(at_size, name)) for _, name, _ in legend]

    size = next((smaller for smaller in range(size, 9, -1) if x + sum(widths(smaller)) <= room), 9)
    if x + sum(widths(size)) > room:  # a class less is better than an outline that nothing explains
        legend = sorted(legend, key=lambda entry: not entry[2])
    for (colour, name, is_dashed), width in zip(legend, widths(size), strict=True):
        if x + width > room + size:
            break
        if is_dashed:
            for part in (0.0, 0.6, 1.2):
                draw.line((x + part * size, y, x + (part + 0.33) * size, y), fill=colour, width=2)
        else:
            fill = tuple(round(0.4 * c + 0.6 * p) for c, p in zip(colour, PAPER, strict=True))
            box = (x, y - 0.45 * size, x + 1.5 * size, y + 0.45 * size)
            draw.rectangle(box, fill=fill, outline=colour, width=2)
        draw.text((x + 2 * size, y), name, INK, font=canvas.font(size, name), anchor="lm")
        x += width


def _shortened(draw: Any, text: str, size: int, room: float) -> str:
    """The text, cut with three dots where it is wider than `room` pixels."""
    shown = text
    while shown and draw.textlength(shown, canvas.font(size, shown)) > room:
        shown = shown[:-4].rstrip() + "..." if len(shown) > 4 else ""
    return shown


def caption(image: Image.Image, text: str) -> None:
    """Small text in the upper left corner, in place."""
    from PIL import ImageDraw

    size = max(13, min(18, image.width // 20))
    canvas.shadowed_text(ImageDraw.Draw(image), (size // 2 + 2, size // 2), text, size, "la")


def grid(panels: Sequence[Image.Image], columns: int) -> Image.Image:
    """Panels of one size in rows, from left to right."""
    from PIL import Image

    width, height = panels[0].size
    rows = -(-len(panels) // columns)
    picture = Image.new("RGB", (columns * (width + GAP_PX) - GAP_PX, rows * (height + GAP_PX) - GAP_PX), PAPER)
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        picture.paste(panel, (column * (width + GAP_PX), row * (height + GAP_PX)))
    return picture


def film_colours(table: LabelTable, alpha: float = canvas.FILL_ALPHA) -> list[Colour]:
    """At most 256 colours for all frames of a film: greys, and each drawn colour over greys and towards black.

    One palette for the whole film keeps still parts identical from frame to frame, which is what makes it small.
    `alpha` is how much of a colour covers the grey under it.
    """
    drawn = [*table.colours[1:], canvas.truth_colour(table.colours)][:20]
    n_shades = min(28, 160 // (2 * len(drawn)))
    greys = np.linspace(0, 255, 88)
    shades = np.linspace(0, 1, n_shades)[:, None]
    parts = [greys[:, None].repeat(3, axis=1), np.array([PAPER, INK, MUTED, RULE])]
    for colour in np.array(drawn):
        over_grey = alpha * colour + (1 - alpha) * 255 * shades
        parts += [over_grey, shades * colour]
    rounded = np.concatenate(parts).round().astype(int)[:256]
    return [(int(red), int(green), int(blue)) for red, green, blue in rounded]


def save_film(
    path: str | Path,
    draw: Callable[[int], Sequence[Image.Image]],
    colours: Sequence[Colour],
    durations_ms: Sequence[int],
    max_bytes: int = 4_000_000,
) -> Path:
    """Write an endless GIF, made smaller until it fits `max_bytes` (640 to 200 pixels at the longer side of a panel).

    Parameters
    ----------
    draw : gives the pictures for a longer side in pixels.
    colours : palette of the whole film.
    durations_ms : of each picture.
    """
    film = b""
    for side_px in FILM_SIDES_PX:
        film = _gif_bytes(draw(side_px), colours, durations_ms)
        if len(film) <= max_bytes:
            break
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(film)
    return target


def _gif_bytes(frames: Sequence[Image.Image], colours: Sequence[Colour], durations: Sequence[int]) -> bytes:
    from PIL import Image

    palette = Image.new("P", (1, 1))
    palette.putpalette([part for colour in colours for part in colour])
    indexed = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    buffer = BytesIO()
    indexed[0].save(
        buffer, "GIF", save_all=True, append_images=indexed[1:], duration=list(durations), loop=0, optimize=False
    )
    return buffer.getvalue()


def save(picture: Image.Image, path: str | Path) -> Path:
    """Write a picture as PNG; missing folders are made."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    picture.save(target, "PNG")
    return target
