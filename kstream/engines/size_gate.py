"""Engines that take any size, and the gate in front of every size: none is served unproved.

Compiled engines are examined at the sizes that they are built for. Eager torch takes whatever comes, so the first batch
of a new size waits while the example is run in that size and compared (`gate.examine_one`, `array_gate`): with float64
where that is quick, else with eager float32. What was found is noted, so a machine pays once for each size.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from .array_engine import Array, ServedArrayEngine
from .engine import Batch, ServedEngine
from .gate import Verdict
from .profile import Space, times

log = logging.getLogger("kstream.engines")


class _Served(Protocol):
    """What engines for patches and for arrays have in common."""

    @property
    def name(self) -> str: ...
    @property
    def precision(self) -> str: ...
    def prove(self) -> None: ...
    def describe(self) -> dict[str, str]: ...


E = TypeVar("E", bound=_Served)


@dataclass(frozen=True)
class SizeGate(Generic[E]):
    """How an engine is held to its reference at a size.

    Parameters
    ----------
    examine : gives the verdict, and what the engine was compared with.
    notes : what was found out before and here, see `calibrate`.
    keep : is told the notes that are new.
    spare : makes an engine for the sizes at which the first one does not pass; None: they are refused.
    """

    examine: Callable[[E, Space], tuple[Verdict, str]]
    notes: MutableMapping[str, Any]
    keep: Callable[[dict[str, Any]], None]
    spare: Callable[[], E] | None = None


class _Gated(Generic[E]):
    """What `GatedEngine` and `GatedArrayEngine` have in common."""

    def __init__(self, first: E, gate: SizeGate[E]) -> None:
        self._first, self._gate = first, gate
        self._spare = None if gate.spare is None else functools.cache(gate.spare)
        self._lock = threading.Lock()
        self._ready: dict[Space, tuple[E, dict[str, str]]] = {}
        self._ran = threading.local()  # engine and findings of the last run: what `describe` tells

    @property
    def name(self) -> str:
        return self._first.name

    @property
    def precision(self) -> str:
        return self._first.precision

    def prove(self) -> None:
        """See `gate.ProvenEngine.prove`."""
        self._first.prove()

    def describe(self) -> dict[str, str]:
        """What the engine says that ran last in this thread, and what the gate found at that size."""
        engine: E = getattr(self._ran, "engine", self._first)
        return {**engine.describe(), **getattr(self._ran, "told", {})}

    def _for(self, size: Space) -> E:
        """The engine that may serve a size.

        Raises
        ------
        ModelError : it does not reproduce its reference at this size, and there is no other.
        """
        with self._lock:
            if size not in self._ready:
                self._ready[size] = self._admit(size)
        engine, self._ran.told = self._ready[size]
        self._ran.engine = engine
        return engine

    def _admit(self, size: Space) -> tuple[E, dict[str, str]]:
        """The engine for a size, and what to tell of it; held to the gate unless the notes have it."""
        key = f"gate {self.precision} at {times(size)}"
        if key not in self._gate.notes:
            self._note(key, size)
        noted = self._gate.notes[key]
        verdict, name = Verdict.from_json(noted), f"{self.name} ({self.precision})"
        if verdict.has_passed:
            return self._first, {"gate": f"{times(size)} against {noted['against']}: relative rms {verdict.rms:.2g}"}
        if self._spare is None:
            raise verdict.refusal(name)
        log.warning("%s does not pass at %s and float32 runs there: %s", name, times(size), verdict.failures[0])
        return self._spare(), {"fallback": f"{name} does not pass the gate at {times(size)}"}

    def _note(self, key: str, size: Space) -> None:
        begin = time.perf_counter()
        verdict, against = self._gate.examine(self._first, size)
        seconds = round(time.perf_counter() - begin, 2)
        self._gate.notes[key] = {**verdict.to_json(), "against": against, "seconds": seconds}
        self._gate.keep({key: self._gate.notes[key]})
        log.info("%s was held to %s at %s in %.2f s, once for this machine", self.name, against, times(size), seconds)


class GatedEngine(_Gated[ServedEngine]):
    """A proved engine for patches that is examined at every new size of patch before it serves it.

    Parameters
    ----------
    first : has passed the gate at the example's size.
    gate : for the other sizes.
    n_channels, n_axes : of its input; a batch of others goes to the engine, which says what it takes.
    """

    def __init__(self, first: ServedEngine, gate: SizeGate[ServedEngine], n_channels: int, n_axes: int) -> None:
        super().__init__(first, gate)
        self._n_channels, self._n_axes = n_channels, n_axes

    def run(self, batch: Batch) -> Batch:
        """See `Engine.run`."""
        if batch.ndim != self._n_axes or batch.shape[1] != self._n_channels:
            return self._first.run(batch)
        return self._for(batch.shape[2:]).run(batch)


class GatedArrayEngine(_Gated[ServedArrayEngine]):
    """The same for networks with several inputs, at every power of two of the number of tokens.

    Parameters
    ----------
    first : has passed the gate at the example's size.
    gate : for the other sizes.
    counted : an input whose axis 1 counts the tokens.
    """

    def __init__(self, first: ServedArrayEngine, gate: SizeGate[ServedArrayEngine], counted: int) -> None:
        super().__init__(first, gate)
        self._counted = counted

    def run_arrays(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        """See `ArrayEngine.run_arrays`."""
        if len(inputs) <= self._counted or inputs[self._counted].ndim < 2:
            return self._first.run_arrays(inputs)
        n_tokens = inputs[self._counted].shape[1]
        return self._for((1 << max(n_tokens - 1, 1).bit_length(),)).run_arrays(inputs)
