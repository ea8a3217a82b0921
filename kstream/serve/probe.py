"""Is somebody there? The question that scanners ask too: a configuration, CLOSE, and nothing in between."""

from __future__ import annotations

import re
import ssl
import time

from ..errors import KstreamError, PeerError
from ..mrd.codec import Decoder, encode
from ..mrd.messages import Close, ConfigFile, Message, Query, Response
from .connection import Connection, connect
from .queries import PAGE, UNKNOWN

PROBE = "isalive.xml"

PAGE_URL = re.compile(r"http://[!-~]{1,2000}")
"""Printable and without spaces: it goes to a terminal and to a browser."""


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
    _exchange(host, port, ConfigFile(PROBE), tls, seconds)
    return time.monotonic() - begin


def page_of(host: str, port: int, tls: ssl.SSLContext | None = None, seconds: float = 5.0) -> str:
    """The address of an MRD server's live page, as it is on that machine; parameters and errors as of `ping`.

    Raises
    ------
    PeerError : also if the server has no page, or names as its page what no browser should be given.
    """
    answers = [m.text for m in _exchange(host, port, Query(1, PAGE), tls, seconds) if isinstance(m, Response)]
    page = next((text for text in answers if text and text != UNKNOWN), "")
    if not page:
        raise PeerError(
            f"the server at {host} port {port} has no live page",
            likely="it was started without one",
            hint="kstream serve --watch",
            code="no_page",
        )
    if not PAGE_URL.fullmatch(page):
        raise PeerError(
            f"the server at {host} port {port} names as its live page what is no http address",
            likely="it is no kstream server",
            hint="open the page that its own `kstream serve --watch` printed",
            code="no_page",
        )
    return page


def _exchange(host: str, port: int, asked: Message, tls: ssl.SSLContext | None, seconds: float) -> list[Message]:
    """Send one message and CLOSE; what comes back before the server's CLOSE."""
    begin = time.monotonic()
    connection = connect(host, port, tls, seconds)
    try:
        connection.send([encode(asked), encode(Close())], seconds)
        answers = _until_close(connection, begin + seconds)
        if answers is None:
            raise _unanswered(host, port, "ended the connection without CLOSE")
        return answers
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


def _until_close(connection: Connection, deadline: float) -> list[Message] | None:
    """Messages before CLOSE; None if the stream ended without one."""
    decoder, answers = Decoder(), list[Message]()
    while (remaining := deadline - time.monotonic()) > 0:
        n_bytes = connection.receive_into(decoder.space(), remaining)
        if not n_bytes:
            return None
        for message in decoder.filled(n_bytes):
            if isinstance(message, Close):
                return answers
            answers.append(message)
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
