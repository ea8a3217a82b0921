"""Helping hands that a stage may be given: work on many parts at once, and work in the background of the stream.

A stage starts no thread. It is given a crew; `InlineCrew` does everything at once in the caller's thread, and
`runners.ThreadCrew` has threads. Results never depend on which one it is, only the time at which they are there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Wake:
    """Comes down the stream when background work is done or a stage asked to be called again; carries nothing."""


class Task(Protocol[T_co]):
    """Work that was handed out."""

    @property
    def is_done(self) -> bool: ...

    def result(self) -> T_co:
        """What the work gave; waits for it, and raises what it raised."""
        ...


class Crew(Protocol):
    """Who does the work."""

    @property
    def n_hands(self) -> int:
        """Parts that are worked on at the same time."""
        ...

    def each(self, work: Callable[[int], None], n: int) -> None:
        """Call ``work(0) .. work(n - 1)``, in any order, and return when all are done."""
        ...

    def submit(self, work: Callable[[], T]) -> Task[T]:
        """Do this in the background; a `Wake` comes down the stream when it is done."""
        ...

    def wake(self) -> bool:
        """Ask for a `Wake` after what already waits in the stream; False if nobody can send one."""
        ...


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """A task that was done at once."""

    value: T

    @property
    def is_done(self) -> bool:
        return True

    def result(self) -> T:
        return self.value


class InlineCrew:
    """Everything at once, in the caller's thread."""

    n_hands = 1

    def each(self, work: Callable[[int], None], n: int) -> None:
        for i in range(n):
            work(i)

    def submit(self, work: Callable[[], T]) -> Task[T]:
        return Done(work())

    def wake(self) -> bool:
        return False
