"""``kstream ping``: who answers is there, and everybody else is told apart."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kstream.cli import app
from kstream.errors import ConfigError, PeerError
from kstream.mrd.codec import encode
from kstream.mrd.messages import ConfigFile
from kstream.serve.probe import ping
from kstream.serve.server import MrdServer, ServerSettings


@contextmanager
def peer(behave: Callable[[socket.socket], object]) -> Iterator[int]:
    """Something else that listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            connection, _ = listener.accept()
            with connection:
                behave(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        yield int(listener.getsockname()[1])
        thread.join(10)
        assert not thread.is_alive()


def test_server_answers_and_counts_a_probe(port: int) -> None:
    assert 0 < ping("127.0.0.1", port) < 5
    found = CliRunner().invoke(app, ["ping", f"127.0.0.1:{port}"])
    assert found.exit_code == 0, found.output
    assert "answered in" in found.output


def test_server_that_is_full_of_scans_is_alive() -> None:
    server = MrdServer(port=0, settings=ServerSettings(max_sessions=1, handshake_s=60.0))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with socket.create_connection(("127.0.0.1", server.port)):
            assert ping("127.0.0.1", server.port) < 5
    finally:
        server.stop(0.0)
        thread.join(10)


def read_all(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        pass


def test_health_checks_do_not_fill_the_folder_of_journals(tmp_path: Path) -> None:
    server = MrdServer(port=0, settings=ServerSettings(record=tmp_path))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        for _ in range(3):
            ping("127.0.0.1", server.port)
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(encode(ConfigFile("recon-radial")))
            connection.shutdown(socket.SHUT_WR)
            read_all(connection)
    finally:
        server.stop(5.0)
        thread.join(10)
    assert len(list(tmp_path.iterdir())) == 1  # of the one that ended without CLOSE


@pytest.mark.parametrize(
    ("behave", "expected"),
    [
        (lambda c: c.recv(1), "broke the connection|ended the connection"),
        (lambda c: (c.recv(1 << 16), c.shutdown(socket.SHUT_WR), read_all(c)), "ended the connection without CLOSE"),
        (lambda c: (c.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), read_all(c)), "does not speak MRD"),
        (read_all, "did not answer within 0.3 s"),
    ],
)
def test_peers_that_do_not_answer_as_servers_do_are_told_apart(
    behave: Callable[[socket.socket], object], expected: str
) -> None:
    with peer(behave) as port, pytest.raises(PeerError, match=expected) as error:
        ping("127.0.0.1", port, seconds=0.3)
    assert error.value.code == "no_answer"
    assert error.value.exit_code == 7


def test_nobody_there_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    with pytest.raises(PeerError, match="no connection"):
        ping("127.0.0.1", port)


@pytest.mark.parametrize("address", ["", "host", ":9002", "host:", "host:0", "host:65536", "host:9x", "host:٣", "h:-1"])
def test_address_that_is_none_is_refused(address: str) -> None:
    found = CliRunner().invoke(app, ["ping", address])
    assert isinstance(found.exception, ConfigError)
