"""A frame of the papers' size through the real server and its model worker, from the last readout to the labels.

    python -m kstream.benchmarks.full_frame --readouts-per-second 400 --json frame.json

640 samples, 16 coils, 83 partitions, 96 spokes a frame become 192 x 320 x 320 voxels, which the network of the preset
labels. Where the time goes is the server's and the worker's own account; the last lines are by the client's clock.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from kstream.benchmarks.client import Sent, Server, measure, serving, wait_until_idle
from kstream.benchmarks.scans import Size, header_of, messages

LABELS, MAGNITUDES = 2, 1
PARTS = {
    "CombineSpokes": "last angle added, combined k-space",
    "SubtractContrast": "contrast difference",
    "ToImageSpace": "magnitude image: transform",
    "MakeImages": "images to messages (magnitude and labels)",
    "Segment": "network step, as the server sees it",
}


def run(
    size: Size, per_second: float = 0.0, settings: tuple[str, ...] = (), options: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Serve, send all frames, and gather the numbers of the last one.

    Before the last angle the client waits until the server has nothing left to do: so it would be at a scanner's pace.

    Parameters
    ----------
    per_second : pace of the readouts; 0: as fast as they are taken.
    """
    chosen = (f"segment.frames=[{size.n_frames - 1}]", *settings)
    sets = [part for setting in chosen for part in ("--set", setting)]
    n_before = size.n_readouts - size.n_partitions
    with serving("--worker-s", "1200", "--finish-s", "3600", *sets, *options) as server:
        xml, readouts = header_of(size), messages(size)
        idle = partial(wait_until_idle, server.process.pid, 0.5)
        sent = measure(server.port, xml, readouts, "breast-dce", per_second, None, idle, n_before, timeout_s=3600)
        return account(size, server, sent) | {"readouts_per_second": per_second}


def account(size: Size, server: Server, sent: Sent) -> dict[str, Any]:
    """The numbers of the last frame."""
    answer, last_s = sent.answer, sent.last_readout_s
    if len(answer.first_bytes_s.get(LABELS, [])) != size.n_slices:
        raise RuntimeError("there are no labels:\n" + "\n".join(answer.texts))
    stages = {stage["name"]: stage for stage in answer.summary["stages"]}
    return {
        "size": asdict(size),
        "load": os.getloadavg()[0],
        "sender_late_s": sent.late_s,
        "server_peak_gib": server.peak_bytes() / 2**30,
        "worker_peak_gib": server.worker_peak_bytes() / 2**30,
        "parts_s": {name: stage["max_ms"] / 1e3 for name, stage in stages.items() if stage["n_calls"]},
        "server_first_byte_s": {kind: times[-1] / 1e3 for kind, times in answer.summary["first_byte_ms"].items()},
        "first_magnitude_byte_s": answer.first_bytes_s[MAGNITUDES][-size.n_slices] - last_s,
        "first_label_byte_s": answer.first_bytes_s[LABELS][0] - last_s,
        "last_label_byte_s": answer.last_byte_s[LABELS] - last_s,
        "texts": answer.texts,
    }


def table(found: dict[str, Any]) -> str:
    """What took how long, as text."""
    size, parts = found["size"], found["parts_s"]
    rows = [(text, parts[name]) for name, text in PARTS.items() if name in parts]
    rows += [(f"  {name.partition(': ')[2]}", spent) for name, spent in parts.items() if name.startswith("Segment: ")]
    rows += [
        ("last readout to first magnitude byte at the client", found["first_magnitude_byte_s"]),
        ("last readout to first label byte at the client", found["first_label_byte_s"]),
        ("last readout to last label byte at the client", found["last_label_byte_s"]),
    ]
    lines = [
        f"{size['n_slices']} x {size['matrix']} x {size['matrix']}, {size['n_coils']} coils, "
        f"{size['n_spokes']} spokes, {size['n_partitions']} partitions; load {found['load']:.1f}"
    ]
    lines += [f"  {text:<56} {seconds:>8.2f} s" for text, seconds in rows]
    lines.append(f"  peak memory: server {found['server_peak_gib']:.2f} GiB, worker {found['worker_peak_gib']:.2f} GiB")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readouts-per-second", type=float, default=0.0)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--slices", type=int, default=192)
    parser.add_argument("--matrix", type=int, default=320)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    size = Size(matrix=arguments.matrix, n_slices=arguments.slices, n_partitions=min(83, arguments.slices))
    found = run(size, arguments.readouts_per_second, tuple(arguments.set), ("--device", arguments.device))
    print(table(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
