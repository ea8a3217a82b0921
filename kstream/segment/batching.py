"""How many patches an engine is given at once: what is fastest, while memory lasts and the results stay the same."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np

from ..engines import Engine
from ..types import Float

log = logging.getLogger("kstream.segment")

LARGEST = 4
"""On a device other than the CPU: four patches of 24 x 320 x 320 take 7 GB with the papers' hybrid in float32."""

CLEARLY = 0.97
"""A larger batch must take at most so much of the time per patch: it costs memory, and the first result comes later."""

Space = tuple[int, ...]


class Batching:
    """What is known of an engine: the batch that suits each size of patches; safe to share between threads.

    On a CPU it is one patch: that keeps all cores busy, and libraries order their sums by the batch there, so that bits
    change (docs/explanation/whole-frames.md). Elsewhere the first volume finds out, see `Batches`.

    Parameters
    ----------
    engine : runs the network.
    largest : patches at once, at most; 0: 1 on a CPU, `LARGEST` elsewhere.
    clock : seconds, by which trials are judged.
    """

    def __init__(self, engine: Engine, largest: int = 0, clock: Callable[[], float] = time.perf_counter) -> None:
        self.engine, self.clock, self._largest = engine, clock, largest
        self.found: dict[Space, int] = {}

    @property
    def largest(self) -> int:
        """Patches at once, at most, on the device that the engine uses now."""
        return self._largest or (1 if self.engine.name.endswith("cpu") else LARGEST)

    def volume(self, space: Space) -> Batches:
        """For the patches ``(z, y, x)`` of one volume."""
        return Batches(self, space)


class Batches:
    """Runs the patches of one volume.

    The first volume of a size of patches is run one patch at a time. Beside that, the same patches are run two at once,
    then four, as long as that is clearly faster: the size is used from then on only if its logits were the same to the
    bit, so labels never depend on it.
    """

    def __init__(self, batching: Batching, space: Space) -> None:
        self._batching, self._engine, self._space = batching, batching.engine, space
        self._alone: list[tuple[Float, Float]] = []
        self._size = 1  # the largest that a trial here has found better so far
        self._is_warm = False

    @property
    def size(self) -> int:
        """Patches for the next run."""
        return min(self._batching.found.get(self._space, 1), self._batching.largest)

    def run(self, batch: Float) -> Float:
        """Logits ``(batch, classes, z, y, x)`` of k-space ``(batch, 2, z, y, x)``."""
        try:
            logits = self._engine.run(batch)
        except (MemoryError, RuntimeError):
            if len(batch) == 1:
                raise
            log.warning("%d patches at once are too many for %s: one at a time", len(batch), self._engine.name)
            self._batching.found[self._space] = 1
            return np.concatenate([self._engine.run(patch[None]) for patch in batch])
        if self._space not in self._batching.found and self._batching.largest > 1:
            self._try_more(batch, logits)
        return logits

    def _try_more(self, batch: Float, logits: Float) -> None:
        """Keep patches until a trial has enough of them; its outcome never touches the results."""
        if not self._is_warm:  # in the first run libraries make their choices
            self._is_warm = True
            return
        self._alone.append((batch, logits))
        while len(self._alone) >= 2 * self._size:
            is_better = self._is_better(2 * self._size)
            self._size *= 2 if is_better else 1
            if not is_better or 2 * self._size > self._batching.largest:
                self._batching.found[self._space] = self._size
                self._alone.clear()
                log.info("patches of %s: %d at once", " x ".join(map(str, self._space)), self._size)
                return

    def _is_better(self, size: int) -> bool:
        """True if so many at once take clearly less time than in the batches found so far, and give the same bits."""
        patches = np.concatenate([patch for patch, _ in self._alone[:size]])
        try:
            self._engine.run(patches)  # libraries choose again for every shape
            before = sum(self._seconds(part)[0] for part in np.split(patches, size // self._size))
            together, found = self._seconds(patches)
        except (MemoryError, RuntimeError):
            return False
        is_same = all(np.array_equal(one, alone[0]) for one, (_, alone) in zip(found, self._alone, strict=False))
        return is_same and together < CLEARLY * before

    def _seconds(self, batch: Float) -> tuple[float, Float]:
        begin = self._batching.clock()
        logits = self._engine.run(batch)
        return self._batching.clock() - begin, logits
