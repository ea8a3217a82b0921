"""A frame of the papers' size through the real server and its model worker, from the last readout to the labels.

    python -m kstream.benchmarks.full_frame --readouts-per-second 400 --json frame.json
    python -m kstream.benchmarks.full_frame --json frame.json --markdown docs/explanation/whole-frames.md
    python -m kstream.benchmarks.full_frame --tables frame.json --markdown docs/explanation/whole-frames.md

640 samples, 16 coils, 83 partitions, 96 spokes a frame become 192 x 320 x 320 voxels, which the network of the preset
labels. Where the time goes is the server's and the worker's own account; the last lines are by the client's clock. What
made the labels is read from the label images. The last command runs nothing: it writes an earlier run's table again.
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
from kstream.benchmarks.results import write_between
from kstream.benchmarks.scans import Size, header_of, messages

BEGIN, END = "<!-- begin: python -m kstream.benchmarks.full_frame -->", "<!-- end: full_frame -->"
PROVENANCE = ("model", "engine", "precision", "sha256", "gate", "torch")
"""Of the attributes of a label image: what the account keeps."""

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
        "labels_by": {key: value for key in PROVENANCE if (value := answer.meta[LABELS].get(f"kstream_{key}"))},
        "cores": os.cpu_count(),
        "texts": answer.texts,
    }


def rows(found: dict[str, Any]) -> list[tuple[str, float]]:
    """What took how many seconds; the steps of the network are indented."""
    parts = found["parts_s"]
    listed = [(text, parts[name]) for name, text in PARTS.items() if name in parts]
    listed += [(f"  {name.partition(': ')[2]}", spent) for name, spent in parts.items() if name.startswith("Segment: ")]
    return [
        *listed,
        ("last readout to first magnitude byte at the client", found["first_magnitude_byte_s"]),
        ("last readout to first label byte at the client", found["first_label_byte_s"]),
        ("last readout to last label byte at the client", found["last_label_byte_s"]),
    ]


def sizes(found: dict[str, Any]) -> str:
    """What was measured, on what."""
    size, by = found["size"], found.get("labels_by", {})
    made = ", ".join(by[key] for key in ("model", "engine", "precision") if key in by)
    return (
        f"{size['n_slices']} x {size['matrix']} x {size['matrix']}, {size['n_coils']} coils, "
        f"{size['n_spokes']} spokes, {size['n_partitions']} partitions; load {found['load']:.1f}"
        + (f"; labels by {made}" if made else "")
    )


def memory(found: dict[str, Any]) -> str:
    return f"peak memory: server {found['server_peak_gib']:.2f} GiB, worker {found['worker_peak_gib']:.2f} GiB"


def table(found: dict[str, Any]) -> str:
    """What took how long, as text."""
    return "\n".join(
        [sizes(found), *(f"  {text:<56} {seconds:>8.2f} s" for text, seconds in rows(found)), f"  {memory(found)}"]
    )


def markdown(found: dict[str, Any]) -> str:
    """The same as a table."""
    lines = [f"{sizes(found)}; {memory(found)}.", "", "| the last frame | s |", "|---|---:|"]
    for text, seconds in rows(found):
        lines.append(f"| {text.replace('  ', 'of it: ', 1) if text.startswith('  ') else text} | {seconds:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readouts-per-second", type=float, default=0.0)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--slices", type=int, default=192)
    parser.add_argument("--matrix", type=int, default=320)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the account")
    parser.add_argument("--markdown", type=Path, help="write the table between the marks of a page")
    parser.add_argument("--tables", type=Path, help="run nothing; take the account of an earlier run")
    arguments = parser.parse_args()
    if arguments.tables:
        found = json.loads(arguments.tables.read_text("utf-8"))
    else:
        size = Size(matrix=arguments.matrix, n_slices=arguments.slices, n_partitions=min(83, arguments.slices))
        found = run(size, arguments.readouts_per_second, tuple(arguments.set), ("--device", arguments.device))
    print(table(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.markdown:
        write_between(arguments.markdown, markdown(found), BEGIN, END)


if __name__ == "__main__":
    main()
