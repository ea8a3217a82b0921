from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.harness import OPEN, Oracle, Server, judged, running

DEADLINES = ("--handshake-s", "2", "--message-s", "1", "--send-s", "3")
"""Shorter than the defaults, so that no test waits long; everything else is as it is delivered."""


@pytest.fixture(autouse=True)
def _clients_end_with_their_test() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().socket.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all rows that need no other settings; it must survive them all."""
    with running(tmp_path_factory.mktemp("server"), *DEADLINES) as server:
        yield server


@pytest.fixture
def oracle(server: Server) -> Iterator[Oracle]:
    """The common oracle around one test."""
    with judged(server) as oracle:
        yield oracle
