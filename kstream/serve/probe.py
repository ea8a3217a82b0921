"""Is somebody there? The question that scanners ask too: a configuration, CLOSE, and nothing in between."""

from __future__ import annotations

import ssl
import time

from ..errors import KstreamError, PeerError
from ..mrd.codec import Decoder, encode
from ..mrd.messages import Close, ConfigFile
from .connection import Connection, connect

PROBE = "isalive.xml"


def ping(host: str, port: int, tls: ssl.SSLContext | None = None, seconds: float = 5.0) -> float:
    """Ask an MRD server whether it answers; gives the seconds that it took.

    Parameters
    ----------
    tls : speaks TLS, and expects a certificate for `host`.
    seconds : for the whole exchange.

    Raises
    ------
    PeerError : nobody listens, or what listens does not answer with CLOSE in time.
    """
    begin = time.monotonic()
    connection = connect(host, port, tls, seconds)
    try:
        connection.send([encode(ConfigFile(PROBE)), encode(Close())], seconds)
        if not _is_closed(connection, begin + seconds):
            raise _unanswered(host, port, "ended the connection without CLOSE")
    except TimeoutError:
        raise _unanswered(host, port, f"did not answer within {seconds:g} s") from None
    except OSError as error:
        raise _unanswered(host, port, f"broke the connection: {error.strerror or error}") from error
    except PeerError:
        raise
    except KstreamError as error:
        raise _unanswered(host, port, f"does not speak MRD: {error.what}") from error
    finally:
        connection.close()
    return time.monotonic() - begin


def _is_closed(connection: Connection, deadline: float) -> bool:
    decoder = Decoder()
    while (remaining := deadline - time.monotonic()) > 0:
        n_bytes = connection.receive_into(decoder.space(), remaining)
        if not n_bytes:
            return False
        if any(isinstance(message, Close) for message in decoder.filled(n_bytes)):
            return True
        if decoder.error is not None:
            raise decoder.error
    raise TimeoutError


def _unanswered(host: str, port: int, what: str) -> PeerError:
    return PeerError(
        f"{host} port {port} {what}",
        likely="it is busy beyond its limits, speaks TLS, or is no MRD server",
        hint="kstream doctor on that machine",
        code="no_answer",
    )
