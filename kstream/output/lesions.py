"""What a label map and the magnitudes of all frames say about each lesion: volume, place, enhancement over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ShapeError
from ..types import Geometry, LabelTable
from .runinfo import Lesion

_QUARTILES = (25.0, 75.0)


def describe_lesions(
    labels: NDArray[Any],
    frames: Sequence[NDArray[Any]],
    geometry: Geometry,
    table: LabelTable,
    truth: NDArray[Any] | None = None,
) -> tuple[Lesion, ...]:
    """One entry for each connected region of a class, largest first.

    1. Regions are voxels of one class that share a face.
    2. Enhancement of frame f is ``100 (mean_f / mean_0 - 1)`` over the region, in percent of the first frame; the band
       holds the middle half of the region's voxels, each against the region's mean of the first frame.
    3. ``inner_ml`` and ``outer_ml`` are the volumes with the outline half a voxel further in and out: half of the
       voxels at the inner side of the outline less, half of those at its outer side more.

    Parameters
    ----------
    labels : class indices ``(z, y, x)``.
    frames : magnitudes ``(z, y, x)`` of all frames in order of time, in one unit; the first is before contrast. Empty
        where they are unknown.
    truth : class indices ``(z, y, x)``, where known: tells which lesion of the truth (largest is 1) a region touches.

    Raises
    ------
    ShapeError : an array has another shape than the geometry.
    """
    import scipy.ndimage

    for name, array in (("label map", labels), ("ground truth", truth), *(("magnitude", frame) for frame in frames)):
        if array is not None and array.shape != geometry.shape:
            raise ShapeError(f"the {name} has shape {array.shape}, but its geometry promises {geometry.shape}")
    names = _truth_lesions(truth)
    found = []
    for value in (int(v) for v in np.unique(labels) if v > 0):
        regions, n_regions = scipy.ndimage.label(labels == value)
        boxes = scipy.ndimage.find_objects(regions)
        for number in range(1, n_regions + 1):
            # A margin of one voxel, so that the outer side of the outline is in the box.
            box = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in boxes[number - 1])
            found.append((value, box, regions[box] == number))
    found.sort(key=lambda region: -int(np.count_nonzero(region[2])))
    return tuple(
        _lesion(f"lesion {i}", table.names[value % len(table.names)], box, inside, frames, geometry, names)
        for i, (value, box, inside) in enumerate(found, start=1)
    )


def _lesion(
    name: str,
    label: str,
    box: tuple[slice, ...],
    inside: NDArray[np.bool_],
    frames: Sequence[NDArray[Any]],
    geometry: Geometry,
    truth: NDArray[Any] | None,
) -> Lesion:
    import scipy.ndimage

    voxel_ml = float(np.prod(geometry.voxel_size_mm)) / 1000
    n = int(np.count_nonzero(inside))
    n_inner = n - int(np.count_nonzero(scipy.ndimage.binary_erosion(inside)))
    n_outer = int(np.count_nonzero(scipy.ndimage.binary_dilation(inside))) - n
    centre = np.mean(np.nonzero(inside), axis=1) + [part.start for part in box]
    x, y, z = (geometry.affine_lps @ [*centre[::-1], 1.0])[:3]
    by_slice = inside.sum(axis=(1, 2))
    occupied = np.flatnonzero(by_slice) + box[0].start + 1
    mean, low, high = _enhancement([frame[box][inside] for frame in frames])
    return Lesion(
        name=name,
        label=label,
        volume_ml=n * voxel_ml,
        inner_ml=(n - n_inner / 2) * voxel_ml,
        outer_ml=(n + n_outer / 2) * voxel_ml,
        centre_mm=(float(x), float(y), float(z)),
        slices=(int(occupied[0]), int(occupied[-1])),
        largest_slice=int(np.argmax(by_slice)) + box[0].start + 1,
        enhancement_percent=mean,
        low_percent=low,
        high_percent=high,
        touches=None if truth is None else tuple(f"lesion {i}" for i in np.unique(truth[box][inside]) if i),
    )


def _enhancement(samples: Sequence[NDArray[Any]]) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Mean and quartiles over voxels for each frame, in percent of the first frame's mean; empty without signal."""
    before = float(np.mean(samples[0])) if samples else 0.0
    if not (before > 0 and np.isfinite(before)):
        return (), (), ()
    percent = [100 * (np.asarray(sample, np.float64) / before - 1) for sample in samples]
    bands = [np.percentile(values, _QUARTILES) for values in percent]
    return (
        tuple(float(values.mean()) for values in percent),
        tuple(float(band[0]) for band in bands),
        tuple(float(band[1]) for band in bands),
    )


def _truth_lesions(truth: NDArray[Any] | None) -> NDArray[Any] | None:
    """Number of the true lesion of each voxel, largest first as in `segment.metrics.lesion_scores`; 0 outside."""
    if truth is None:
        return None
    import scipy.ndimage

    regions, n_regions = scipy.ndimage.label(truth > 0)
    sizes = np.bincount(regions.ravel(), minlength=n_regions + 1)[1:]
    rank = np.zeros(n_regions + 1, np.int64)
    rank[np.argsort(-sizes, kind="stable") + 1] = np.arange(1, n_regions + 1)
    return np.asarray(rank[regions])
