"""Pipe mode, in this process over pipes and files, and as the command between other programs."""

import io
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ismrmrd
import numpy as np
import pytest

from kstream.errors import ConfigError, KstreamError, PeerError, ProtocolError
from kstream.mrd.codec import Decoder, encode
from kstream.mrd.messages import Close, ConfigFile, Header, Image, Message, Text
from kstream.mrd.recording import write_recording
from kstream.serve.pipe import StreamConnection, stream, write_stream
from kstream.types import Acquisition
from tests.scans import StackOfStars

STARS = StackOfStars()
PRESET = "breast-dce-recon"
N_IMAGES = STARS.n_frames * STARS.nz
KSTREAM = [sys.executable, "-m", "kstream"]


def scan_bytes(*first: Message) -> bytes:
    acquisitions = STARS.acquisitions(np.random.default_rng(0), noise=5)
    return b"".join(encode(message) for message in (*first, Header(STARS.scan().xml), *acquisitions, Close()))


@pytest.fixture(scope="module")
def configured() -> bytes:
    return scan_bytes(ConfigFile(PRESET))


def theirs(acquisition: Acquisition) -> ismrmrd.Acquisition:
    """The same acquisition as ismrmrd holds it."""
    made = ismrmrd.Acquisition(acquisition.header.tobytes())
    made.data[:], made.traj[:] = acquisition.data, acquisition.trajectory
    return made


def images_of(answer: bytes) -> list[Image]:
    decoder = Decoder()
    messages = decoder.receive(answer)
    decoder.end()
    assert isinstance(messages[-1], Close)
    return [message for message in messages if isinstance(message, Image)]


def texts_of(answer: bytes) -> list[str]:
    return [message.text for message in Decoder().receive(answer) if isinstance(message, Text)]


def through_files(folder: Path, data: bytes, preset: str = "") -> tuple[KstreamError | None, bytes]:
    (folder / "in.mrd").write_bytes(data)
    with (folder / "in.mrd").open("rb") as source, (folder / "out.mrd").open("wb") as target:
        error = stream(source.fileno(), target.fileno(), preset=preset)
    return error, (folder / "out.mrd").read_bytes()


def test_a_file_with_its_configuration_gives_the_images_in_a_file(tmp_path: Path, configured: bytes) -> None:
    error, answer = through_files(tmp_path, configured)
    assert error is None
    assert len(images_of(answer)) == N_IMAGES


def test_pipes_give_the_bytes_of_files(tmp_path: Path, configured: bytes) -> None:
    _, expected = through_files(tmp_path, configured)
    (fd_in, feed), (drain, fd_out) = os.pipe(), os.pipe()

    def fill() -> None:
        with os.fdopen(feed, "wb") as pipe:
            pipe.write(configured)

    def empty() -> bytes:
        with os.fdopen(drain, "rb") as pipe:
            return pipe.read()

    with ThreadPoolExecutor(2) as pool:
        filling, emptying = pool.submit(fill), pool.submit(empty)
        error = stream(fd_in, fd_out)
        os.close(fd_in)
        os.close(fd_out)
        filling.result(10)
        answer = emptying.result(10)
    assert error is None
    assert [i.data.tobytes() for i in images_of(answer)] == [i.data.tobytes() for i in images_of(expected)]


def test_the_preset_applies_to_a_stream_that_begins_with_its_header(tmp_path: Path) -> None:
    """As ``ismrmrd_hdf5_to_stream`` without ``-c`` writes it."""
    error, answer = through_files(tmp_path, scan_bytes(), PRESET)
    assert error is None
    assert len(images_of(answer)) == N_IMAGES


def test_the_configuration_of_the_stream_wins_over_the_preset(tmp_path: Path) -> None:
    error, answer = through_files(tmp_path, scan_bytes(ConfigFile("no-such")), PRESET)
    assert isinstance(error, KstreamError)
    assert "no-such" in texts_of(answer)[-1]


def test_a_header_without_any_configuration_is_refused(tmp_path: Path) -> None:
    error, answer = through_files(tmp_path, scan_bytes())
    assert isinstance(error, ProtocolError)
    assert images_of(answer) == []


def test_a_stream_that_is_cut_gives_what_was_complete_and_an_error(tmp_path: Path, configured: bytes) -> None:
    error, answer = through_files(tmp_path, configured[: len(configured) * 9 // 10])
    assert isinstance(error, ProtocolError)
    assert len(images_of(answer)) >= 2 * STARS.nz  # and the third frame as far as it came
    assert any("incomplete" in text for text in texts_of(answer))
    assert any(text.startswith("ERR") for text in texts_of(answer))


@pytest.mark.parametrize("data", [b"", b"\x03"])
def test_an_empty_stream_is_an_error_with_a_reason(tmp_path: Path, data: bytes) -> None:
    error, answer = through_files(tmp_path, data, PRESET)
    assert isinstance(error, (PeerError, ProtocolError))
    assert any(text.startswith("ERR") for text in texts_of(answer))


def test_the_configuration_is_put_before_a_header_however_the_bytes_come() -> None:
    fd_in, feed = os.pipe()
    connection = StreamConnection(fd_in, feed, PRESET)
    view = memoryview(bytearray(3))
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lambda: [bytes(view[: connection.receive_into(view, 10)]) for _ in range(343)])
        os.write(feed, b"\x03")
        os.write(feed, b"\x00rest")
        found = b"".join(reading.result(10))
    connection.close()
    os.close(fd_in)
    os.close(feed)
    expected = encode(ConfigFile(PRESET)) + b"\x03\x00"
    assert found[: len(expected)] == expected


def test_images_are_read_back_by_ismrmrd(tmp_path: Path, configured: bytes) -> None:
    _, answer = through_files(tmp_path, configured)
    reader = ismrmrd.ProtocolDeserializer(io.BytesIO(answer))
    images = [item for item in reader.deserialize() if isinstance(item, ismrmrd.Image)]
    assert len(images) == N_IMAGES
    for theirs, ours in zip(images, images_of(answer), strict=True):
        np.testing.assert_array_equal(theirs.data, ours.data)


def test_a_stream_written_by_ismrmrd_is_served(tmp_path: Path) -> None:
    """Its serializer writes neither configuration nor, before the end, CLOSE."""
    written = io.BytesIO()
    writer = ismrmrd.ProtocolSerializer(written)
    writer.serialize(ismrmrd.xsd.CreateFromDocument(STARS.scan().xml))
    for acquisition in STARS.acquisitions(np.random.default_rng(0)):
        writer.serialize(theirs(acquisition))
    writer.close()
    error, answer = through_files(tmp_path, written.getvalue(), PRESET)
    assert error is None
    assert len(images_of(answer)) == N_IMAGES


# ---- recordings as streams


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    write_recording(tmp_path / "scan.h5", STARS.scan().xml, STARS.acquisitions(np.random.default_rng(0), noise=5))
    return tmp_path / "scan.h5"


def test_a_recording_is_written_as_the_stream_that_replay_sends(
    tmp_path: Path, recording: Path, configured: bytes
) -> None:
    assert write_stream(recording, tmp_path / "scan.mrd", PRESET) == 5 + 3 * 13 * 4
    assert (tmp_path / "scan.mrd").read_bytes() == configured


def test_a_recording_is_not_overwritten_by_its_stream(recording: Path) -> None:
    before = recording.read_bytes()
    with pytest.raises(ConfigError, match="would overwrite"):
        write_stream(recording, recording, PRESET)
    assert recording.read_bytes() == before


# ---- the command


@pytest.fixture
def written(tmp_path: Path, configured: bytes) -> Path:
    (tmp_path / "in.mrd").write_bytes(configured)
    return tmp_path / "in.mrd"


def test_the_command_writes_images_only_and_logs_elsewhere(written: Path) -> None:
    with written.open("rb") as source:
        done = subprocess.run([*KSTREAM, "stream"], stdin=source, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(images_of(done.stdout)) == N_IMAGES
    assert b"images sent 15" in done.stderr


def test_a_shell_pipeline_from_recording_to_images(recording: Path, tmp_path: Path) -> None:
    kstream = " ".join(KSTREAM)
    line = f"{kstream} replay {recording} --preset {PRESET} --to-stream - | {kstream} stream > {tmp_path}/out.mrd"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(images_of((tmp_path / "out.mrd").read_bytes())) == N_IMAGES


def test_a_reader_that_leaves_ends_the_command_with_a_reason(written: Path) -> None:
    with (
        written.open("rb") as source,
        subprocess.Popen([*KSTREAM, "stream"], stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        log = process.stderr.read()
        assert process.wait(60) == PeerError.exit_code
    assert b"Broken pipe" in log
    assert b"Traceback" not in log


def test_the_null_device_is_an_input_without_a_scan_and_an_output_without_a_reader(written: Path) -> None:
    null = subprocess.DEVNULL
    empty = subprocess.run([*KSTREAM, "stream"], stdin=null, stdout=null, check=False, timeout=60)
    assert empty.returncode == PeerError.exit_code
    with written.open("rb") as source:
        assert subprocess.run([*KSTREAM, "stream"], stdin=source, stdout=null, check=False, timeout=60).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_with_its_number_and_a_whole_stream(
    configured: bytes, number: signal.Signals
) -> None:
    """What was complete has been written; the reader is told why the rest is missing."""
    first = len(configured) * 5 // 6
    with subprocess.Popen(
        [*KSTREAM, "stream"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(configured[:first])
        process.stdin.flush()
        answer = process.stdout.read(2000)  # an image came: the session runs
        process.send_signal(number)
        answer += process.stdout.read()
        assert process.wait(60) == 128 + number
    assert len(images_of(answer)) >= STARS.nz  # of what had been read when the signal came
    assert any("stopped" in text for text in texts_of(answer))
