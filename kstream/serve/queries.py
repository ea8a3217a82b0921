"""Answers to QUERY: what a client may ask at any time, before it has configured anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version

from ..config import preset_description, preset_names

UNKNOWN = "Unknown query"
"""What Gadgetron answers, too."""


def _version() -> str:
    return version("kstream")


def _info() -> str:
    return f"kstream {_version()}: streaming segmentation of raw data over MRD. For research use only."


def _presets() -> str:
    return json.dumps({name: preset_description(name) for name in preset_names()})


QUERIES: dict[str, Callable[[], str]] = {
    "kstream::info": _info,
    "kstream::version": _version,
    "kstream::presets": _presets,
    "gadgetron::info": _info,
    "gadgetron::version": _version,
}


PAGE = "kstream::page"
"""Asks for the address of the server's live page; empty if it has none."""


def answer(query: str, page_url: str = "") -> str:
    """The answer to one query; `UNKNOWN` where there is none."""
    if query.strip() == PAGE:
        return page_url
    found = QUERIES.get(query.strip())
    return found() if found is not None else UNKNOWN
