"""Overlapping patches along z, and the vote that joins what was predicted for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.uint8]


def patch_starts(n_slices: int, depth: int, stride: int) -> tuple[int, ...]:
    """First slices of the patches that cover a volume (paper 000): every `stride`, and the tail.

    A volume shallower than a patch has the one start 0 (see `cut_patch`).
    """
    last = max(n_slices - depth, 0)
    starts = list(range(0, last + 1, stride))
    return tuple(starts if starts[-1] == last else [*starts, last])


def cut_patch(volume: NDArray[Any], start: int, depth: int) -> NDArray[Any]:
    """Slices ``start`` to ``start + depth`` of ``(z, ...)``; the last slice is repeated where the volume ends."""
    indices = np.minimum(np.arange(start, start + depth), len(volume) - 1)
    return volume[indices]


def majority_vote(predictions: Sequence[tuple[int, Labels]], shape: tuple[int, int, int]) -> Labels:
    """Join the labels of patches into those of the volume.

    Strict: a voxel gets a class that more than half of its patches voted for, and background (0) if there is none.
    With two classes this is foreground where ``2 * votes > patches`` (paper 000), so two patches must agree.

    Parameters
    ----------
    predictions : first slice and labels ``(depth, y, x)`` of every patch; slices beyond the volume are replicas and
        do not vote.
    shape : of the volume, ``(z, y, x)``.
    """
    n_classes = 1 + max(int(labels.max()) for _, labels in predictions)
    votes = np.zeros((n_classes, *shape), np.uint16)
    for start, labels in predictions:
        inside = labels[: shape[0] - start]
        for index in range(n_classes):
            votes[index, start : start + len(inside)] += inside == index
    has_majority = 2 * votes.max(axis=0) > votes.sum(axis=0)
    return np.where(has_majority, votes.argmax(axis=0), 0).astype(np.uint8)
