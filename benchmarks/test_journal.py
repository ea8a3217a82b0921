"""Recording what a session receives, beside the disk itself and the usual way: `make bench`.

One acquisition of 16 coils x 640 samples with a 2-D trajectory is 87 382 bytes on the wire. The journal's rates count
bytes that `write` has returned for, so that a killed process does not lose them; the end of the file and its last sync
are outside of the time, as they are for the plain loop. Each line is the median of interleaved rounds of one run.
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from kstream.mrd.codec import encode
from kstream.mrd.messages import new_acquisition
from kstream.mrd.recording import BLOCK, RecordingWriter
from kstream.serve.journal import JournalFolder
from kstream.types import Acquisition

with warnings.catch_warnings():
    import ismrmrd

COILS, SAMPLES = 16, 640
ROUNDS = 5
N = 2304  # acquisitions of one round: 201 MB
KIB = (64, 256, 1024)


@pytest.fixture(scope="module")
def acquisition() -> Acquisition:
    rng = np.random.default_rng(0)
    data = rng.standard_normal((COILS, SAMPLES, 2)).astype("f4").view("c8")[..., 0]
    return new_acquisition(data, rng.standard_normal((SAMPLES, 2)).astype("f4"))


def journal(folder: Path, stream: memoryview, n_chunk: int) -> float:
    """Seconds for all chunks of a stream."""
    writer = JournalFolder(folder).open(1, "benchmark")
    begin = time.perf_counter()
    for start in range(0, len(stream), n_chunk):
        writer.write(stream[start : start + n_chunk], time.monotonic_ns())
    elapsed = time.perf_counter() - begin
    writer.close(True)
    assert writer.failure is None
    return elapsed


def plain(folder: Path, stream: memoryview, n_chunk: int) -> float:
    """The same bytes in a loop of os.write."""
    descriptor = os.open(folder / "plain", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    begin = time.perf_counter()
    for start in range(0, len(stream), n_chunk):
        os.write(descriptor, stream[start : start + n_chunk])
    elapsed = time.perf_counter() - begin
    os.fdatasync(descriptor)
    os.close(descriptor)
    return elapsed


def hdf5(folder: Path, acquisition: Acquisition) -> float:
    """Our HDF5 writer, which writes blocks."""
    with RecordingWriter(folder / "ours.h5", b"<a/>") as writer:
        begin = time.perf_counter()
        for _ in range(N // BLOCK):
            writer.append([acquisition] * BLOCK)
        return time.perf_counter() - begin


def peer(folder: Path, acquisition: Acquisition) -> float:
    """What the usual Python server does with each acquisition; a twelfth of the others' number, scaled up."""
    theirs = ismrmrd.Acquisition(acquisition.header.tobytes(), acquisition.data, acquisition.trajectory)
    with ismrmrd.Dataset(folder / "theirs.h5", mode="w") as dataset:
        dataset.write_xml_header(b"<a/>")
        begin = time.perf_counter()
        for _ in range(N // 12):
            dataset.append_acquisition(theirs)
        return 12 * (time.perf_counter() - begin)


def rates(folder: Path, acquisition: Acquisition) -> dict[str, float]:
    """Acquisitions per second of every way, by its name."""
    stream = memoryview(encode(acquisition) * N)
    cases: dict[str, Callable[[], float]] = {}
    for n in KIB:
        cases[f"journal, {n} KiB"] = partial(journal, folder, stream, n << 10)
        cases[f"plain write, {n} KiB"] = partial(plain, folder, stream, n << 10)
    cases["HDF5, RecordingWriter"] = partial(hdf5, folder, acquisition)
    cases["HDF5, ismrmrd.Dataset"] = partial(peer, folder, acquisition)
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(ROUNDS):
        for name, case in cases.items():
            times[name].append(case())
            for path in folder.iterdir():
                path.unlink()
    return {name: N / statistics.median(elapsed) for name, elapsed in times.items()}


@pytest.mark.benchmark(group="record 2304 acquisitions of 16 x 640, all ways")
def test_journal_rate(
    tmp_path: Path, acquisition: Acquisition, capsys: pytest.CaptureFixture[str], benchmark: BenchmarkFixture
) -> None:
    found = benchmark.pedantic(rates, (tmp_path, acquisition), rounds=1)
    n_bytes = len(encode(acquisition))
    with capsys.disabled():
        print()
        for name, rate in found.items():
            ratio = rate / found["HDF5, ismrmrd.Dataset"]
            print(f"{name:<22} {rate:>7.0f} acquisitions/s {rate * n_bytes / 1e6:>6.0f} MB/s {ratio:>6.1f} x ismrmrd")
        for n in KIB:
            print(f"journal / plain write, {n} KiB: {found[f'journal, {n} KiB'] / found[f'plain write, {n} KiB']:.2f}")
    assert found["journal, 64 KiB"] > 3000
