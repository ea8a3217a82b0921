"""Takes a number of lines and frames, gives which phase-encode lines each frame of a cine scan acquires.

Every function returns bool ``(frames, lines)``; the centre of k-space is line ``n // 2``.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError

Lines = NDArray[np.bool_]
Density = Literal["normal", "vista", "uniform"]

VARIANCE_PER_LINE = 1.0 / 0.3
"""Variance of DiSK's normal density over the number of lines: a spread of 16.3 lines for 80."""


def sampled_lines(
    density: Density, n_lines: int, n_frames: int, acceleration: float, rng: np.random.Generator
) -> Lines:
    """Lines of a scan in which every frame has the same number, ``n_lines / acceleration`` rounded, at least one.

    Raises
    ------
    ConfigError : an acceleration below 1, or an unknown density.
    """
    if not 1.0 <= acceleration <= n_lines:
        raise ConfigError(f"acceleration is {acceleration}", hint=f"a number from 1 to {n_lines}")
    per_frame = max(round(n_lines / acceleration), 1)
    if per_frame == n_lines:
        return np.ones((n_frames, n_lines), np.bool_)
    if density == "normal":
        return normal_lines(n_lines, n_frames, per_frame, rng)
    if density == "vista":
        return vista_lines(n_lines, n_frames, per_frame, rng)
    if density == "uniform":
        return uniform_lines(n_lines, n_frames, per_frame)
    raise ConfigError(f"unknown density {density!r}", hint="normal, vista or uniform")


def normal_lines(n_lines: int, n_frames: int, per_frame: int, rng: np.random.Generator, extra: int = 0) -> Lines:
    """DiSK's masks: each frame draws its lines without replacement, likely by a normal density around the centre.

    `extra` lines more are spread evenly over what no frame has drawn yet: DiSK's code fills ``n T / R`` up so.
    """
    offset = np.arange(n_lines) - n_lines / 2
    weight = np.exp(-0.5 * offset**2 / (VARIANCE_PER_LINE * n_lines))
    weight /= weight.sum()
    chosen = np.zeros((n_frames, n_lines), np.bool_)
    # Gumbel's trick draws without replacement: the largest of log p + Gumbel noise (Kool et al., ICML 2019, section 2).
    keys = np.log(weight) + rng.gumbel(size=chosen.shape)
    np.put_along_axis(chosen, np.argsort(-keys, axis=1)[:, :per_frame], True, axis=1)
    if extra:
        free = np.flatnonzero(~chosen)
        chosen.reshape(-1)[rng.choice(free, min(extra, free.size), replace=False)] = True
    return chosen


def disk_lines(n_lines: int, n_frames: int, acceleration: float, rng: np.random.Generator) -> Lines:
    """Masks as DiSK's training draws them: ``int(n T / R)`` lines in all, and what does not divide spread evenly."""
    total = int(n_lines * n_frames / acceleration)
    return normal_lines(n_lines, n_frames, total // n_frames, rng, extra=total % n_frames)


def uniform_lines(n_lines: int, n_frames: int, per_frame: int) -> Lines:
    """Lines at equal distances, moved on by one from frame to frame (as in k-t methods); fewer fill up the centre."""
    step = n_lines // per_frame
    chosen = np.zeros((n_frames, n_lines), np.bool_)
    for frame in range(n_frames):
        start = (n_lines // 2 + frame) % step
        lines = (np.arange(per_frame) * step + start + (n_lines - per_frame * step) // 2 // step * step) % n_lines
        chosen[frame, lines] = True
    return chosen


def vista_lines(n_lines: int, n_frames: int, per_frame: int, rng: np.random.Generator, iterations: int = 40) -> Lines:
    """Variable-density incoherent lines: points of the ky-t plane that repel each other, denser near the centre.

    1. Draw points of each frame at random on an axis on which the wanted density is even.
    2. Move them down the gradient of a Riesz energy ``sum 1 / distance^s`` over the neighbouring frames.
    3. Carry them over to ky and round; lines of a frame that fell together move to the nearest free place.

    After Ahmad et al., MRM 74:1266 (2015), with its energy; the density comes by the change of axis instead of by
    weights of the points, and the steps are plain gradient steps of a fixed number.
    """
    spacing, reach = 1.0 / per_frame, 3
    place = (np.arange(per_frame) + rng.random((n_frames, per_frame))) * spacing
    for iteration in range(iterations):
        force = np.zeros_like(place)
        for dt in range(-reach, reach + 1):
            delta = (place[:, :, None] - np.roll(place, dt, axis=0)[:, None, :]) / spacing
            delta -= np.rint(delta * spacing) / spacing  # the axis is closed, so that its ends are no walls
            squared = delta**2 + (0.4 * dt) ** 2
            if dt == 0:
                squared[:, np.arange(per_frame), np.arange(per_frame)] = np.inf
            force += (delta / np.maximum(squared, 0.01) ** 2).sum(axis=2)
        place = (place + 0.25 * spacing * (1 - iteration / iterations) * np.tanh(force)) % 1.0
    lines = np.interp(place, *_cumulative_density(n_lines))
    chosen = np.zeros((n_frames, n_lines), np.bool_)
    for frame in range(n_frames):
        for line in np.floor(lines[frame]).astype(int):
            free = np.flatnonzero(~chosen[frame])
            chosen[frame, free[np.argmin(np.abs(free - line))]] = True
    return chosen


def _cumulative_density(n_lines: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cumulative density and line (0 to n) of VISTA's lines: a Gaussian over the centre on an even floor."""
    edges = np.linspace(0.0, n_lines, 4 * n_lines + 1)
    middle = 0.5 * (edges[1:] + edges[:-1]) - n_lines / 2
    density = np.exp(-0.5 * (middle / (0.14 * n_lines)) ** 2) + 0.22
    return np.concatenate(([0.0], np.cumsum(density) / density.sum())), edges
