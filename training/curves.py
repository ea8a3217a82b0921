"""Curves with bootstrap bands, for the report of any study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from .statistics import Interval

DPI = 130
STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))


@dataclass(frozen=True)
class Curve:
    """One arm over the levels of one kind of scenario."""

    name: str
    levels: tuple[float, ...]
    points: tuple[Interval, ...]


def stars(p: float) -> str:
    """Asterisks of an adjusted p value, as in the paper's figure 3."""
    return next((text for limit, text in STARS if p < limit), "")


def draw_curves(
    curves: Sequence[Curve],
    path: Path,
    x_label: str,
    y_label: str,
    marks: Mapping[float, float] | None = None,
    published: Mapping[str, Mapping[float, float]] | None = None,
    y_limits: tuple[float, float] | None = (0, 1.05),
    is_falling: bool = False,
) -> Path:
    """Means with 95 % bands over levels, evenly spaced.

    Parameters
    ----------
    marks : adjusted p values by level, shown as asterisks.
    published : numbers of a publication by level, for each name: crosses, without intervals.
    y_limits : None: as the numbers need.
    is_falling : the largest level comes first, such as the best signal-to-noise ratio.
    """
    figure, axes = plt.subplots(figsize=(7.2, 4.4))
    others = published or {}
    levels = sorted({x for curve in curves for x in curve.levels} | {x for points in others.values() for x in points})
    if is_falling:
        levels.reverse()
    place = {level: index for index, level in enumerate(levels)}
    for curve in curves:
        x = [place[level] for level in curve.levels]
        order = np.argsort(x)
        means, low, high = (
            np.array([getattr(p, part) for p in curve.points])[order] for part in ("mean", "low", "high")
        )
        (line,) = axes.plot(np.array(x)[order], means, marker="o", markersize=3.5, linewidth=1.5, label=curve.name)
        axes.fill_between(np.array(x)[order], low, high, color=line.get_color(), alpha=0.13, linewidth=0)
    for name, points in others.items():
        axes.plot([place[x] for x in points], list(points.values()), "x:", color="0.35", linewidth=1, label=name)
    for level, p in (marks or {}).items():
        axes.text(place[level], 1.0, stars(p), ha="center", va="bottom", fontsize=9)
    axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
    if y_limits is not None:
        axes.set_ylim(*y_limits)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    return save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG and forget it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return path
