"""The geometry of the papers through the real server, at the scanner's pace: does it keep up, and in how much memory?

    python benchmarks/full_scan.py --readouts-per-second 400 --frames 2

The server is `kstream serve` in a process of its own; the client in this process sends one readout after another at
the given pace and notes how far it falls behind, which it does when the server's queue is full. The object is a few
Gaussian blobs, whose samples are known in closed form.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kstream.mrd.codec import Decoder, encode
from kstream.mrd.header import build_header
from kstream.mrd.messages import ACQUISITION_HEADER, Close, ConfigFile, Header, Image, Text
from kstream.types import GOLDEN_ANGLE_RAD, Acquisition, EncodingLimit, Scan

PLACES = np.array([[0.1, -0.2, 0.05], [-0.22, 0.1, -0.1], [0.02, 0.03, 0.0], [0.3, 0.25, 0.2]])
WIDTHS = np.array([0.03, 0.05, 0.2, 0.02])


@dataclass(frozen=True)
class Size:
    """Sizes of the scan; the defaults are those of the papers."""

    matrix: int = 320
    n_slices: int = 192
    n_partitions: int = 83
    n_coils: int = 16
    n_spokes: int = 96
    n_frames: int = 2


def scan_of(size: Size) -> Scan:
    n, total = size.matrix, size.n_spokes * size.n_frames
    return Scan(
        encoded_matrix=(2 * n, 2 * n, size.n_slices),
        recon_matrix=(n, n, size.n_slices),
        encoded_fov_mm=(640.0, 640.0, 192.0),
        recon_fov_mm=(320.0, 320.0, 192.0),
        trajectory="goldenangle",
        limits={
            "kspace_encode_step_1": EncodingLimit(0, total - 1, 0),
            "kspace_encode_step_2": EncodingLimit(0, size.n_partitions - 1, size.n_partitions // 2),
        },
        n_coils=size.n_coils,
        h1_frequency_hz=123_000_000,
        user_parameters={"n_frames": size.n_frames, "trajectory_units": "cycles_per_fov"},
    )


def angle_messages(size: Size, spoke: int) -> list[bytes]:
    """Encoded readouts of all partitions of one spoke."""
    rng = np.random.default_rng(0)
    shape = (size.n_coils, len(WIDTHS))
    coils = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    radius = (np.arange(2 * size.matrix) - size.matrix) / 2
    angle = spoke * GOLDEN_ANGLE_RAD
    trajectory = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).astype(np.float32)
    kz = np.arange(size.n_partitions) - size.n_partitions // 2
    in_plane = np.exp(-2j * np.pi * trajectory @ PLACES[:, :2].T - (np.pi * radius[:, None] * WIDTHS) ** 2)
    along_z = np.exp(-2j * np.pi * np.outer(kz, PLACES[:, 2]) - (np.pi * kz[:, None] * WIDTHS) ** 2)
    data = np.einsum("cb,pb,sb->pcs", coils, along_z, in_plane, optimize=True).astype(np.complex64)
    return [encode(_acquisition(data[p], trajectory, spoke, p)) for p in range(size.n_partitions)]


def _acquisition(data: np.ndarray, trajectory: np.ndarray, spoke: int, partition: int) -> Acquisition:
    header = np.zeros(1, ACQUISITION_HEADER)[0]
    header["version"], header["number_of_samples"] = 1, data.shape[1]
    header["available_channels"] = header["active_channels"] = data.shape[0]
    header["center_sample"], header["trajectory_dimensions"] = data.shape[1] // 2, 2
    header["read_dir"], header["phase_dir"], header["slice_dir"] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    header["idx"]["kspace_encode_step_1"], header["idx"]["kspace_encode_step_2"] = spoke, partition
    return Acquisition(header, data, trajectory)


class Receiver(threading.Thread):
    """Reads what the server sends."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(daemon=True)
        self._connection = connection
        self.texts: list[str] = []
        self.n_images = 0

    def run(self) -> None:
        decoder = Decoder()
        while data := self._connection.recv(1 << 20):
            for message in decoder.receive(data):
                self.n_images += isinstance(message, Image)
                if isinstance(message, Text):
                    self.texts.append(message.text)


def send_scan(connection: socket.socket, size: Size, per_second: float, preset: str) -> float:
    """Send everything at its time; gives by how much the last readouts were late, at worst, in seconds."""
    scan = scan_of(size)
    connection.sendall(
        encode(ConfigFile(preset)) + encode(Header(build_header(scan))) + encode(Text('{"summary": true}'))
    )
    begin, sent, late = time.perf_counter(), 0, 0.0
    for spoke in range(size.n_spokes * size.n_frames):
        for message in angle_messages(size, spoke):
            wait = begin + sent / per_second - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
            late = max(late, -wait)
            connection.sendall(message)
            sent += 1
    connection.sendall(encode(Close()))
    return late


def run(size: Size, per_second: float, preset: str, settings: list[str]) -> dict[str, Any]:
    """Serve, send, and gather the numbers."""
    command = [sys.executable, "-m", "kstream", "serve", "--port", "0"]
    server = subprocess.Popen(
        [*command, *(part for s in settings for part in ("--set", s))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        port = _port(server)
        connection = socket.create_connection(("127.0.0.1", port))
        receiver = Receiver(connection)
        receiver.start()
        late = send_scan(connection, size, per_second, preset)
        receiver.join(300)
        status = Path(f"/proc/{server.pid}/status").read_text()
        ticks = [int(t) for t in Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[11:13]]
        peak_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    finally:
        server.terminate()
        server.wait(20)
    if not any(t.startswith("kstream summary") for t in receiver.texts):
        raise RuntimeError("the session failed:\n" + "\n".join(receiver.texts))
    summary = next(json.loads(t.split(" ", 2)[2]) for t in receiver.texts if t.startswith("kstream summary"))
    return {
        "readouts_per_second": per_second,
        "sender_late_s": late,
        "server_cpu_s": sum(ticks) / os.sysconf("SC_CLK_TCK"),
        "load": os.getloadavg()[0],
        "peak_gib": peak_kib / 2**20,
        "images": receiver.n_images,
        "received": summary["received"],
        "dropped": summary["dropped"],
        "latencies_ms": summary["latencies_ms"],
        "readout_latency": {
            k: v for k, v in summary["readout_latency"].items() if k.endswith("_ms") and k != "edges_ms"
        },
        "stages": {s["name"]: {"total_ms": s["total_ms"], "max_ms": s["max_ms"]} for s in summary["stages"]},
        "timeline": summary["timeline"],
        "texts": [t for t in receiver.texts if not t.startswith("kstream summary")],
    }


def _port(server: subprocess.Popen[str]) -> int:
    """From the line in which the server says where it listens."""
    if server.stdout is None:
        raise RuntimeError("the server has no output")
    for line in server.stdout:
        words = line.replace(":", " ").split()
        numbers = [int(w) for w in words if w.isdigit() and int(w) > 1024]
        if "port" in line or "listen" in line.lower():
            threading.Thread(target=lambda: [None for _ in server.stdout or ()], daemon=True).start()
            return numbers[-1]
    raise RuntimeError("the server did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readouts-per-second", type=float, default=400.0)
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--spokes", type=int, default=96)
    parser.add_argument("--preset", default="breast-dce-recon")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    size = Size(n_frames=arguments.frames, n_spokes=arguments.spokes)
    found = run(size, arguments.readouts_per_second, arguments.preset, arguments.set)
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
