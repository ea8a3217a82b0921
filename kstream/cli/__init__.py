"""Takes a command line, gives an exit code. Heavy imports happen inside the commands that need them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import typer

from ..errors import KstreamError
from ..training import commands as training
from . import (
    compile_,
    config,
    demo,
    doctor,
    examples,
    export,
    import_,
    inspect,
    models,
    package,
    ping,
    recover,
    replay,
    report,
    serve,
    simulate,
    stream,
    worker,
)

app = typer.Typer(
    name="kstream",
    help="Reads MRI raw data while the scanner is still running. For research use only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # 0.15 s instead of 0.23 s for a --help, and the same text in a pipe
    context_settings={"max_content_width": 110},
)


def _add(name: str, command: Callable[..., None]) -> None:
    app.command(name, short_help=examples.SHORT.get(name), epilog=examples.of(name))(command)


_add("demo", demo.command)
_add("simulate", simulate.command)
_add("serve", serve.command)
_add("worker", worker.command)
_add("compile", compile_.command)
_add("replay", replay.command)
_add("stream", stream.command)
_add("import", import_.command)
_add("inspect", inspect.command)
_add("recover", recover.command)
_add("report", report.command)
_add("export", export.command)
_add("train", training.train)
_add("evaluate", training.evaluate)
_add("study", training.study)
app.add_typer(config.app, name="config", short_help=examples.SHORT["config"])
_add("models", models.command)
_add("doctor", doctor.command)
_add("ping", ping.command)
app.add_typer(package.app, name="package")


def main() -> None:
    """Entry point: our own errors end with their text on standard error and their exit code.

    The matrices of a stream are small (coils, ESPIRiT windows): threads inside BLAS only wait for each other, and on a
    busy machine they made coil calibration of a frame take 33 s instead of 1.3 s. torch has threads of its own.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        app()
    except KstreamError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(KstreamError(f"{error.strerror or error}", where=str(error.filename or "")), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
