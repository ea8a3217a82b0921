"""``kstream config``: presets, where each value of one comes from, and files of settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import examples


class PresetOrCommand(TyperGroup):
    """``kstream config PRESET`` is short for ``kstream config show PRESET``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["show", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=PresetOrCommand, epilog=examples.of("config"), rich_markup_mode=None)


def _presets(incomplete: str) -> list[str]:
    """For the shell's completion."""
    from ..config import preset_names

    return [name for name in preset_names() if name.startswith(incomplete)]


Preset = Annotated[str, typer.Argument(help="preset; `kstream config` lists them", autocompletion=_presets)]
AsJson = Annotated[bool, typer.Option("--json", help="machine-readable")]


@app.callback(invoke_without_command=True)
def command(context: typer.Context, json: AsJson = False) -> None:
    """List presets; or show, write and check settings.

    Where a setting is given more than once, the later one wins: default < preset < file < scanner's parameters <
    --set. `kstream config PRESET` is short for `kstream config show PRESET`.
    """
    from ..config import preset_description, preset_names
    from .tables import print_json, print_rows

    if context.invoked_subcommand is not None:
        return
    rows = [(name, preset_description(name)) for name in preset_names()]
    if json:
        print_json([{"preset": name, "for": text} for name, text in rows])
    else:
        print_rows(list(rows), "preset", "for")


@app.command(epilog=examples.of("config show"))
def show(
    preset: Preset,
    file: Annotated[Path | None, typer.Option(help="TOML file laid over the preset")] = None,
    setting: Annotated[list[str] | None, typer.Option("--set", help="section.key=value laid over both")] = None,
    json: AsJson = False,
) -> None:
    """Show every setting of a preset, and what gave it its value; units are in names and meanings."""
    from textwrap import fill

    from ..config import meanings, resolve
    from .tables import console, print_json, print_rows

    meaning = meanings()
    rows = [(*row, meaning[row[0]]) for row in resolve(preset, file=file, settings=setting or ()).rows()]
    if json:
        import json as json_

        keys = ("setting", "value", "origin", "meaning")
        print_json([dict(zip(keys, (k, json_.loads(v), o, m), strict=True)) for k, v, o, m in rows])
        return
    width = console().width
    if width >= 130:
        print_rows(list(rows), "setting", "value", "origin", "meaning")
        return
    key_width, value_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    for key, value, origin, text in rows:  # narrow: the meaning has a line of its own
        print(f"{key:<{key_width}}  {value:<{value_width}}  {origin}")
        print(fill(text, width, initial_indent="    ", subsequent_indent="    "))


@app.command(epilog=examples.of("config init"))
def init(
    preset: Preset = "breast-dce",
    output: Annotated[Path | None, typer.Option(help="file to write; without it, standard output")] = None,
) -> None:
    """Write a TOML file of all settings: those of the preset, and the others as comments with their defaults."""
    from ..config import commented_toml
    from ..errors import ConfigError

    text = commented_toml(preset)
    if output is None:
        print(text, end="")
        return
    if output.exists():
        raise ConfigError("the file exists already", where=str(output), hint="another --output")
    output.write_text(text, encoding="utf-8")
    print(f"{output}: settings of preset {preset}; check it with kstream config validate {output}")


@app.command(epilog=examples.of("config validate"))
def validate(
    file: Annotated[Path, typer.Argument(help="TOML file of settings")],
    preset: Annotated[str, typer.Option(help="preset that it is laid over", autocompletion=_presets)] = "breast-dce",
    json: AsJson = False,
) -> None:
    """Check a file of settings: every key, type and range. Exit code 0 if it can be used, 2 otherwise."""
    from ..config import resolve
    from ..errors import ConfigError
    from .tables import print_json

    origin = f"file {file.name}"
    try:
        given = [key for key, _, from_ in resolve(preset, file=file).rows() if from_ == origin]
    except ConfigError as error:
        if json:
            print_json({"ok": False, "error": error.what, "where": error.where, "try": error.hint})
            raise typer.Exit(ConfigError.exit_code) from None
        raise
    if json:
        print_json({"ok": True, "settings": given})
    else:
        print(f"{file}: {len(given)} settings over preset {preset}, all good")


@app.command(epilog=examples.of("config schema"))
def schema() -> None:
    """Print the JSON schema of all settings: for editors that complete and check TOML."""
    from ..config import Config
    from .tables import print_json

    print_json(Config.model_json_schema())
