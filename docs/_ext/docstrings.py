"""Reads the docstrings of this project: NumPy form, where what follows a name's colon is prose, not a type.

::

    Parameters
    ----------
    data : complex64 ``(coils, samples)``.
    first, second : two of a kind.

    Raises
    ------
    ScanError : if there is nothing to scan.

Types stand in the signature, so that a parameter's entry is its meaning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sphinx.application import Sphinx

FIELDS = {"Parameters": "param", "Attributes": "param", "Raises": "raises"}
PROSE = ("Returns", "Yields", "References", "Notes", "See Also", "Examples")
ENTRY = re.compile(r"^(?P<names>[*\w.]+(?:, [*\w.]+)*) : (?P<text>.+)$")


def to_fields(lines: list[str]) -> list[str]:
    """The same docstring with its sections as reStructuredText: entries as fields, prose below a bold word."""
    made: list[str] = []
    for title, body in _sections(lines):
        if title in FIELDS:
            made += ["", *_entries(FIELDS[title], body), ""]
        elif title:
            made += ["", f"**{title}**", "", *body]
        else:
            made += body
    return made


def _sections(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Parts of a docstring with their titles; the first has none."""
    title, body = "", list[str]()
    index = 0
    while index < len(lines):
        following = lines[index + 1] if index + 1 < len(lines) else ""
        if lines[index] in (*FIELDS, *PROSE) and following and set(following) == {"-"}:
            yield title, body
            title, body, index = lines[index], [], index + 2
        else:
            body.append(lines[index])
            index += 1
    yield title, body


def _entries(field: str, body: list[str]) -> Iterator[str]:
    """Fields of one section; lines that begin no entry continue the last one."""
    for line in body:
        found = ENTRY.match(line)
        if not found:
            yield f"    {line.strip()}" if line.strip() else ""
            continue
        names = found["names"].split(", ")
        if field == "raises":
            yield from (f":raises {name}: {found['text']}" for name in names[:-1])
        yield f":{field} {names[-1] if field == 'raises' else ', '.join(names)}: {found['text']}"


def _process(app: Sphinx, what: str, name: str, thing: object, options: Any, lines: list[str]) -> None:
    lines[:] = to_fields(lines)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", _process)
    return {"parallel_read_safe": True}
