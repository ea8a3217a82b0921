"""The process behind the live page: asks the server's side tap for news, and serves the page.

It only reads: every route is a GET, and none of them reaches the server. It ends when its standard input closes, for
then its owner is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from http.cookies import CookieError, SimpleCookie
from importlib import resources
from typing import Any
from urllib.parse import parse_qs

import uvicorn
import zmq
import zmq.asyncio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .board import Board
from .worker_wire import MAX_MESSAGE_BYTES, decode_head, encode_head

COOKIE = "kstream_page_{}"
"""With the port, for cookies of one host reach all its ports."""

MAX_VIEWERS = 16
IDLE_S = 0.25
"""Between two questions to the server while no page is open."""

SILENCE_S = 10.0
"""After so long, a page gets a comment, so that whoever is between does not close its connection."""

FILES = {
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Lets in who may see the page.

    The Host header must be an address, or a name of this machine: a stranger's page whose name was made to point here
    (DNS rebinding) would carry that name. With a token, a request needs it in its query or in the cookie that the first
    one sets.

    Parameters
    ----------
    token : empty lets everybody in.
    names : of this machine.
    """

    def __init__(self, app: ASGIApp, token: str, names: frozenset[str]) -> None:
        self._app, self._token, self._names = app, token.encode(), names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = dict(scope["headers"])
        response: Response | None = None
        if not is_ours(headers.get(b"host", b"").decode("latin-1"), self._names):
            response = PlainTextResponse("this page has another address\n", 421)
        elif self._token:
            response = self._without_token(scope, headers)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in HEADERS.items())]
            await send(message)

        await (response or self._app)(scope, receive, send_with_headers)

    def _without_token(self, scope: Scope, headers: dict[bytes, bytes]) -> Response | None:
        """What to answer instead: a refusal, or the cookie and the page's address without the token."""
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        name = COOKIE.format(scope["server"][1])
        if hmac.compare_digest(given.encode(), self._token):
            if scope["path"] != "/":
                return None
            answer = RedirectResponse("/", 303)
            answer.set_cookie(name, given, httponly=True, samesite="strict")
            return answer
        if hmac.compare_digest(_cookie(headers.get(b"cookie", b""), name).encode(), self._token):
            return None
        return PlainTextResponse("this page needs the token that the server printed with its address\n", 401)


def _cookie(header: bytes, name: str) -> str:
    try:
        found = SimpleCookie(header.decode("latin-1")).get(name)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def is_ours(host: str, names: frozenset[str]) -> bool:
    """True if a Host header names an address, or this machine."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    name = name.removeprefix("[").removesuffix("]").lower()
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    return name in names


def make_app(board: Board, token: str, names: frozenset[str]) -> ASGIApp:
    """The web application."""

    async def index(_: Request) -> Response:
        return _file("index.html", "text/html; charset=utf-8")

    async def file(request: Request) -> Response:
        return _file(*FILES[request.url.path])

    async def events(_: Request) -> Response:
        if board.n_viewers >= MAX_VIEWERS:
            return PlainTextResponse("too many pages are open\n", 503)
        return StreamingResponse(_events(board), media_type="text/event-stream")

    async def plane(request: Request) -> Response:
        asked = request.path_params
        found = board.plane(asked["session"], asked["frame"], asked["plane"], asked["kind"])
        if found is None:
            return PlainTextResponse("not kept any more\n", 404)
        shape = {"x-shape": ",".join(str(n) for n in found.shape)}
        return Response(found.tobytes(), media_type="application/octet-stream", headers=shape)

    async def curve(request: Request) -> Response:
        asked = request.path_params
        return JSONResponse(board.curve(asked["session"], asked["plane"], asked["y"], asked["x"]))

    routes = [
        Route("/", index),
        *(Route(path, file) for path in FILES),
        Route("/events", events),
        Route("/{kind}/{session}/{frame:int}/{plane:int}", plane),
        Route("/curve/{session}/{plane:int}/{y:int}/{x:int}", curve),
    ]
    return Guard(Starlette(routes=routes), token, names)


def _file(name: str, media_type: str) -> Response:
    content = (resources.files(__package__) / "page" / name).read_bytes()
    return Response(content, media_type=media_type)


async def _events(board: Board) -> AsyncIterator[str]:
    """Server-sent events for one page, for as long as it listens."""
    viewer = board.enter()
    try:
        while True:
            yield await viewer.next(SILENCE_S)
    finally:
        board.leave(viewer)


async def feed(board: Board, address: str) -> None:
    """Ask the server for news, for ever."""
    context = zmq.asyncio.Context()
    pair = context.socket(zmq.PAIR)
    pair.set(zmq.LINGER, 0)
    pair.set(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    pair.connect(address)
    number = 0
    try:
        while True:
            number += 1
            await pair.send_multipart([encode_head("news", number), b""])
            while True:
                frames = await pair.recv_multipart(copy=False)
                head = decode_head(frames[0].buffer)
                if head["kind"] == "end":
                    break
                board.take(head, frames[1].buffer)
            if not board.n_viewers:
                await asyncio.sleep(IDLE_S)
    finally:
        context.destroy(linger=0)


async def serve(told: dict[str, Any]) -> None:
    """Serve the page until the owner is gone.

    Parameters
    ----------
    told : ``address`` of the tap, ``fd`` of the listening socket, ``token``, and the ``host`` that was asked for.
    """
    loop = asyncio.get_running_loop()
    loop.add_reader(0, _leave)
    board = Board()
    names = frozenset({"localhost", socket.gethostname().lower(), str(told["host"]).lower()})
    config = uvicorn.Config(
        make_app(board, told["token"], names),
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=8 * MAX_VIEWERS,
        h11_max_incomplete_event_size=1 << 14,
    )
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(feed(board, told["address"]))
        await uvicorn.Server(config).serve([socket.socket(fileno=told["fd"])])
        asking.cancel()


def _leave() -> None:
    """Standard input closed: the server is gone, or wants no page any more. Pages notice by themselves."""
    os._exit(0)


def _first_line() -> Iterator[bytes]:
    while (byte := os.read(0, 1)) not in (b"", b"\n"):
        yield byte


def main() -> None:
    """Entry point of the process; its owner tells it what it needs on standard input."""
    with contextlib.suppress(OSError):
        os.nice(10)  # a scan goes first
    line = b"".join(_first_line())
    if not line:
        sys.exit(0)
    asyncio.run(serve(json.loads(line)))


if __name__ == "__main__":
    main()
