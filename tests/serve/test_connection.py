"""Plain, TLS and pipe connections keep the same promises."""

import os
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trustme

from kstream.errors import ConfigError, PeerError
from kstream.serve.connection import (
    Connection,
    PipeConnection,
    SocketConnection,
    TlsConnection,
    client_tls,
    connect,
    server_tls,
)

WAIT_S = 30.0
HOST = "localhost"
MEGABYTES = bytes(range(251)) * 20_011


class Certificates:
    """An authority, a server's certificate and a client's, as PEM files."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.authority, self.server, self.client = (folder / f"{n}.pem" for n in ("authority", "server", "client"))
        authority.cert_pem.write_to_path(self.authority)
        authority.issue_cert(HOST, "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(self.server)
        authority.issue_cert("client@kstream.test").private_key_and_cert_chain_pem.write_to_path(self.client)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("strangers"))


Pair = tuple[Connection, Connection]


def socket_pair(server: ssl.SSLContext | None, client: ssl.SSLContext | None) -> Pair:
    """The server's connection and the client's; both handshakes run at the same time."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        connecting = pool.submit(connect, "127.0.0.1", listener.getsockname()[1], client, 10.0)
        accepted, _ = listener.accept()
        ours = SocketConnection(accepted) if server is None else TlsConnection(accepted, server, None, 10.0)
        return ours, connecting.result(10)


def pipe_pair() -> tuple[Pair, list[int]]:
    (in_a, out_b), (in_b, out_a) = os.pipe(), os.pipe()
    return (PipeConnection(in_a, out_a), PipeConnection(in_b, out_b)), [in_a, out_b, in_b, out_a]


KINDS = ["plain", "tls", "mutual", "pipe"]


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[Pair]:
    descriptors: list[int] = []
    c = certificates
    match request.param:
        case "plain":
            both = socket_pair(None, None)
        case "tls":
            both = socket_pair(server_tls(c.server, None), client_tls(c.authority, None))
        case "mutual":
            both = socket_pair(server_tls(c.server, c.authority), client_tls(c.authority, c.client))
        case _:
            both, descriptors = pipe_pair()
    yield both
    for connection in both:
        connection.close()
    for descriptor in descriptors:
        os.close(descriptor)


def read(connection: Connection, n_bytes: int) -> bytes:
    found = bytearray(n_bytes)
    view = memoryview(found)
    n_read = 0
    while n_read < n_bytes and (n := connection.receive_into(view[n_read:], WAIT_S)):
        n_read += n
    return bytes(found[:n_read])


def test_megabytes_cross_in_both_directions_at_once(pair: Pair) -> None:
    """More than any buffer holds, so each side can only send if it is read from meanwhile."""
    parts = [MEGABYTES[:7], MEGABYTES[7:1_000_003], MEGABYTES[1_000_003:]]
    with ThreadPoolExecutor(4) as pool:
        sending = [pool.submit(side.send, parts, WAIT_S) for side in pair]
        reading = [pool.submit(read, side, len(MEGABYTES)) for side in pair]
        assert [future.result(WAIT_S) for future in reading] == [MEGABYTES, MEGABYTES]
        assert all(future.result(WAIT_S) > 0 for future in sending)


def test_more_parts_than_one_system_call_takes_arrive_in_order(pair: Pair) -> None:
    parts = [bytes([i % 256]) * (i % 3) for i in range(1500)]  # empty ones too
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(pair[0].send, parts, WAIT_S)
        assert read(pair[1], sum(map(len, parts))) == b"".join(parts)
        sending.result(WAIT_S)


def test_silence_and_a_peer_that_does_not_read_run_into_the_deadline(pair: Pair) -> None:
    with pytest.raises(TimeoutError):
        pair[0].receive_into(memoryview(bytearray(10)), 0.05)
    with pytest.raises(TimeoutError):
        pair[0].send([bytes(64 * 2**20)], 0.05)


@pytest.mark.parametrize("how", ["interrupt", "abort"])
def test_a_waiting_receiver_is_woken_with_the_end_of_the_stream(pair: Pair, how: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(pair[0].receive_into, memoryview(bytearray(10)), WAIT_S)
        assert not receiving.done()
        getattr(pair[0], how)()
        assert receiving.result(5) == 0


def test_an_interrupted_connection_still_sends(pair: Pair) -> None:
    pair[0].interrupt()
    pair[0].send([b"last words"], WAIT_S)
    assert read(pair[1], 10) == b"last words"


def test_a_waiting_sender_is_woken_by_abort(pair: Pair) -> None:
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(pair[0].send, [bytes(64 * 2**20)], WAIT_S)
        assert not sending.done()
        pair[0].abort()
        assert isinstance(sending.exception(5), OSError)  # TimeoutError is one


def test_end_of_sending_is_the_end_of_the_stream_after_all_that_was_sent(pair: Pair) -> None:
    server, client = pair
    if isinstance(server, PipeConnection):
        pytest.skip("whoever opened a pipe closes it")
    with ThreadPoolExecutor(1) as pool:
        server.send([MEGABYTES[:50_001]], WAIT_S)
        ending = pool.submit(server.end_sending)
        assert read(client, 50_001) == MEGABYTES[:50_001]
        assert client.receive_into(memoryview(bytearray(1)), WAIT_S) == 0
        client.close()
        ending.result(5)


def test_a_half_closed_client_still_receives() -> None:
    server, client = socket_pair(None, None)
    client.end_sending(drain_s=0)
    assert server.receive_into(memoryview(bytearray(1)), WAIT_S) == 0
    server.send([b"images"], WAIT_S)
    assert read(client, 6) == b"images"
    server.close()
    client.close()


def test_a_tls_peer_that_vanishes_is_the_end_of_the_stream(certificates: Certificates) -> None:
    """Without the closing handshake, as a process that was killed leaves it."""
    server, client = socket_pair(server_tls(certificates.server, None), client_tls(certificates.authority, None))
    server.close()
    assert client.receive_into(memoryview(bytearray(1)), WAIT_S) == 0
    client.close()


# ---- handshakes that must fail


def refused_handshake(client: Callable[[int], object], tls: ssl.SSLContext, seconds: float = 10.0) -> PeerError:
    """What the server says of a client."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        speaking = pool.submit(client, listener.getsockname()[1])
        accepted, _ = listener.accept()
        with pytest.raises(PeerError) as raised:
            TlsConnection(accepted, tls, None, seconds)
        accepted.close()
        speaking.exception(10)
    return raised.value


def test_a_plain_client_is_refused_by_a_tls_server(certificates: Certificates) -> None:
    def speak_mrd(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
            plain.sendall(b"\x01\x00" + b"breast-dce".ljust(1024, b"\0"))
            plain.recv(100)

    error = refused_handshake(speak_mrd, server_tls(certificates.server, None))
    assert error.code == "tls"
    assert "speaks no TLS" in str(error)


def test_a_client_that_says_nothing_is_given_up(certificates: Certificates) -> None:
    held: list[socket.socket] = []

    def say_nothing(port: int) -> None:
        held.append(socket.create_connection(("127.0.0.1", port), timeout=10))

    error = refused_handshake(say_nothing, server_tls(certificates.server, None), 0.1)
    held[0].close()
    assert "took too long" in error.what


def test_a_client_that_resets_the_connection_is_an_error_of_ours(certificates: Certificates) -> None:
    """Also where Python refuses to wrap the socket at all (data waits, and the peer is gone)."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        gone = socket.create_connection(listener.getsockname(), timeout=10)
        accepted, _ = listener.accept()
        gone.sendall(b"\x16\x03")
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        gone.close()
        poll = select.poll()
        poll.register(accepted, select.POLLHUP)
        poll.poll(5000)
        with pytest.raises(PeerError):
            TlsConnection(accepted, server_tls(certificates.server, None), None, 5.0)


def test_a_server_of_an_unknown_authority_is_refused(certificates: Certificates, strangers: Certificates) -> None:
    with ThreadPoolExecutor(1) as pool, socket.create_server(("127.0.0.1", 0)) as listener:
        connecting = pool.submit(
            connect, "127.0.0.1", listener.getsockname()[1], client_tls(strangers.authority, None), 10.0
        )
        accepted, _ = listener.accept()
        with pytest.raises(PeerError):
            TlsConnection(accepted, server_tls(certificates.server, None), None, 10.0)
        error = connecting.exception(10)
    assert isinstance(error, PeerError)
    assert "CERTIFICATE_VERIFY_FAILED" in error.what.upper().replace(" ", "_")


@pytest.mark.parametrize("has_certificate", [False, True])
def test_mutual_tls_takes_only_clients_that_it_knows(
    certificates: Certificates, strangers: Certificates, has_certificate: bool
) -> None:
    own = strangers.client if has_certificate else None
    tls = client_tls(certificates.authority, own)

    def come(port: int) -> None:
        connect("127.0.0.1", port, tls, 10.0).close()

    error = refused_handshake(come, server_tls(certificates.server, certificates.authority))
    assert error.code == "tls"


def test_only_the_given_authorities_are_trusted(certificates: Certificates) -> None:
    """Not those of the system as well."""
    assert len(client_tls(certificates.authority, None).get_ca_certs()) == 1


def test_wrong_files_are_named(tmp_path: Path, certificates: Certificates) -> None:
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("not PEM")
    for load in (
        lambda: server_tls(nonsense, None),
        lambda: server_tls(certificates.server, nonsense),
        lambda: client_tls(nonsense, None),
        lambda: client_tls(certificates.authority, nonsense),
    ):
        with pytest.raises(ConfigError, match="cannot read TLS file") as raised:
            load()
        assert "nonsense.pem" in str(raised.value)
    with pytest.raises(ConfigError, match="No such file"):
        server_tls(tmp_path / "missing.pem", None)


def test_no_server_is_told_with_what_to_try() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(PeerError, match="no connection to") as raised:
        connect("127.0.0.1", port)
    assert f"kstream serve --port {port}" in str(raised.value)


# ---- pipes and files


def test_regular_files_are_read_to_their_end_and_written_whole(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(MEGABYTES)
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as target:
        connection = PipeConnection(source.fileno(), target.fileno())
        assert read(connection, len(MEGABYTES) + 1) == MEGABYTES
        connection.send([MEGABYTES[:1001], MEGABYTES[1001:]], WAIT_S)
        connection.end_sending()
        connection.close()
    assert (tmp_path / "out").read_bytes() == MEGABYTES


def test_a_closed_reader_breaks_the_pipe() -> None:
    (_, client), descriptors = pipe_pair()
    os.close(descriptors.pop(0))  # what the client writes to
    with pytest.raises(BrokenPipeError):
        client.send([bytes(2**20)], WAIT_S)
    client.close()
    for descriptor in descriptors:
        os.close(descriptor)


def test_a_closed_writer_is_the_end_of_the_stream() -> None:
    (server, _), descriptors = pipe_pair()
    os.write(descriptors[1], b"abc")
    os.close(descriptors.pop(1))  # what the client writes with
    assert read(server, 10) == b"abc"
    server.close()
    for descriptor in descriptors:
        os.close(descriptor)


def test_descriptors_are_given_back_as_they_were() -> None:
    (server, client), descriptors = pipe_pair()
    assert not any(os.get_blocking(descriptor) for descriptor in descriptors)
    server.close()
    client.close()
    assert all(os.get_blocking(descriptor) for descriptor in descriptors)
    for descriptor in descriptors:
        os.close(descriptor)


def test_nothing_is_left_behind(certificates: Certificates) -> None:
    n_before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(5):
        for connection in socket_pair(server_tls(certificates.server, None), client_tls(certificates.authority, None)):
            connection.close()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == n_before
