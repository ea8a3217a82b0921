import socket
import threading

import pytest

from kstream.errors import PeerError
from kstream.serve.connection import SocketConnection
from kstream.serve.outbox import Outbox


@pytest.fixture
def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
    return ours, theirs


def test_a_slow_but_steady_client_gets_everything(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    connection = SocketConnection(ours)
    outbox = Outbox(connection, 5.0, 1 << 30, "kstream-send-test")
    sent: list[int] = []
    for _ in range(40):
        outbox.put([b"x" * 50_000], sent.append)
    got = bytearray()

    def read() -> None:
        while len(got) < 40 * 50_000:
            got.extend(theirs.recv(10_000))

    reader = threading.Thread(target=read)
    reader.start()
    assert outbox.finish(30.0)
    reader.join(10)
    assert (len(got), len(sent), outbox.n_bytes) == (2_000_000, 40, 2_000_000)
    connection.close()
    theirs.close()


def test_what_a_client_did_not_take_is_not_reported_as_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    connection = SocketConnection(ours)
    outbox = Outbox(connection, 0.2, 1 << 30, "kstream-send-test")
    sent: list[int] = []
    for _ in range(40):
        outbox.put([b"x" * 50_000], sent.append)
    assert not outbox.finish(30.0)
    assert isinstance(outbox.error, PeerError)
    assert outbox.error.code == "send_timeout"
    assert len(sent) < 40
    connection.close()
    theirs.close()


def test_a_forced_end_does_not_wait_for_the_client(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    connection = SocketConnection(ours)
    outbox = Outbox(connection, 60.0, 1 << 30, "kstream-send-test")
    outbox.put([b"x" * 5_000_000])
    outbox.hurry(0.1)
    assert not outbox.flush(60.0)
    assert not outbox.finish(60.0)
    connection.close()
    theirs.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_raises_breaks_the_outbox_and_never_hangs_it(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    connection = SocketConnection(ours)
    outbox = Outbox(connection, 5.0, 1 << 20, "kstream-send-test")
    outbox.put([b"x"], lambda _: [][1])
    assert not outbox.flush(5.0)
    assert "IndexError" in str(outbox.error)
    assert not outbox.finish(5.0)
    connection.close()
    theirs.close()
