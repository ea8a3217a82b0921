"""The progress bar of a replay: acquisitions, frames, milliseconds per frame, and what the server says."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

FRAME = re.compile(r"frame (\d+): (\w+) sent (\d+) ms after")


@contextlib.contextmanager
def working(what: str, quiet: bool = False) -> Iterator[None]:
    """A spinner with a text, for work without a count; leaves one line with the time that it took."""
    console = Console(stderr=True, quiet=quiet, highlight=False)
    begin = time.monotonic()
    with console.status(what):
        yield
    console.print(f"{what}: {time.monotonic() - begin:.1f} s")


class ReplayProgress:
    """Shows a replay while it runs; warnings and errors of the server are printed above the bar."""

    def __init__(self, n_acquisitions: int, unit: str = "readouts", quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._bar = Progress(
            TextColumn("[bold]replay"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("frames {task.fields[frames]}"),
            TextColumn("{task.fields[ms]}"),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._frames: set[int] = set()
        self._task = self._bar.add_task("replay", total=n_acquisitions, frames=0, ms="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def sent(self, n_sent: int) -> None:
        self._bar.update(self._task, completed=n_sent)

    def text(self, text: str) -> None:
        """A TEXT of the server."""
        found = FRAME.search(text)
        if found:
            self._frames.add(int(found[1]))
            self._bar.update(self._task, frames=len(self._frames), ms=f"{found[3]} ms/frame ({found[2]})")
        elif text.startswith("ERR"):
            self._console.print(text[4:], style="red", markup=False)
        elif text.startswith("WRN"):
            self._console.print(text[4:], style="yellow", markup=False)
