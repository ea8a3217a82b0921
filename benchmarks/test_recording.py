"""To the disk and from it: the journal, HDF5, and the replay of a recording, beside ``ismrmrd.Dataset``.

The journal's rates count bytes that `write` has returned for, so that a killed process does not lose them; the end of
the file and its last sync are outside of the time, as they are for the plain loop.
"""

from __future__ import annotations

import os
import socket
import time
import warnings
from pathlib import Path

import pytest

from kstream.benchmarks.far_end import EVERY, listening
from kstream.benchmarks.scans import REFERENCE, random_acquisition
from kstream.benchmarks.turns import Turns, Way
from kstream.mrd.codec import encode
from kstream.mrd.header import build_header
from kstream.mrd.recording import BLOCK, RecordingWriter, write_recording
from kstream.serve.journal import JournalFolder
from kstream.serve.replay import replay
from kstream.types import Scan

with warnings.catch_warnings():
    import ismrmrd

RATE_PER_S = 500
SIZE = f"{REFERENCE[0]} coils x {REFERENCE[1]} samples"
XML = build_header(Scan((640, 640, 1), (320, 320, 1), (400.0, 400.0, 5.0), (200.0, 200.0, 5.0), "radial"))


@pytest.mark.parametrize("kib", [64, 1024])
def test_journal(turns: Turns, tmp_path: Path, kib: int) -> None:
    """What a session receives, as it arrives, beside a loop of os.write.

    Each piece is handed to a thread that a blocked disk may hold, and its checksum is taken: some 60 us a piece. A fast
    sender fills pieces of a megabyte.
    """
    n = turns.pick(2304, 24)
    stream = memoryview(encode(random_acquisition()) * n)
    starts = range(0, len(stream), kib << 10)

    def ours() -> float:
        writer = JournalFolder(tmp_path).open(1, "benchmark")
        begin = time.perf_counter()
        for start in starts:
            writer.write(stream[start : start + (kib << 10)], time.monotonic_ns())
        seconds = time.perf_counter() - begin
        writer.close(True)
        assert writer.failure is None
        return _cleared(tmp_path, seconds)

    def plain() -> float:
        descriptor = os.open(tmp_path / "plain", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        begin = time.perf_counter()
        for start in starts:
            os.write(descriptor, stream[start : start + (kib << 10)])
        seconds = time.perf_counter() - begin
        os.fdatasync(descriptor)
        os.close(descriptor)
        return _cleared(tmp_path, seconds)

    what = f"record acquisitions of {SIZE}, journal in pieces of {kib} KiB"
    turns(what, ours, {"os.write": plain}, n_items=n, budgets={"os.write": 0.1 if kib < 1024 else 0.25})


def test_hdf5(turns: Turns, tmp_path: Path) -> None:
    """An ISMRMRD file, in blocks; the usual Python server appends one acquisition after another."""
    n = turns.pick(2304, BLOCK)
    acquisition = random_acquisition()
    theirs = ismrmrd.Acquisition(acquisition.header.tobytes(), acquisition.data, acquisition.trajectory)

    def ours() -> float:
        with RecordingWriter(tmp_path / "ours.h5", b"<a/>") as writer:
            begin = time.perf_counter()
            for _ in range(n // BLOCK):
                writer.append([acquisition] * BLOCK)
            seconds = time.perf_counter() - begin
        return _cleared(tmp_path, seconds)

    def with_ismrmrd() -> float:
        """A part of it, scaled up."""
        part = max(n // 12, 1)
        with ismrmrd.Dataset(tmp_path / "theirs.h5", mode="w") as dataset:
            dataset.write_xml_header(b"<a/>")
            begin = time.perf_counter()
            for _ in range(part):
                dataset.append_acquisition(theirs)
            seconds = n / part * (time.perf_counter() - begin)
        return _cleared(tmp_path, seconds)

    what = f"record acquisitions of {SIZE}, ISMRMRD HDF5"
    turns(what, ours, {"ismrmrd.Dataset": with_ismrmrd}, n_items=n, budgets={"ismrmrd.Dataset": 3}, readme=True)


def _cleared(folder: Path, seconds: float) -> float:
    for path in folder.iterdir():
        path.unlink()
    return seconds


def recording(folder: Path, n: int) -> Path:
    """Acquisitions 2 ms apart, in ticks of 2.5 ms."""
    ticks = [int(i / RATE_PER_S / 2.5e-3) for i in range(n)]
    path = folder / "scan.h5"
    write_recording(path, XML, (random_acquisition(acquisition_time_stamp=tick) for tick in ticks))
    return path


def test_replay(turns: Turns, tmp_path: Path) -> None:
    """From HDF5 to the socket, as fast as it goes; the reader is a process of its own."""
    n = turns.pick(2000, 20)
    path = recording(tmp_path, n)
    block = encode(random_acquisition()) * n

    def raw(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(block)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)

    def with_ismrmrd(port: int) -> float:
        """A tenth of it, scaled up."""
        part = max(n // 10, 1)
        dataset = ismrmrd.Dataset(str(path), "dataset", create_if_needed=False)
        begin = time.perf_counter()
        with socket.create_connection(("127.0.0.1", port)) as connection, connection.makefile("wb") as stream:
            writer = ismrmrd.ProtocolSerializer(stream)
            for number in range(part):
                writer.serialize(dataset.read_acquisition(number))
            writer.close()
            stream.flush()
            connection.recv(1)
        dataset.close()
        return n / part * (time.perf_counter() - begin)

    def ours(port: int) -> None:
        assert replay(path, port=port, preset="none").sent == n

    with listening("decode") as port, listening("count") as counting:
        peers: dict[str, Way] = {"raw socket": lambda: raw(counting), "ismrmrd": lambda: with_ismrmrd(port)}
        what = f"replay acquisitions of {SIZE} from HDF5"
        turns(what, lambda: ours(port), peers, n_items=n, budgets={"ismrmrd": 10}, readme=True)


def test_recorded_timing_is_kept(turns: Turns, tmp_path: Path) -> None:
    """500 acquisitions/s, 100 images/s back that are written to HDF5: how late is each?"""
    n = turns.pick(2000, 20)
    path = recording(tmp_path, n)
    with listening("images") as port:

        def timed() -> float:
            result = replay(path, port=port, preset="none", speed=1, output=tmp_path / "images.h5")
            assert result.n_images == n // EVERY
            jitter = result.jitter
            assert jitter is not None
            turns.keep(shown={"p50": f"{jitter.p50_ms:.2f} ms", "p99": f"{jitter.p99_ms:.2f} ms"}, jitter=vars(jitter))
            return jitter.p99_ms / 1e3

        turns("lateness (p99) of readouts replayed at 500/s, images coming back", timed, rounds=1, warm=False)


def test_take(turns: Turns, tmp_path: Path) -> None:
    """Reading alone: acquisitions from HDF5, one by one."""
    from kstream.mrd.recording import Recording

    n = turns.pick(2000, 20)
    path = recording(tmp_path, n)

    def ours() -> None:
        with Recording(path) as source:
            assert sum(1 for _ in source.acquisitions()) == n

    def with_ismrmrd() -> float:
        part = max(n // 10, 1)
        dataset = ismrmrd.Dataset(str(path), "dataset", create_if_needed=False)
        begin = time.perf_counter()
        for number in range(part):
            dataset.read_acquisition(number)
        seconds = n / part * (time.perf_counter() - begin)
        dataset.close()
        return seconds

    what = f"read acquisitions of {SIZE} from HDF5"
    turns(what, ours, {"ismrmrd.Dataset": with_ismrmrd}, n_items=n, budgets={"ismrmrd.Dataset": 10})
