"""A session's account of itself: one JSON object, sent to the client as its last TEXT."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..config import ResolvedConfig
from ..stream.telemetry import Durations

if TYPE_CHECKING:
    from ..pipeline import Measurement

SUMMARY = "kstream summary "
"""A TEXT that starts so carries one JSON object: counters, latencies, stage times and configuration of the session."""

SHOWN = 1000
"""Latencies and timeline events in a summary, so that it does not grow with the scan."""


def summary_text(
    measurement: Measurement,
    resolved: ResolvedConfig,
    readout_latency: Durations,
    first_byte_ms: dict[str, list[float]],
    timeline: list[tuple[str, float]],
) -> str:
    """The summary as the text of a TEXT message.

    Parameters
    ----------
    readout_latency : from the arrival of each acquisition to the end of its way through the pipeline.
    first_byte_ms : by kind of image, one value a frame: last sample received to first image byte sent.
    timeline : events and their time in s since the connection.
    """
    counters = measurement.counters
    summary: dict[str, Any] = {
        "preset": resolved.preset,
        "received": counters.received,
        "frames": counters.frames,
        "images": counters.images,
        "dropped": counters.dropped,
        "set_aside": counters.set_aside,
        "latencies_ms": {kind: values[-SHOWN:] for kind, values in counters.latencies_ms.items()},
        "first_byte_ms": {kind: values[-SHOWN:] for kind, values in first_byte_ms.items()},
        "readout_latency": {**_quantiles(readout_latency), "counts": readout_latency.counts}
        | {"edges_ms": readout_latency.edges_ms()},
        "stages": [
            {"name": t.name, "n_calls": t.durations.n, "total_ms": t.durations.total_ns / 1e6} | _quantiles(t.durations)
            for t in measurement.pipeline.parts
        ],
        "timeline": timeline[:SHOWN],
        "config": resolved.rows(),
    }
    return SUMMARY + json.dumps(summary)


def _quantiles(durations: Durations) -> dict[str, float]:
    return {
        "p50_ms": durations.quantile_ms(0.5),
        "p95_ms": durations.quantile_ms(0.95),
        "max_ms": durations.longest_ns / 1e6,
    }
