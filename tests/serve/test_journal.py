"""The journal of a session: nothing handed over is lost, and no disk stops a scan (fault cases 27, 35, 36)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kstream.mrd.codec import encode
from kstream.mrd.journal import JournalFile, JournalReader, is_being_written
from kstream.mrd.messages import Close, ConfigFile, Header
from kstream.mrd.recording import write_recording
from kstream.mrd.recovering import recover_journal
from kstream.serve.journal import JournalFolder, SessionJournal
from kstream.serve.replay import replay
from tests.scans import StackOfStars
from tests.threads import assert_none_left

CHUNK = bytes(range(256)) * 41


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert_none_left("kstream-journal")


def records(path: Path) -> tuple[list[bytes], JournalReader]:
    with JournalReader(path) as reader:
        return [payload for _, payload in reader.records()], reader


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


# ---- a good disk


def test_what_was_written_is_in_the_file_before_write_returns(tmp_path: Path) -> None:
    journal = JournalFolder(tmp_path).open(7, "127.0.0.1:5")
    for n in range(1, 5):
        journal.write(memoryview(CHUNK)[:n], time.monotonic_ns())
        assert b"".join(records(only_file(tmp_path))[0]) == b"".join(CHUNK[:i] for i in range(1, n + 1))
    journal.close(True)
    got, reader = records(only_file(tmp_path))
    assert got == [CHUNK[:n] for n in range(1, 5)]
    assert journal.failure is None
    assert journal.path == only_file(tmp_path)
    assert reader.end is not None
    assert reader.end.complete
    assert reader.head.session == 7


def test_caller_may_use_its_buffer_again_and_chunks_may_grow(tmp_path: Path) -> None:
    journal = JournalFolder(tmp_path).open(1, "x")
    buffer = bytearray(b"first")
    journal.write(memoryview(buffer), 0)
    buffer[:] = b"other"
    journal.write(memoryview(bytes(600_001)), 0)
    journal.write(memoryview(np.arange(3, dtype="<u2")), 0)
    journal.write(memoryview(b""), 0)
    journal.close(True)
    got, _ = records(only_file(tmp_path))
    assert got == [b"first", bytes(600_001), b"\0\0\1\0\2\0"]


def test_times_are_those_of_arrival(tmp_path: Path) -> None:
    journal = JournalFolder(tmp_path).open(1, "x")
    begin = time.monotonic_ns()
    for late_ns in (5, 10**9, 3 * 10**9):
        journal.write(memoryview(CHUNK), begin + late_ns)
    journal.close(True)
    with JournalReader(only_file(tmp_path)) as reader:
        first, second, third = (elapsed_ns for elapsed_ns, _ in reader.records())
    assert (first, second, third) == (0, 10**9 - 5, 3 * 10**9 - 5)


def test_client_that_sends_nothing_leaves_no_file(tmp_path: Path) -> None:
    journal = JournalFolder(tmp_path).open(1, "x")
    journal.close(False, "the client closed the connection")
    assert (journal.failure, journal.path) == (None, None)
    assert list(tmp_path.iterdir()) == []


def test_end_without_close_is_marked_with_its_reason(tmp_path: Path) -> None:
    journal = JournalFolder(tmp_path).open(1, "x")
    journal.write(memoryview(CHUNK), 0)
    journal.close(False, "the stream ended without CLOSE")
    journal.close(True)
    _, reader = records(only_file(tmp_path))
    assert reader.end is not None
    assert (reader.end.complete, reader.end.reason) == (False, "the stream ended without CLOSE")


def test_disk_is_asked_to_store_at_an_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = threading.Semaphore(0)
    monkeypatch.setattr("kstream.mrd.journal._datasync", lambda descriptor: synced.release())
    journal = JournalFolder(tmp_path, sync_s=0.01).open(1, "x")
    journal.write(memoryview(CHUNK), 0)
    for _ in range(3):
        assert synced.acquire(timeout=10)
    journal.close(True)
    assert journal.failure is None


def test_sessions_of_one_folder_do_not_meet(tmp_path: Path) -> None:
    folder = JournalFolder(tmp_path)
    journals = [folder.open(n, "x") for n in range(5)]
    for journal, n in zip(journals, range(5), strict=True):
        journal.write(memoryview(CHUNK)[: n + 1], 0)
    for journal in journals:
        journal.close(True)
    assert sorted(len(records(path)[0][0]) for path in tmp_path.iterdir()) == [1, 2, 3, 4, 5]


# ---- death


KILLED = """
import os, signal, sys, time
from kstream.serve.journal import JournalFolder
journal = JournalFolder(sys.argv[1], sync_s=1000).open(1, "x")
for n in range(1, 20):
    journal.write(memoryview(bytes([n]) * 50_001), time.monotonic_ns())
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_9_loses_nothing_that_was_handed_over_and_a_restart_seals_it(tmp_path: Path) -> None:
    assert run(KILLED, tmp_path).returncode == -9
    part = only_file(tmp_path)
    assert part.name.endswith(".part")
    assert not is_being_written(part)
    (leftover,) = JournalFolder(tmp_path).recover_leftovers()
    got, reader = records(leftover.path)
    assert got == [bytes([n]) * 50_001 for n in range(1, 20)]
    assert leftover.bytes_lost == 0
    assert reader.end is not None
    assert reader.end.reason == "the server died while it recorded"


def test_restart_leaves_the_journals_of_a_living_server_alone(tmp_path: Path) -> None:
    journal = JournalFolder(tmp_path).open(1, "x")
    journal.write(memoryview(CHUNK), 0)
    assert JournalFolder(tmp_path).recover_leftovers() == []
    journal.write(memoryview(CHUNK), 0)
    journal.close(True)
    assert records(only_file(tmp_path))[0] == [CHUNK, CHUNK]


# ---- bad disks

FULL = """
import os, resource, sys, time
from kstream.serve.journal import JournalFolder
folder = JournalFolder(sys.argv[1])
journal = folder.open(1, "x")
if sys.argv[2] != "0":
    journal.write(memoryview(b"start"), 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
for n in range(40):
    journal.write(memoryview(bytes([n]) * 100_003), time.monotonic_ns())
print(journal.failure)
next_one = folder.open(2, "x")
next_one.write(memoryview(b"next"), 0)
journal.close(True)
next_one.close(True)
print(journal.failure, next_one.failure, sep="|")
"""


def test_35_file_size_limit_ends_the_recording_and_not_the_session(tmp_path: Path) -> None:
    found = run(FULL, tmp_path, 1_000_000)
    assert (found.returncode, found.stderr) == (0, "")
    first, last = found.stdout.splitlines()
    assert first.startswith("recording stopped after ")
    assert first.endswith("File too large")
    assert last == f"{first}|None"
    path, following = sorted(tmp_path.iterdir())
    assert path.name.endswith("-000001.journal")
    got, reader = records(path)
    assert got[1:10] == [bytes([n]) * 100_003 for n in range(9)]
    assert reader.end is not None
    assert (reader.end.complete, reader.end.reason, reader.fault) == (False, first, "")
    assert records(following)[0] == [b"next"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB of its own, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_35_full_disk_ends_the_recording_and_all_that_fitted_is_recovered(small_disk: Path, tmp_path: Path) -> None:
    found = run(FULL, small_disk, 0)
    assert (found.returncode, found.stderr) == (0, "")
    assert "No space left on device" in found.stdout
    path = sorted(small_disk.iterdir())[0]
    got, reader = records(path)
    assert sum(map(len, got)) > 1_900_000
    assert reader.fault == ""
    assert reader.end is not None
    assert "No space left on device" in reader.end.reason
    for n, payload in enumerate(got):
        assert payload == bytes([n]) * len(payload)


READ_ONLY = """
import os, sys
from kstream.serve.journal import JournalFolder
os.chdir(sys.argv[1])
os.chmod(".", 0o555)
if os.geteuid() == 0:
    os.setuid(65534)
journal = JournalFolder(".").open(1, "x")
journal.write(memoryview(b"123"), 0)
print(journal.failure)
journal.close(True)
"""


def test_35_read_only_folder_is_told_and_nothing_raised(tmp_path: Path) -> None:
    found = run(READ_ONLY, tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    assert "recording stopped after 0 bytes of this session: Permission denied" in found.stdout
    assert list(tmp_path.iterdir()) == []


def test_35_missing_folder_is_told_and_nothing_raised(tmp_path: Path) -> None:
    journal = JournalFolder(tmp_path / "gone").open(1, "x")
    journal.write(memoryview(CHUNK), 0)
    assert journal.failure is not None
    assert "No such file or directory" in journal.failure
    journal.write(memoryview(CHUNK), 0)
    journal.close(True)


def test_35_folder_that_is_removed_during_the_session_is_told_at_its_end(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    journal = JournalFolder(tmp_path / "gone", sync_s=1000).open(1, "x")
    journal.write(memoryview(CHUNK), 0)
    only_file(tmp_path / "gone").unlink()
    (tmp_path / "gone").rmdir()
    journal.write(memoryview(CHUNK), 0)
    assert journal.failure is None
    journal.close(True)
    assert journal.failure is not None
    assert "deleted" in journal.failure


def test_35_file_that_is_deleted_during_the_session_is_told_at_the_next_sync(tmp_path: Path) -> None:
    journal = JournalFolder(tmp_path, sync_s=0.01).open(1, "x")
    journal.write(memoryview(CHUNK), 0)
    only_file(tmp_path).unlink()
    deadline = time.monotonic() + 10
    while journal.failure is None and time.monotonic() < deadline:
        journal.write(memoryview(CHUNK), 0)
    assert journal.failure is not None
    assert "deleted" in journal.failure
    journal.close(True)


def test_35_device_without_room_is_told(tmp_path: Path) -> None:
    journal = SessionJournal(lambda: JournalFile(os.open("/dev/full", os.O_WRONLY), tmp_path / "x.journal.part"))
    journal.write(memoryview(CHUNK), 0)
    assert journal.failure is not None
    assert journal.failure.endswith("after 0 bytes of this session: No space left on device")
    journal.close(True)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def stalled(tmp_path: Path) -> Iterator[tuple[SessionJournal, int]]:
    """A journal on a pipe that nobody reads: the write that no longer fits blocks, as on a disk that went away."""
    reading, writing = os.pipe()
    journal = SessionJournal(lambda: JournalFile(writing, tmp_path / "x.journal.part"), sync_s=1000, stall_s=0.2)
    while journal.failure is None:
        journal.write(memoryview(CHUNK), 0)
    yield journal, reading
    os.close(reading)


def test_35_disk_that_stalls_costs_one_wait_and_the_recording(stalled: tuple[SessionJournal, int]) -> None:
    journal, _ = stalled
    assert journal.failure is not None
    assert journal.failure.endswith("the disk did not answer for 0.2 s")
    assert journal.is_blocked
    begin = time.monotonic()
    for _ in range(1000):
        journal.write(memoryview(CHUNK), 0)
    journal.close(True)
    assert time.monotonic() - begin < 0.2


def test_35_thread_of_a_stalled_disk_ends_when_the_disk_wakes_up(stalled: tuple[SessionJournal, int]) -> None:
    journal, reading = stalled
    os.set_blocking(reading, True)
    got = b""
    while data := os.read(reading, 1 << 20):
        got += data
    assert got.count(b"DATA") >= 4
    assert b"the disk did not answer" in got[got.index(b"DONE") :]
    assert not journal.is_blocked or journal.is_alive


def test_35_sessions_after_a_stalled_one_add_no_blocked_threads(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    files = iter([JournalFile(writing, tmp_path / "x.journal.part")])

    def create(folder: Path, session: int, peer: str) -> JournalFile:
        return next(files, None) or JournalFile.create(folder, session, peer)

    folder = JournalFolder(tmp_path, sync_s=1000, stall_s=0.2, create=create)
    first = folder.open(1, "x")
    while first.failure is None:
        first.write(memoryview(CHUNK), 0)
    second = folder.open(2, "x")
    second.write(memoryview(CHUNK), 0)
    assert second.failure == "the disk still keeps an earlier recording waiting"
    assert not second.is_alive
    os.close(reading)
    while first.is_alive:
        pass
    third = folder.open(3, "x")
    third.write(memoryview(CHUNK), 0)
    third.close(True)
    assert third.failure is None
    assert records(only_file(tmp_path))[0] == [CHUNK]


def test_35_disk_that_stalls_while_the_journal_is_closed_does_not_hold_the_session(tmp_path: Path) -> None:
    release = threading.Event()

    class Slow(JournalFile):
        def sync(self) -> None:
            release.wait(30)
            super().sync()

    journal = SessionJournal(lambda: Slow.create(tmp_path, 1, "x"), sync_s=1000, stall_s=0.2)
    journal.write(memoryview(CHUNK), 0)
    begin = time.monotonic()
    journal.close(True)
    assert time.monotonic() - begin < 5
    assert journal.failure is not None
    release.set()


# ---- the whole way


def test_recovered_recording_gives_the_same_images_as_the_session_that_was_journalled(
    tmp_path: Path, port: int
) -> None:
    stars = StackOfStars()
    acquisitions = stars.acquisitions(np.random.default_rng(0), noise=2)
    stream = encode(ConfigFile("breast-dce-recon")) + encode(Header(stars.scan().xml))
    stream += b"".join(map(encode, acquisitions)) + encode(Close())
    journal = JournalFolder(tmp_path).open(1, "x")
    for start in range(0, len(stream), 4099):
        journal.write(memoryview(stream)[start : start + 4099], time.monotonic_ns())
    journal.close(True)
    assert journal.path is not None
    found = recover_journal(journal.path)
    assert found.output is not None
    write_recording(tmp_path / "sent.h5", stars.scan().xml, acquisitions)
    images = [
        b"".join(encode(image) for series in result.images.values() for image in series)
        for source in (tmp_path / "sent.h5", found.output, journal.path)
        for result in [replay(source, port=port, preset="breast-dce-recon")]
    ]
    assert images[0]
    assert images[0] == images[1] == images[2]
