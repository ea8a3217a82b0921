"""The other end of a real server: starts it, sends scans at their pace, and notes when which byte came back."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kstream.mrd.codec import Decoder, encode
from kstream.mrd.messages import Close, ConfigFile, Header, Image, Text

SUMMARY = "kstream summary "


@dataclass
class Server:
    """A `kstream serve` in a process of its own.

    Parameters
    ----------
    ports : of MRD, then of metrics if the server has them.
    """

    process: subprocess.Popen[str]
    ports: list[int]

    @property
    def port(self) -> int:
        return self.ports[0]

    def peak_bytes(self) -> int:
        """Most resident memory so far."""
        return peak_bytes(self.process.pid)

    def worker_peak_bytes(self) -> int:
        """Most resident memory so far of the largest model worker."""
        return max((peak_bytes(pid) for pid in children(self.process.pid)), default=0)


@contextmanager
def serving(*options: str) -> Iterator[Server]:
    """A server on a free port that listens, with `options` of ``kstream serve``; it ends with the block.

    If the block fails, the end of the server's log is printed.
    """
    command = [sys.executable, "-P", "-m", "kstream", "serve", "--port", "0", *options]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            yield Server(process, list(_ports(process, "--metrics-port" in options)))
        except BaseException:
            log.seek(0)
            print("".join(log.readlines()[-40:]), file=sys.stderr)
            raise
        finally:
            process.terminate()
            process.wait(30)
            if process.stdout is not None:
                process.stdout.close()


def _ports(process: subprocess.Popen[str], with_metrics: bool) -> Iterator[int]:
    """From the lines in which the server says where it listens: the first of MRD, and that of the metrics."""
    n_found = 0
    for line in process.stdout or ():
        found = re.search(r"(?:port |:)(\d+)(?:/metrics)?$", line.strip())
        is_metrics = "metrics" in line
        if found and (n_found == 0 or is_metrics):
            n_found += 1
            yield int(found[1])
        if n_found == 1 + with_metrics:
            return
    raise RuntimeError(f"the server did not start: exit code {process.wait()}")


@dataclass
class Answer:
    """What a session sent back.

    Parameters
    ----------
    first_bytes_s : by image series, when the first byte of each of its messages came (`time.perf_counter`).
    last_byte_s : by image series, when its last message was whole.
    meta : by image series, the attributes of its last message.
    texts : all of them, the summary left out.
    texts_s : when each of them was whole.
    summary : the server's own account.
    """

    first_bytes_s: dict[int, list[float]] = field(default_factory=dict)
    last_byte_s: dict[int, float] = field(default_factory=dict)
    meta: dict[int, dict[str, Any]] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    texts_s: list[float] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def n_images(self) -> int:
        return sum(map(len, self.first_bytes_s.values()))


class Receiver(threading.Thread):
    """Reads what the server sends until it closes."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(daemon=True)
        self._connection = connection
        self.answer = Answer()
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._read()
        except Exception as error:  # noqa: BLE001 - told where the thread is joined
            self.error = error

    def _read(self) -> None:
        decoder, begun_s = Decoder(), 0.0
        while n_bytes := self._connection.recv_into(decoder.space()):
            now = time.perf_counter()
            if not decoder.pending:
                begun_s = now
            for message in decoder.filled(n_bytes):
                self._take(message, begun_s, now)
                begun_s = now  # the next one's first byte came with this piece
            if decoder.error is not None:
                raise decoder.error

    def _take(self, message: Any, begun_s: float, now_s: float) -> None:
        answer = self.answer
        if isinstance(message, Image):
            series = int(message.header["image_series_index"])
            answer.first_bytes_s.setdefault(series, []).append(begun_s)
            answer.last_byte_s[series], answer.meta[series] = now_s, dict(message.meta)
        elif isinstance(message, Text) and message.text.startswith(SUMMARY):
            answer.summary = json.loads(message.text.removeprefix(SUMMARY))
        elif isinstance(message, Text):
            answer.texts.append(message.text)
            answer.texts_s.append(now_s)


@dataclass(frozen=True)
class Sent:
    """How a scan was sent.

    Parameters
    ----------
    last_readout_s : when its last readout had been handed to the socket (`time.perf_counter`).
    begin_s : when its first one was due.
    late_s : by how much readouts were late, at worst: the sender waits when the server's queue is full.
    """

    last_readout_s: float
    late_s: float
    answer: Answer
    begin_s: float = 0.0

    def told_s(self, words: str) -> float | None:
        """When the first text with these words came, after the first readout was due; None if none did."""
        times = zip(self.answer.texts, self.answer.texts_s, strict=True)
        return next((now_s - self.begin_s for text, now_s in times if words in text), None)


def measure(
    port: int,
    xml: bytes,
    readouts: Iterable[bytes],
    preset: str,
    per_second: float = 0.0,
    settings: dict[str, Any] | None = None,
    wait: Callable[[], None] | None = None,
    n_before_wait: int = 0,
    timeout_s: float = 600.0,
) -> Sent:
    """One session: send encoded readouts at a pace, take all that comes back.

    Parameters
    ----------
    per_second : readouts; 0 sends as fast as they are taken.
    settings : parameters by name, sent after the header.
    wait : called after `n_before_wait` readouts, until nothing waits in the server any more, see `wait_until_idle`.

    Raises
    ------
    RuntimeError : the session failed; with the server's texts.
    """
    request = json.dumps({"summary": True, "parameters": settings or {}})
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        receiver = Receiver(connection)
        receiver.start()
        connection.sendall(encode(ConfigFile(preset)) + encode(Header(xml)) + encode(Text(request)))
        begin, late_s, last_s = time.perf_counter(), 0.0, 0.0
        with contextlib.suppress(ConnectionError):  # the server has more to say on that than the socket
            for number, readout in enumerate(readouts):
                if per_second:
                    wait_s = begin + number / per_second - time.perf_counter()
                    late_s = max(late_s, -wait_s)
                    if wait_s > 0:
                        time.sleep(wait_s)
                if wait is not None and number == n_before_wait:
                    wait()
                connection.sendall(readout)
                last_s = time.perf_counter()
            connection.sendall(encode(Close()))
        receiver.join(timeout_s)
    answer = receiver.answer
    if receiver.is_alive() or receiver.error is not None or not answer.summary:
        raise RuntimeError("the session failed: " + "\n".join([str(receiver.error or ""), *answer.texts]))
    return Sent(last_s, late_s, answer, begin)


def wait_until_idle(pid: int, watch_s: float = 0.1, at_most_s: float = 300.0) -> None:
    """Return when a process uses its processors for less than a tenth of some time."""
    deadline = time.monotonic() + at_most_s
    while time.monotonic() < deadline:
        before = cpu_s(pid)
        time.sleep(watch_s)
        if cpu_s(pid) - before < 0.1 * watch_s:
            return


def peak_bytes(pid: int) -> int:
    """Most resident memory of a process so far; 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) << 10 if found else 0


def children(pid: int) -> Sequence[int]:
    """Processes that a process has started."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []


def cpu_s(pid: int) -> float:
    """Processor time that a process has used so far; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
