"""What a compiled engine takes, and the engine that cuts and pads batches to that."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import ShapeError
from .engine import Batch

Forward = Callable[[Batch], Batch]
Space = tuple[int, ...]

OUTSIDE = "profile"
"""The code of the error that says that an engine was not built for a size: another engine may take it."""


@dataclass(frozen=True)
class Profile:
    """Sizes for which an engine was built.

    Parameters
    ----------
    batches : numbers of patches, ascending; a batch between two is padded up to the next.
    shapes : of a patch, ``(z, y, x)``. There is no padding to these: zeros around k-space would change the voxels.
    n_channels : of the input.
    """

    batches: tuple[int, ...]
    shapes: tuple[Space, ...]
    n_channels: int = 2

    def bucket(self, n_patches: int) -> int:
        """The smallest batch that holds so many patches, or the largest there is."""
        return next((batch for batch in self.batches if batch >= n_patches), self.batches[-1])

    def check(self, shape: Space) -> None:
        """Raise `ShapeError` unless ``(batch, channels, z, y, x)`` is one of ours."""
        if shape[1] != self.n_channels or shape[2:] not in self.shapes or not shape[0]:
            raise ShapeError(
                f"this engine does not take patches of {times(shape[2:])} with {shape[1]} channels",
                where=f"a batch of shape {shape}",
                likely="an engine that was compiled for another scan",
                hint=f"it takes {' or '.join(map(times, self.shapes))}; compile another one: kstream compile --shape",
                code=OUTSIDE,
            )


@dataclass(frozen=True)
class Plan:
    """How an engine is, or was, built.

    Parameters
    ----------
    engine : one of `engine.ENGINES`.
    precision : one of `engine.PRECISIONS`.
    device : ``cpu`` or a CUDA device.
    profile : what it takes.
    transform : ``fft``, run by torch between the stages; or ``gemm``, so that one engine holds the whole network.
    is_frozen : weights are constants that may be packed for the sizes of the profile; otherwise sizes may vary.
    """

    engine: str
    precision: str
    device: str
    profile: Profile
    transform: str = "fft"
    is_frozen: bool = True


def times(shape: Space) -> str:
    """``24x320x320``."""
    return "x".join(map(str, shape))


class ProfiledEngine:
    """An engine for the sizes of a profile, one run at a time.

    Parameters
    ----------
    name, precision : as in `Engine`.
    forward : logits of a batch whose size and shape are in the profile.
    provenance : what `describe` adds.
    """

    def __init__(
        self, name: str, precision: str, profile: Profile, forward: Forward, provenance: Mapping[str, str]
    ) -> None:
        self.name, self.precision, self.profile = name, precision, profile
        self._forward, self._provenance = forward, dict(provenance)
        self._lock = threading.Lock()

    def run(self, batch: Batch) -> Batch:
        """Logits ``(batch, classes, z, y, x)`` of k-space ``(batch, 2, z, y, x)``.

        Raises
        ------
        ShapeError : if the patches are not of a size that the engine was built for; names those that are.
        """
        if batch.ndim < 3:
            raise ShapeError(f"an engine takes (batch, channels, ...), not {batch.shape}")
        self.profile.check(batch.shape)
        largest = self.profile.batches[-1]
        with self._lock:
            return np.concatenate([self._padded(batch[i : i + largest]) for i in range(0, len(batch), largest)])

    def _padded(self, batch: Batch) -> Batch:
        missing = self.profile.bucket(len(batch)) - len(batch)
        if missing:
            batch = np.concatenate((batch, np.zeros((missing, *batch.shape[1:]), np.float32)))
        logits = self._forward(np.ascontiguousarray(batch, np.float32))
        return logits[: len(logits) - missing]

    def describe(self) -> dict[str, str]:
        return {**self._provenance, "engine": self.name, "precision": self.precision}
