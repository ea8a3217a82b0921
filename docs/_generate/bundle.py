"""The model bundle: its files, ``model.json`` field by field, shipped bundles, and networks that a bundle can name."""

from __future__ import annotations

import inspect
import json
from typing import Any

from kstream.models import bundle
from kstream.models.registry import ARCHITECTURES

from .markdown import code, fence, from_rst, table
from .metrics import _entries


def page() -> str:
    return "\n".join([_files(), _description(), _shipped(), _networks()])


def _files() -> str:
    rows = [
        (code(bundle.WEIGHTS), "the state dict"),
        (code(bundle.DESCRIPTION), "everything else that is needed to run and to judge it, below"),
        (code(bundle.CARD), "the model card"),
        (code(bundle.EXAMPLE), "`kspace` (1, 2, z, y, x) and the `logits` (1, classes, z, y, x) that belong to it"),
    ]
    return f"## Files\n\nFormat {bundle.FORMAT}.\n\n" + table(("file", "holds"), rows)


def _description() -> str:
    doc = inspect.getdoc(bundle.BundleInfo) or ""
    meaning = dict(_entries(doc.partition("Parameters\n----------\n")[2]))
    meaning |= {
        "format": "of the bundle; another number is refused",
        "architecture": meaning["architecture"],
        "patch": meaning["patch_depth"],
        "inputs": "axes, type and unit of each input",
        "outputs": "axes, type and unit of each output",
        "licence": "of the weights",
        "intended_use": "what it may be used for",
    }
    shown = _example()
    rows = [(code(key), meaning.get(key, "")) for key in shown]
    text = f"## {bundle.DESCRIPTION}\n\n" + table(("key", "meaning"), rows)
    return text + "\nThat of the shipped bundle, training and metrics left out:\n\n" + fence(_shortened(shown), "json")


def _example() -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(bundle.Bundle.load(bundle.shipped()[0]).info.to_json())
    return plain


def _shortened(plain: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in plain.items() if key not in ("training", "metrics")}, indent=2)


def _shipped() -> str:
    rows = []
    for name in bundle.shipped():
        info = bundle.Bundle.load(name).info
        classes = ", ".join(info.labels.names)
        rows.append(
            (code(name), info.description, code(info.architecture), classes, code(info.sha256[:12]), info.licence)
        )
    header = ("bundle", "what it is", "network", "classes", "sha256", "licence")
    return "## Bundles that come with kstream\n\n" + table(header, rows)


def _networks() -> str:
    rows = []
    for entry in ARCHITECTURES.values():
        shapes = "; ".join(" × ".join(map(str, shape)) for shape in entry.inputs)
        arguments = ", ".join(f"{code(key)} = {code(json.dumps(value))}" for key, value in entry.arguments.items())
        rows.append((code(entry.name), entry.description, from_rst(entry.paper), shapes, arguments))
    text = "## Networks\n\nWhat `architecture.name` may be. `kstream models show NAME` counts parameters and work.\n\n"
    return text + table(("network", "what it is", "after", "inputs in the publication", "arguments and defaults"), rows)
