"""Is this installation able to serve a scan? Every check has a time limit, and every failure a way to mend it."""

from __future__ import annotations

import errno
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ..config import preset_names, resolve
from ..errors import KstreamError, ModelError, PeerError, ScanError
from ..mrd.codec import Decoder, encode
from ..mrd.header import build_header
from ..mrd.messages import Close, Query, Response, new_acquisition
from ..mrd.recording import read_images, write_recording
from ..segment import ModelInfo
from ..segment.cine import CINE_KINDS
from ..types import Acquisition, EncodingLimit, Scan
from .connection import connect
from .replay import replay
from .server import MrdServer
from .store import ModelStore
from .workers import ModelWorkers, WorkerSettings

LOOPBACK = "127.0.0.1"
MIN_MEMORY_GIB = 2.0
GOOD_MEMORY_GIB = 4.0
"""A 128 x 128 x 32 scan of 8 coils with the shipped model peaked at 1.9 GiB for server and worker together."""

MIN_DISK_GIB = 1.0
MIN_DESCRIPTORS = 256
"""64 connections by default, each with a socket and a journal, and those of workers and libraries."""

ANSWER_S = 2.0
_THREAD = "kstream-doctor-check "
WORKER_S = 30.0


@dataclass(frozen=True)
class Passed:
    """What a check found, and what could still be better."""

    detail: str
    advice: str = ""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Parameters
    ----------
    check : its name, which stays.
    ok : False if scans will suffer.
    detail : what was found.
    fix : what to do; with ``ok`` it is advice.
    seconds : how long it took.
    """

    check: str
    ok: bool
    detail: str
    fix: str
    seconds: float


@dataclass(frozen=True)
class Check:
    """One check: it gives what it found, or raises; a KstreamError carries the fix as its hint."""

    name: str
    run: Callable[[], Passed]
    limit_s: float = 5.0
    fix: str = ""


def all_checks(port: int, folder: Path) -> list[Check]:
    """Everything that can be checked without a scanner, cheap things first.

    Parameters
    ----------
    port : that the server shall listen on.
    folder : where recordings shall go.
    """
    reinstall = "install kstream again: pip install --upgrade kstream"
    return [
        Check("python", _python, fix=reinstall),
        Check("packages", _packages, fix=reinstall),
        Check("cpu", _cpu),
        Check("memory", _memory),
        Check("disk", lambda: _disk(folder), fix="name another folder"),
        Check("limits", _limits),
        Check("port", lambda: check_port(port), fix="another --port"),
        Check("presets", _presets, fix=reinstall),
        Check("model bundles", _bundles, 30.0, fix=reinstall),
        Check("self test", self_test, 30.0, fix="report this with the output of kstream doctor --json"),
        Check("model workers", _workers, WORKER_S + 5, fix="kstream worker --verbose says what goes wrong"),
    ]


def run_checks(checks: Sequence[Check]) -> Iterator[Finding]:
    """Run all checks at the same time, and give their findings in order."""
    begin = time.monotonic()
    for running in [_Running(check) for check in checks]:
        yield running.finding(begin)


def still_running() -> bool:
    """Whether a check that did not end in time is at work yet, in the thread where it was left."""
    return any(thread.name.startswith(_THREAD) for thread in threading.enumerate())


class _Running:
    """A check in a thread of its own; one that hangs is left behind there."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self._found: list[Passed | Exception] = []
        self._seconds = check.limit_s
        self._thread = threading.Thread(target=self._work, name=f"{_THREAD}{check.name}", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        begin = time.monotonic()
        try:
            self._found.append(self._check.run())
        except Exception as error:  # noqa: BLE001 - whatever breaks a check is its finding
            self._found.append(error)
        self._seconds = time.monotonic() - begin

    def finding(self, begin_s: float) -> Finding:
        """Wait until the limit of the check, counted from `begin_s`."""
        check = self._check
        self._thread.join(max(begin_s + check.limit_s - time.monotonic(), 0))
        match self._found:
            case [Passed(detail, advice)]:
                ok, fix = True, advice
            case [KstreamError() as error]:
                where = f" ({error.where})" if error.where else ""
                ok, detail, fix = False, f"{error.what}{where}", error.hint or check.fix
            case [Exception() as unforeseen]:
                ok, detail, fix = False, f"{type(unforeseen).__name__}: {unforeseen}", check.fix
            case _:
                ok, detail, fix = False, f"no result within {check.limit_s:g} s", check.fix
        return Finding(check.name, ok, detail, fix, round(self._seconds, 3))


# ---- the machine -----------------------------------------------------------------------------------------------------


def _python() -> Passed:
    wanted = SpecifierSet(metadata("kstream")["Requires-Python"] or "")
    found = platform.python_version()
    if not wanted.contains(found, prereleases=True):
        raise KstreamError(f"Python {found}, expected {wanted}", where=sys.executable, hint="another Python")
    return Passed(f"{platform.python_implementation()} {found} on {platform.system()} {platform.machine()}")


def _packages() -> Passed:
    """What kstream needs, against what is installed."""
    found, wrong = [f"kstream {version('kstream')}"], []
    for text in requires("kstream") or ():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(wanted.name)
        except PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        found.append(f"{wanted.name} {installed}")
        if not wanted.specifier.contains(installed, prereleases=True):
            wrong.append(f"{wanted.name} {installed}, expected {wanted.specifier}")
    if wrong:
        raise KstreamError("; ".join(wrong))
    return Passed(", ".join(found))


def _cpu() -> Passed:
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    flags = _cpu_flags()
    vectors = [name for name in ("avx", "avx2", "avx512f") if name in flags]
    advice = []
    if n_cores < 2:
        advice.append("give it a second core: reconstruction and network otherwise wait for each other")
    if flags and "avx2" not in flags:
        advice.append("a CPU with AVX2 (since 2013), or a virtual machine that shows it, is several times faster")
    return Passed(f"{n_cores} cores, {', '.join(vectors) or platform.machine()}", "; ".join(advice))


def _cpu_flags() -> set[str]:
    """What an x86 Linux says of its CPU; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


def _memory() -> Passed:
    available = _available_gib()
    if available is None:
        return Passed("not told by this system")
    if available < MIN_MEMORY_GIB:
        raise KstreamError(
            f"{available:.1f} GiB of memory are available, at least {MIN_MEMORY_GIB:g} are needed",
            hint="end other programs, or raise the limit of the container",
        )
    advice = "" if available >= GOOD_MEMORY_GIB else "large matrices need more: kstream serve --memory-gib sets a limit"
    return Passed(f"{available:.1f} GiB available", advice)


def _available_gib() -> float | None:
    """Memory that programs can still have, within the limit of a container; None where the system does not tell."""
    try:
        words = Path("/proc/meminfo").read_text(encoding="ascii").split()
        free_bytes = int(words[words.index("MemAvailable:") + 1]) * 1024
    except (OSError, ValueError):
        return None
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        free_bytes = min(free_bytes, max(limit - used, 0))
    except (OSError, ValueError):  # no container, or "max"
        pass
    return float(free_bytes / 2**30)


def _disk(folder: Path) -> Passed:
    free_gib = shutil.disk_usage(folder).free / 2**30
    detail = f"{free_gib:.1f} GiB free at {folder}"
    if free_gib < MIN_DISK_GIB:
        raise KstreamError(f"only {detail}", hint="free some; a recording takes about what the scanner's raw data take")
    return Passed(detail)


def _limits() -> Passed:
    """File descriptors; and whether `kstream replay --speed` may ask for real-time scheduling."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < MIN_DESCRIPTORS:
        raise KstreamError(
            f"{soft} open files are allowed, at least {MIN_DESCRIPTORS} are needed",
            hint=f"ulimit -n {min(4096, hard) if hard > 0 else 4096}, or LimitNOFILE= of the systemd unit",
        )
    is_real_time = os.geteuid() == 0 or resource.getrlimit(getattr(resource, "RLIMIT_RTPRIO", 0))[0] > 0
    may = "may" if is_real_time else "may not"
    return Passed(f"{soft} open files; this user {may} ask for real-time scheduling")


# ---- kstream ---------------------------------------------------------------------------------------------------------


def check_port(port: int) -> Passed:
    """Whether the port is free, or a kstream answers on it.

    Raises
    ------
    PeerError : something else has it, or this user may not listen there.
    """
    try:
        socket.create_server((LOOPBACK, port)).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise PeerError(
                f"cannot listen on port {port}: {error.strerror}",
                hint="a port above 1023 needs no privileges: kstream serve --port 9002",
            ) from error
        return Passed(f"kstream {_ask_version(port)} answers on port {port}")
    return Passed(f"port {port} is free")


def _ask_version(port: int) -> str:
    """The version of the kstream that listens on a port of this machine."""
    connection = connect(LOOPBACK, port, None, ANSWER_S)
    decoder = Decoder()
    try:
        connection.send([encode(Query(1, "kstream::version")), encode(Close())], ANSWER_S)
        deadline = time.monotonic() + ANSWER_S
        while (remaining := deadline - time.monotonic()) > 0:
            n_bytes = connection.receive_into(decoder.space(), remaining)
            answers = decoder.filled(n_bytes) if n_bytes else [Close()]
            for message in answers:
                if isinstance(message, Response):
                    return message.text
                if isinstance(message, Close):
                    raise TimeoutError
        raise TimeoutError
    except (OSError, KstreamError):
        raise PeerError(
            f"something that is not kstream has port {port}, or a kstream that speaks TLS",
            hint=f"ss -ltnp 'sport = :{port}' shows what it is; kstream serve --port takes another one",
        ) from None
    finally:
        connection.close()


def _presets() -> Passed:
    return Passed(", ".join(resolve(name).preset for name in preset_names()))


def _bundles() -> Passed:
    """Hash verified, loaded, and proved with the example that came with it."""
    from ..models.bundle import Bundle, shipped

    store = ModelStore()
    proved = [Bundle.load(name).info for name in shipped()]
    for info in proved:
        if info.architecture in CINE_KINDS:
            store.array_engine(info.name)
        else:
            store.segmenter(info.name)
    return Passed(", ".join(f"{info.name} (sha256 {info.sha256[:12]}, example proved)" for info in proved) or "none")


def _workers() -> Passed:
    """A worker process starts, segments the example of a bundle, and ends."""
    from ..models.bundle import Bundle, shipped

    bundles = [Bundle.load(name) for name in shipped()]
    bundles = [bundle for bundle in bundles if bundle.info.architecture not in CINE_KINDS]
    if not bundles:
        return Passed("no bundle to try one with")
    bundle = bundles[0]
    kspace, _ = bundle.example()
    difference = (kspace[0, 0] + 1j * kspace[0, 1]).astype(np.complex64)
    expected = ModelStore().segmenter(bundle.info.name).segment(difference).labels
    workers = ModelWorkers(
        WorkerSettings(n_processes=1, models=(bundle.info.name,), start_s=WORKER_S, timeout_s=WORKER_S, wait_s=WORKER_S)
    )
    workers.start()
    try:
        made = workers.segment(bundle.info.name, ModelInfo.of(bundle.info), difference)
    finally:
        workers.stop()
    agreement = float(np.mean(made.labels == expected))
    if agreement < 0.999:
        raise ModelError(
            f"a worker's labels agree with those of this process in {agreement:.1%} of the voxels only",
            hint="kstream doctor --json on another machine: if it passes there, this one's libraries are at fault",
        )
    return Passed(f"one started, segmented the example of {bundle.info.name}, and ended")


# ---- the self test ---------------------------------------------------------------------------------------------------

MATRIX, N_SPOKES = 32, 55
POINTS = ((3, -5, 1.0), (-9, 6, 0.5))
"""Column and row, counted from the centre, and brightness."""

COILS = (1.0, 0.6 - 0.5j, -0.3j)


def self_test() -> Passed:
    """A simulated scan of two points, replayed through a real socket: the image must show them where they were.

    Raises
    ------
    KstreamError : no image came, or it shows something else.
    """
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kstream-doctor-") as folder:
        recording, images = Path(folder) / "scan.h5", Path(folder) / "images.h5"
        write_recording(recording, _scan().xml, _spokes())
        server = MrdServer((LOOPBACK,), 0)
        thread = threading.Thread(target=server.serve_forever, name="kstream-doctor-server", daemon=True)
        thread.start()
        try:
            result = replay(recording, port=server.port, preset="recon-radial", output=images, wait_s=20.0)
        finally:
            server.stop(1.0)
            thread.join(5.0)
        if result.errors:
            raise KstreamError(f"the server told an error: {result.errors[0].splitlines()[0]}")
        (image,) = read_images(images)[1]
    _check_points(np.abs(image.data[0, 0]))
    return Passed(f"a scan of {result.sent} spokes gave its image through a socket in {time.monotonic() - begin:.1f} s")


def _check_points(image: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
    brightest = float(image.max())
    for x, y, brightness in POINTS:
        row, column = MATRIX // 2 + y, MATRIX // 2 + x
        near = image[row - 2 : row + 3, column - 2 : column + 3]
        found = float(image[row, column]) / brightest
        if near.max() > image[row, column] or abs(found - brightness) > 0.15:
            raise ScanError(
                f"the point at row {row}, column {column} has brightness {found:.2f}, expected {brightness:g}",
                where="self test",
            )


def _scan() -> Scan:
    scan = Scan(
        encoded_matrix=(2 * MATRIX, 2 * MATRIX, 1),
        recon_matrix=(MATRIX, MATRIX, 1),
        encoded_fov_mm=(400.0, 400.0, 5.0),
        recon_fov_mm=(200.0, 200.0, 5.0),
        trajectory="radial",
        limits={"kspace_encode_step_1": EncodingLimit(0, N_SPOKES - 1, 0)},
        n_coils=len(COILS),
        h1_frequency_hz=63_870_000,
        user_parameters={"trajectory_units": "cycles_per_fov"},
    )
    return Scan(**{**vars(scan), "xml": build_header(scan)})


def _spokes() -> list[Acquisition]:
    """What a scanner would send of `POINTS`: sums of plane waves on spokes over half a turn."""
    radius = (np.arange(2 * MATRIX) - MATRIX) / 2
    spokes = []
    for number in range(N_SPOKES):
        angle = np.pi * number / N_SPOKES
        kx, ky = radius * np.cos(angle), radius * np.sin(angle)
        signal = sum(a * np.exp(-2j * np.pi * (kx * x + ky * y) / MATRIX) for x, y, a in POINTS)
        data = np.outer(COILS, signal).astype(np.complex64)
        trajectory = np.stack([kx, ky], axis=1).astype(np.float32)
        spokes.append(
            new_acquisition(
                data,
                trajectory,
                counters={"kspace_encode_step_1": number},
                read_dir=(1, 0, 0),
                phase_dir=(0, 1, 0),
                slice_dir=(0, 0, 1),
            )
        )
    return spokes
