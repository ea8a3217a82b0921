"""``kstream serve``: the MRD server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..serve.store import ModelStore


def command(
    host: Annotated[str, typer.Option(help="address to listen on; loopback unless told otherwise")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port; 0 takes a free one and prints it")] = 9002,
    setting: Annotated[list[str] | None, typer.Option("--set", help="section.key=value for every scan")] = None,
    warm_up: Annotated[str, typer.Option(help="preset whose model is loaded at start; empty: none")] = "breast-dce",
    device: Annotated[str, typer.Option(help="where networks run: cpu or cuda")] = "cpu",
    handshake_s: Annotated[float, typer.Option(help="seconds from connection to header")] = 10.0,
    idle_s: Annotated[float, typer.Option(help="longest silence within a scan, in seconds")] = 600.0,
    max_sessions: Annotated[int, typer.Option(help="measurements at a time")] = 8,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="log debug messages")] = False,
) -> None:
    """Serve MRD clients (Siemens FIRE/OpenRecon, Gadgetron clients, `kstream replay`) until interrupted."""
    import signal
    import threading

    from ..config import resolve
    from ..engines.memory import keep_large_blocks
    from ..serve.server import MrdServer, ServerSettings
    from ..serve.store import ModelStore

    keep_large_blocks()
    _log(verbose)
    settings = ServerSettings(
        handshake_s=handshake_s, idle_s=idle_s, max_sessions=max_sessions, settings=tuple(setting or ())
    )
    resolve("breast-dce", settings=settings.settings)  # a wrong --set fails now, not at the first scan
    store = ModelStore(device)
    server = MrdServer(host, port, settings, store)
    print(f"kstream listens on {host} port {server.port}", flush=True)
    if warm_up:
        warming = threading.Thread(target=_warm_up, args=(store, warm_up, settings.settings), daemon=True)
        warming.start()
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.stop).start())
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.stop()


def _log(verbose: bool) -> None:
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)-7s session %(session)s  %(message)s", defaults={"session": "-"})
    )
    root = logging.getLogger("kstream")
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if verbose else logging.INFO)


def _warm_up(store: ModelStore, preset: str, settings: tuple[str, ...]) -> None:
    """Load a preset's model while the server already listens; a failure is logged and met again at the first scan."""
    import logging

    from ..config import resolve
    from ..errors import KstreamError

    log = logging.getLogger("kstream.serve")
    try:
        store.segment(resolve(preset, settings=settings).config.segment)
        log.info("model of preset %s is ready", preset)
    except KstreamError as error:
        log.error("%s", error)
