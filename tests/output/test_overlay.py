from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kstream.errors import ShapeError
from kstream.output import canvas
from kstream.output.overlay import magnitude_gif, magnitude_png, montage_png, overlay_gif, overlay_png
from kstream.types import Geometry, LabelTable

GEOMETRY = Geometry((47, 31, 5), (235.0, 155.0, 30.0))
RED, GREEN = (255, 60, 40), (60, 200, 90)
TABLE = LabelTable(("background", "lesion", "vessel"), ((0, 0, 0), RED, GREEN))
CYAN = canvas.truth_colour(TABLE.colours)


def volume() -> NDArray[np.float32]:
    return np.random.default_rng(7).random(GEOMETRY.shape).astype(np.float32)


def labels_at(*boxes: tuple[int, int, int, int, int, int]) -> NDArray[np.uint8]:
    """Label map with ``(label, z, y0, y1, x0, x1)`` boxes."""
    labels = np.zeros(GEOMETRY.shape, np.uint8)
    for label, z, y0, y1, x0, x1 in boxes:
        labels[z, y0:y1, x0:x1] = label
    return labels


def pixels(path: Path) -> NDArray[np.int64]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(np.int64)


def near(picture: NDArray[np.int64], colour: tuple[int, int, int], tolerance: int = 30) -> NDArray[np.bool_]:
    return np.all(np.abs(picture - np.array(colour)) <= tolerance, axis=-1)


def body(picture: NDArray[np.int64]) -> NDArray[np.int64]:
    """The picture without the lines above and below, whose legend holds the colours too."""
    return picture[60:-60]


def test_label_and_truth_colours_appear_only_where_they_are_drawn(tmp_path: Path) -> None:
    labels = labels_at((1, 2, 8, 14, 30, 38))
    truth = labels_at((1, 2, 9, 15, 8, 14))
    for given_truth, expected in ((truth, True), (None, False)):
        path = overlay_png(
            tmp_path / "a.png", volume()[2], labels[2], None if given_truth is None else truth[2], TABLE, GEOMETRY
        )
        assert near(body(pixels(path)), RED).any()
        assert not near(body(pixels(path)), GREEN).any()
        assert near(body(pixels(path)), CYAN).any() == expected


def test_outline_lies_at_the_label_and_fill_tints_only_inside() -> None:
    pane = canvas.Pane.over((0, 0, 47, 31), GEOMETRY, 470)
    assert pane.size == (470, 310)
    image = canvas.draw_magnitude(np.full((31, 47), 0.5, np.float32), pane, (0.0, 1.0))
    canvas.draw_labels(image, labels_at((1, 0, 10, 16, 30, 38))[0], pane, TABLE.colours, 2.0)
    tinted = np.ptp(np.asarray(image).astype(int), axis=-1) > 20
    rows, columns = np.nonzero(tinted)
    assert (rows.min(), rows.max()) == pytest.approx((100, 160), abs=3)
    assert (columns.min(), columns.max()) == pytest.approx((300, 380), abs=3)
    assert tinted[130, 340]
    assert near(np.asarray(image)[128:132, 298:303].astype(int), RED).any()
    assert not near(np.asarray(image)[110:150, 310:370].astype(int), RED).any()


def test_hole_in_a_label_is_not_filled() -> None:
    ring = labels_at((1, 0, 5, 25, 10, 40), (0, 0, 10, 20, 17, 33))[0]
    pane = canvas.Pane.over((0, 0, 47, 31), GEOMETRY, 470)
    image = canvas.draw_magnitude(np.full((31, 47), 0.5, np.float32), pane, (0.0, 1.0))
    canvas.draw_labels(image, ring, pane, TABLE.colours, 2.0)
    assert image.getpixel((250, 150)) == canvas.draw_magnitude(np.full((31, 47), 0.5), pane, (0.0, 1.0)).getpixel(
        (0, 0)
    )
    assert image.getpixel((130, 150)) != image.getpixel((250, 150))


def test_single_voxel_label_is_visible() -> None:
    labels = labels_at((2, 0, 15, 16, 20, 21))[0]
    pane = canvas.Pane.over((0, 0, 47, 31), GEOMETRY, 470)
    image = canvas.draw_magnitude(np.zeros((31, 47), np.float32), pane, (0.0, 1.0))
    canvas.draw_labels(image, labels, pane, TABLE.colours, 2.0)
    assert near(np.asarray(image)[150:160, 200:210].astype(int), GREEN).any()


def test_contour_encloses_the_area_of_its_voxels() -> None:
    mask = np.hypot(*(np.indices((31, 47)) - np.array([15, 23])[:, None, None])) < 9.3
    (ring,) = canvas.contours(mask)
    x, y = ring[:-1].T
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    assert area == pytest.approx(mask.sum(), rel=0.06)
    assert ring[:-1].mean(axis=0) == pytest.approx((23.5, 15.5), abs=0.1)


def test_millimetres_are_square_for_long_voxels() -> None:
    geometry = Geometry((47, 31, 5), (235.0, 310.0, 30.0))
    pane = canvas.Pane.over((0, 0, 47, 31), geometry, 470)
    assert pane.size == (356, 470)


@pytest.mark.parametrize(
    ("direction", "letters"),
    [
        ((1.0, 0.0, 0.0), ("R", "L")),
        ((-1.0, 0.0, 0.0), ("L", "R")),
        ((0.0, 1.0, 0.0), ("A", "P")),
        ((0.0, 0.0, 1.0), ("I", "S")),
        ((0.0, -0.8, 0.6), ("PI", "AS")),
        ((0.96, 0.28, 0.0), ("R", "L")),
    ],
)
def test_letters_name_the_side_of_the_patient(direction: tuple[float, float, float], letters: tuple[str, str]) -> None:
    assert canvas.direction_letters(direction) == letters


def test_truth_colour_keeps_away_from_class_colours() -> None:
    assert CYAN == (64, 224, 255)
    assert canvas.truth_colour(((0, 0, 0), (60, 220, 250))) != (64, 224, 255)


def test_grey_window_ignores_what_is_not_a_number() -> None:
    values = np.array([[np.nan, 1.0, 2.0], [np.inf, 3.0, 5.0]])
    assert canvas.grey_window(values, (0.0, 100.0)) == (1.0, 5.0)
    assert canvas.grey_window(np.full((3, 5), np.nan), (0.0, 100.0)) == (0.0, 1.0)
    low, high = canvas.grey_window(np.zeros((3, 5)), (1.0, 99.0))
    assert high > low


def test_film_has_one_frame_per_slice_and_dwells_on_lesions(tmp_path: Path) -> None:
    path = overlay_gif(tmp_path / "v.gif", volume(), labels_at((1, 2, 8, 14, 30, 38)), None, TABLE, GEOMETRY)
    with Image.open(path) as film:
        assert film.n_frames == 5
        durations = []
        for z in range(5):
            film.seek(z)
            durations.append(film.info["duration"])
            assert near(np.asarray(film.convert("RGB")).astype(int)[40:-40], RED).any() == (z == 0)
    assert durations[0] > durations[1]


def test_film_begins_where_most_is_marked_and_else_in_the_middle(tmp_path: Path) -> None:
    """What shows only the first picture of a film shows the best one; the order of slices stays."""
    bright = np.arange(5, dtype=np.float32)[:, None, None] * np.ones(GEOMETRY.shape, np.float32)
    for boxes, first in (((1, 1, 3, 5, 3, 5), (1, 3, 3, 9, 3, 9)), 3), ((), 2):
        path = overlay_gif(tmp_path / "v.gif", bright, labels_at(*boxes), None, TABLE, GEOMETRY)
        greys = []
        with Image.open(path) as film:
            for z in range(5):
                film.seek(z)
                greys.append(int(np.median(np.asarray(film.convert("L"))[40:-40, 40:-40])))
        assert np.argsort(greys).argsort().tolist() == [(first + step) % 5 for step in range(5)]


def test_magnitude_without_labels_shows_slices_over_the_whole_volume(tmp_path: Path) -> None:
    picture = pixels(magnitude_png(tmp_path / "m.png", volume(), GEOMETRY, max_slices=5))
    assert np.ptp(body(picture), axis=-1).max() < 30  # greys only, but for the tint of the letters
    assert magnitude_gif(tmp_path / "m.gif", volume(), GEOMETRY).stat().st_size > 1000
    single = Geometry((47, 31, 1), (235.0, 155.0, 6.0))
    one = pixels(magnitude_png(tmp_path / "one.png", volume()[:1], single))
    assert one.shape[1] < picture.shape[1] / 2
    with pytest.raises(ShapeError, match="magnitude"):
        magnitude_png(tmp_path / "m.png", volume()[:4], GEOMETRY)


def test_film_shrinks_until_it_fits(tmp_path: Path) -> None:
    large = overlay_gif(tmp_path / "l.gif", volume(), labels_at(), None, TABLE, GEOMETRY)
    limit = large.stat().st_size // 3
    small = overlay_gif(tmp_path / "s.gif", volume(), labels_at(), None, TABLE, GEOMETRY, max_bytes=limit)
    assert small.stat().st_size <= limit


def test_montage_shows_each_lesion_slice_once(tmp_path: Path) -> None:
    widths = []
    for boxes in (((1, 1, 8, 14, 20, 28),), ((1, 1, 8, 14, 20, 28), (1, 4, 8, 14, 20, 28))):
        path = montage_png(tmp_path / "m.png", volume(), labels_at(*boxes), None, TABLE, GEOMETRY, panel_px=300)
        widths.append(pixels(path).shape[1])
        assert near(body(pixels(path)), RED).any()
    assert widths[1] > 1.7 * widths[0]


def test_montage_without_lesions_shows_the_middle_slice(tmp_path: Path) -> None:
    path = montage_png(tmp_path / "m.png", volume(), labels_at(), labels_at(), TABLE, GEOMETRY)
    assert not near(body(pixels(path)), RED).any()


def test_zoom_stays_inside_a_slice_when_the_lesion_touches_its_border(tmp_path: Path) -> None:
    labels = labels_at((1, 0, 0, 31, 0, 47))
    overlay_png(
        tmp_path / "a.png", volume()[0], labels[0], labels[0], TABLE, GEOMETRY, title="ganz große Läsion → 3 µl " * 20
    )
    corner = labels_at((1, 0, 30, 31, 46, 47))
    overlay_png(tmp_path / "b.png", volume()[0], corner[0], None, TABLE, GEOMETRY)
    assert near(body(pixels(tmp_path / "b.png")), RED).any()


def test_constant_slice_and_missing_values_are_drawn(tmp_path: Path) -> None:
    magnitude = np.full(GEOMETRY.shape[1:], np.nan, np.float32)
    overlay_png(tmp_path / "a.png", magnitude, labels_at()[0], None, TABLE, GEOMETRY)
    assert pixels(tmp_path / "a.png").shape[1] > 700


def test_arrays_that_contradict_the_geometry_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="ground truth"):
        overlay_png(tmp_path / "a.png", volume()[0], labels_at()[0], labels_at()[0].T, TABLE, GEOMETRY)
    with pytest.raises(ShapeError, match="label map"):
        overlay_gif(tmp_path / "a.gif", volume(), labels_at()[:4], None, TABLE, GEOMETRY)
    with pytest.raises(ShapeError, match="magnitude"):
        montage_png(tmp_path / "a.png", volume()[:, :, :9], labels_at(), None, TABLE, GEOMETRY)
