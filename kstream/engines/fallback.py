"""The next best engine or device when one cannot be had, or fails while it runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ..errors import ModelError, ShapeError
from .array_engine import Array, ServedArrayEngine
from .engine import Batch, ServedEngine
from .profile import OUTSIDE

log = logging.getLogger("kstream.engines")

AnyEngine = ServedEngine | ServedArrayEngine
T = TypeVar("T")

FAILURES = (ModelError, RuntimeError, MemoryError)
"""Of an engine that runs: our own, and those of torch for its devices."""

CANNOT_BE_MADE = (*FAILURES, OSError, AssertionError)
"""Of an engine that is made: also a library that cannot be loaded, and torch for a device that does not exist."""


class FallbackEngine:
    """An engine that goes on with the next one when one fails (no memory, device gone), and stays there.

    Two failures are not the engine's: too many patches at once for its memory, which the caller must hear of, since
    fewer may do; and a size that it was not built for, which the next one that takes it runs, and only that.

    `describe` says ``fallback`` with the reason of a change, so that every image made by another engine carries it.

    Parameters
    ----------
    makers : make an engine each, best first; all for patches, or all for arrays.

    Raises
    ------
    ModelError : none of them can be made; the last one's reason.
    """

    def __init__(self, makers: Sequence[Callable[[], AnyEngine]]) -> None:
        self._makers = list(makers)
        self._lock = threading.Lock()
        self._reason = ""
        self._ran = threading.local()  # which engine ran last, and why not the first: what `describe` tells
        self._engines = [self._next(ModelError("no engine is configured"))]

    @property
    def name(self) -> str:
        return self._engines[0].name

    @property
    def precision(self) -> str:
        return self._engines[0].precision

    def run(self, batch: Batch) -> Batch:
        """Logits ``(batch, classes, z, y, x)`` of k-space ``(batch, 2, z, y, x)`` from the first engine that works.

        Raises
        ------
        ShapeError : no engine takes patches of this size.
        MemoryError, RuntimeError : several patches at once are too many for the memory of the engine.
        ModelError : the last engine failed.
        """
        return self._first(lambda engine: engine.run(batch), len(batch))

    def run_arrays(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        """The same for engines that take arrays, see `ArrayEngine.run_arrays`."""
        return self._first(lambda engine: engine.run_arrays(inputs), 1)

    def _first(self, run: Callable[[Any], T], n_patches: int) -> T:
        """What the first engine that works gives."""
        place, reason = 0, ""
        engine = self._engines[0]
        while True:
            try:
                made = run(engine)
                self._ran.engine, self._ran.reason = engine, reason
                return made
            except ShapeError as error:
                if error.code != OUTSIDE:
                    raise
                reason, place = reason or error.what, place + 1
                engine = self._at(place, error)
            except FAILURES as error:
                if n_patches > 1 and is_out_of_memory(error):
                    raise
                self._hand_over(engine, error)
                engine = self._at(place, error)

    def prove(self) -> None:
        """See `gate.ProvenEngine.prove`; an engine that no longer works hands over to the next."""
        while True:
            engine = self._engines[0]
            try:
                return engine.prove()
            except FAILURES as error:
                self._hand_over(engine, error)

    def describe(self) -> dict[str, str]:
        """What the engine says that ran last in this thread."""
        engine = getattr(self._ran, "engine", None)
        if engine not in self._engines:
            engine, self._ran.reason = self._engines[0], ""
        reason = getattr(self._ran, "reason", "") or self._reason
        return {**engine.describe(), **({"fallback": reason} if reason else {})}

    def _at(self, place: int, error: Exception) -> AnyEngine:
        """An engine by its place; it is made if it has to be. `error` is why it is wanted."""
        with self._lock:
            while len(self._engines) <= place:
                self._engines.append(self._next(error))
            return self._engines[place]

    def _hand_over(self, engine: AnyEngine, error: Exception) -> None:
        """Let an engine go, unless another thread has done so already; the last one stays, and its error is raised."""
        with self._lock:
            if engine in self._engines:
                self._note(error)
                if len(self._engines) == 1:
                    self._engines = [*self._engines, self._next(error)]
                self._engines = [other for other in self._engines if other is not engine]

    def _next(self, error: Exception) -> AnyEngine:
        """The next engine that can be made; `error` is why the one before failed."""
        while self._makers:
            try:
                return self._makers.pop(0)()
            except CANNOT_BE_MADE as failure:
                self._note(failure)
                error = failure
        raise error

    def _note(self, error: Exception) -> None:
        what = error.what if isinstance(error, ModelError) else f"{type(error).__name__}: {error}"
        self._reason = what.splitlines()[0][:200]
        log.warning("an engine failed, the next one takes over: %s", self._reason)


def is_out_of_memory(error: Exception) -> bool:
    """True if an engine's own error says so: torch and its kind tell it in words."""
    said = str(error).lower()
    is_said = "out of memory" in said or "allocate memory" in said
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_said)
