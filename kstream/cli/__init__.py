"""Takes a command line, gives an exit code. Heavy imports happen inside the commands that need them."""

from __future__ import annotations

import os
import sys

import typer

from ..errors import KstreamError
from . import config, demo, doctor, import_, inspect, models, replay, serve, simulate

app = typer.Typer(
    name="kstream",
    help="Reads MRI raw data while the scanner is still running. For research use only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.command)
app.command("simulate")(simulate.command)
app.command("serve")(serve.command)
app.command("replay")(replay.command)
app.command("import")(import_.command)
app.command("inspect")(inspect.command)
app.command("config")(config.command)
app.command("models")(models.command)
app.command("doctor")(doctor.command)


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
