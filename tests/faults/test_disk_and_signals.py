"""Rows 35 and 36: the disk, signals, and clocks."""

from __future__ import annotations

import ast
import contextlib
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import kstream
from kstream.mrd.codec import encode
from kstream.mrd.journal import JournalReader
from kstream.mrd.messages import Close, Query, Response
from kstream.mrd.recording import Recording
from tests.faults.harness import (
    PER_FRAME,
    STARS,
    Client,
    Server,
    acquisitions,
    good_session,
    opening,
    reference,
    running,
    scan_messages,
    wait_until,
    wire,
)

SCAN = acquisitions()


def journals(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if ".journal" in path.name)


def recover(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kstream", "recover", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def assert_recording_is(path: Path, n: int) -> None:
    """The file holds the first `n` acquisitions that were sent, bit by bit."""
    with Recording(path) as recording:
        found = list(recording.acquisitions())
    assert len(found) == n
    for got, sent in zip(found, SCAN, strict=False):
        assert got.header.tobytes() == sent.header.tobytes()
        np.testing.assert_array_equal(got.data, sent.data)
        np.testing.assert_array_equal(got.trajectory, sent.trajectory)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "journals"
    folder.mkdir()
    return folder


def test_row_35_good_disk_keeps_every_byte_and_recover_makes_the_recording(
    tmp_path: Path, folder: Path, server: Server
) -> None:
    with running(tmp_path / "server", "--record", str(folder)) as own:
        assert good_session(own).pixels == reference(server)
        wait_until(lambda: own.metric("kstream_open_sessions") == 0)
        (journal,) = journals(folder)
        with JournalReader(journal) as reader:
            assert b"".join(data for _, data in reader.records()) == wire(*scan_messages())
            assert reader.end is not None
            assert reader.end.complete
    done = recover(folder)
    assert done.returncode == 0, done.stderr
    (recording,) = folder.glob("*.h5")
    assert_recording_is(recording, len(SCAN))


def assert_streams_on(own: Server, server: Server, why: str) -> None:
    """The images of a whole scan, one warning, and a count."""
    before = own.metric("kstream_recording_failures_total")
    client = good_session(own)
    assert client.pixels == reference(server)
    warnings = [text for text in client.warnings if "recording stopped" in text]
    assert len(warnings) == 1, client.texts
    assert "the scan goes on" in warnings[0]
    assert why in warnings[0]
    wait_until(lambda: own.metric("kstream_recording_failures_total") == before + 1)


def test_row_35_full_disk_stops_the_recording_and_not_the_scan(tmp_path: Path, folder: Path, server: Server) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    with running(tmp_path / "server", "--record", str(folder), preexec_fn=small_files) as own:
        assert_streams_on(own, server, "File too large")
    (journal,) = journals(folder)
    with JournalReader(journal) as reader:
        kept = b"".join(data for _, data in reader.records())
    assert wire(*scan_messages()).startswith(kept)
    assert reader.end is None or not reader.end.complete
    done = recover(folder)
    assert done.returncode == 0, done.stderr
    assert "incomplete" in done.stdout
    (recording,) = folder.glob("*.h5")
    n_kept = (len(kept) - len(wire(*opening()))) // len(encode(SCAN[0]))
    assert n_kept > 5
    assert_recording_is(recording, n_kept)


@contextlib.contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[None]:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow  # the limit of a file's size stands for it
def test_row_35_file_system_without_room_stops_the_recording_and_not_the_scan(
    tmp_path: Path, folder: Path, server: Server
) -> None:
    with tmpfs(folder, "size=24k"), running(tmp_path / "server", "--record", str(folder)) as own:
        assert_streams_on(own, server, "No space left on device")


def test_row_35_read_only_disk_stops_the_recording_and_not_the_scan(
    tmp_path: Path, folder: Path, server: Server
) -> None:
    with tmpfs(folder, "size=1m"), running(tmp_path / "server", "--record", str(folder)) as own:
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        assert_streams_on(own, server, "Read-only file system")
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
        assert not good_session(own).warnings


def test_row_35_folder_that_goes_away_stops_the_recording_and_not_the_scan(
    tmp_path: Path, folder: Path, server: Server
) -> None:
    with running(tmp_path / "server", "--record", str(folder)) as own:
        client = Client(own.port).send(*scan_messages()[:20], Query(1, "kstream::version"))
        client.receive_until(lambda got: any(isinstance(m, Response) for m in got))
        shutil.rmtree(folder)
        client.send(*scan_messages()[20:30])
        threading.Event().wait(1.5)  # the disk is asked every second
        client.send(*scan_messages()[30:]).success()
        assert client.pixels == reference(server)
        assert any("recording stopped" in text for text in client.warnings)
        assert_streams_on(own, server, "No such file or directory")


SLOW_DISK = """
import os, time
real = os.writev
def writev(fd, buffers):
    if ".journal" in os.readlink(f"/proc/self/fd/{fd}") and len(buffers) == 2 and len(buffers[1]) > 100:
        time.sleep(3600)
    return real(fd, buffers)
os.writev = writev
"""


@pytest.mark.slow  # five seconds are the shortest that a disk is waited for
def test_row_35_disk_that_does_not_answer_costs_the_session_seconds_and_its_recording(
    tmp_path: Path, folder: Path, server: Server
) -> None:
    own = Server(tmp_path / "server", "--record", str(folder), prelude=SLOW_DISK)
    try:
        begin = time.monotonic()
        assert_streams_on(own, server, "the disk did not answer for 5 s")
        assert time.monotonic() - begin < 10
        begin = time.monotonic()
        assert_streams_on(own, server, "keeps an earlier recording waiting")
        assert time.monotonic() - begin < 4
        assert own.stop() == 0
    finally:
        own.kill()


def paused_scan(server: Server, n: int = 20) -> Client:
    """A scan of which the server has `n` acquisitions."""
    client = Client(server.port).send(*opening(), *SCAN[:n], Query(1, "kstream::version"))
    return client.receive_until(lambda got: any(isinstance(m, Response) for m in got))


def test_row_36_sigterm_lets_a_running_scan_end(tmp_path: Path, server: Server) -> None:
    own = Server(tmp_path)
    try:
        client = paused_scan(own)
        own.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not accepts(own.port))
        client.send(*SCAN[20:], Close()).success()
        assert client.pixels == reference(server)
        begin = time.monotonic()
        assert own.wait() == 0
        assert time.monotonic() - begin < 5
    finally:
        own.kill()


def accepts(port: int) -> bool:
    try:
        Client(port).socket.close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return True


def test_row_36_scan_that_outlasts_the_grace_is_told_and_its_whole_frames_go_back(
    tmp_path: Path, server: Server
) -> None:
    own = Server(tmp_path, "--grace-s", "0.5")
    try:
        client = paused_scan(own, PER_FRAME + 3)
        silent = Client(own.port)
        begin = time.monotonic()
        own.process.send_signal(signal.SIGTERM)
        assert "the server was stopped" in client.reason()
        assert client.pixels[: STARS.nz] == reference(server)[: STARS.nz]
        assert "the server was stopped" in silent.reason()
        assert own.wait() == 0
        assert time.monotonic() - begin < 6
        assert "Traceback" not in own.log
    finally:
        own.kill()


def test_row_36_second_sigterm_ends_the_grace(tmp_path: Path, server: Server) -> None:
    own = Server(tmp_path, "--grace-s", "60")
    try:
        client = paused_scan(own)
        children = own.children
        own.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not accepts(own.port))
        begin = time.monotonic()
        own.process.send_signal(signal.SIGTERM)
        assert "the server was stopped" in client.reason()
        assert own.wait(children) == 0
        assert time.monotonic() - begin < 5
    finally:
        own.kill()


def test_row_36_sigterm_right_after_the_first_line_ends_in_order(tmp_path: Path) -> None:
    own = Server(tmp_path, wait=False)
    try:
        assert own.process.stdout is not None
        assert "listens" in own.process.stdout.readline()
        assert own.stop() == 0
        assert "Traceback" not in own.log
    finally:
        own.kill()


def test_row_36_killed_server_leaves_a_journal_that_recover_turns_into_what_was_received(
    tmp_path: Path, folder: Path, server: Server
) -> None:
    own = Server(tmp_path / "server", "--record", str(folder))
    try:
        whole = good_session(own)
        assert whole.pixels == reference(server)
        paused_scan(own, 30)
        children = own.children
        own.process.send_signal(signal.SIGKILL)
        assert own.wait(children) == -signal.SIGKILL  # and its worker has noticed
    finally:
        own.kill()
    assert len(journals(folder)) == 2
    (part,) = folder.glob("*.part")
    done = recover(folder)
    assert done.returncode == 0, done.stderr
    assert "incomplete" in done.stdout
    sizes = {}
    for path in folder.glob("*.h5"):
        with Recording(path) as recording:
            sizes[path.name] = recording.n_acquisitions
        assert_recording_is(path, sizes[path.name])
    assert sorted(sizes.values()) == [30, len(SCAN)]
    assert part.name.split(".")[0] in "".join(sizes)


@pytest.mark.slow
def test_row_36_restarted_server_seals_what_the_dead_one_left(tmp_path: Path, folder: Path, server: Server) -> None:
    own = Server(tmp_path / "first", "--record", str(folder))
    try:
        paused_scan(own)
    finally:
        own.kill()
    with running(tmp_path / "second", "--record", str(folder)) as second:
        wait_until(lambda: not list(folder.glob("*.part")))
        assert "recover" in second.log
        assert good_session(second).pixels == reference(server)


WALL_CLOCKS = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("date", "today")}


def test_row_36_no_deadline_and_no_latency_hangs_on_the_clock_on_the_wall() -> None:
    """A jump of the host's clock must not end a scan: only names of files and heads of journals tell the date."""
    allowed = {"mrd/journal.py", "mrd/recording.py"}
    root = Path(kstream.__file__).parent
    found = set()
    for room in ("serve", "stream", "mrd", "readouts", "recon", "segment", "engines"):
        for path in (root / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if (
                    isinstance(node, ast.Attribute)
                    and isinstance(node.value, ast.Name)
                    and (node.value.id, node.attr) in WALL_CLOCKS
                ):
                    found.add(path.relative_to(root).as_posix())
    assert found <= allowed
