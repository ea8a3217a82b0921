import contextlib
import socket
import sys
import threading
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import trustme

from kstream.errors import PeerError, ProtocolError, RecordingError
from kstream.mrd.codec import Decoder, encode
from kstream.mrd.importing import mend_recording
from kstream.mrd.messages import IMAGE_HEADER, Close, Error, Image, Text, new_acquisition
from kstream.mrd.recording import read_images, write_recording
from kstream.serve.connection import client_tls, server_tls
from kstream.serve.pacing import Jitter, timed
from kstream.serve.replay import replay
from kstream.serve.server import MrdServer
from kstream.types import Acquisition
from tests.scans import StackOfStars

STARS = StackOfStars()


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    acquisitions = STARS.acquisitions(np.random.default_rng(0), noise=5)
    for number, acquisition in enumerate(acquisitions):
        acquisition.header["scan_counter"] = number + 1
        acquisition.header["acquisition_time_stamp"] = number
    write_recording(tmp_path / "scan.h5", STARS.scan().xml, acquisitions)
    return tmp_path / "scan.h5"


def test_replay_keeps_images_in_the_usual_layout(server: MrdServer, recording: Path, tmp_path: Path) -> None:
    images = tmp_path / "images.h5"
    result = replay(recording, port=server.port, preset="breast-dce-recon", output=images)
    stored = read_images(images)
    assert {series: len(found) for series, found in stored.items()} == {1: STARS.n_frames * STARS.nz}
    for ours, theirs in zip(result.images[1], stored[1], strict=True):
        np.testing.assert_array_equal(ours.data, theirs.data)
    assert result.sent == result.summary["received"] == 5 + 3 * 13 * 4
    assert result.is_closed
    assert not result.errors
    assert result.last_readout_to_image_ms(1) is not None


def test_replay_tells_the_error_of_the_server(server: MrdServer, recording: Path) -> None:
    result = replay(recording, port=server.port, preset="no-such-preset")
    assert "no preset" in result.errors[0]
    assert result.n_images == 0


def test_replay_at_recorded_speed_takes_the_recorded_time(server: MrdServer, recording: Path) -> None:
    result = replay(recording, port=server.port, preset="breast-dce-recon", speed=2.0)
    recorded_s = (5 + 3 * 13 * 4 - 1) * 2.5e-3
    assert (result.last_sent_ns - result.begin_ns) / 1e9 > recorded_s / 2 * 0.99


def test_no_server_is_told_with_what_to_try(recording: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(PeerError, match="no connection to") as raised:
        replay(recording, port=port, preset="breast-dce")
    assert "kstream serve" in str(raised.value)


def test_recording_is_never_overwritten_by_its_own_images(recording: Path) -> None:
    before = recording.read_bytes()
    with pytest.raises(RecordingError, match="would overwrite the recording"):
        replay(recording, port=1, preset="breast-dce", output=recording)
    assert recording.read_bytes() == before


def test_mended_recording_keeps_its_noise_readouts(recording: Path) -> None:
    _, acquisitions = mend_recording(recording)
    assert len(acquisitions) == 5 + 3 * 13 * 4


def test_missing_recording_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"missing\.h5"):
        replay(tmp_path / "missing.h5", port=1, preset="breast-dce")


@pytest.mark.parametrize("last_words", [b"", encode(Text("WRN so long")), encode(Text("cut"))[:4]])
def test_server_that_vanishes_is_an_error_not_a_hang(recording: Path, last_words: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def vanish() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(2000)
                connection.sendall(last_words)

        thread = threading.Thread(target=vanish)
        thread.start()
        with pytest.raises((PeerError, ProtocolError)):
            replay(recording, port=listener.getsockname()[1], preset="breast-dce", wait_s=10)
        thread.join(10)


def test_silent_server_is_given_up(recording: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held: list[socket.socket] = []

        def swallow() -> None:
            connection, _ = listener.accept()
            held.append(connection)
            while connection.recv(1 << 16):
                pass

        thread = threading.Thread(target=swallow)
        thread.start()
        with pytest.raises(PeerError, match="said nothing"):
            replay(recording, port=listener.getsockname()[1], preset="breast-dce", wait_s=0.5)
        thread.join(10)
        held[0].close()


# ---- the recorded timing


def stamped(stamps: list[int]) -> list[Acquisition]:
    return [new_acquisition(np.ones((1, 3)), acquisition_time_stamp=stamp) for stamp in stamps]


def moments(acquisitions: list[Acquisition], tick_s: float = 2.0) -> list[float]:
    return [moment for moment, _ in timed(acquisitions, tick_s)]


def test_time_stamps_count_from_the_first_acquisition() -> None:
    assert moments(stamped([700, 701, 705])) == [0, 2, 10]


def test_acquisitions_that_share_a_tick_are_spread_evenly_over_it() -> None:
    assert moments(stamped([9, 9, 10, 10, 10, 10, 20])) == [0, 1, 2, 2.5, 3, 3.5, 22]


def test_a_clock_that_jumps_back_goes_on_one_tick_later() -> None:
    assert moments(stamped([34_559_998, 34_559_999, 0, 1, 1])) == [0, 2, 4, 6, 7]


def test_times_of_arrival_of_a_journal_are_kept_as_they_are() -> None:
    acquisitions = stamped([5, 5, 5])
    for acquisition, received_ns in zip(acquisitions, (10**9, 10**9, 3 * 10**9), strict=True):
        acquisition.received_ns = received_ns
    assert moments(acquisitions) == [0, 0, 2]


def test_a_recording_without_times_is_refused_when_times_are_asked_for() -> None:
    with pytest.raises(RecordingError, match="same acquisition_time_stamp") as raised:
        moments(stamped([0] * 1001))
    assert "--speed 0" in str(raised.value)


def test_jitter_is_told_in_quantiles() -> None:
    late_s = array("d", [i / 1000 for i in range(100, 0, -1)])
    jitter = Jitter.of(late_s)
    assert jitter is not None
    assert (jitter.n, jitter.p50_ms, jitter.p99_ms, jitter.max_ms) == pytest.approx((100, 51, 100, 100))
    assert Jitter.of(array("d")) is None


def test_replay_at_recorded_speed_tells_its_jitter(server: MrdServer, recording: Path) -> None:
    interval_s = sys.getswitchinterval()
    result = replay(recording, port=server.port, preset="breast-dce-recon", speed=2.0)
    assert result.jitter is not None
    assert result.jitter.n == result.sent == 5 + 3 * 13 * 4
    assert 0 <= result.jitter.p50_ms <= result.jitter.p99_ms <= result.jitter.max_ms
    assert sys.getswitchinterval() == interval_s
    assert replay(recording, port=server.port, preset="breast-dce-recon").jitter is None


# ---- servers that misbehave


@dataclass
class Peer:
    """A server that does what a test tells it, in a thread."""

    behave: Callable[[socket.socket], None]

    def __enter__(self) -> int:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pool = ThreadPoolExecutor(1)
        self._done = self._pool.submit(self._serve)
        return int(self._listener.getsockname()[1])

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            self.behave(connection)

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._pool.shutdown()
        self._done.result(1)


def image_message(n: int) -> bytes:
    header = np.zeros(1, IMAGE_HEADER)[0]
    header["image_series_index"], header["image_index"] = 1, n
    return encode(Image(header, {"n": str(n)}, np.full((1, 1, 300, 310), n, np.float32)))


def read_until_close(connection: socket.socket) -> int:
    decoder, n_acquisitions = Decoder(), 0
    while data := connection.recv(1 << 16):
        for message in decoder.receive(data):
            n_acquisitions += isinstance(message, Acquisition)
            if isinstance(message, Close):
                return n_acquisitions
    return n_acquisitions


def large_recording(folder: Path) -> Path:
    """More than the buffers of two sockets hold."""
    data = np.ones((16, 640), np.complex64)
    write_recording(folder / "large.h5", STARS.scan().xml, [new_acquisition(data, scan_counter=i) for i in range(300)])
    return folder / "large.h5"


def test_a_server_that_sends_before_it_reads_is_read_from_meanwhile(tmp_path: Path) -> None:
    """It deadlocks with clients that send everything first."""
    images = [image_message(n) for n in range(60)]
    seen: list[int] = []

    def send_first(connection: socket.socket) -> None:
        connection.sendall(b"".join(images))
        seen.append(read_until_close(connection))
        connection.sendall(encode(Close()))

    with Peer(send_first) as port:
        result = replay(large_recording(tmp_path), port=port, preset="x", wait_s=20)
    assert (result.n_images, result.sent, seen) == (60, 300, [300])


def test_images_before_a_crash_are_kept(tmp_path: Path, recording: Path) -> None:
    def crash(connection: socket.socket) -> None:
        connection.sendall(image_message(1) + image_message(2) + image_message(3)[:1000])
        read_until_close(connection)

    with Peer(crash) as port, pytest.raises((PeerError, ProtocolError)):
        replay(recording, port=port, preset="x", output=tmp_path / "kept.h5", wait_s=20)
    assert [int(image.header["image_index"]) for image in read_images(tmp_path / "kept.h5")[1]] == [1, 2]


def test_a_server_that_never_reads_is_given_up(tmp_path: Path) -> None:
    released = threading.Event()

    def hold(_: socket.socket) -> None:
        released.wait(30)

    with Peer(hold) as port:
        with pytest.raises(PeerError, match="did not take a message") as raised:
            replay(large_recording(tmp_path), port=port, preset="x", wait_s=0.5)
        released.set()
    assert raised.value.code == "send_timeout"


def test_a_server_that_ends_early_without_a_word_is_an_error(tmp_path: Path) -> None:
    def leave(connection: socket.socket) -> None:
        connection.recv(2000)
        connection.sendall(encode(Close()))

    with Peer(leave) as port, pytest.raises(PeerError):
        replay(large_recording(tmp_path), port=port, preset="x", wait_s=20)


def test_the_last_words_of_a_gadgetron_child_are_an_error(recording: Path) -> None:
    def die(connection: socket.socket) -> None:
        connection.sendall(encode(Error("out of memory")))
        read_until_close(connection)
        connection.sendall(encode(Close()))

    with Peer(die) as port:
        assert replay(recording, port=port, preset="x", wait_s=20).errors == ["out of memory"]


def test_progress_ends_with_everything_sent(server: MrdServer, recording: Path) -> None:
    seen: list[int] = []
    replay(recording, port=server.port, preset="breast-dce-recon", progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 5 + 3 * 13 * 4


# ---- TLS


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pem")
    files = {name: folder / f"{name}.pem" for name in ("authority", "server", "client")}
    authority = trustme.CA()
    authority.cert_pem.write_to_path(files["authority"])
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(files["server"])
    authority.issue_cert("client@kstream.test").private_key_and_cert_chain_pem.write_to_path(files["client"])
    return files


@contextlib.contextmanager
def tls_server(pem: dict[str, Path], is_mutual: bool) -> Iterator[int]:
    tls = server_tls(pem["server"], pem["authority"] if is_mutual else None)
    server = MrdServer(("127.0.0.1",), 0, tls=tls)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(server.serve_forever)
        yield server.port
        server.stop(1.0)


def test_a_scan_under_mutual_tls_gives_the_images_of_a_plain_one(
    server: MrdServer, pem: dict[str, Path], recording: Path
) -> None:
    plain = replay(recording, port=server.port, preset="breast-dce-recon")
    with tls_server(pem, True) as port:
        tls = client_tls(pem["authority"], pem["client"])
        secured = replay(recording, port=port, preset="breast-dce-recon", tls=tls)
    assert [i.data.tobytes() for i in secured.images[1]] == [i.data.tobytes() for i in plain.images[1]]


def test_a_client_without_its_certificate_is_told(pem: dict[str, Path], recording: Path) -> None:
    with tls_server(pem, True) as port, pytest.raises(PeerError):
        replay(recording, port=port, preset="breast-dce-recon", tls=client_tls(pem["authority"], None), wait_s=20)


def test_plain_replay_to_a_tls_server_is_an_error_not_a_hang(pem: dict[str, Path], recording: Path) -> None:
    with tls_server(pem, False) as port, pytest.raises((PeerError, ProtocolError)):
        replay(recording, port=port, preset="breast-dce-recon", wait_s=20)
