"""Reads the pages of ``docs``: their code blocks, and what the comments before a block say about running it.

::

    <!-- prepare: kstream simulate scan.h5 -->     run before the block, and not shown
    <!-- file: first.toml -->                      what the block holds (of any language) is written to this file
    <!-- not run: it needs a scanner -->           a reason is always given
    <!-- slow -->                                  run by `pytest -m slow`
    <!-- exit code: 7 -->                          what the block's last command ends with
    ```console
    $ kstream ping 127.0.0.1:9002
    127.0.0.1:9002 answered in ... ms
    ```

Lines after a command are what it prints, in this order, perhaps with other lines between; ``...`` is anything.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(
    r"(?P<comments>(?:^ *<!--[^>]*-->\n)*)"
    r"^(?P<indent> *)(?P<marks>`{3,})(?P<language>[\w{}-]*)[^\n]*\n(?P<body>.*?)^(?P=indent)(?P=marks)$",
    re.MULTILINE | re.DOTALL,
)
_COMMENT = re.compile(r"<!-- (prepare|file|not run|slow|exit code)(?:: (.*?))? -->")
_INDENTED = re.compile(r"(?:^    \S.*\n(?:    .*\n|\n)*)", re.MULTILINE)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_STARTS = (["kstream"], ["python", "-m", "kstream.training"], ["python", "-m", "kstream.gadgets"])


@dataclass(frozen=True)
class Command:
    """One command of a block: what is typed, and lines that it shall print."""

    typed: str
    printed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """A ``console`` block, or one that is written to a file."""

    commands: tuple[Command, ...] = ()
    file: str = ""
    text: str = ""
    prepare: tuple[str, ...] = ()
    not_run: str = ""
    is_slow: bool = False
    exit_code: int = 0


@dataclass(frozen=True)
class Page:
    """One page, by its path below the root of the project."""

    path: Path
    text: str = field(repr=False)

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    def blocks(self) -> Iterator[Block]:
        """The blocks that a reader runs or writes, in the order of the page."""
        for found in _FENCE.finditer(self.text):
            if found["language"] == "console" or "<!-- file:" in found["comments"]:
                yield _block(found)

    def said(self) -> Iterator[str]:
        """Everything on the page that looks like one of our commands, in blocks and in lines of text."""
        bodies = [_typed(found) for found in _FENCE.finditer(self.text)]
        rest = _FENCE.sub("\n", self.text)
        bodies += _INDENTED.findall(rest)
        for body in bodies:
            yield from _commands_in(body)
        for code in _INLINE.findall(rest):
            yield from _commands_in(code)


def pages() -> list[Page]:
    """The README and all pages of the site that are written by hand."""
    paths = [path for path in sorted(DOCS.rglob("*.md")) if "auto_gallery" not in path.parts]
    return [Page(path, path.read_text("utf-8")) for path in [ROOT / "README.md", *paths]]


def _typed(found: re.Match[str]) -> str:
    """What is typed in a block: of a ``console`` block, not what is printed."""
    lines = [line.strip() for line in found["body"].splitlines()]
    return "\n".join(line for line in lines if line.startswith("$ ") or found["language"] != "console")


def _block(found: re.Match[str]) -> Block:
    told = _COMMENT.findall(found["comments"])
    says = dict(told)
    if "file" in says:
        return Block(file=says["file"], text=found["body"], is_slow="slow" in says)
    commands: list[Command] = []
    for line in found["body"].splitlines():
        line = line.removeprefix(found["indent"])
        if line.startswith("$ "):
            commands.append(Command(line[2:]))
        elif commands:
            last = commands.pop()
            commands.append(Command(last.typed, (*last.printed, line)))
    return Block(
        tuple(commands),
        prepare=tuple(text for key, text in told if key == "prepare"),
        not_run=says.get("not run", ""),
        is_slow="slow" in says,
        exit_code=int(says.get("exit code", 0)),
    )


def _commands_in(text: str) -> Iterator[str]:
    """Calls of our programs in a piece of code, without what a shell does around them."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        for part in re.split(r"\s(?:\||&&|;|>|2>|<)\s", line.strip().removeprefix("$ ")):
            words = _words(part.strip())
            if any(words[: len(start)] == start for start in _STARTS):
                yield shlex.join(words)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError:  # prose, or a quotation that goes on
        return []
