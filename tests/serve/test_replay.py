import socket
import threading
from pathlib import Path

import numpy as np
import pytest

from kstream.errors import PeerError, RecordingError
from kstream.mrd.codec import encode
from kstream.mrd.importing import mend_recording
from kstream.mrd.messages import Text
from kstream.mrd.recording import read_images, write_recording
from kstream.serve.replay import replay
from kstream.serve.server import MrdServer
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
        with pytest.raises((PeerError, Exception)) as raised:
            replay(recording, port=listener.getsockname()[1], preset="breast-dce", wait_s=10)
        thread.join(10)
    assert raised.type.__name__ in ("PeerError", "ProtocolError")


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
