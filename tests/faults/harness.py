"""The real server in its own process, raw clients, and the common oracle of all fault cases."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families

from kstream.mrd.codec import Decoder, encode
from kstream.mrd.messages import Close, ConfigFile, Header, Image, Text
from kstream.types import Acquisition
from tests.scans import StackOfStars

STARS = StackOfStars(nx=15, ny=15, nz=3, n_partitions=2, n_coils=3, spokes_per_frame=7, n_frames=3)
PRESET = "breast-dce-recon"
N_IMAGES = STARS.n_frames * STARS.nz
PER_FRAME = STARS.spokes_per_frame * STARS.n_partitions

RSS_CAP_BYTES = 600 * 2**20
"""Far below what a hostile header announces, above what numpy, scipy and finufft take."""

PATIENCE_S = 30.0


@cache
def acquisitions(seed: int = 0) -> tuple[Acquisition, ...]:
    """One whole scan of `STARS`."""
    return tuple(STARS.acquisitions(np.random.default_rng(seed)))


def opening(preset: str = PRESET, xml: bytes | None = None) -> list[Any]:
    """Configuration and header."""
    return [ConfigFile(preset), Header(STARS.scan().xml if xml is None else xml)]


def scan_messages(seed: int = 0) -> list[Any]:
    """A good session."""
    return [*opening(), *acquisitions(seed), Close()]


def wire(*messages: Any) -> bytes:
    return b"".join(message if isinstance(message, bytes) else encode(message) for message in messages)


def wait_until(is_so: Callable[[], Any], seconds: float = PATIENCE_S, what: str = "it") -> None:
    """Ask until it is so; for what another process does in its own time."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not is_so():
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds:g} s"
        pause.wait(0.01)


class Server:
    """``kstream serve`` as a process of its own.

    Parameters
    ----------
    folder : for its log.
    options : of the command line.
    prelude : Python that runs in the process before the command (to inject faults of the system).
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        prelude: str = "",
        warm_up: str = "",
        wait: bool = True,
        **popen: Any,
    ) -> None:
        start = ["-c", f"{prelude}\nfrom kstream.cli import main\nmain()"] if prelude else ["-m", "kstream"]
        folder.mkdir(exist_ok=True)
        self.log_path = folder / "log"
        self._log = self.log_path.open("wb")
        command = [
            sys.executable,
            *start,
            "serve",
            "--port",
            "0",
            "--metrics-port",
            "0",
            "--warm-up",
            warm_up,
            *options,
        ]
        self.begin_s = time.monotonic()
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._log, text=True, **popen
        )
        self.port = self.metrics_port = 0
        self.listening_s = 0.0
        self.printed: list[str] = []
        if wait:
            self._read_ports()

    def _read_ports(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed.append(line.strip())
            if line.startswith("kstream listens"):
                self.listening_s = self.listening_s or time.monotonic() - self.begin_s - self._waited_for_cpu_s()
                self.port = int(line.split()[-1])
            if line.startswith("metrics on"):
                self.metrics_port = int(line.split(":")[-1].split("/")[0])
                return
        self.process.wait(10)
        raise AssertionError(f"the server did not start: exit code {self.process.returncode}\n{self.log}")

    def _waited_for_cpu_s(self) -> float:
        """Seconds in which the process was ready and other programs had the processors."""
        return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[1]) / 1e9

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    @property
    def log(self) -> str:
        return self.log_path.read_text("utf-8")

    @property
    def rss_bytes(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)

    @property
    def n_descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    @property
    def n_threads(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/task"))

    @property
    def children(self) -> list[psutil.Process]:
        return list(psutil.Process(self.pid).children(recursive=True))

    def maps(self, name: str) -> bool:
        """True if the process has a library of that name in memory."""
        return name in Path(f"/proc/{self.pid}/maps").read_text()

    def scrape(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as page:
            return str(page.read().decode())

    def metric(self, name: str, **labels: str) -> float:
        """A sample as Prometheus reads it; 0 where there is none."""
        for family in text_string_to_metric_families(self.scrape()):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return float(sample.value)
        return 0.0

    def outcomes(self) -> dict[str, int]:
        """How sessions have ended until now."""
        return {
            sample.labels["outcome"]: int(sample.value)
            for family in text_string_to_metric_families(self.scrape())
            for sample in family.samples
            if sample.name == "kstream_sessions_total"
        }

    def stop(self, seconds: float = 30.0) -> int:
        """SIGTERM, and its exit code; nothing of it may be left."""
        children = self.children if self.is_alive else []
        if self.is_alive:
            self.process.send_signal(signal.SIGTERM)
        return self.wait(children, seconds)

    def wait(self, children: Sequence[psutil.Process] = (), seconds: float = 30.0) -> int:
        try:
            code = self.process.wait(seconds)
        finally:
            self.kill()
        _, left = psutil.wait_procs(children, 5)
        assert not left, f"processes were left behind: {left}"
        return code

    def kill(self) -> None:
        """SIGKILL; its own children notice by themselves."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(10)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._log.close()


OPEN: list[Client] = []
"""Clients of the test that runs; whatever it left open is closed at its end."""


class Client:
    """A raw socket that sends what a test tells it and keeps what comes back."""

    def __init__(
        self,
        port: int,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
        receive_buffer: int | None = None,
    ) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        raw = socket.socket(family)
        if receive_buffer is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        raw.settimeout(PATIENCE_S)
        try:
            raw.connect((host, port))
        except OSError:
            raw.close()
            raise
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = tls.wrap_socket(raw, server_hostname="localhost") if tls is not None else raw
        self.messages: list[Any] = []
        self._decoder = Decoder()
        OPEN.append(self)

    def send(self, *messages: Any) -> Client:
        """Messages, or bytes as they are. A server that has ended the session already does not read all of them."""
        with contextlib.suppress(OSError):
            self.socket.sendall(wire(*messages))
        return self

    def half_close(self) -> Client:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
        return self

    def reset(self) -> None:
        """Close with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def receive_until(self, is_enough: Callable[[list[Any]], bool]) -> Client:
        while not is_enough(self.messages):
            data = self.socket.recv(1 << 16)
            assert data, f"the server closed too early: {self.texts}"
            self.messages += self._decoder.receive(data)
        return self

    def receive_all(self) -> Client:
        """Everything until the server closes; the stream must be whole."""
        try:
            while data := self.socket.recv(1 << 16):
                self.messages += self._decoder.receive(data)
        except ConnectionResetError:
            assert self.is_closed, f"the connection was reset before CLOSE: {self.texts}"
        self._decoder.end()
        self.socket.close()
        return self

    @property
    def texts(self) -> list[str]:
        return [m.text.rstrip("\n") for m in self.messages if isinstance(m, Text)]

    @property
    def errors(self) -> list[str]:
        return [text for text in self.texts if text.startswith("ERR ")]

    @property
    def warnings(self) -> list[str]:
        """All but those that every scan of `STARS` gets: too few spokes for smooth maps, and noise for an object."""
        usual = ("coil maps may show streaks", "nothing but noise was found")
        return [text for text in self.texts if text.startswith("WRN") and not any(words in text for words in usual)]

    @property
    def images(self) -> list[Image]:
        return [m for m in self.messages if isinstance(m, Image)]

    @property
    def pixels(self) -> list[bytes]:
        """What must not depend on anything but the scan: headers, attributes and pixels."""
        return [image.header.tobytes() + repr(image.meta).encode() + image.data.tobytes() for image in self.images]

    @property
    def is_closed(self) -> bool:
        return bool(self.messages) and isinstance(self.messages[-1], Close)

    def reason(self) -> str:
        """The one error that the server told before its one CLOSE."""
        self.closed()
        assert len(self.errors) == 1, self.texts
        return self.errors[0]

    def success(self) -> Client:
        """No error, and one CLOSE."""
        self.closed()
        assert not self.errors, self.texts
        return self

    def closed(self) -> Client:
        """Everything, with one CLOSE at its end."""
        self.receive_all()
        assert [isinstance(m, Close) for m in self.messages].count(True) == 1, self.texts
        assert self.is_closed
        return self


_REFERENCE: dict[str, list[bytes]] = {}


def good_session(server: Server, seed: int = 0, **how: Any) -> Client:
    return Client(server.port, **how).send(*scan_messages(seed)).success()


def reference(server: Server) -> list[bytes]:
    """What a good scan gives; made once, by the first server that is asked, and the same for every other."""
    if not _REFERENCE:
        found = good_session(server).pixels
        assert len(found) == N_IMAGES
        _REFERENCE["pixels"] = found
    return _REFERENCE["pixels"]


@dataclass
class Oracle:
    """What must be true of every fault case; `begin` before the fault, `judge` after it."""

    server: Server
    expected: dict[str, int] = field(default_factory=dict)

    def begin(self) -> None:
        self._reference = reference(self.server)
        wait_until(lambda: self.server.metric("kstream_open_sessions") == 0)
        wait_until(lambda: self.server.metric("kstream_connections_total") == sum(self.server.outcomes().values()))
        self.before = self.server.outcomes()
        self._beside = Client(self.server.port).send(*scan_messages()[: 2 + PER_FRAME + 3])

    def expect(self, outcome: str, n: int = 1) -> None:
        """Say that `n` sessions will be counted under this outcome."""
        self.expected[outcome] = self.expected.get(outcome, 0) + n

    def counted(self) -> dict[str, int]:
        """Outcomes since `begin`."""
        now = self.server.outcomes()
        return {name: n - self.before.get(name, 0) for name, n in now.items() if n != self.before.get(name, 0)}

    def refused(self, *messages: Any, outcome: str, half_close: bool = False) -> str:
        """Send, and be told why not."""
        self.expect(outcome)
        client = Client(self.server.port).send(*messages)
        if half_close:
            client.half_close()
        return client.reason()

    def accepted(self, *messages: Any, outcome: str = "completed") -> Client:
        """Send, and be served."""
        self.expect(outcome)
        return Client(self.server.port).send(*messages).success()

    def judge(self) -> None:
        """The common oracle."""
        assert self.server.is_alive, self.server.log
        assert self.server.rss_bytes < RSS_CAP_BYTES
        self._beside.send(*scan_messages()[2 + PER_FRAME + 3 :]).success()
        assert self._beside.pixels == self._reference, "a session at the same time was affected"
        assert good_session(self.server).pixels == self._reference, "the next good session was affected"
        expected = {**self.expected, "completed": self.expected.get("completed", 0) + 2}
        wait_until(lambda: sum(self.counted().values()) >= sum(expected.values()), 10, f"{expected}")
        assert self.counted() == expected
        assert "Traceback" not in self.server.log

    def close(self) -> None:
        self._beside.socket.close()


@contextlib.contextmanager
def judged(server: Server) -> Iterator[Oracle]:
    """Put a fault case between `begin` and `judge`."""
    oracle = Oracle(server)
    oracle.begin()
    try:
        yield oracle
        oracle.judge()
    finally:
        oracle.close()


@contextlib.contextmanager
def running(folder: Path, *options: str, **how: Any) -> Iterator[Server]:
    """A server of one's own, that must end well."""
    server = Server(folder, *options, **how)
    try:
        yield server
        assert server.is_alive, server.log
        assert server.stop() == 0, server.log
        assert "Traceback" not in server.log
    finally:
        server.kill()
