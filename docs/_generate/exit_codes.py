"""The exit codes of the error tree."""

from __future__ import annotations

from collections.abc import Iterator

import kstream.serve.replay
import kstream.stream.stage  # noqa: F401  (adds to the tree)
from kstream.errors import KstreamError

from .markdown import code, table


def errors(root: type[KstreamError] = KstreamError) -> Iterator[type[KstreamError]]:
    """The tree, parents first."""
    yield root
    for child in root.__subclasses__():
        if child.__module__.startswith("kstream."):
            yield from errors(child)


def page() -> str:
    rows = [
        (code(error.__name__), code(error.__mro__[1].__name__), str(error.exit_code), code(error.code), _meaning(error))
        for error in errors()
    ]
    return table(("error", "is a", "exit code", "word for machines", "meaning"), rows)


def _meaning(error: type[KstreamError]) -> str:
    return (error.__doc__ or "").strip().splitlines()[0]
