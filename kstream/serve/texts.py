"""What a client reads: TEXT messages, one line each, that FIRE and the C++ client show as they come."""

from __future__ import annotations

from ..mrd.messages import Text

PREFIX = {"info": "", "warning": "WRN ", "error": "ERR "}
"""FIRE colours a line by its first three characters."""


def line(text: str) -> Text:
    """A TEXT that ends its line."""
    return Text(text.rstrip("\n") + "\n")
