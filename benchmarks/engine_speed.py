"""Every engine beside eager float32 as PyTorch ships it, in one run: time, ratio, GFLOP/s, memory, error, verdict.

::

    python -m kstream.benchmarks.engine_speed --json engines.json --markdown engines.md
    python -m kstream.benchmarks.engine_speed --quick

Each engine runs in a fresh process of its own (for an honest peak of memory; only the baseline runs without
`keep_large_blocks`). The processes live side by side, one of them runs at a time, and rounds alternate between them, so
that a busy or warm machine meets all alike. GFLOP are twice the multiply-accumulates of `models.registry.cost`
(convolutions and matrix products), so the fraction of the peak counts the transform and normalisation as lost time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import KstreamError

BASELINE = "eager float32"
SHIPPED = "breast-hybrid-small"

# engine, precision, transform; the first is the baseline, the second what kstream serves with by default
VARIANTS: dict[str, tuple[str, str, str]] = {
    BASELINE: ("torch", "fp32", "shipped"),
    "default": ("torch", "auto", "fft"),
    "torch fp32": ("torch", "fp32", "fft"),
    "torch bf16": ("torch", "bf16", "fft"),
    "compiled fp32": ("compiled", "fp32", "fft"),
    "compiled bf16": ("compiled", "bf16", "fft"),
    "aot fp32": ("aot", "fp32", "fft"),
    "aot bf16": ("aot", "bf16", "fft"),
    "onnxruntime fp32": ("onnxruntime", "fp32", "fft"),
    "openvino fp32": ("openvino", "fp32", "fft"),
    "openvino bf16": ("openvino", "bf16", "fft"),
    "openvino bf16, gemm": ("openvino", "bf16", "gemm"),
}
CASES: dict[str, tuple[str, tuple[int, int, int]]] = {
    "magnitude 24x160x160": ("breast-magnitude", (24, 160, 160)),
    "magnitude 24x320x320": ("breast-magnitude", (24, 320, 320)),
    "hybrid 24x160x160": ("breast-hybrid", (24, 160, 160)),
    "hybrid 24x320x320": ("breast-hybrid", (24, 320, 320)),
    "default bundle 16x128x128": (SHIPPED, (16, 128, 128)),
}
QUICK = {"default bundle 8x32x32": (SHIPPED, (8, 32, 32))}
QUICK_VARIANTS = (BASELINE, "default", "torch bf16", "openvino bf16")


def main() -> None:
    options = _options()
    if options.child:
        _serve_child(json.loads(options.child))
        return
    cases = QUICK if options.quick else {name: case for name, case in CASES.items() if options.case in name}
    variants = QUICK_VARIANTS if options.quick else tuple(VARIANTS)
    wanted = tuple(name for name in variants if name == BASELINE or not options.engine or name in options.engine)
    report: dict[str, Any] = {
        "machine": _machine(),
        "command": " ".join(["python -m kstream.benchmarks.engine_speed", *sys.argv[1:]]),
        "peaks_gflops": {},
        "cases": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        report["peaks_gflops"] = _ask_once({"task": "peak", "quick": options.quick})
        for name, (model, shape) in cases.items():
            spec = {"model": model, "shape": shape, "folder": folder, "has_gate": not options.no_gate}
            report["cases"][name] = _run_case(spec, wanted, options.rounds, report["peaks_gflops"])
            _write(options, report)
    report["peaks_after_gflops"] = _ask_once({"task": "peak", "quick": options.quick})
    _write(options, report)
    print(markdown(report))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one small case, a few engines")
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of every engine")
    parser.add_argument("--case", default="", help="only cases whose name has this in it")
    parser.add_argument("--engine", action="append", help="only these variants, and the baseline; may be repeated")
    parser.add_argument("--no-gate", action="store_true", help="leave the verdict out (it takes most of the time)")
    parser.add_argument("--json", type=Path, help="write the report")
    parser.add_argument("--markdown", type=Path, help="write the table")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


AT_A_TIME = 3
"""Engines that are held beside the baseline: each may take gigabytes."""


def _run_case(spec: Mapping[str, Any], names: tuple[str, ...], rounds: int, peaks: Mapping[str, float]) -> Any:
    """All variants of one network and shape, a few at a time, each in turns with the baseline."""
    others = [name for name in names if name != BASELINE]
    rows: dict[str, Any] = {}
    baseline, rows[BASELINE] = _begin(spec, BASELINE)
    try:
        rows[BASELINE] |= {"seconds": 0.0, "all_seconds": [], "ratio": 1.0}
        for at in range(0, len(others), AT_A_TIME):
            rows |= _run_group(spec, others[at : at + AT_A_TIME], rounds, baseline, rows[BASELINE]["all_seconds"])
        rows[BASELINE]["seconds"] = statistics.median(rows[BASELINE]["all_seconds"])
        rows[BASELINE] |= baseline.ask("memory")
    finally:
        baseline.end()
    for row in rows.values():
        if "seconds" in row:
            row["gflops"] = row["gflop"] / row["seconds"]
            row["of_peak"] = row["gflops"] / peaks[row["precision"]]
    return rows


def _begin(spec: Mapping[str, Any], name: str) -> tuple[_Child, dict[str, Any]]:
    """A variant in its process, built; or what went wrong, as ``error``."""
    child = _Child({"task": "engine", "variant": name, **spec})
    said = child.hear()
    told = said["error"] if "error" in said else f"ready in {said['build_s']:.1f} s"
    print(f"{spec['model']} {spec['shape']} {name}: {told}", file=sys.stderr)
    return child, said


def _run_group(
    spec: Mapping[str, Any], names: Sequence[str], rounds: int, baseline: _Child, baseline_s: list[float]
) -> dict[str, Any]:
    """Rows of a few variants; `baseline_s` gets the baseline's seconds."""
    children: dict[str, _Child] = {}
    rows: dict[str, Any] = {}
    try:
        for name in names:
            child, rows[name] = _begin(spec, name)
            if "error" in rows[name]:
                child.end()
            else:
                children[name] = child
        seconds: dict[str, list[float]] = {name: [] for name in children}
        beside: list[float] = []
        for _ in range(rounds):
            beside.append(baseline.ask("run")["seconds"])
            for name, child in children.items():
                seconds[name].append(child.ask("run")["seconds"])
        for name, child in children.items():
            median_s = statistics.median(seconds[name])
            rows[name] |= {"seconds": median_s, "all_seconds": seconds[name]}
            rows[name] |= {"ratio": statistics.median(beside) / median_s} | child.ask("memory")
            rows[name] |= child.ask("gate") if spec["has_gate"] else {}
        baseline_s += beside
    finally:
        for child in children.values():
            child.end()
    return rows


class _Child:
    """An engine in a process of its own, which does what it is told and is silent meanwhile."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        command = [sys.executable, "-m", "kstream.benchmarks.engine_speed", "--child", json.dumps(spec)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def hear(self) -> dict[str, Any]:
        """Its next answer; libraries that print are passed over."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                said: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return said
        return {"error": f"its process ended with code {self._process.wait()}"}

    def ask(self, word: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return self.hear()

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


MARK = "engine-speed "


def _ask_once(spec: Mapping[str, Any]) -> dict[str, Any]:
    child = _Child(spec)
    said = child.hear()
    child.end()
    return said


def _machine() -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    names = ("torch", "onnxruntime", "openvino", "numpy")
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "none"
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "")
    load = os.getloadavg()[0]
    return {"cpu": cpu, "cores": os.cpu_count(), "load_before": load, "python": platform.python_version(), **versions}


# In the child


def _serve_child(spec: dict[str, Any]) -> None:
    """Answer on standard output until standard input ends."""
    if spec["task"] == "peak":
        _say(_peaks(spec["quick"]))
        return
    try:
        engine, said, bundle = _make(spec)
    except (KstreamError, RuntimeError, ValueError, TypeError, ImportError) as error:  # the others go on
        _say({"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]})
        return
    import numpy as np

    shape = tuple(spec["shape"])
    batch = np.random.default_rng(0).standard_normal((1, 2, *shape), np.float32)
    engine.run(batch)
    engine.run(batch)
    _say(said)
    for word in map(str.strip, sys.stdin):
        if word == "run":
            begin = time.perf_counter()
            engine.run(batch)
            _say({"seconds": time.perf_counter() - begin})
        elif word == "memory":
            _say({"peak_mib": _peak_mib()})
        elif word == "gate":
            _say(_gate(engine, bundle, shape))


def _say(answer: Mapping[str, Any]) -> None:
    print(MARK + json.dumps(answer), flush=True)


def _make(spec: dict[str, Any]) -> tuple[Any, dict[str, Any], Any]:
    """The engine under test, not yet proved, with what is known of it."""
    name, precision, transform = VARIANTS[spec["variant"]]
    if transform != "shipped":
        from ..engines.memory import keep_large_blocks
        from ..engines.threads import sleep_while_waiting

        sleep_while_waiting()  # as a worker does: before torch is imported, and before there are threads
        keep_large_blocks()
    from ..engines import backends, calibrate
    from ..engines.artifact import name_of
    from ..engines.profile import Plan, Profile, ProfiledEngine
    from ..models.registry import cost

    bundle, shape = _bundle(spec), tuple(spec["shape"])
    gflop = 2e-9 * cost(bundle.info.architecture, bundle.info.arguments, ((1, 2, *shape),)).macs
    begin = time.perf_counter()
    engine: Any
    if name == "torch":
        if precision == "auto":
            precision = _default_precision(bundle, shape)
        engine = calibrate.make_torch(bundle, "cpu", precision)
    else:
        plan = Plan(name, precision, "cpu", Profile((1,), (shape,)), transform)
        backends.check(plan)
        library, network, folder = backends.backend(name), bundle.build(), Path(tempfile.mkdtemp(dir=spec["folder"]))
        library.versions()
        library.build(network, plan, folder)
        engine = ProfiledEngine(name_of(plan), precision, plan.profile, library.open_engine(network, plan, folder), {})
    said = {"engine": engine.name, "precision": precision, "gflop": gflop, "build_s": time.perf_counter() - begin}
    return engine, said, bundle


def _default_precision(bundle: Any, shape: tuple[int, ...]) -> str:
    """What the default engine chooses; for random weights by time alone, for the border of their labels is noise."""
    import numpy as np

    from ..engines import calibrate, machine

    if bundle.info.name == SHIPPED:
        return calibrate.load_torch(bundle, "cpu", "auto").precision
    engines = {name: calibrate.make_torch(bundle, "cpu", name) for name in ("fp32", "bf16")}
    patch = np.random.default_rng(0).standard_normal((1, 2, shape[0], calibrate.PLANE, calibrate.PLANE), np.float32)
    seconds = calibrate.time_engines(engines, patch)
    is_faster = seconds["bf16"] < calibrate.CLEARLY * seconds["fp32"]
    return "bf16" if is_faster and machine.has_fast_bf16("cpu") else "fp32"


def _bundle(spec: Mapping[str, Any]) -> Any:
    """The shipped bundle; or the network at its paper's size with random weights, and an example of its own."""
    import numpy as np
    import torch

    from ..models.bundle import Bundle, BundleInfo, save_bundle
    from ..models.registry import architecture, build

    if spec["model"] == SHIPPED:
        return Bundle.load(SHIPPED)
    folder = Path(spec["folder"]) / spec["model"]
    if not folder.exists():
        torch.manual_seed(0)
        network = build(spec["model"]).eval()
        kspace = Bundle.load(SHIPPED).example()[0]
        with torch.inference_mode():
            logits = network(torch.from_numpy(kspace)).numpy()
        info = BundleInfo(
            spec["model"],
            "random weights",
            spec["model"],
            dict(architecture(spec["model"]).arguments),
            Bundle.load(SHIPPED).info.labels,
            24,
            12,
        )
        state = {key: value.numpy() for key, value in network.state_dict().items()}
        save_bundle(folder, info, state, (np.asarray(kspace), logits), "")
    return Bundle.load(folder)


def _gate(engine: Any, bundle: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """The verdict on this batch and shape. Random weights have no lesion, so for them the logits count alone."""
    from ..engines.gate import LIMITS, Reference, examine

    verdict = examine(engine, Reference(bundle), (1,), (shape,))
    has_passed = verdict.has_passed if bundle.info.name == SHIPPED else verdict.rms < LIMITS[verdict.precision]
    return {"rms": verdict.rms, "dice": verdict.dice, "gate": "passed" if has_passed else "failed"}


def _peaks(is_quick: bool) -> dict[str, float]:
    """Best GFLOP/s of a square matrix product in each precision, as torch has it."""
    import torch

    n, repeats = (1024, 3) if is_quick else (4096, 8)
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(n, n).to(dtype) for _ in range(2))
        a @ b
        seconds = []
        for _ in range(repeats):
            begin = time.perf_counter()
            a @ b
            seconds.append(time.perf_counter() - begin)
        found[name] = 2e-9 * n**3 / min(seconds)
    return found


def _peak_mib() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# What is written


def _write(options: argparse.Namespace, report: Mapping[str, Any]) -> None:
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(markdown(report))


def markdown(report: Mapping[str, Any]) -> str:
    """The tables of a report."""
    machine, peaks = report["machine"], report["peaks_gflops"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores; "
        + ", ".join(f"{name} {machine[name]}" for name in ("torch", "onnxruntime", "openvino")),
        "",
        "Matrix products, GFLOP/s: " + ", ".join(f"{name} {value:.0f}" for name, value in peaks.items()),
    ]
    for name, rows in report["cases"].items():
        lines += [
            "",
            f"### {name}",
            "",
            "| engine | ms | times faster | GFLOP/s | of peak | peak MiB | rel. rms | Dice | gate |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---|",
            *(_line(engine, row) for engine, row in rows.items()),
        ]
    return "\n".join(lines) + "\n"


def _line(name: str, row: Mapping[str, Any]) -> str:
    if "error" in row:
        return f"| {name} | - | - | - | - | - | - | - | {row['error'][:80]} |"
    dice = row.get("dice")
    cells = [
        f"{name} ({row['precision']})" if name == "default" else name,
        f"{1000 * row['seconds']:.0f}",
        f"{row['ratio']:.2f}",
        f"{row['gflops']:.0f}",
        f"{100 * row['of_peak']:.0f} %",
        f"{row['peak_mib']:.0f}",
        f"{row['rms']:.1e}" if "rms" in row else "-",
        "-" if dice is None else f"{dice:.4f}",
        row.get("gate", "-"),
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
