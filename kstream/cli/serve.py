"""``kstream serve``: the MRD server."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from ..serve.gadget_door import GadgetDoor
    from ..serve.server import MrdServer
    from ..serve.watch import LivePage
    from ..serve.worker_link import Keys
    from ..serve.workers import ModelWorkers


def command(
    host: Annotated[
        list[str] | None, typer.Option(help="address to listen on, may be repeated [default: loopback, IPv4 and IPv6]")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="port; 0 takes a free one and prints it")] = 9002,
    gadgetron_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="port for Gadgetron's <connect>; 0: a free one; without TLS")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings for every scan (kstream config init); a client's win")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value for every scan; wins over a client's")
    ] = None,
    default_preset: Annotated[str, typer.Option(help="for clients that name a preset we do not have")] = "",
    warm_up: Annotated[str, typer.Option(help="preset whose model is loaded at start; empty: none")] = "breast-dce",
    device: Annotated[str, typer.Option(help="where networks run: cpu or cuda")] = "cpu",
    engine: Annotated[
        str, typer.Option(help="what runs networks: auto, torch, aot, openvino, ..., or a folder")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="of networks: auto, fp32, bf16 or fp16")] = "auto",
    workers: Annotated[int, typer.Option(min=1, help="processes of our own that run networks")] = 1,
    worker: Annotated[
        list[str] | None, typer.Option(help="address of a running `kstream worker`; then none of our own")
    ] = None,
    worker_key: Annotated[Path | None, typer.Option(help="our .key_secret, for workers on tcp")] = None,
    worker_public: Annotated[Path | None, typer.Option(help="the workers' .key, for workers on tcp")] = None,
    worker_s: Annotated[
        float, typer.Option(help="seconds for a worker to segment up to 4 million voxels; more have longer")
    ] = 120.0,
    worker_gib: Annotated[float, typer.Option(min=0, help="memory above which a worker is replaced; 0: never")] = 8.0,
    worker_absent: Annotated[
        Literal["fail", "local"], typer.Option(help="no worker on any --worker address: fail, or segment here")
    ] = "fail",
    record: Annotated[Path | None, typer.Option(help="folder for a journal of everything that comes in")] = None,
    tls: Annotated[Path | None, typer.Option(help="PEM file with our certificate chain and key: TLS only")] = None,
    tls_clients: Annotated[Path | None, typer.Option(help="PEM file: clients need a certificate of these")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Prometheus metrics on this port; 0: a free one")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="show a live page in the browser")] = False,
    watch_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="port of the live page; 0: a free one [default: 9003]")
    ] = None,
    watch_host: Annotated[
        str | None, typer.Option(help="address of the live page; beyond loopback it needs a token [default: 127.0.0.1]")
    ] = None,
    watch_token: Annotated[bool, typer.Option("--watch-token", help="ask for a token on loopback too")] = False,
    log_format: Annotated[Literal["text", "json"], typer.Option(help="how log lines look")] = "text",
    show_texts: Annotated[bool, typer.Option(help="log what clients write; it may name patients")] = False,
    handshake_s: Annotated[float, typer.Option(help="seconds from connection to header")] = 10.0,
    message_s: Annotated[float, typer.Option(help="seconds for the rest of a message that has begun")] = 30.0,
    idle_s: Annotated[float, typer.Option(help="seconds of silence between messages")] = 600.0,
    send_s: Annotated[float, typer.Option(help="seconds for a client to take one message")] = 60.0,
    finish_s: Annotated[float, typer.Option(help="seconds for a pipeline to end after the last readout")] = 600.0,
    grace_s: Annotated[float, typer.Option(help="seconds for running scans to end after SIGTERM")] = 10.0,
    queue_mib: Annotated[float, typer.Option(help="acquisitions that may wait in a session, in MiB")] = 64.0,
    send_mib: Annotated[float, typer.Option(help="images that may wait for a client, in MiB")] = 256.0,
    text_mib: Annotated[float, typer.Option(help="texts that a client may send in a session, in MiB")] = 16.0,
    message_mib: Annotated[float, typer.Option(help="largest acquisition taken, in MiB")] = 64.0,
    memory_gib: Annotated[float, typer.Option(help="memory above which no scan is begun, in GiB")] = 16.0,
    max_sessions: Annotated[int, typer.Option(min=1, help="measurements at a time")] = 8,
    max_connections: Annotated[int, typer.Option(min=1, help="connections at a time, silent ones included")] = 64,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="log debug messages")] = False,
) -> None:
    """Serve MRD clients (Siemens FIRE/OpenRecon, Gadgetron clients, `kstream replay`) until interrupted."""
    import logging
    import threading

    from ..engines.memory import share_arenas
    from ..errors import ConfigError
    from ..mrd.codec import Limits
    from ..serve import logs
    from ..serve.connection import server_tls
    from ..serve.server import MrdServer
    from ..serve.settings import LOOPBACK, ServerSettings
    from ..serve.workers import ModelWorkers, WorkerSettings

    share_arenas()
    logs.set_up(log_format, logging.DEBUG if verbose else logging.INFO)
    settings = ServerSettings(
        handshake_s=handshake_s,
        message_s=message_s,
        idle_s=idle_s,
        send_s=send_s,
        finish_s=finish_s,
        queue_mib=queue_mib,
        send_mib=send_mib,
        text_mib=text_mib,
        max_sessions=max_sessions,
        max_connections=max_connections,
        memory_gib=memory_gib,
        default_preset=default_preset,
        config=config,
        settings=tuple(setting or ()),
        show_texts=show_texts,
        record=record,
        message=Limits(acquisition_bytes=int(message_mib * 2**20)),
    )
    presets = [settings.resolve(name, {}) for name in ("breast-dce", default_preset, warm_up) if name]
    warmed = presets[-1].config  # a wrong --set fails now, not at the first scan
    to_load = (warmed.cine.model or warmed.segment.model) if warm_up else ""
    if tls is None and tls_clients is not None:
        raise ConfigError("--tls-clients needs --tls", hint="--tls FILE with our own certificate and key")
    secured = server_tls(tls, tls_clients) if tls is not None else None
    models = ModelWorkers(
        WorkerSettings(
            n_processes=0 if worker else workers,
            addresses=tuple(worker or ()),
            models=(to_load,) if to_load else (),
            device=device,
            engine=engine,
            precision=precision,
            timeout_s=worker_s,
            memory_gib=worker_gib,
            keys=_keys(worker_key, worker_public),
            when_absent=worker_absent,
        )
    )
    if record is not None:
        record.mkdir(parents=True, exist_ok=True)
        threading.Thread(target=_seal_leftovers, args=(record,), name="kstream-leftovers", daemon=True).start()
    threading.Thread(target=_warm_up, name="kstream-warm-up", daemon=True).start()
    is_watched = watch or watch_token or watch_port is not None or watch_host is not None
    page = _page(watch_host, watch_port, watch_token) if is_watched else None
    server = MrdServer(host or LOOPBACK, port, settings, models, secured, page.tap if page is not None else None)
    door = _gadget_door(host or LOOPBACK, gadgetron_port, server, models)
    _watch_workers(server, models)
    _run(server, models, metrics_port, grace_s, door, page)


def _page(host: str | None, port: int | None, has_token: bool) -> LivePage:
    """The live page; what is not said is as `PageSettings` has it."""
    from ..serve.settings import PageSettings
    from ..serve.tap import Tap
    from ..serve.watch import LivePage

    said: dict[str, Any] = {"host": host, "port": port}
    return LivePage(Tap(), PageSettings(**{k: v for k, v in said.items() if v is not None}, has_token=has_token))


def _keys(client: Path | None, worker: Path | None) -> Keys | None:
    from ..errors import ConfigError
    from ..serve.worker_link import Keys

    if client is None and worker is None:
        return None
    if client is None or worker is None:
        raise ConfigError("--worker-key and --worker-public go together", hint="kstream worker --make-keys FOLDER")
    return Keys(client, worker)


def _warm_up() -> None:
    """What a first session needs and listening does not: the pipeline's modules, and its compiled loops."""
    from ..recon import kernels
    from ..serve import session

    log = session.log
    kernels.warm_up()
    log.debug("the pipeline is warm")


def _seal_leftovers(folder: Path) -> None:
    """Beside the serving: a server that died may have left gigabytes."""
    import logging

    from ..errors import KstreamError
    from ..mrd.journal import recover_leftovers

    log = logging.getLogger("kstream.serve")
    try:
        for left in recover_leftovers(folder):
            log.warning("%s was left by a server that died (%s): kstream recover", left.path.name, left.reason)
    except KstreamError as error:
        log.error("%s", error)


def _gadget_door(hosts: Sequence[str], port: int | None, server: MrdServer, models: ModelWorkers) -> GadgetDoor | None:
    """The door for Gadgetron, if it is wanted."""
    if port is None:
        return None
    from ..serve.gadget_door import GadgetDoor

    return GadgetDoor(hosts, port, server, models)


def _watch_workers(server: MrdServer, models: ModelWorkers) -> None:
    """Counters of the workers among the server's metrics."""
    for counter in fields(models.counters):
        server.metrics.watch(
            f"worker_{counter.name}", f"model workers: {counter.name}", functools.partial(_count, models, counter.name)
        )


def _count(models: ModelWorkers, name: str) -> float:
    return float(getattr(models.counters, name))


def _about(models: ModelWorkers, **fixed: Any) -> dict[str, Any]:
    """The server as the live page shows it: what never changes, and its memory and workers now."""
    from ..serve.server import resident_bytes

    described = models.describe()
    workers = [{name: worker[name] for name in ("name", "state", "reason")} for worker in described["workers"]]
    return {**fixed, "resident_bytes": resident_bytes(), "workers": workers, "waiting": described["waiting"]}


def _run(
    server: MrdServer,
    models: ModelWorkers,
    metrics_port: int | None,
    grace_s: float,
    door: GadgetDoor | None,
    page: LivePage | None,
) -> None:
    """Serve until SIGTERM or SIGINT; a second signal ends the grace."""
    import logging
    import os
    import signal
    import threading

    from ..serve.settings import LOOPBACK
    from .own_server import open_page

    for number in (signal.SIGTERM, signal.SIGINT):  # before anybody is told that we listen
        signal.signal(number, lambda *_: server.ask_to_stop())
    stop_metrics = None
    for address in server.addresses:
        print(f"kstream listens on {address} port {server.port}", flush=True)
    if door is not None:
        print(f"kstream listens for Gadgetron on port {door.port}", flush=True)
        door.start()
    if page is not None:
        page.tap.about = functools.partial(
            _about,
            models,
            port=server.port,
            queue_bytes=int(server.settings.queue_mib * 2**20),
            is_recording=server.settings.record is not None,
        )
        page.start()
        print(f"live page on {page.url}", flush=True)
        if not page.token:  # other users can read a browser's command line
            open_page(page.url)
    if metrics_port is not None:
        shown, stop_metrics = server.metrics.serve(LOOPBACK[0], metrics_port)
        print(f"metrics on http://{LOOPBACK[0]}:{shown}/metrics", flush=True)
    models.start()
    # The reader of a session must not wait 5 ms for its pipeline's thread: with a busy one beside it, recording took
    # 13 MB/s with the interpreter's own interval and 365 MB/s with this.
    sys.setswitchinterval(5e-4)
    try:
        server.serve_forever()
        closing = threading.Thread(target=lambda: door.stop(grace_s) if door is not None else None)
        closing.start()  # both doors close at the same time
        server.stop(grace_s)
        closing.join()
    finally:
        models.stop(0.0 if server.is_hurried else 5.0)
        if stop_metrics is not None:
            stop_metrics()
        if page is not None:
            page.stop()
        if server.is_computing or (
            door is not None and door.is_computing
        ):  # in threads that nothing can interrupt, and that Python would wait for
            logging.shutdown()
            os._exit(0)
