"""``kstream models``: architectures and bundles."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    action: Annotated[str, typer.Argument(help="list, or show")] = "list",
    name: Annotated[str, typer.Argument(help="architecture or bundle to show")] = "",
    json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
) -> None:
    """List the networks and the shipped bundles, or show one (parameters and multiply-accumulates are counted)."""
    from ..errors import ConfigError, did_you_mean
    from ..models.bundle import Bundle, shipped
    from ..models.registry import ARCHITECTURES
    from .tables import print_json, print_rows

    if action == "list":
        rows = [{"kind": "architecture", "name": a.name, "about": a.description} for a in ARCHITECTURES.values()]
        rows += [{"kind": "bundle", "name": name, "about": Bundle.load(name).info.description} for name in shipped()]
        if json:
            print_json(rows)
        else:
            print_rows([(row["kind"], row["name"], row["about"]) for row in rows], "kind", "name", "about")
        return
    if action != "show":
        raise ConfigError(f"unknown action {action[:80]!r}", hint=did_you_mean(action, ("list", "show")))
    if not name:
        raise ConfigError("which one shall be shown?", hint="kstream models list")
    shown = _describe(name)
    if json:
        print_json(shown)
    else:
        print_rows([(key, value if isinstance(value, str) else json_.dumps(value)) for key, value in shown.items()])


def _describe(name: str) -> dict[str, Any]:
    """An architecture with its counted cost, or a bundle's description with the cost of its network per patch."""
    from ..errors import ModelError, did_you_mean
    from ..models.bundle import Bundle, shipped
    from ..models.registry import ARCHITECTURES, cost
    from ..segment.cine import CINE_KINDS

    if name not in (*ARCHITECTURES, *shipped()) and not Path(name).exists():
        raise ModelError(
            f"there is no model {name[:80]!r}",
            likely="no network and no shipped bundle has that name, and there is no such folder",
            hint=did_you_mean(name, (*ARCHITECTURES, *shipped()), "kstream models list"),
        )
    if name in ARCHITECTURES:
        entry = ARCHITECTURES[name]
        counted = cost(name)
        plain = {
            "name": name,
            "description": entry.description,
            "paper": entry.paper,
            "arguments": dict(entry.arguments),
        }
    else:
        bundle = Bundle.load(name)
        info = bundle.info
        plain = json_.loads(info.to_json())
        shapes: tuple[tuple[int, ...], ...] = ((1, 2, info.patch_depth, 128, 128),)
        if info.architecture in CINE_KINDS:
            shapes = tuple(array.shape for array in bundle.tensors()[0])
        counted = cost(info.architecture, info.arguments, shapes)
    return {**plain, "parameters": counted.parameters, "macs": counted.macs, "macs_inputs": counted.inputs}
