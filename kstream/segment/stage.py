"""From one contrast difference to its label map."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines import Engine
from ..errors import ScanError, ShapeError
from ..models.bundle import BundleInfo
from ..types import Complex, Difference, LabelMap
from .patches import cut_patch, majority_vote, patch_starts


def to_channels(kspace: Complex) -> NDArray[np.float32]:
    """Complex ``(z, y, x)`` to the network's float32 ``(2, z, y, x)``: the one place where complex becomes real."""
    return np.stack((kspace.real, kspace.imag)).astype(np.float32, copy=False)


def segment_volume(difference: Complex, engine: Engine, patch_depth: int, patch_stride: int) -> NDArray[np.uint8]:
    """Segment a volume patch by patch.

    1. Cut patches of `patch_depth` slices, `patch_stride` apart, and one at the tail.
    2. The engine gives logits; their argmax is a patch's vote.
    3. Strict majority over the patches that hold a voxel (paper 000, inference).

    Parameters
    ----------
    difference : complex64 ``(z, y, x)``, scaled difference k-space as in `types.Difference`.

    Returns
    -------
    uint8 class indices ``(z, y, x)``, in image space.

    Raises
    ------
    ShapeError : if the volume does not have three axes or has no slice.
    ScanError : if it holds values that are not finite.
    """
    if difference.ndim != 3 or 0 in difference.shape:
        raise ShapeError(f"a volume to segment is (z, y, x), not {difference.shape}")
    if not np.isfinite(difference).all():
        raise ScanError(
            "the difference k-space holds values that are not finite",
            likely="a corrupt readout, or pre-contrast data without signal",
        )
    n_slices, height, width = difference.shape
    predictions = []
    for start in patch_starts(n_slices, patch_depth, patch_stride):
        logits = engine.run(to_channels(cut_patch(difference, start, patch_depth))[None])
        predictions.append((start, logits[0].argmax(axis=0).astype(np.uint8)))
    return majority_vote(predictions, (n_slices, height, width))


class Segment:
    """Stage: label the contrast differences of some frames; those of other frames end here.

    Parameters
    ----------
    engine : runs the network.
    info : labels and patch geometry of the bundle that the engine holds.
    frames : which frames to segment, such as ``(2,)`` for the second post-contrast frame; empty: all.
    """

    takes: tuple[type, ...] = (Difference,)
    gives: tuple[type, ...] = (LabelMap,)

    def __init__(self, engine: Engine, info: BundleInfo, frames: tuple[int, ...]) -> None:
        self._engine, self._info, self._frames = engine, info, frames

    def push(self, item: Difference) -> list[Any]:
        if self._frames and item.frame not in self._frames:
            return []
        try:
            labels = segment_volume(item.data, self._engine, self._info.patch_depth, self._info.patch_stride)
        except ScanError as error:
            raise error.at(f"frame {item.frame}, slice {item.slice}") from error.__cause__
        return [
            LabelMap(
                labels=labels,
                table=self._info.labels,
                frame=item.frame,
                slice=item.slice,
                received_ns=item.received_ns,
                geometry=item.geometry,
                provenance=self._engine.describe(),
            )
        ]

    def finish(self) -> list[Any]:
        return []
