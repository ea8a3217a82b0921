"""``kstream ping``: does an MRD server answer?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    address: Annotated[str, typer.Argument(help="HOST:PORT; an IPv6 address in brackets")] = "127.0.0.1:9002",
    timeout: Annotated[float, typer.Option(min=0.1, help="seconds for the whole exchange")] = 5.0,
    tls_ca: Annotated[
        Path | None, typer.Option(help="PEM file: TLS with a server that these authorities vouch for")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="PEM file with our certificate and key, if the server asks")
    ] = None,
) -> None:
    """Ask a server whether it answers, as scanners do: exit code 0 if it does, 7 if not. Loads nothing there."""
    from ..errors import ConfigError
    from ..serve.connection import client_tls
    from ..serve.probe import ping

    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        raise ConfigError(f"{address[:80]!r} is not HOST:PORT", hint="kstream ping 127.0.0.1:9002")
    tls = client_tls(tls_ca, tls_cert) if tls_ca is not None or tls_cert is not None else None
    seconds = ping(host.removeprefix("[").removesuffix("]"), int(port), tls, timeout)
    print(f"{address} answered in {seconds * 1e3:.1f} ms")
