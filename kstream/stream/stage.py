"""Stages and their composition: push an item, receive what became ready."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from ..errors import KstreamError
from .telemetry import StageTimes

Sink = Callable[[Any], None]


@runtime_checkable
class Stage(Protocol):
    """One step of the stream.

    `push` does its work now and returns what became ready, in order; `finish` is called once, after the last
    item, and returns what is left. `takes` and `gives` name item types; an item of any other type goes past a
    stage untouched, which is how slow-changing knowledge travels beside the data.
    """

    @property
    def takes(self) -> tuple[type, ...]: ...

    @property
    def gives(self) -> tuple[type, ...]: ...

    def push(self, item: Any) -> list[Any]: ...

    def finish(self) -> list[Any]: ...


class StageError(KstreamError):
    """A stage raised something that is not one of our own errors; the cause is chained."""

    exit_code = 10
    code = "step_failed"

    @classmethod
    def of(cls, error: Exception, where: str) -> StageError:
        """Our form of an error that nobody foresaw."""
        return cls(
            f"{where} failed: {type(error).__name__}: {error}"[:500],
            where=where,
            likely="a defect of kstream, or input that no earlier check caught",
            hint="keep the recording and report it with this message",
        )


class Each:
    """A pure function, lifted to a stage: one item in, one item out."""

    def __init__(self, function: Callable[[Any], Any], takes: type, gives: type) -> None:
        self.takes, self.gives = (takes,), (gives,)
        self._function = function

    def push(self, item: Any) -> list[Any]:
        return [self._function(item)]

    def finish(self) -> list[Any]:
        return []


class Pipeline:
    """Stages run depth first: what a stage gives reaches the end before its next item is made.

    A pipeline is itself a stage. It refuses at construction a stage that nothing before it can feed.

    Parameters
    ----------
    stages : in data-flow order.
    source : types of the items that will be pushed.

    Raises
    ------
    TypeError : if a stage takes none of the types that can reach it.
    """

    def __init__(self, *stages: Stage, source: Sequence[type]) -> None:
        self.stages = stages
        self.times = [StageTimes(type(stage).__name__) for stage in stages]
        reaching: set[type] = set(source)
        for stage in stages:
            taken = reaching & set(stage.takes)
            if not taken:
                names = ", ".join(sorted(t.__name__ for t in reaching))
                wants = ", ".join(t.__name__ for t in stage.takes)
                raise TypeError(f"{type(stage).__name__} takes {wants}, but only {names} can reach it")
            reaching = (reaching - taken) | set(stage.gives)
        self.takes: tuple[type, ...] = tuple(source)
        self.gives: tuple[type, ...] = tuple(reaching)
        self._observers: list[dict[type, Sink]] = [{} for _ in range(len(stages) + 1)]

    def observe(self, kind: type, observer: Sink) -> None:
        """Show an observer every item of a type when the first stage that gives it has made one.

        It is called in the thread that runs the pipeline, before the next stage takes the item: it must be quick, raise
        nothing, and leave the item as it is.
        """
        made_by = next((index for index, stage in enumerate(self.stages) if kind in stage.gives), None)
        if made_by is not None:
            self._observers[made_by + 1][kind] = observer

    @property
    def parts(self) -> list[StageTimes]:
        """Times of the stages, each followed by those of its own parts, where it tells them (``parts``)."""
        own = zip(self.times, self.stages, strict=True)
        return [part for total, stage in own for part in (total, *getattr(stage, "parts", ()))]

    def push(self, item: Any) -> list[Any]:
        ready: list[Any] = []
        self.feed(item, ready.append)
        return ready

    def finish(self) -> list[Any]:
        """Finish the stages in order; what one leaves behind still goes through those after it."""
        ready: list[Any] = []
        self.drain(ready.append)
        return ready

    def feed(self, item: Any, sink: Sink) -> None:
        """`push`, but each result goes to the sink when it is made: a later failure takes nothing back."""
        self._feed(item, 0, sink)

    def drain(self, sink: Sink) -> None:
        """`finish`, but each result goes to the sink when it is made."""
        for index in range(len(self.stages)):
            for left in self._run(index, None):
                self._feed(left, index + 1, sink)

    def _feed(self, item: Any, start: int, sink: Sink) -> None:
        observers = self._observers[start]
        if observers and (observer := observers.get(type(item))) is not None:
            observer(item)
        for index in range(start, len(self.stages)):
            if isinstance(item, self.stages[index].takes):
                for made in self._run(index, item):
                    self._feed(made, index + 1, sink)
                return
        sink(item)

    def _run(self, index: int, item: Any | None) -> list[Any]:
        stage = self.stages[index]
        begin = time.perf_counter_ns()
        try:
            return stage.finish() if item is None else stage.push(item)
        except KstreamError as error:
            raise error.at(f"step {type(stage).__name__}") from error.__cause__
        except Exception as error:  # any defect of a step must reach the user with its place
            what = "finishing" if item is None else f"a {type(item).__name__}"
            raise StageError.of(error, f"step {type(stage).__name__} on {what}") from error
        finally:
            self.times[index].add(time.perf_counter_ns() - begin)
