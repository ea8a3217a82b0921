"""The geometry of the papers through the real server, at the scanner's pace: does it keep up, and in how much memory?

    python -m kstream.benchmarks.full_scan --readouts-per-second 400 --frames 2

The server is `kstream serve` in a process of its own; the client in this process sends one readout after another at
the given pace and notes how far it falls behind, which it does when the server's queue is full. With a network, see
``full_frame.py``.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from kstream.benchmarks.client import cpu_s, measure, serving
from kstream.benchmarks.scans import Size, header_of, messages


def run(size: Size, per_second: float, preset: str, settings: list[str]) -> dict[str, Any]:
    """Serve, send, and gather the numbers."""
    options = [part for setting in settings for part in ("--set", setting)]
    with serving("--warm-up", "", *options) as server:
        sent = measure(server.port, header_of(size), messages(size), preset, per_second)
        used_s, peak = cpu_s(server.process.pid), server.peak_bytes()
    summary = sent.answer.summary
    latency = summary["readout_latency"]
    return {
        "readouts_per_second": per_second,
        "first_readout_of_frame_1_s": size.n_spokes * size.n_partitions / per_second,
        "maps_ready_s": sent.told_s("coil maps are there"),
        "sender_late_s": sent.late_s,
        "server_cpu_s": used_s,
        "load": os.getloadavg()[0],
        "peak_gib": peak / 2**30,
        "images": sent.answer.n_images,
        "received": summary["received"],
        "dropped": summary["dropped"],
        "latencies_ms": summary["latencies_ms"],
        "readout_latency": {k: v for k, v in latency.items() if k.endswith("_ms") and k != "edges_ms"},
        "stages": {s["name"]: {"total_ms": s["total_ms"], "max_ms": s["max_ms"]} for s in summary["stages"]},
        "timeline": summary["timeline"],
        "texts": sent.answer.texts,
    }


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
