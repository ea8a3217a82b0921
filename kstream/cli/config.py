"""``kstream config``: presets, and where each value of one comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    preset: Annotated[str, typer.Argument(help="preset; without it, all are listed")] = "",
    file: Annotated[Path | None, typer.Option(help="TOML file laid over the preset")] = None,
    setting: Annotated[list[str] | None, typer.Option("--set", help="section.key=value laid over both")] = None,
) -> None:
    """List presets, or show every setting of one with its origin."""
    from rich.console import Console
    from rich.table import Table

    from ..config import Config, preset_description, preset_names, resolve

    console = Console(highlight=False)
    if not preset:
        table = Table("preset", "for", box=None)
        for name in preset_names():
            table.add_row(name, preset_description(name))
        console.print(table)
        return
    table = Table("setting", "value", "origin", "meaning", box=None)
    for key, value, origin in resolve(preset, file=file, settings=setting or ()).rows():
        section, name = key.split(".")
        fields = type(getattr(Config(), section)).model_fields
        table.add_row(key, value, origin, fields[name].description)
    console.print(table)
