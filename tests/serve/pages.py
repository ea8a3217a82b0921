"""A page without a browser: one connection that reads server-sent events, and plain requests beside it."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

PATIENCE_S = 30.0


def get(
    url: str, path: str = "/", method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, bytes, dict[str, str]]:
    """One request: status, body and headers."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.read(), {name.lower(): value for name, value in response.getheaders()}
    finally:
        connection.close()


class Events:
    """Server-sent events of a page, in order."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response

    def next(self) -> tuple[str, dict[str, Any]]:
        """Name and data of the next event."""
        name = ""
        while True:
            line = self._response.readline().decode()
            if not line:
                raise EOFError("the page ended")
            if line.startswith("event: "):
                name = line[7:].strip()
            elif line.startswith("data: "):
                return name, json.loads(line[6:])

    def until(self, name: str, **fields: Any) -> dict[str, Any]:
        """The next event of a name whose data hold `fields`."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            found, data = self.next()
            if found == name and all(data.get(key) == value for key, value in fields.items()):
                return data
        raise TimeoutError(f"no {name} with {fields}")


@contextmanager
def events_of(url: str) -> Iterator[Events]:
    """Listen as an open page does."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE_S)
    try:
        connection.request("GET", "/events" + (f"?{parts.query}" if parts.query else ""))
        response = connection.getresponse()
        if response.status != 200:
            raise ConnectionError(f"status {response.status}")
        with response:
            yield Events(response)
    finally:
        connection.close()
