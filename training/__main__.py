"""``python -m kstream.training``: the commands of `commands`, and the one that only fills the cache."""

from __future__ import annotations

import sys

import typer

from ..errors import KstreamError
from . import commands

app = typer.Typer(help="Train and evaluate networks.", no_args_is_help=True, add_completion=False)
for command in (commands.cache, commands.read, commands.train, commands.evaluate, commands.study, commands.export):
    app.command()(command)

if __name__ == "__main__":
    try:
        app()
    except KstreamError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
