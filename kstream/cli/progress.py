"""The progress of a replay: acquisitions, frames, milliseconds per frame, and what the server says.

A bar on a terminal; off it (a log file, a pipe) plain lines: one at each quarter and one for each frame.
"""

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
        self._is_bar = self._console.is_terminal
        self._n_acquisitions, self._unit, self._quarter = n_acquisitions, unit, 0
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
        if self._is_bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_bar:
            self._bar.stop()

    def sent(self, n_sent: int) -> None:
        self._bar.update(self._task, completed=n_sent)
        quarter = 4 * n_sent // max(1, self._n_acquisitions)
        if not self._is_bar and quarter > self._quarter:
            self._quarter = quarter
            self._line(f"replay: {n_sent} of {self._n_acquisitions} {self._unit} sent")

    def text(self, text: str) -> None:
        """A TEXT of the server."""
        found = FRAME.search(text)
        if found:
            self._frames.add(int(found[1]))
            self._bar.update(self._task, frames=len(self._frames), ms=f"{found[3]} ms/frame ({found[2]})")
            if not self._is_bar:
                self._line(f"replay: frame {found[1]}: {found[2]} came {found[3]} ms after its last readout")
        elif text.startswith("ERR"):
            self._line(text[4:], "red")
        elif text.startswith("WRN"):
            self._line(text[4:], "yellow")

    def _line(self, text: str, style: str = "") -> None:
        """One line above the bar; off a terminal it is never wrapped."""
        self._console.print(text, style=style, markup=False, soft_wrap=not self._is_bar)
