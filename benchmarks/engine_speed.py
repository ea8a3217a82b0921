"""Every engine beside eager float32 as PyTorch ships it, in one run: time, ratio, GFLOP/s, memory, error, verdict.

::

    python -m kstream.benchmarks.engine_speed --json engines.json --markdown docs/engines.md     # all five cases
    python -m kstream.benchmarks.engine_speed --tables engines.json --markdown docs/engines.md   # a run's tables again
    python -m kstream.benchmarks.engine_speed --profile ...   # and what takes the time of torch's engines
    python -m kstream.benchmarks.engine_speed --device cuda --json gpu.json --markdown gpu.md    # see gpu_speed.py
    python -m kstream.benchmarks.engine_speed --quick

Each engine runs in a fresh process of its own, one engine after another (for an honest peak of memory; only the
baseline runs without `keep_large_blocks`). The baseline's process lives beside it and their rounds alternate, so that a
busy or warm machine meets both alike, and there are never more than two. GFLOP are twice the multiply-accumulates of
`models.registry.cost` (convolutions and matrix products), so the fraction of the peak counts the transform and
normalisation as lost time.
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import KstreamError

BASELINE = "eager float32"
SHIPPED = "breast-gate-small"

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
FAST = (BASELINE, "default", "compiled bf16", "aot bf16", "openvino bf16")
"""What can be the best engine; the others are run in `EVERY_ENGINE` only, which keeps the command within 25 minutes."""
EVERY_ENGINE = ("magnitude 24x160x160", "hybrid 24x160x160")
QUICK = {"default bundle 8x32x32": (SHIPPED, (8, 32, 32))}
QUICK_VARIANTS = (BASELINE, "default", "torch bf16", "openvino bf16")

DEFAULT_RATIO = 2.5
BEST_RATIO = {"breast-magnitude": 3.3, "breast-hybrid": 4.8, SHIPPED: 3.3}  # the shipped one does its work in the image
PART_OF_PEAK = 0.6
"""What is demanded: times faster than eager float32 of the default and of the best engine, and of the measured peak."""

PROFILED = ("torch", "compiled", "aot")
"""Engines whose operators torch's profiler sees."""
N_OPERATORS = 6
REST = "compiled code and gaps between operators"

BEGIN, END = "<!-- begin: python -m kstream.benchmarks.engine_speed -->", "<!-- end: engine_speed -->"


def main() -> None:
    options = _options()
    if options.child:
        _serve_child(json.loads(options.child))
        return
    if options.tables:
        _write(options, json.loads(options.tables.read_text("utf-8")))
        return
    if options.device != "cpu":
        _measure_gpu(options)
        return
    cases = QUICK if options.quick else {name: case for name, case in CASES.items() if options.case in name}
    report: dict[str, Any] = {
        "machine": _machine(),
        "command": " ".join(["python -m kstream.benchmarks.engine_speed", *(Path(part).name for part in sys.argv[1:])]),
        "rounds": options.rounds,
        "peaks_gflops": _ask_once({"task": "peak", "quick": options.quick}),
        "cases": {},
    }
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for name, (model, shape) in cases.items():
            variants = _variants(name, options)
            spec: dict[str, Any] = {"model": model, "shape": shape, "folder": folder}
            spec |= {"has_gate": not options.no_gate, "has_profile": options.profile}
            rows = _run_case(spec, variants, options.rounds)
            report["cases"][name] = {"model": model, "shape": shape, "rows": rows}
            _write(options, _judged(report))
    again = _ask_once({"task": "peak", "quick": options.quick})
    report["peaks_gflops"] = {key: max(value, again[key]) for key, value in report["peaks_gflops"].items()}
    report["minutes"] = round((time.perf_counter() - begin) / 60, 1)
    _write(options, _judged(report))
    print(markdown(report))


def _measure_gpu(options: argparse.Namespace) -> None:
    from . import gpu_speed

    report = gpu_speed.measure(options.device, is_quick=options.quick)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    if options.markdown:
        options.markdown.write_text(gpu_speed.markdown(report), "utf-8")
    print(gpu_speed.markdown(report))


def _variants(case: str, options: argparse.Namespace) -> tuple[str, ...]:
    """Engines of a case, the baseline first."""
    names = QUICK_VARIANTS if options.quick else tuple(VARIANTS) if case in EVERY_ENGINE else FAST
    wanted = options.engine or names
    return (BASELINE, *(name for name in VARIANTS if name != BASELINE and name in wanted))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu", help="cuda: the engines of a GPU, batches of 1 to 8 (gpu_speed.py)")
    parser.add_argument("--quick", action="store_true", help="one small case, a few engines")
    parser.add_argument(
        "--rounds", type=int, default=3, help="timed runs of every engine, and of the baseline beside it"
    )
    parser.add_argument("--case", default="", help="only cases whose name has this in it")
    parser.add_argument("--engine", action="append", help="only these variants, and the baseline; may be repeated")
    parser.add_argument("--no-gate", action="store_true", help="leave out whether the logits are right")
    parser.add_argument("--profile", action="store_true", help="say what takes the time of engines below their peak")
    parser.add_argument("--json", type=Path, help="write the report")
    parser.add_argument(
        "--markdown", type=Path, help="write the tables: a file, or between the marks of a page that has them"
    )
    parser.add_argument("--tables", type=Path, help="run nothing; take the report of an earlier run")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def _run_case(spec: Mapping[str, Any], names: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """All variants of one network and shape, one after another, each in turns with the baseline."""
    if spec["has_gate"]:
        _ask_once({"task": "reference", **spec})
    rows: dict[str, Any] = {}
    baseline, rows[BASELINE] = _begin(spec, BASELINE)
    try:
        baseline_s: list[float] = []
        for name in names[1:]:
            rows[name] = _run_one(spec, name, rounds, baseline, baseline_s)
        baseline_s = baseline_s or [baseline.ask("run")["seconds"] for _ in range(rounds)]
        rows[BASELINE] |= {"seconds": statistics.median(baseline_s), "all_seconds": baseline_s, "ratio": 1.0}
        rows[BASELINE] |= baseline.ask("memory")
    finally:
        baseline.end()
    return rows


def _begin(spec: Mapping[str, Any], name: str) -> tuple[_Child, dict[str, Any]]:
    """A variant in its process, built; or what went wrong, as ``error``."""
    child = _Child({"task": "engine", "variant": name, **spec})
    said = child.hear()
    told = said["error"] if "error" in said else f"ready in {said['build_s']:.1f} s"
    print(f"{spec['model']} {spec['shape']} {name}: {told}", file=sys.stderr)
    return child, said


def _run_one(
    spec: Mapping[str, Any], name: str, rounds: int, baseline: _Child, baseline_s: list[float]
) -> dict[str, Any]:
    """The row of a variant; `baseline_s` gets the baseline's seconds beside it."""
    child, row = _begin(spec, name)
    try:
        if "error" in row:
            return row
        pairs = [(baseline.ask("run")["seconds"], child.ask("run")["seconds"]) for _ in range(rounds)]
        beside, seconds = (list(column) for column in zip(*pairs, strict=True))
        baseline_s += beside
        row |= {"seconds": statistics.median(seconds), "all_seconds": seconds, "beside_seconds": beside}
        row |= {"ratio": statistics.median(beside) / row["seconds"]} | child.ask("memory")
        if spec["has_profile"] and VARIANTS[name][0] in PROFILED:
            row |= child.ask("profile")
        return row | (child.ask("gate") if spec["has_gate"] else {})
    finally:
        child.end()


def _judged(report: dict[str, Any]) -> dict[str, Any]:
    """The report with what follows from its times: GFLOP/s, fractions of the peak, and what is met."""
    for case in report["cases"].values():
        for row in case["rows"].values():
            if "seconds" in row:
                row["gflops"] = row["gflop"] / row["seconds"]
                row["of_peak"] = row["gflops"] / report["peaks_gflops"][row["precision"]]
        case["verdicts"] = _verdicts(case["model"], case["rows"])
    return report


def _verdicts(model: str, rows: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is demanded of a case, and what was found. An engine whose logits are wrong is no engine."""
    right = {n: r for n, r in rows.items() if n != BASELINE and "seconds" in r and r.get("gate") != "failed"}
    if not right:
        return []
    best = max(right, key=lambda name: float(right[name]["ratio"]))
    demands = [
        ("best engine, times faster", best, "ratio", BEST_RATIO[model]),
        ("best engine, part of the peak of its precision", best, "of_peak", PART_OF_PEAK),
    ]
    if "default" in right:
        demands.insert(0, ("default, times faster", "default", "ratio", DEFAULT_RATIO))
    return [
        {"what": what, "engine": n, "found": right[n][key], "target": target, "met": right[n][key] >= target}
        for what, n, key, target in demands
    ]


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
        _say(peaks(spec["quick"]))
        return
    if spec["task"] == "reference":
        _keep_reference(spec)
        _say({})
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
        elif word == "profile":
            _say({"profile": _profile(engine, batch)})
        elif word == "gate":
            _say(_gate(engine, bundle, spec))


def _profile(engine: Any, batch: Any) -> list[tuple[str, float]]:
    """Parts of one run's time by operator, the largest first, and what no operator accounts for (`REST`).

    The time is that of the calling thread, which waits for the others in every operator: so parts are of elapsed time.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as watched:
        begin = time.perf_counter()
        engine.run(batch)
        total = time.perf_counter() - begin
    parts = [(event.key, 1e-6 * event.self_cpu_time_total / total) for event in watched.key_averages()]
    parts.sort(key=lambda part: -part[1])
    known, others = sum(part for _, part in parts), sum(part for _, part in parts[N_OPERATORS:])
    return [*parts[:N_OPERATORS], ("other operators", others), (REST, max(0.0, 1 - known))]


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

    if spec["has_profile"]:
        import torch._inductor.config as inductor

        inductor.cpp.enable_kernel_profile = True  # otherwise fused kernels have no names
    bundle, shape = bundle_of(spec), tuple(spec["shape"])
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


def bundle_of(spec: Mapping[str, Any]) -> Any:
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


def _reference_file(spec: Mapping[str, Any]) -> Path:
    return Path(spec["folder"]) / f"{spec['model']}-{'x'.join(map(str, spec['shape']))}.npz"


def _keep_reference(spec: Mapping[str, Any]) -> None:
    """Write the example in the case's shape, and the float64 network's logits: once for all engines of a case."""
    import numpy as np

    from ..engines.gate import Reference

    patch, logits, _ = Reference(bundle_of(spec)).one(tuple(spec["shape"]), within_s=float("inf"))
    np.savez(_reference_file(spec), patch=patch, logits=logits)


def _gate(engine: Any, bundle: Any, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the logits are those of float64. Random weights have no lesion, so for them no labels are compared."""
    import numpy as np

    from ..engines.gate import LIMITS, VARIANT_LOSS, dice, relative_rms

    with np.load(_reference_file(spec)) as kept:
        patch, expected = kept["patch"], kept["logits"]
    logits = engine.run(patch)
    rms = relative_rms(logits, expected)
    score = dice(logits[0], expected[0]) if bundle.info.name == SHIPPED else None
    has_passed = rms < LIMITS[engine.precision] and (score is None or score >= 1 - VARIANT_LOSS)
    return {"rms": rms, "dice": score, "gate": "passed" if has_passed else "failed"}


def peaks(is_quick: bool, device: str = "cpu") -> dict[str, float]:
    """Best GFLOP/s of a square matrix product in each precision, as torch has it; fp16 on a GPU only."""
    import torch

    is_gpu = device.startswith("cuda")
    n, repeats = (1024, 3) if is_quick else (8192 if is_gpu else 4096, 8)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16} | ({"fp16": torch.float16} if is_gpu else {})
    found = {}
    for name, dtype in dtypes.items():
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        a @ b
        seconds = []
        for _ in range(repeats):
            synchronise(device)
            begin = time.perf_counter()
            a @ b
            synchronise(device)
            seconds.append(time.perf_counter() - begin)
        found[name] = 2e-9 * n**3 / min(seconds)
    return found


def synchronise(device: str) -> None:
    """Wait until a GPU has done what it was told; a CPU has."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def _peak_mib() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# What is written


def _write(options: argparse.Namespace, report: Mapping[str, Any]) -> None:
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    if options.markdown:
        page = options.markdown.read_text("utf-8") if options.markdown.is_file() else ""
        options.markdown.write_text(between_marks(page, markdown(report)), "utf-8")


def between_marks(page: str, text: str) -> str:
    """A page with the text between its marks; the text alone, for a page without them."""
    if BEGIN not in page or END not in page:
        return text
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{text}{END}{rest.partition(END)[2]}"


def markdown(report: Mapping[str, Any]) -> str:
    """One table of all engines, one of what is demanded and met, and what they were measured on."""
    machine, cases = report["machine"], report["cases"]
    names = [name for name in VARIANTS if any(name in case["rows"] for case in cases.values())]
    lines = [
        f"`{report['command']}`, rounds of {report['rounds']}, medians"
        + (f", {report['minutes']} minutes" if "minutes" in report else "")
        + f"; {machine['cpu']}, {machine['cores']} cores, load {machine['load_before']:.1f} before; "
        + ", ".join(f"{name} {machine[name]}" for name in ("torch", "onnxruntime", "openvino"))
        + ". Matrix products: "
        + ", ".join(f"{value:.0f} GFLOP/s in {name}" for name, value in report["peaks_gflops"].items())
        + ".",
        "",
        "| times faster than eager float32 (peak MiB, relative rms) | " + " | ".join(cases) + " |",
        "|---|" + "---:|" * len(cases),
    ]
    for name in names:
        cells = [_cell(name, case["rows"].get(name)) for case in cases.values()]
        lines.append(f"| {'eager float32 as PyTorch ships it' if name == BASELINE else name} | {' | '.join(cells)} |")
    lines += ["", "| case | demanded | target | found | by | met |", "|---|---|---:|---:|---|---|"]
    lines += [_verdict_line(name, verdict) for name, case in cases.items() for verdict in case["verdicts"]]
    if profiles := [_profile_line(name, by, row) for name, case in cases.items() for by, row in _below_peak(case)]:
        lines += [
            "",
            "| below 60 % of the peak | by | of the peak | what takes the time |",
            "|---|---|---:|---|",
            *profiles,
        ]
    return "\n".join(lines) + "\n"


def _below_peak(case: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Of the profiled engines of a case the default and the fastest, where they stay below `PART_OF_PEAK`."""
    rows = {name: row for name, row in case["rows"].items() if "profile" in row and row.get("gate") != "failed"}
    if not rows:
        return []
    chosen = {"default", max(rows, key=lambda name: float(rows[name]["ratio"]))}
    return [(name, row) for name, row in rows.items() if name in chosen and row["of_peak"] < PART_OF_PEAK]


def _profile_line(case: str, name: str, row: Mapping[str, Any]) -> str:
    parts = ", ".join(f"{what.replace('|', '/')[:60]} {100 * part:.0f} %" for what, part in row["profile"])
    return f"| {case} | {name} | {100 * row['of_peak']:.0f} % | {parts} |"


def _cell(name: str, row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    if "error" in row:
        return str(row["error"]).replace("|", "/")[:60]
    if name == BASELINE:
        return f"{1000 * row['seconds']:.0f} ms ({row['peak_mib']:.0f})"
    precision = f" {row['precision']}" if name == "default" else ""
    rms = f", {row['rms']:.0e}" if "rms" in row else ""
    wrong = ", **wrong**" if row.get("gate") == "failed" else ""
    return f"{row['ratio']:.1f}{precision} ({row['peak_mib']:.0f}{rms}{wrong})"


def _verdict_line(case: str, verdict: Mapping[str, Any]) -> str:
    is_part = verdict["target"] < 1
    target, found = (f"{100 * v:.0f} %" if is_part else f"{v:.1f}" for v in (verdict["target"], verdict["found"]))
    met = "yes" if verdict["met"] else "**no**"
    return f"| {case} | {verdict['what']} | {target} | {found} | {verdict['engine']} | {met} |"


if __name__ == "__main__":
    main()
