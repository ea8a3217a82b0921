"""``kstream replay``: send a recording to a server and keep what comes back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    recording: Annotated[Path, typer.Argument(help="ISMRMRD HDF5 recording")],
    preset: Annotated[str, typer.Option(help="preset that the server shall use")] = "breast-dce",
    host: Annotated[str, typer.Option(help="server address")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="server port")] = 9002,
    output: Annotated[Path | None, typer.Option(help="returned images; default RECORDING.images.h5")] = None,
    setting: Annotated[list[str] | None, typer.Option("--set", help="section.key=value sent to the server")] = None,
    speed: Annotated[float, typer.Option(min=0, help="0: as fast as the server takes; 1: the recorded timing")] = 0.0,
    results: Annotated[
        Path | None, typer.Option(help="folder for NIfTI, pictures, run.json and the report as well")
    ] = None,
    group: Annotated[str | None, typer.Option(help="HDF5 group, if the file has several")] = None,
    quiet: Annotated[bool, typer.Option(help="no progress bar")] = False,
) -> None:
    """Replay a recording through an MRD server. Exit code 0 only if images came and the server told no error."""
    from ..mrd.recording import Recording
    from ..serve.replay import replay
    from .progress import ReplayProgress

    images = output or recording.with_suffix(".images.h5")
    with Recording(recording, group) as source:
        n_acquisitions = source.n_acquisitions
    with ReplayProgress(n_acquisitions, quiet=quiet) as bar:
        result = replay(
            recording,
            host=host,
            port=port,
            preset=preset,
            output=images,
            parameters=dict(_pair(text) for text in setting or ()),
            speed=speed,
            group=group,
            progress=bar.sent,
            on_text=bar.text,
        )
    if results is not None:
        from .results import write_results

        write_results(results, recording, result, title=recording.name)
    if quiet:  # without the bar, nobody has shown them yet
        for error in result.errors:
            print(error, file=sys.stderr)
    counts = result.summary
    print(
        f"sent {result.sent}, received {counts.get('received', '?')}, frames {counts.get('frames', '?')}, "
        f"images {result.n_images}, dropped {counts.get('dropped', '?')}, errors {len(result.errors)}, "
        f"{images if result.n_images else 'no image came'}"
    )
    raise typer.Exit(0 if result.n_images and not result.errors else 1)


def _pair(text: str) -> tuple[str, Any]:
    """``section.key=value`` as a JSON parameter; the value is read as a server's own --set reads it."""
    from ..config import parse_value

    key, _, value = text.partition("=")
    return key.strip(), parse_value(value)
