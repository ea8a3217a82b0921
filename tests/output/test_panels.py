"""Pictures of one plane beside itself: measured, labelled, true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kstream.errors import ShapeError
from kstream.output.panels import Look, Panel, Sheet, panels_gif, panels_png, window_of
from kstream.types import Geometry, LabelTable

PLACE = Geometry((23, 17, 1), (46.0, 34.0, 8.0))
TABLE = LabelTable(("background", "left_part", "right part"), ((0, 0, 0), (220, 50, 50), (60, 110, 230)))
IMAGE = np.full((17, 23), 3.0, np.float32)
LABELS = np.zeros((17, 23), np.uint8)
LABELS[4:13, 2:9], LABELS[4:13, 14:21] = 1, 2


def sheet(n_labelled: int = 1) -> Sheet:
    plain = Panel("measured", IMAGE, None, PLACE, (0.0, 10.0))
    return Sheet([plain, *[Panel("labels", IMAGE, LABELS, PLACE, (0.0, 10.0))] * n_labelled], "slice 2 of 5")


def share(picture: Image.Image, colour: int) -> float:
    """Part of the pixels in which one channel outweighs both others."""
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    others = np.delete(pixels, colour, axis=2).max(axis=2)
    return float((pixels[..., colour] > others + 40).mean())


@pytest.mark.parametrize("is_outlined", [False, True])
def test_only_the_labelled_panel_is_coloured(is_outlined: bool, tmp_path: Path) -> None:
    look = Look(TABLE, columns=2, is_outlined=is_outlined)
    with Image.open(panels_png(tmp_path / "new" / "a.png", sheet(), look, side_px=230)) as picture:
        width = picture.width
        body = (0, 60, width, picture.height - 60)
        left = picture.crop(body).crop((0, 0, width // 2, body[3] - 60))
        right = picture.crop(body).crop((width // 2, 0, width, body[3] - 60))
    assert share(left, 0) == share(left, 2) == 0
    assert share(right, 0) == pytest.approx(share(right, 2), rel=0.2)
    assert 0.15 < share(right, 0) < 0.3  # 63 of 391 voxels are of each class


def test_rows_fill_up_to_the_columns(tmp_path: Path) -> None:
    sizes = []
    for n_labelled in (1, 2):
        with Image.open(panels_png(tmp_path / "a.png", sheet(n_labelled), Look(TABLE, columns=2), side_px=90)) as made:
            sizes.append(made.size)
    assert sizes[0][0] == sizes[1][0]
    assert sizes[1][1] > 1.4 * sizes[0][1]


def test_a_film_has_a_frame_for_each_sheet_and_keeps_its_durations(tmp_path: Path) -> None:
    path = panels_gif(
        tmp_path / "a.gif", [sheet(n) for n in (1, 1, 1)], Look(TABLE, columns=2), durations_ms=[70, 80, 90]
    )
    found = []
    with Image.open(path) as film:
        for number in range(getattr(film, "n_frames", 1)):
            film.seek(number)
            found.append(film.info["duration"])
    assert sum(found) == 240  # equal pictures may share a frame


def test_a_panel_of_another_shape_is_refused(tmp_path: Path) -> None:
    wrong = Panel("labels", IMAGE, LABELS.T, PLACE, (0.0, 1.0))
    with pytest.raises(ShapeError, match=r"a panel shows \(23, 17\)"):
        panels_png(tmp_path / "a.png", Sheet([wrong]), Look(TABLE))


def test_air_is_black_and_an_empty_image_has_a_window_too() -> None:
    assert window_of(np.zeros((3, 5))) == (0.0, 1.0)
    assert window_of(np.arange(1001.0)) == (0.0, pytest.approx(995.0))
