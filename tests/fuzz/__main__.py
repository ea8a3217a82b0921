"""Runs many cases: ``python -m tests.fuzz --cases 1000000 --seed 1 --processes 2``; exit code 1 if one failed."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict

from tests.fuzz.campaign import Result, prepare, run_in_process

BLOCK = 5000


def main() -> int:
    """Run, print one line for each block and each failure, and a summary."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to see one again")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    asked = parser.parse_args()
    begin = time.perf_counter()
    end = asked.first + asked.cases
    blocks = [range(at, min(at + BLOCK, end)) for at in range(asked.first, end, BLOCK)]
    total = Result()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(asked.processes, context, initializer=prepare, initargs=(asked.seed,)) as pool:
        for result in pool.map(run_in_process, blocks):
            _add(total, result)
            if not asked.json:
                seconds = time.perf_counter() - begin
                print(f"{total.n_cases} cases, {len(total.failures)} failed, {seconds:.0f} s", flush=True)
    total.seconds = time.perf_counter() - begin
    print(_summary(total, asked.seed, asked.json))
    return 1 if total.failures else 0


def _add(total: Result, result: Result) -> None:
    total.n_cases += result.n_cases
    total.failures += result.failures
    total.growth_bytes = max(total.growth_bytes, result.growth_bytes)
    if result.slowest_s > total.slowest_s:
        total.slowest_s, total.slowest = result.slowest_s, result.slowest


def _summary(total: Result, seed: int, as_json: bool) -> str:
    if as_json:
        return json.dumps({"seed": seed, **asdict(total)})
    lines = [f"case {number}: {what}" for number, what in sorted(total.failures)]
    lines.append(
        f"{total.n_cases} cases, seed {seed}, {total.seconds:.0f} s, {len(total.failures)} failed, slowest case "
        f"{total.slowest} {1e3 * total.slowest_s:.0f} ms, peak growth of memory {total.growth_bytes / 2**20:.1f} MiB"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
