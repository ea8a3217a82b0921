"""What a client asks for: a preset by name, and settings as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..config import Config, preset_names
from ..errors import ProtocolError
from ..types import Scan

OWN_KEYS = ("preset", "version", "summary")
"""Beside settings in a JSON object: whom it is for, and ``"summary": true`` for a summary at the end."""

HEADER_PREFIX = "kstream."
"""A user parameter of the header whose name begins so is a setting; what is sent as text later wins over it."""


def parse_config_text(text: str) -> tuple[str, dict[str, str]]:
    """Preset name and parameters of a CONFIG_TEXT: a bare name, or JSON ``{"preset": ..., "parameters": {...}}``.

    Raises
    ------
    ProtocolError : it begins like JSON and is not, or its parameters are not an object.
    """
    stripped = text.strip()
    if not stripped.startswith("{"):
        return stripped, {}
    sent = json_object(stripped)
    if sent is None:
        raise ProtocolError("CONFIG_TEXT begins like JSON and is not", hint="send a preset name, or valid JSON")
    return str(sent.get("preset", sent.get("config", ""))), parameters_of(sent)[0]


def json_object(text: str) -> dict[str, Any] | None:
    """A JSON object, or None for anything else (however deeply nested or long its numbers are)."""
    try:
        sent = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return sent if isinstance(sent, dict) else None


def parameters_of(sent: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Settings among what a client sent, and the names that are none of ours.

    Understood are ``{"parameters": {...}}`` (OpenRecon, our replay) and a bare object (FIRE's JsonConfig). A name is
    ``section.key``, or the same letters without dots and underscores in any case (``coilsMethod``), because the
    identifiers of OpenRecon have neither.

    Raises
    ------
    ProtocolError : ``parameters`` is not an object.
    """
    inner = sent.get("parameters", {key: value for key, value in sent.items() if key not in OWN_KEYS})
    if not isinstance(inner, dict):
        raise ProtocolError("parameters are not a JSON object", hint='{"parameters": {"section.key": value}}')
    known = _plain_names()
    found: dict[str, str] = {}
    strange: list[str] = []
    for name, value in inner.items():
        setting = str(name) if "." in name else known.get(_plain(str(name)), "")
        if setting:
            found[setting] = json.dumps(value)
        elif name not in ("config", "customconfig"):
            strange.append(str(name))
    return found, strange


def preset_of(sent: Mapping[str, Any]) -> str:
    """The preset that JSON parameters choose by ``customconfig`` or ``config`` (OpenRecon); empty if none of ours."""
    inner = sent.get("parameters", sent)
    if isinstance(inner, dict):
        for key in ("customconfig", "config"):
            if inner.get(key) in preset_names():
                return str(inner[key])
    return ""


def header_parameters(scan: Scan) -> dict[str, str]:
    """Settings among the user parameters of a header: ``kstream.section.key``, or its letters only (OpenRecon)."""
    known = _plain_names()
    found: dict[str, str] = {}
    for name, value in scan.user_parameters.items():
        bare = name.removeprefix(HEADER_PREFIX)
        is_identifier = bare.isalnum()  # `trajectory_units` is the header's own word, not a setting
        setting = bare if "." in bare and bare != name else known.get(_plain(bare), "") if is_identifier else ""
        if setting:
            found[setting] = json.dumps(value)
    return found


def _plain(name: str) -> str:
    return name.replace("_", "").replace(".", "").lower()


def _plain_names() -> dict[str, str]:
    return {
        _plain(f"{section}.{key}"): f"{section}.{key}"
        for section, field in Config.model_fields.items()
        for key in getattr(field.annotation, "model_fields", {})
    }
