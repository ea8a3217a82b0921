"""Several compiled engines of one model, each for the patches that it was built for."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from ..errors import ShapeError
from .engine import Batch, ServedEngine
from .profile import OUTSIDE, Space, times


class EnginesByShape:
    """Runs every batch on the engine for its shape.

    Parameters
    ----------
    engines : by the shape of a patch ``(z, y, x)``; the first names the whole.
    """

    def __init__(self, engines: Mapping[Space, ServedEngine]) -> None:
        self._engines = dict(engines)
        self._first = next(iter(self._engines.values()))
        self._ran = threading.local()  # the engine that ran last: what `describe` tells

    @property
    def name(self) -> str:
        return self._first.name

    @property
    def precision(self) -> str:
        return self._first.precision

    def run(self, batch: Batch) -> Batch:
        """See `Engine.run`.

        Raises
        ------
        ShapeError : no engine was built for such patches; names those that are taken.
        """
        engine = self._engines.get(batch.shape[2:])
        if engine is None:
            raise ShapeError(
                f"no engine was compiled for patches of {times(batch.shape[2:])}",
                where=f"a batch of shape {batch.shape}",
                hint=f"there are {' and '.join(map(times, self._engines))}; another one: kstream compile --shape",
                code=OUTSIDE,
            )
        self._ran.engine = engine
        return engine.run(batch)

    def prove(self) -> None:
        """See `gate.ProvenEngine.prove`."""
        for engine in dict.fromkeys(self._engines.values()):
            engine.prove()

    def describe(self) -> dict[str, str]:
        """What the engine says that ran last in this thread."""
        return getattr(self._ran, "engine", self._first).describe()
