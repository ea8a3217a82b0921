"""A server for the time of one command, and the live page of whichever server a command talks to."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

LOCAL = ("127.0.0.1", "localhost", "::1")


@contextlib.contextmanager
def own_server(log: Path, *options: str) -> Iterator[tuple[int, str]]:
    """A `kstream serve` of our own on a free loopback port, ended afterwards.

    Parameters
    ----------
    log : file for what it logs.
    options : more of its options; with ``--watch``, it has a live page.

    Yields
    ------
    Its port, and the address of its page.

    Raises
    ------
    PeerError : it does not start.
    """
    from ..errors import PeerError

    kstream = shutil.which("kstream", path=str(Path(sys.executable).parent)) or "kstream"
    last = "live page on (.+)" if "--watch" in options else r"port (\d+)"
    with log.open("w") as stderr:
        command = [kstream, "serve", "--port", "0", *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
        try:
            told = ""
            for line in process.stdout or ():
                told += line
                if re.search(last, line):
                    break
            port, page = re.search(r"port (\d+)", told), re.search("live page on (.+)", told)
            if not port or not re.search(last, told):
                raise PeerError("the server did not start", where=str(log), hint="kstream doctor")
            yield int(port[1]), page[1] if page else ""
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout:
                process.stdout.close()


def wait_for_worker(log: Path, seconds: float = 120.0) -> bool:
    """Wait until the server that logs there says that a worker has its model; False if it does not in time.

    A scan may begin before: its frames wait then, and their latencies are those of loading.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        said = log.read_text(errors="replace")
        if re.search(r"worker \d+ is ready", said):
            return True
        if "cannot be had" in said:
            return False
        time.sleep(0.05)
    return False


@contextlib.contextmanager
def watched(host: str, port: int, tls: ssl.SSLContext | None, log: Path) -> Iterator[int]:
    """Show the live page of the server there; where none listens on this machine, of one of our own.

    On a terminal, a server of our own stays until Enter is pressed, so that there is time to look.

    Yields
    ------
    The port of the server.

    Raises
    ------
    PeerError : the server there has no page, or no server listens on another machine.
    """
    if _show_page_of(host, port, tls):
        yield port
        return
    with own_server(log, "--watch", "--watch-port", "0") as (own_port, page):
        show(page)
        yield own_port
        if sys.stdin.isatty() and sys.stderr.isatty():
            with contextlib.suppress(KeyboardInterrupt, EOFError):
                input("the page stays until you press Enter ")


def _show_page_of(host: str, port: int, tls: ssl.SSLContext | None) -> bool:
    """Show the page of the server there; False if none listens on this machine, where one can be started."""
    from ..errors import PeerError
    from ..serve.probe import page_of

    try:
        url = page_of(host, port, tls)
    except PeerError as error:
        if error.code != "no_connection" or host not in LOCAL or tls is not None:
            raise
        return False
    hint = tunnel_hint(host, url)
    if hint:
        print(hint, file=sys.stderr, flush=True)
    else:
        show(url)
    return True


def tunnel_hint(host: str, url: str) -> str:
    """What to type to see a page that only the other machine reaches; empty if this machine reaches it."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    if host in LOCAL or parts.hostname not in LOCAL:
        return ""
    port = parts.port or 80
    bracketed = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"the live page is on {host} itself: ssh -L {port}:{bracketed}:{port} {host}, then open http://127.0.0.1:{port}/"


def show(url: str) -> None:
    """Say where the page is, and open it for a person at a screen."""
    print(f"live page on {url}", file=sys.stderr, flush=True)
    open_page(url)


def open_page(url: str) -> None:
    """Open a page in the browser of a person at a screen; off a terminal, or without a screen, do nothing."""
    has_screen = sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    if has_screen and sys.stderr.isatty():
        import webbrowser

        webbrowser.open(url)
