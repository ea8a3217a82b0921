"""Images of a cine recording to draw its labels on; the networks of a cine scan see none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config import resolve
from ..mrd.recovering import open_recording
from ..pipeline import build_pipeline
from ..recon.fourier import to_image
from ..types import Complex, Float, FrameImage, KSpace, Scan

_CARTESIAN = ("gridding.method=lines", "readouts.remove_oversampling=true", "coils.method=rss")
_RADIAL = ("readouts.remove_oversampling=true", "coils.method=rss")


@dataclass(frozen=True)
class Underlay:
    """Magnitude images float32 ``(slices, frames, y, x)``.

    Parameters
    ----------
    measured : of each frame's readouts alone; what was not measured is 0.
    shared : each line from the nearest frame of the heartbeat that has it; for spokes, as `measured`.
    """

    measured: Float
    shared: Float


def cine_underlay(recording: Path) -> Underlay:
    """Reconstruct every frame of every slice of a cine recording.

    Raises
    ------
    KstreamError : the recording cannot be read, or is no scan of one image for each frame and slice.
    """
    with open_recording(recording) as source:
        scan = source.scan
        is_cartesian = scan.trajectory in ("cartesian", "epi")
        preset, settings = ("recon-cartesian", _CARTESIAN) if is_cartesian else ("recon-radial", _RADIAL)
        measurement = build_pipeline(scan, resolve(preset, settings=settings).config)
        shape = (scan.limit("slice").size, measurement.plan.n_frames, *_plane(scan))
        made: Complex = np.zeros(shape, np.complex64)

        def keep(item: KSpace | FrameImage) -> None:
            made[item.slice, item.frame] = item.data[0]

        pipeline = measurement.pipeline
        pipeline.observe(KSpace if is_cartesian else FrameImage, keep)
        for acquisition in source.acquisitions():
            pipeline.push(acquisition)
        pipeline.finish()
    if not is_cartesian:
        images = np.abs(made)
        return Underlay(images, images)
    shared = np.stack([shared_lines(kspace) for kspace in made])
    return Underlay(np.abs(to_image(made)), np.abs(to_image(shared)))


def shared_lines(kspace: Complex) -> Complex:
    """K-space ``(frames, y, x)`` with each line from the nearest frame that has it; lines not measured are exactly 0.

    The heartbeat is closed: the first frame follows the last. Lines that no frame has stay 0.
    """
    has: NDArray[np.bool_] = np.asarray(kspace.any(axis=-1))
    n_frames, n_lines = has.shape
    filled = kspace.copy()
    for line in range(n_lines):
        frames = np.flatnonzero(has[:, line])
        if frames.size:
            away = np.abs(np.arange(n_frames)[:, None] - frames)
            nearest = np.minimum(away, n_frames - away).argmin(axis=1)
            filled[:, line] = kspace[frames[nearest], line]
    return filled


def _plane(scan: Scan) -> tuple[int, int]:
    nx, ny, _ = scan.recon_matrix
    return ny, nx
