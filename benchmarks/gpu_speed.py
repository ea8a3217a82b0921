"""Engines on a GPU beside eager float32 and autocast, for several patches at once: ``engine_speed --device cuda``.

Times are what a worker waits for, from an array in memory to an array in memory, per patch; how much of that is copies
alone is a row of its own. Papers give 132 ms for the hybrid's patch in PyTorch and 12.6 ms in TensorRT, on a GH200.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..engines import backends
from ..engines.artifact import name_of
from ..engines.gate import LIMITS, Reference, relative_rms
from ..engines.profile import Plan, Profile, ProfiledEngine
from ..engines.stages import DTYPES
from ..errors import KstreamError
from ..models.bundle import Bundle
from ..models.registry import cost
from .engine_speed import SHIPPED, bundle_of, peaks, synchronise

Batch = NDArray[np.float32]

VARIANTS: dict[str, tuple[str, str]] = {
    "eager float32": ("eager", "fp32"),
    "autocast bf16": ("eager", "bf16"),
    "autocast fp16": ("eager", "fp16"),
    **{f"{engine} {p}": (engine, p) for engine in ("torch", "compiled", "aot", "tensorrt") for p in ("bf16", "fp16")},
}
CASES: dict[str, tuple[str, tuple[int, int, int]]] = {
    "hybrid 24x320x320": ("breast-hybrid", (24, 320, 320)),
    "magnitude 24x320x320": ("breast-magnitude", (24, 320, 320)),
    "default bundle 16x320x320": (SHIPPED, (16, 320, 320)),
}
BATCHES = (1, 2, 4, 8)
TARGET_MS = {"hybrid 24x320x320": 15.0}
"""Of a patch, on an H100, by the best engine whose logits are right."""

ERRORS = (KstreamError, RuntimeError, ValueError, TypeError, ImportError, MemoryError)
"""Of an engine that cannot be had or has no room; the others go on."""


class Eager:
    """A network as PyTorch ships it, in float32 or under autocast."""

    def __init__(self, network: torch.nn.Module, device: str, precision: str) -> None:
        self._network, self._device = network.to(device).eval(), torch.device(device)
        self._dtype, self._is_lowered = DTYPES[precision], precision != "fp32"

    def run(self, batch: Batch) -> Batch:
        patches = torch.from_numpy(batch).to(self._device)
        with torch.inference_mode(), torch.autocast(self._device.type, self._dtype, enabled=self._is_lowered):
            logits: Batch = self._network(patches).float().cpu().numpy()
        return logits


def measure(
    device: str,
    cases: Mapping[str, tuple[str, tuple[int, int, int]]] = CASES,
    variants: tuple[str, ...] = tuple(VARIANTS),
    batches: tuple[int, ...] = BATCHES,
    rounds: int = 5,
    is_quick: bool = False,
) -> dict[str, Any]:
    """The report: for each case and variant, milliseconds per patch, part of the peak and error by batch."""
    report: dict[str, Any] = {"device": device_name(device), "rounds": rounds, "peaks_gflops": peaks(is_quick, device)}
    report |= {"torch": torch.__version__, "cuda": torch.version.cuda or "none", "cases": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, (model, shape) in cases.items():
            spec = {"model": model, "shape": shape, "folder": folder}
            bundle = bundle_of(spec)
            patch, expected, _ = Reference(bundle).one(shape, within_s=float("inf"))
            gflop = 2e-9 * cost(bundle.info.architecture, bundle.info.arguments, ((1, 2, *shape),)).macs
            rows = {
                which: _row(bundle, VARIANTS[which], device, shape, batches, rounds, folder, (patch, expected))
                for which in variants
            }
            for row in rows.values():
                for found in row.get("batches", {}).values():
                    gflops = gflop / (1e-3 * found["ms"])
                    found["of_peak"] = gflops / report["peaks_gflops"][row["precision"]]
            copies = {str(n): _copies_ms(device, patch, expected, n, rounds) for n in batches}
            report["cases"][name] = {"shape": shape, "gflop": gflop, "copies_ms": copies, "rows": rows}
    return report


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def _row(
    bundle: Bundle,
    variant: tuple[str, str],
    device: str,
    shape: tuple[int, int, int],
    batches: tuple[int, ...],
    rounds: int,
    folder: str,
    reference: tuple[Batch, NDArray[Any]],
) -> dict[str, Any]:
    """One engine at every batch; what went wrong is its ``error``."""
    name, precision = variant
    row: dict[str, Any] = {"precision": precision, "batches": {}}
    try:
        begin = time.perf_counter()
        engine = _make(bundle, name, precision, device, shape, batches, folder)
        row["build_s"] = time.perf_counter() - begin
        for n in batches:
            batch = np.repeat(reference[0], n, axis=0)
            rms = max(relative_rms(logits[None], reference[1]) for logits in engine.run(batch))
            ms = _median_ms(lambda: engine.run(batch), device, rounds) / n  # noqa: B023 - called before the next batch
            row["batches"][str(n)] = {"ms": ms, "rms": rms, "gate": "passed" if rms < LIMITS[precision] else "failed"}
    except ERRORS as error:
        row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    print(f"{bundle.info.name} {shape} {name} {precision}: {row}", file=sys.stderr)
    return row


def _make(
    bundle: Bundle,
    name: str,
    precision: str,
    device: str,
    shape: tuple[int, int, int],
    batches: tuple[int, ...],
    folder: str,
) -> Any:
    """An engine that nobody has proved yet."""
    if name == "eager":
        return Eager(bundle.build(), device, precision)
    if name == "torch":
        from ..engines.calibrate import make_torch

        return make_torch(bundle, device, precision)
    plan = Plan(name, precision, device, Profile(batches, (shape,)))
    backends.check(plan)
    library, network, made = backends.backend(name), bundle.build(), Path(tempfile.mkdtemp(dir=folder))
    library.versions()
    library.build(network, plan, made)
    return ProfiledEngine(name_of(plan), precision, plan.profile, library.open_engine(network, plan, made), {})


def _median_ms(run: Callable[[], Any], device: str, rounds: int) -> float:
    """Of a run that was warmed up by the check before it."""
    seconds = []
    for _ in range(rounds):
        synchronise(device)
        begin = time.perf_counter()
        run()
        synchronise(device)
        seconds.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(seconds)


def _copies_ms(device: str, patch: Batch, logits: NDArray[Any], n: int, rounds: int) -> float:
    """Per patch: a batch to the device, and logits back."""
    there = np.repeat(patch, n, axis=0)
    back = torch.from_numpy(np.repeat(logits, n, axis=0).astype(np.float32)).to(device)

    def copy() -> None:
        torch.from_numpy(there).to(device)
        back.cpu()

    copy()
    return _median_ms(copy, device, rounds) / n


def markdown(report: Mapping[str, Any]) -> str:
    """A table for each case: milliseconds per patch by batch."""
    peaks_text = ", ".join(f"{1e-3 * value:.3g} TFLOP/s in {name}" for name, value in report["peaks_gflops"].items())
    lines = [
        f"{report['device']}, torch {report['torch']}, CUDA {report['cuda']}; medians of {report['rounds']} rounds. "
        f"Matrix products: {peaks_text}."
    ]
    for name, case in report["cases"].items():
        batches = list(case["copies_ms"])
        heads = [f"{n} at once" for n in batches]
        lines += ["", f"| {name}, ms per patch (part of the peak, relative rms) | {' | '.join(heads)} |"]
        lines.append("|---|" + "---:|" * len(batches))
        lines.append(f"| copies alone | {' | '.join(f'{ms:.1f}' for ms in case['copies_ms'].values())} |")
        for which, row in case["rows"].items():
            cells = [_cell(row, n) for n in batches]
            lines.append(f"| {which} | {' | '.join(cells)} |")
        if name in TARGET_MS:
            best = min(_right(case), default=float("inf"))
            met = "met" if best < TARGET_MS[name] else "**not met**"
            lines += [
                "",
                f"Target {TARGET_MS[name]:g} ms per patch, best {best:.1f} ms: {met}. Papers: 132 ms, 12.6 ms.",
            ]
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Any], batch: str) -> str:
    found = row["batches"].get(batch)
    if found is None:
        return str(row.get("error", "")).replace("|", "/")[:60]
    wrong = ", **wrong**" if found["gate"] == "failed" else ""
    return f"{found['ms']:.1f} ({100 * found['of_peak']:.0f} %, {found['rms']:.0e}{wrong})"


def _right(case: Mapping[str, Any]) -> list[float]:
    """Milliseconds of engines whose logits are right."""
    found = [each for row in case["rows"].values() for each in row["batches"].values()]
    return [each["ms"] for each in found if each["gate"] == "passed"]
