"""Every setting: default, what it takes, meaning, and which presets change it."""

from __future__ import annotations

import json
from typing import Any

from kstream.config import Config, meanings, preset_description, preset_names, resolve

from .markdown import code, table


def page() -> str:
    given = {name: resolve(name) for name in preset_names()}
    changed = {
        key: {
            name: value for name in given for k, value, origin in given[name].rows() if k == key and origin != "default"
        }
        for key in meanings()
    }
    schema, meaning = Config.model_json_schema()["$defs"], meanings()
    parts = []
    for section, values in Config():
        parts.append(f"(settings-{section})=\n## {section}\n\n{(type(values).__doc__ or '').strip()}\n")
        fields = schema[type(values).__name__]["properties"]
        rows = []
        for key, value in values.model_dump(mode="json").items():
            name = f"{section}.{key}"
            told = f"{meaning[name]} ({allowed(fields[key])})"
            rows.append((code(name), code(json.dumps(value)), told, _changes(changed[name])))
        parts.append(table(("setting", "default", "meaning (what it takes)", "in presets"), rows))
    return "\n".join(parts) + "\n" + _presets()


def _changes(values: dict[str, str]) -> str:
    """Other values, each with the presets that have it."""
    presets: dict[str, list[str]] = {}
    for preset, value in values.items():
        presets.setdefault(value, []).append(preset)
    return "; ".join(f"{code(value)}: {', '.join(names)}" for value, names in presets.items())


def _presets() -> str:
    rows = [(code(name), preset_description(name)) for name in preset_names()]
    return "(presets)=\n## Presets\n\n" + table(("preset", "for"), rows)


def allowed(schema: dict[str, Any]) -> str:
    """What a field takes, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(allowed(choice) for choice in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(code(json.dumps(value)) for value in schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        n = schema.get("minItems")
        return f"list of {n} numbers" if n else "list of whole numbers"
    kind = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}[schema["type"]]
    bounds = [
        f"{sign} {schema[word]:g}"
        for word, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if word in schema
    ]
    return " ".join([kind, ", ".join(bounds)]).strip()
