"""``kstream models``: architectures and bundles."""

from __future__ import annotations

import json as json_
from typing import Annotated, Any

import typer


def command(
    action: Annotated[str, typer.Argument(help="list, or show")] = "list",
    name: Annotated[str, typer.Argument(help="architecture or bundle to show")] = "",
    json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
) -> None:
    """List the networks and the shipped bundles, or show one (parameters and multiply-accumulates are counted)."""
    from rich.console import Console
    from rich.table import Table

    from ..errors import ConfigError
    from ..models.bundle import Bundle, shipped
    from ..models.registry import ARCHITECTURES

    console = Console(highlight=False)
    if action == "list":
        rows = [{"kind": "architecture", "name": a.name, "about": a.description} for a in ARCHITECTURES.values()]
        rows += [{"kind": "bundle", "name": name, "about": Bundle.load(name).info.description} for name in shipped()]
        if json:
            print(json_.dumps(rows, indent=2))
            return
        table = Table("kind", "name", "about", box=None)
        for row in rows:
            table.add_row(row["kind"], row["name"], row["about"])
        console.print(table)
        return
    if action != "show" or not name:
        raise ConfigError(f"unknown action {action!r}", hint="kstream models list | kstream models show NAME [--json]")
    shown = _describe(name)
    if json:
        print(json_.dumps(shown, indent=2))
        return
    for key, value in shown.items():
        console.print(
            f"[bold]{key:<14}[/bold]", value if isinstance(value, str) else json_.dumps(value), soft_wrap=True
        )


def _describe(name: str) -> dict[str, Any]:
    """An architecture with its counted cost, or a bundle's description with the cost of its network per patch."""
    from ..models.bundle import Bundle
    from ..models.registry import ARCHITECTURES, cost

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
        info = Bundle.load(name).info
        plain = json_.loads(info.to_json())
        counted = cost(info.architecture, info.arguments, (1, 2, info.patch_depth, 128, 128))
    return {**plain, "parameters": counted.parameters, "macs": counted.macs, "macs_patch": list(counted.patch)}
