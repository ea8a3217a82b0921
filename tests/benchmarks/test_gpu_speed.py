"""The table of a GPU's engines, on the way that needs none: the same functions with the CPU as their device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kstream.benchmarks import gpu_speed
from kstream.benchmarks.gpu_speed import Eager, markdown, measure
from kstream.models.bundle import Bundle

TINY = {"tiny": (gpu_speed.SHIPPED, (4, 24, 16))}
SOME = ("eager float32", "autocast bf16", "torch bf16", "tensorrt fp16")


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return measure("cpu", TINY, SOME, (1, 3), rounds=1, is_quick=True)


def test_every_variant_is_timed_and_held_to_float64_at_every_batch(report: dict[str, Any]) -> None:
    rows = report["cases"]["tiny"]["rows"]
    for name, low, high in (("eager float32", 0, 1e-4), ("autocast bf16", 1e-4, 5e-2), ("torch bf16", 1e-4, 5e-2)):
        assert set(rows[name]["batches"]) == {"1", "3"}
        for found in rows[name]["batches"].values():
            assert found["ms"] > 0
            assert low <= found["rms"] < high
            assert 0 < found["of_peak"] < 2
    assert set(report["peaks_gflops"]) == {"fp32", "bf16"}
    assert set(report["cases"]["tiny"]["copies_ms"]) == {"1", "3"}


def test_an_engine_that_cannot_be_had_is_told_and_the_others_go_on(report: dict[str, Any]) -> None:
    assert "no device 'cpu'" in report["cases"]["tiny"]["rows"]["tensorrt fp16"]["error"]
    page = markdown(report)
    assert "| tiny, ms per patch (part of the peak, relative rms) | 1 at once | 3 at once |" in page
    assert "| tensorrt fp16 | ModelError: error: engine tensorrt has no device 'cpu'" in page


def test_the_target_is_met_by_right_logits_only() -> None:
    def row(ms: float, gate: str) -> dict[str, Any]:
        return {"precision": "bf16", "batches": {"1": {"ms": ms, "gate": gate, "rms": 0.01, "of_peak": 0.5}}}

    name = "hybrid 24x320x320"
    case = {"copies_ms": {"1": 0.5}, "rows": {"aot bf16": row(16.0, "passed"), "aot fp16": row(9.0, "failed")}}
    report = {
        "device": "d",
        "torch": "t",
        "cuda": "c",
        "rounds": 1,
        "peaks_gflops": {"bf16": 1.0},
        "cases": {name: case},
    }
    assert "best 16.0 ms: **not met**" in markdown(report)
    case["rows"] = {"aot bf16": row(14.0, "passed")}
    assert "best 14.0 ms: met" in markdown(report)


def test_autocast_lowers_convolutions_and_eager_does_not() -> None:
    patch = np.random.default_rng(0).standard_normal((1, 2, 4, 24, 16)).astype(np.float32)
    network = Bundle.load(gpu_speed.SHIPPED).build()
    with torch.inference_mode():
        expected = network(torch.from_numpy(patch)).numpy()
    assert np.array_equal(Eager(network, "cpu", "fp32").run(patch), expected)
    lowered = Eager(network, "cpu", "bf16").run(patch)
    assert lowered.dtype == np.float32
    assert not np.allclose(lowered, expected, rtol=1e-5)
