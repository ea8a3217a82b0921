"""``kstream stream``: one session over standard input and output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Iterator

    from ..serve.session import ServerSession


def command(
    preset: Annotated[str, typer.Option(help="configuration of a stream that begins with its header")] = "",
    config: Annotated[Path | None, typer.Option(help="TOML file of settings (kstream config init)")] = None,
    setting: Annotated[list[str] | None, typer.Option("--set", help="section.key=value")] = None,
    device: Annotated[str, typer.Option(help="where networks run: cpu or cuda")] = "cpu",
    log_format: Annotated[Literal["text", "json"], typer.Option(help="how log lines look")] = "text",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="log debug messages")] = False,
) -> None:
    """Read an MRD stream from standard input, write what a server would send to standard output.

    The log goes to standard error.
    """
    import logging
    import os
    import sys

    from ..config import resolve
    from ..engines.memory import keep_large_blocks
    from ..serve import logs
    from ..serve.pipe import refuse_terminal, stream
    from ..serve.store import ModelStore

    logs.set_up(log_format, logging.DEBUG if verbose else logging.INFO)
    settings = tuple(setting or ())
    keep_large_blocks()  # networks run in this process
    if preset:
        resolve(preset, file=config, settings=settings)  # what is wrong with it is told before anything is read
    source, target = sys.stdin.fileno(), sys.stdout.fileno()
    refuse_terminal(source, "standard input")
    refuse_terminal(target, "standard output")
    output = os.dup(target)
    os.dup2(sys.stderr.fileno(), target)  # what anything in this process prints must not come between messages
    signals: list[int] = []

    def guard(session: ServerSession) -> contextlib.AbstractContextManager[None]:
        return _interruptible(session, signals)

    error = stream(
        source, output, preset=preset, config=config, settings=settings, models=ModelStore(device), guard=guard
    )
    os.close(output)
    if signals:
        raise typer.Exit(128 + signals[0])
    raise typer.Exit(0 if error is None else error.exit_code)


def _interruptible(session: ServerSession, received: list[int]) -> contextlib.AbstractContextManager[None]:
    """SIGINT and SIGTERM end the session with a word to its reader; which one came is noted."""
    import contextlib
    import signal

    from ..errors import PeerError

    def stop(number: int, _: object) -> None:
        received.append(number)
        session.interrupt(PeerError("the stream was stopped", where="by a signal", code="server_stopped"))

    @contextlib.contextmanager
    def handled() -> Iterator[None]:
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    return handled()
