"""``kstream replay``: send a recording to a server and keep what comes back."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import ssl

    from ..serve.replay import ReplayResult


def command(
    recording: Annotated[Path, typer.Argument(help="ISMRMRD HDF5 recording, or a journal")],
    preset: Annotated[str, typer.Option(help="preset that the server shall use")] = "breast-dce",
    host: Annotated[str, typer.Option(help="server address")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="server port")] = 9002,
    output: Annotated[Path | None, typer.Option(help="returned images; default RECORDING.images.h5")] = None,
    setting: Annotated[list[str] | None, typer.Option("--set", help="section.key=value sent to the server")] = None,
    speed: Annotated[float, typer.Option(min=0, help="0: as fast as the server takes; 1: the recorded timing")] = 0.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="longest silence of the server, in s")] = 300.0,
    tls: Annotated[
        bool, typer.Option("--tls", help="speak TLS with a server that the system's authorities vouch for")
    ] = False,
    tls_ca: Annotated[
        Path | None, typer.Option(help="PEM file: TLS with a server that these authorities vouch for")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="PEM file with our certificate and key, if the server asks")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="folder for NIfTI, pictures, run.json and the report as well")
    ] = None,
    to_stream: Annotated[
        Path | None, typer.Option(help="write the bytes to this file (- : standard output) instead of to a server")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="show the server's live page; where no server runs, start one that has it")
    ] = False,
    group: Annotated[str | None, typer.Option(help="HDF5 group, if the file has several")] = None,
    json: Annotated[bool, typer.Option("--json", help="the account as JSON")] = False,
    quiet: Annotated[bool, typer.Option(help="no progress bar")] = False,
) -> None:
    """Replay a recording through an MRD server. Exit code 0 only if images came and the server told no error."""
    from ..mrd.recovering import open_recording
    from ..serve.pipe import write_stream
    from ..serve.replay import replay
    from .own_server import watched
    from .progress import ReplayProgress

    parameters = dict(_pair(text) for text in setting or ())
    if to_stream is not None:
        n_acquisitions = write_stream(recording, to_stream, preset, parameters, group)
        print(f"{to_stream}: {n_acquisitions} acquisitions", file=sys.stderr)
        return
    secured = _tls(tls, tls_ca, tls_cert)
    images = output or recording.with_suffix(".images.h5")
    with open_recording(recording, group) as source:
        n_acquisitions = source.n_acquisitions
    with contextlib.ExitStack() as shown:
        if watch:
            port = shown.enter_context(watched(host, port, secured, recording.with_suffix(".server.log")))
        with ReplayProgress(n_acquisitions, quiet=quiet) as bar:
            result = replay(
                recording,
                host=host,
                port=port,
                preset=preset,
                output=images,
                parameters=parameters,
                speed=speed,
                wait_s=timeout,
                group=group,
                tls=secured,
                progress=bar.sent,
                on_text=bar.text,
            )
        if results is not None:
            from .results import write_results

            write_results(results, recording, result, title=recording.name, images=images)
        if quiet:  # without the bar, nobody has shown them yet
            for error in result.errors:
                print(error, file=sys.stderr)
        _tell(result, images, json)  # before somebody is asked to press Enter
    raise typer.Exit(_exit_code(result))


def _tls(is_wanted: bool, authorities: Path | None, certificate: Path | None) -> ssl.SSLContext | None:
    from ..serve.connection import client_tls

    if not (is_wanted or authorities or certificate):
        return None
    return client_tls(authorities, certificate)


def _tell(result: ReplayResult, images: Path, as_json: bool) -> None:
    if as_json:
        import json

        print(json.dumps(_account(result, images), indent=2))
        return
    counts = result.summary
    print(
        f"sent {result.sent}, received {counts.get('received', '?')}, frames {counts.get('frames', '?')}, "
        f"images {result.n_images}, dropped {counts.get('dropped', '?')}, errors {len(result.errors)}, "
        f"{images if result.n_images else 'no image came'}"
    )
    if result.jitter is not None:
        print(result.jitter)


def _account(result: ReplayResult, images: Path) -> dict[str, Any]:
    """The account for machines; its keys stay."""
    counts, jitter = result.summary, result.jitter
    return {
        "sent": result.sent,
        "sent_bytes": result.sent_bytes,
        "sent_per_s": round(result.sent_per_s, 1),
        "received": counts.get("received"),
        "frames": counts.get("frames"),
        "images": result.n_images,
        "dropped": counts.get("dropped"),
        "errors": result.errors,
        "warnings": result.warnings,
        "jitter_ms": jitter and {"p50": jitter.p50_ms, "p99": jitter.p99_ms, "max": jitter.max_ms},
        "output": str(images) if result.n_images else None,
    }


def _exit_code(result: ReplayResult) -> int:
    """An error that the server told counts although images came."""
    from ..errors import PeerError

    if result.errors:
        return PeerError.exit_code
    return 0 if result.n_images else 1


def _pair(text: str) -> tuple[str, Any]:
    """``section.key=value`` as a JSON parameter; the value is read as a server's own --set reads it."""
    from ..config import parse_value

    key, _, value = text.partition("=")
    return key.strip(), parse_value(value)
