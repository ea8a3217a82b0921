"""Takes label maps of a beating heart in several views, gives the eighteen phenotypes of paper 003 (appendix A).

Ventricles: areas of the short-axis slices times their distance (Simpson's rule), at end-diastole (the frame with the
largest left ventricle) and end-systole (the smallest). The wall's mass is taken at end-diastole. Left atrium: areas
and lengths of the 2- and 4-chamber view (biplane area-length method); right atrium: the 4-chamber view alone. This is
how the values of UK Biobank are made (Petersen et al., J Cardiovasc Magn Reson 19:18 (2017)).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import ShapeError
from ..types import Geometry, LabelTable

HEART_LABELS = LabelTable(
    ("background", "LV cavity", "LV myocardium", "RV cavity", "left atrium", "right atrium"),
    ((0, 0, 0), (220, 50, 50), (60, 180, 75), (60, 110, 230), (245, 190, 60), (170, 90, 210)),
)
"""Papillary muscles count as cavity, as in the contours of UK Biobank; the free wall of the right ventricle and all
vessels are background."""

LV_CAVITY, LV_MYOCARDIUM, RV_CAVITY, LEFT_ATRIUM, RIGHT_ATRIUM = range(1, 6)

PHENOTYPES = (
    "LVEDV_mL", "LVESV_mL", "LVSV_mL", "LVEF_percent", "LVCO_L_per_min", "LVM_g",
    "RVEDV_mL", "RVESV_mL", "RVSV_mL", "RVEF_percent",
    "LAVmax_mL", "LAVmin_mL", "LASV_mL", "LAEF_percent",
    "RAVmax_mL", "RAVmin_mL", "RASV_mL", "RAEF_percent",
)  # fmt: skip
"""The eighteen of paper 003, appendix A, in its order."""

SLICE_MEASURES = (
    "LV_area_max_cm2", "LV_area_min_cm2", "LV_area_change_percent", "LV_wall_area_cm2",
    "RV_area_max_cm2", "RV_area_min_cm2", "RV_area_change_percent",
)  # fmt: skip
"""What a single short-axis slice shows, in place of volumes."""

DISEASES = ("coronary_artery_disease", "high_blood_pressure", "hypertension")
"""The three of paper 003, table 2, in its order."""

DENSITY_G_PER_ML = 1.05
"""Of myocardium."""

Labels = NDArray[np.uint8]
Curve = NDArray[np.float64]


def phenotypes(
    labels: Labels, geometries: Sequence[Geometry], views: Sequence[str], heart_rate_bpm: float = 0.0
) -> dict[str, float]:
    """The eighteen phenotypes by name; NaN for what these views do not show.

    Parameters
    ----------
    labels : uint8 ``(views, frames, y, x)``, indices of `HEART_LABELS`.
    geometries : of every view.
    views : ``sax...`` for short axes, ``4ch``, ``2ch``; others are not used.
    heart_rate_bpm : for the cardiac output; 0 if it is not known.

    Raises
    ------
    ShapeError : labels, geometries and views differ in number.
    """
    if labels.ndim != 4 or not len(labels) == len(geometries) == len(views):
        raise ShapeError(f"labels {labels.shape} with {len(geometries)} geometries and {len(views)} views")
    short = [i for i, view in enumerate(views) if view.startswith("sax")]
    cavity, wall, right = (
        _simpson_ml(labels[short] == index, [geometries[i] for i in short])
        for index in (LV_CAVITY, LV_MYOCARDIUM, RV_CAVITY)
    )
    by_name = {view: i for i, view in enumerate(views)}
    along = np.array(geometries[short[0]].slice_dir) if short else None
    left_atrium = _biplane_ml(labels, geometries, by_name, LEFT_ATRIUM, along)
    right_atrium = _single_plane_ml(labels, geometries, by_name, RIGHT_ATRIUM, along)
    diastole, systole = int(np.argmax(cavity)), int(np.argmin(cavity))
    values = [
        *_four(float(cavity[diastole]), float(cavity[systole])),
        heart_rate_bpm * float(cavity[diastole] - cavity[systole]) / 1000 if heart_rate_bpm > 0 else float("nan"),
        DENSITY_G_PER_ML * float(wall[diastole]),
        *_four(float(right[diastole]), float(right[systole])),
        *_four(float(left_atrium.max()), float(left_atrium.min())),
        *_four(float(right_atrium.max()), float(right_atrium.min())),
    ]
    return dict(zip(PHENOTYPES, values, strict=True))


def slice_measures(labels: Labels, pixel_mm2: float) -> dict[str, float]:
    """Areas of one short-axis slice over a heartbeat, by name (`SLICE_MEASURES`); NaN where a chamber is not seen.

    Parameters
    ----------
    labels : uint8 ``(frames, y, x)``, indices of `HEART_LABELS`. The wall is that of the frame with the largest cavity.
    pixel_mm2 : area of a pixel.
    """
    cavity, wall, right = (
        (labels == index).sum(axis=(1, 2)) * pixel_mm2 / 100 for index in (LV_CAVITY, LV_MYOCARDIUM, RV_CAVITY)
    )
    left = _four(float(cavity.max()), float(cavity.min()))
    other = _four(float(right.max()), float(right.min()))
    values = [left[0], left[1], left[3], float(wall[int(np.argmax(cavity))]), other[0], other[1], other[3]]
    return dict(zip(SLICE_MEASURES, values, strict=True))


def _four(large: float, small: float) -> tuple[float, float, float, float]:
    """Largest and smallest volume, stroke volume, ejection fraction in percent."""
    return large, small, large - small, 100 * (1 - small / large) if large > 0 else float("nan")


def _simpson_ml(inside: NDArray[np.bool_], geometries: Sequence[Geometry]) -> Curve:
    """Volume in every frame: sum of areas ``(slices, frames, y, x)`` times the mean distance of neighbouring slices.

    NaN for fewer than two slices: one slice has an area (`slice_measures`), and nobody knows how long the chamber is.
    """
    if len(geometries) < 2:
        return np.full(inside.shape[1], np.nan)
    areas = inside.sum(axis=(2, 3)) * np.array([pixel_area_mm2(g) for g in geometries])[:, None]
    normal = np.array(geometries[0].slice_dir)
    heights = np.sort([float(np.array(g.position_mm) @ normal) for g in geometries])
    distance = float(np.diff(heights).mean())
    return np.asarray(areas.sum(axis=0) * distance / 1000)


def _biplane_ml(
    labels: Labels, geometries: Sequence[Geometry], views: dict[str, int], index: int, along: Curve | None
) -> Curve:
    """``8 A1 A2 / (3 pi L)`` with the shorter of the two lengths, in every frame."""
    if "4ch" not in views or "2ch" not in views:
        return np.full(labels.shape[1], np.nan)
    (area_4, length_4), (area_2, length_2) = (
        _areas_and_lengths(labels[views[view]] == index, geometries[views[view]], along) for view in ("4ch", "2ch")
    )
    length = np.minimum(length_4, length_2)
    return np.asarray(8 * area_4 * area_2 / (3 * np.pi * np.maximum(length, 1e-9)) / 1000)


def _single_plane_ml(
    labels: Labels, geometries: Sequence[Geometry], views: dict[str, int], index: int, along: Curve | None
) -> Curve:
    """``8 A^2 / (3 pi L)`` in every frame."""
    if "4ch" not in views:
        return np.full(labels.shape[1], np.nan)
    area, length = _areas_and_lengths(labels[views["4ch"]] == index, geometries[views["4ch"]], along)
    return np.asarray(8 * area**2 / (3 * np.pi * np.maximum(length, 1e-9)) / 1000)


def _areas_and_lengths(inside: NDArray[np.bool_], geometry: Geometry, along: Curve | None) -> tuple[Curve, Curve]:
    """Area in mm^2 and extent along the heart's axis in mm, in every frame ``(frames, y, x)``.

    The axis is the normal of the short axes; without them, the y axis of the view.
    """
    direction = np.array(geometry.phase_dir) if along is None else along
    dx, dy, _ = geometry.voxel_size_mm
    ny, nx = inside.shape[1:]
    x_mm = dx * np.arange(nx) * float(np.dot(direction, geometry.read_dir))
    y_mm = dy * np.arange(ny) * float(np.dot(direction, geometry.phase_dir))
    height = y_mm[:, None] + x_mm
    areas = inside.sum(axis=(1, 2)) * pixel_area_mm2(geometry)
    lengths = [float(np.ptp(height[frame])) + min(dx, dy) if frame.any() else 0.0 for frame in inside]
    return np.asarray(areas, np.float64), np.array(lengths)


def pixel_area_mm2(geometry: Geometry) -> float:
    """Area of one pixel in the plane."""
    dx, dy, _ = geometry.voxel_size_mm
    return dx * dy
