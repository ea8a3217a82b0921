"""One volume through an engine: patches, logits, votes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..engines import Engine
from ..errors import KstreamError, ModelError, ScanError, ShapeError
from ..types import Complex
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
    ModelError : if the engine fails, or gives logits of another shape or that are not finite.
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
        logits = _logits(engine, to_channels(cut_patch(difference, start, patch_depth)))
        predictions.append((start, logits.argmax(axis=0).astype(np.uint8)))
    return majority_vote(predictions, (n_slices, height, width))


def _logits(engine: Engine, patch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits ``(classes, z, y, x)`` of a patch ``(2, z, y, x)``, checked: a mask made of NaN would be empty."""
    try:
        logits: NDArray[np.float32] = np.asarray(engine.run(patch[None]))
    except KstreamError:
        raise
    except Exception as error:  # a model may raise anything: memory, device, a defect of its own
        raise ModelError(
            f"the model failed: {type(error).__name__}: {error}"[:500],
            likely="no memory on its device, or a model that does not take volumes of this size",
            hint="kstream doctor",
        ) from error
    expected = patch.shape[1:]
    if logits.ndim != 5 or logits.shape[0] != 1 or logits.shape[1] < 2 or logits.shape[2:] != expected:
        raise ModelError(
            f"the model gave {logits.shape}, expected (1, classes, z, y, x) with z, y, x = {expected}",
            likely="a bundle of another kind, or a defect of its engine",
        )
    if not np.isfinite(logits).all():
        raise ModelError(
            "the model gave values that are not finite",
            likely="damaged weights, an overflow in low precision, or a volume of another scale than it was trained on",
            hint="kstream doctor; a device or precision that the model was tested with",
        )
    first: NDArray[np.float32] = logits[0]
    return first
