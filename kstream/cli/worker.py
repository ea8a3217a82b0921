"""``kstream worker``: a process that keeps models loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    address: Annotated[str, typer.Option(help="where to listen: ipc://FILE, or tcp://HOST:PORT with keys")] = "",
    model: Annotated[list[str] | None, typer.Option(help="bundle to load at start; then no other is served")] = None,
    device: Annotated[str, typer.Option(help="where networks run: cpu, cuda, or cuda,cpu to fall back")] = "cpu",
    engine: Annotated[str, typer.Option(help="what runs them: auto, torch, aot, openvino, ..., or a folder")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16")] = "auto",
    memory_gib: Annotated[float, typer.Option(min=0, help="end after a frame that leaves more in use; 0: never")] = 8.0,
    curve_key: Annotated[Path | None, typer.Option(help="this worker's .key_secret, for tcp")] = None,
    curve_clients: Annotated[Path | None, typer.Option(help="folder with the .key files of those let in")] = None,
    make_keys: Annotated[Path | None, typer.Option(help="write a pair of keys for tcp to this folder, and end")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="log debug messages")] = False,
    owned: Annotated[bool, typer.Option("--owned", hidden=True, help="end when standard input closes")] = False,
) -> None:
    """Keep models loaded and warm, and segment what `kstream serve --worker ADDRESS` sends (ZeroMQ)."""
    import logging

    from ..engines.memory import keep_large_blocks
    from ..engines.threads import sleep_while_waiting
    from ..errors import ConfigError

    if make_keys is not None:
        from ..serve.worker import make_keys as write_keys

        worker, client = write_keys(make_keys)
        print(f"worker: --curve-key {worker} --curve-clients {make_keys / 'clients'}")
        print(f"server: --worker-key {client} --worker-public {worker.with_suffix('.key')}")
        return
    if not address:
        raise ConfigError("a worker needs an address", hint="kstream worker --address ipc:///run/kstream/worker-1")
    sleep_while_waiting()
    keep_large_blocks()
    logging.basicConfig(
        format="%(asctime)s %(levelname)-7s worker %(process)d  %(message)s",
        level=logging.DEBUG if verbose else logging.WARNING if owned else logging.INFO,
    )
    from ..serve.store import ModelStore
    from ..serve.worker import WorkerOptions, serve_models

    options = WorkerOptions(
        address=address,
        models=tuple(model or ()),
        memory_gib=memory_gib,
        curve_key=curve_key,
        curve_clients=curve_clients,
        is_owned=owned,
    )
    raise typer.Exit(serve_models(options, ModelStore(device, engine, precision)))
