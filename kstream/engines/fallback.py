"""The next best engine or device when one cannot be had, or fails while it runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from ..errors import ModelError
from .engine import Batch, ServedEngine

log = logging.getLogger("kstream.engines")


class FallbackEngine:
    """An engine that goes on with the next one when one fails (no memory, device gone), and stays there.

    `describe` says ``fallback`` with the reason from then on, so that every image made afterwards carries it.

    Parameters
    ----------
    makers : make an engine each, best first.

    Raises
    ------
    ModelError : none of them can be made; the last one's reason.
    """

    def __init__(self, makers: Sequence[Callable[[], ServedEngine]]) -> None:
        self._makers = list(makers)
        self._lock = threading.Lock()
        self._reason = ""
        self._engine = self._next(ModelError("no engine is configured"))

    @property
    def name(self) -> str:
        return self._engine.name

    @property
    def precision(self) -> str:
        return self._engine.precision

    def run(self, batch: Batch) -> Batch:
        """Logits ``(batch, classes, z, y, x)`` of k-space ``(batch, 2, z, y, x)`` from the first engine that works."""
        while True:
            engine = self._engine
            try:
                return engine.run(batch)
            except (
                ModelError,
                RuntimeError,
                MemoryError,
            ) as error:  # of torch: devices
                self._hand_over(engine, error)

    def prove(self) -> None:
        """See `gate.ProvenEngine.prove`; an engine that no longer works hands over to the next."""
        while True:
            engine = self._engine
            try:
                return engine.prove()
            except (ModelError, RuntimeError, MemoryError) as error:
                self._hand_over(engine, error)

    def describe(self) -> dict[str, str]:
        told = {"fallback": self._reason} if self._reason else {}
        return {**self._engine.describe(), **told}

    def _hand_over(self, engine: ServedEngine, error: Exception) -> None:
        """Go on with the next engine, unless another thread has done so already."""
        with self._lock:
            if self._engine is engine:
                self._note(error)
                self._engine = self._next(error)

    def _next(self, error: Exception) -> ServedEngine:
        """The next engine that can be made; `error` is why the one before failed."""
        while self._makers:
            try:
                return self._makers.pop(0)()
            except ModelError as failure:
                self._note(failure)
                error = failure
        raise error

    def _note(self, error: Exception) -> None:
        what = error.what if isinstance(error, ModelError) else f"{type(error).__name__}: {error}"
        self._reason = what.splitlines()[0][:200]
        log.warning("an engine failed, the next one takes over: %s", self._reason)
