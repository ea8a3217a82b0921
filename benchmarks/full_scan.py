"""The geometry of the papers through the real server, at the scanner's pace: does it keep up, and in how much memory?

    python -m kstream.benchmarks.full_scan --readouts-per-second 400 --frames 2

The server is `kstream serve` in a process of its own; the client in this process sends one readout after another at
the given pace and notes how far it falls behind, which it does when the server's queue is full. With a network, see
``full_frame.py``.

The exit code is 1, with a line for each promise that was not kept: if the server took 4 GiB or more, a readout was
sent over a second late or dropped, or, at up to the scanner's 200 readouts per second (TR 5 ms), the coil maps were not
ready before the first readout of frame 1. Beyond that pace spokes wait for the maps, and nothing is lost.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kstream.benchmarks.client import cpu_s, measure, serving
from kstream.benchmarks.scans import Size, header_of, messages

MOST_GIB = 4.0
MOST_LATE_S = 1.0
SCANNERS_PACE = 200.0


def broken_promises(found: Mapping[str, Any], n_frames: int) -> list[str]:
    """What a run did not keep of what is promised at the scanner's pace, a line each."""
    broken = []
    if found["peak_gib"] >= MOST_GIB:
        broken.append(f"the server took {found['peak_gib']:.2f} GiB, and must stay under {MOST_GIB:g}")
    if found["sender_late_s"] > MOST_LATE_S:
        broken.append(f"a readout was sent {found['sender_late_s']:.2f} s late, more than {MOST_LATE_S:g} s")
    if n_frames > 1 and found["readouts_per_second"] <= SCANNERS_PACE:
        ready_s, due_s = found["maps_ready_s"], found["first_readout_of_frame_1_s"]
        if ready_s is None:
            broken.append("coil maps were never told to be ready")
        elif ready_s >= due_s:
            broken.append(f"coil maps were ready after {ready_s:.1f} s, and frame 1 began after {due_s:.1f}")
    if found["dropped"]:
        broken.append(f"{found['dropped']} readouts were dropped")
    return broken


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


def main() -> int:
    """Exit code 0 if all promises were kept."""
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
    broken = broken_promises(found, arguments.frames)
    for line in broken:
        print(f"FAILED: {line}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
