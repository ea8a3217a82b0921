"""One volume through an engine: patches, logits, votes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ..engines import Engine
from ..errors import KstreamError, ModelError, ScanError, ShapeError
from ..stream.crew import Crew, InlineCrew
from ..types import Complex, Float
from .batching import Batches, Batching
from .patches import Labels, Votes, classes_of, patch_starts

STEPS = ("prepare", "network", "vote")
"""Of a volume, as `Spent` and summaries name them."""


@dataclass
class Spent:
    """Where the time of one volume went; `prepare` and `vote` may run beside `network`.

    Parameters
    ----------
    seconds : by step, see `STEPS`.
    n_patches, n_runs : patches, and runs of the network that they took.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))
    n_patches: int = 0
    n_runs: int = 0

    @contextmanager
    def timing(self, step: str) -> Iterator[None]:
        """Add the time of a block to a step; each step happens in one thread at a time."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] += time.perf_counter() - begin


def to_channels(kspace: Complex) -> Float:
    """Complex ``(z, y, x)`` to the network's float32 ``(2, z, y, x)``: the one place where complex becomes real."""
    channels = np.empty((2, *kspace.shape), np.float32)
    channels[0], channels[1] = kspace.real, kspace.imag
    return channels


def cut_batch(volume: Complex, starts: Sequence[int], depth: int) -> Float:
    """Patches ``(batch, 2, z, y, x)`` of a volume; its last slice is repeated where it ends."""
    batch = np.empty((len(starts), 2, depth, *volume.shape[1:]), np.float32)
    for patch, start in zip(batch, starts, strict=True):
        inside = volume[start : start + depth]
        patch[0, : len(inside)], patch[1, : len(inside)] = inside.real, inside.imag
        patch[:, len(inside) :] = patch[:, len(inside) - 1, None]
    return batch


def segment_volume(
    difference: Complex,
    engine: Engine,
    patch_depth: int,
    patch_stride: int,
    crew: Crew | None = None,
    batching: Batching | None = None,
    spent: Spent | None = None,
) -> Labels:
    """Segment a volume, some patches at a time.

    1. Cut patches of `patch_depth` slices, `patch_stride` apart, and one at the tail.
    2. The engine gives logits of a batch of them; their argmax is a patch's vote.
    3. Strict majority over the patches that hold a voxel (paper 000, inference).

    While the engine runs a batch, the next one is cut and the last one's votes are counted.

    Parameters
    ----------
    difference : complex64 ``(z, y, x)``, scaled difference k-space as in `types.Difference`.
    crew : who does what is done beside the engine; without one, everything happens in the caller's thread.
    batching : how many patches the engine gets at once; without it, one.
    spent : is told where the time goes.

    Returns
    -------
    uint8 class indices ``(z, y, x)``, in image space; the same for every crew and batching.

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
    crew, spent = crew or InlineCrew(), spent or Spent()
    batches = (batching or Batching(engine, largest=1)).volume((patch_depth, height, width))
    starts = patch_starts(n_slices, patch_depth, patch_stride)
    votes = Votes(starts, (n_slices, height, width))

    def cut(group: Sequence[int]) -> Float:
        with spent.timing("prepare"):
            return cut_batch(difference, group, patch_depth)

    def vote(logits: Float) -> None:
        with spent.timing("vote"):
            for patch in logits:
                votes.add(classes_of(patch))

    at, counted = 0, crew.submit(lambda: None)
    ready = crew.submit(partial(cut, starts[: batches.size]))
    while at < len(starts):
        batch = ready.result()
        at += len(batch)
        ready = crew.submit(partial(cut, starts[at : at + batches.size]))
        with spent.timing("network"):
            logits = _logits(batches, batch)
        counted.result()  # what went wrong with the batch before
        counted = crew.submit(partial(vote, logits))
        spent.n_runs += 1
    counted.result()
    spent.n_patches += len(starts)
    return votes.result()


def _logits(batches: Batches, batch: Float) -> Float:
    """Logits ``(batch, classes, z, y, x)`` of patches, checked: a mask made of NaN would be empty."""
    try:
        logits: Float = np.asarray(batches.run(batch))
    except KstreamError:
        raise
    except Exception as error:  # a model may raise anything: memory, device, a defect of its own
        raise ModelError(
            f"the model failed: {type(error).__name__}: {error}"[:500],
            likely="no memory on its device, or a model that does not take volumes of this size",
            hint="kstream doctor",
        ) from error
    n, expected = len(batch), batch.shape[2:]
    if logits.ndim != 5 or logits.shape[0] != n or logits.shape[1] < 2 or logits.shape[2:] != expected:
        raise ModelError(
            f"the model gave {logits.shape}, expected ({n}, classes, z, y, x) with z, y, x = {expected}",
            likely="a bundle of another kind, or a defect of its engine",
        )
    if not np.isfinite(logits).all():
        raise ModelError(
            "the model gave values that are not finite",
            likely="damaged weights, an overflow in low precision, or a volume of another scale than it was trained on",
            hint="kstream doctor; a device or precision that the model was tested with",
        )
    return logits
