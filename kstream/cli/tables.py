"""Tables for people: as wide as the terminal, and one line for each row where a file or another program reads."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_NO_TERMINAL = 1000
"""Columns where nobody looks: no row is wrapped or cut, so that ``grep`` finds whole lines."""


def console() -> Console:
    """Standard output, in the width of the terminal if it is one."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _NO_TERMINAL)


def print_rows(rows: list[tuple[str, ...]], *header: str) -> None:
    """Columns of equal width; the last one takes what is left and wraps."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=bool(header), header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    n_columns = len(rows[0]) if rows else len(header)
    for number in range(n_columns):
        is_last = number == n_columns - 1
        table.add_column(header[number] if header else "", no_wrap=not is_last, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    out = console()
    lines = out.render_lines(table, out.options, pad=False) if not out.is_terminal else None
    if lines is None:
        out.print(table)
    else:  # without the blanks that rich puts after each last cell
        for line in lines:
            print("".join(segment.text for segment in line).rstrip())


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2))
