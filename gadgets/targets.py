"""The callables: each takes the connection that the `gadgetron` package has made, and serves it until CLOSE.

That package (1.4.1) reads for ever when its peer dies, and never sends ERROR. So the socket is taken over once the
package has read configuration and header; from then on our codec reads and writes.
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from ..errors import ConfigError
from ..mrd.messages import ConfigText, Header, Message
from ..serve.connection import Connection, SocketConnection
from ..serve.gadget_child import run_child
from ..serve.gadget_config import PRESETS, Target


def segment(connection: Any) -> NoReturn:
    """Readouts to magnitude images and label images; ends the process.

    Parameters
    ----------
    connection : ``gadgetron.external.Connection``.
    """
    _serve(connection, "segment")


def reconstruct(connection: Any) -> NoReturn:
    """Readouts to magnitude images; ends the process. See `segment`."""
    _serve(connection, "reconstruct")


def segment_images(connection: Any) -> NoReturn:
    """Arrays of complex images to label images; ends the process. See `segment`."""
    _serve(connection, "segment_images")


def target_of(name: str) -> Target:
    """A target by its name.

    Raises
    ------
    ConfigError : there is none of that name.
    """
    for target in PRESETS:
        if target == name:
            return target
    raise ConfigError(f"there is no target {name[:80]!r}", where="<execute>", hint=f"one of: {', '.join(PRESETS)}")


def _serve(connection: Any, target: Target) -> NoReturn:
    taken, opening = take_over(connection)
    sys.exit(run_child(taken, target, opening))


class _Spent:
    """Stands in for the socket that was taken: the package closes it once more, with a CLOSE of its own."""

    def close(self) -> None:
        """Nothing is left to close."""


def take_over(connection: Any) -> tuple[Connection, list[Message]]:
    """The socket of a connection of the package, and what the package has read from it.

    Raises
    ------
    ConfigError : the connection is of another kind.
    """
    try:
        raw, config, header = connection.socket.socket, connection.raw_bytes.config, connection.raw_bytes.header
    except AttributeError as error:
        raise ConfigError(
            f"the connection is not one of the gadgetron package: {error}",
            likely="a version of the package that kstream does not know",
            hint="install the launcher: python -m kstream.gadgets install GADGETRON_HOME",
        ) from None
    connection.socket = _Spent()
    return SocketConnection(raw), [ConfigText(config.decode("utf-8", "replace")), Header(header.rstrip(b"\0"))]
