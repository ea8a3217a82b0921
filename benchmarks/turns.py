"""The fixtures of the suite: `turns` times ours and its peers in turns, so that a busy machine is busy for each."""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping
from time import perf_counter
from typing import Any, TypeVar

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from kstream.benchmarks.plugin import RESULT, SUITE
from kstream.benchmarks.results import Run, shown

Way = Callable[[], float | None]
"""Does the work once; gives the seconds that it took if it knows them better than a clock around it."""

OURS = "kstream"
T = TypeVar("T")

MOST_S, FEWEST = 90.0, 3
"""Time for the rounds of one test, and rounds that are done nevertheless: the whole suite shall take ten minutes."""


class Clock:
    """The time that ways have taken so far: what pytest-benchmark reads."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def spend(self, way: Way) -> float:
        """Run a way once; gives its seconds."""
        begin = perf_counter()
        told = way()
        spent = perf_counter() - begin if told is None else max(told, 1e-9)  # less than nothing: a start was taken off
        self.now_s += spent
        return spent


class Turns:
    """Times one thing; to be called once in a test.

    Parameters
    ----------
    benchmark : keeps our times, and writes the JSON.
    clock : its timer.
    is_quick : everything once, and no budget is held.
    """

    def __init__(self, benchmark: BenchmarkFixture, clock: Clock, is_quick: bool) -> None:
        self._benchmark, self._clock, self.is_quick = benchmark, clock, is_quick

    def pick(self, full: T, quick: T) -> T:
        """A size: of the real run, or of the quick one."""
        return quick if self.is_quick else full

    def __call__(
        self,
        what: str,
        ours: Way,
        peers: Mapping[str, Way] | None = None,
        *,
        rounds: int = 5,
        warm: bool = True,
        n_items: int = 0,
        budgets: Mapping[str, float] | None = None,
        **facts: Any,
    ) -> dict[str, list[float]]:
        """Time `ours` and every peer `rounds` times, in turns, and keep the numbers in the JSON.

        Parameters
        ----------
        what : the row's title, with sizes.
        warm : everyone runs once before, untimed.
        rounds : fewer if they would take more than `MOST_S`, but `FEWEST` at least.
        n_items : how many things one call handles, for a rate.
        budgets : by peer, how many times faster than it ours must at least be (below 1: how much slower it may be), by
            the best rounds, which other programs disturbed least. Never held in a quick run.
        facts : whatever else the JSON should say: sizes, engine, precision.

        Returns
        -------
        Seconds by name, round by round.
        """
        others = dict(peers or {})
        seconds: dict[str, list[float]] = {name: [] for name in (OURS, *others)}
        load = os.getloadavg()[0]
        begin = perf_counter()
        if warm and not self.is_quick:
            for way in (ours, *others.values()):
                way()
        fitting = int(MOST_S / max(perf_counter() - begin, 1e-9))
        rounds = 1 if self.is_quick else min(rounds, max(fitting, FEWEST))

        def take_turns() -> None:
            for name, way in others.items():
                seconds[name].append(self._clock.spend(way))

        self._benchmark.pedantic(
            lambda: seconds[OURS].append(self._clock.spend(ours)),
            setup=take_turns,
            rounds=rounds,
        )
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        ratios = {name: medians[name] / medians[OURS] for name in others}
        self.keep(
            what=what,
            seconds=seconds,
            ratios=ratios,
            budgets=dict(budgets or {}),
            n_items=n_items,
            load=[load, os.getloadavg()[0]],
            **facts,
        )
        if not self.is_quick:
            best = {name: min(seconds[name]) / min(seconds[OURS]) for name in others}
            missed = {name: best[name] for name, least in (budgets or {}).items() if best[name] < least}
            assert not missed, f"{what}: {missed} of {budgets}"
        return seconds

    def keep(self, **facts: Any) -> None:
        """Say more in the JSON."""
        self._benchmark.extra_info.update(facts)


@pytest.fixture(autouse=True)
def clock(request: pytest.FixtureRequest) -> Clock:
    """The timer of pytest-benchmark in this test; the group is the test's module."""
    clock = Clock()
    group = request.path.stem.removeprefix("test_")
    request.node.add_marker(pytest.mark.benchmark(timer=clock, group=group))
    return clock


@pytest.fixture
def turns(clock: Clock, benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Turns:
    return Turns(benchmark, clock, bool(request.config.getoption("kstream_quick")))


@pytest.fixture(scope="session")
def is_quick(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("kstream_quick"))


def installed(*packages: str) -> bool:
    """True if peers can be imported."""
    return all(importlib.util.find_spec(package) is not None for package in packages)


@pytest.hookimpl
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """What a reader of the numbers must know; the machine's name is nobody's business."""
    machine_info["node"] = machine_info["release"] = ""
    machine_info["cores"] = len(os.sched_getaffinity(0))
    machine_info["packages"] = dict(_versions())
    machine_info["cpu"] = {k: v for k, v in machine_info["cpu"].items() if k in ("brand_raw", "count")}


@pytest.hookimpl
def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    """The commit of kstream, not of the folder in which it is measured; empty where it was installed from a wheel."""
    command = ["git", "-C", str(SUITE), "log", "-1", "--format=%H %cI"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        commit, when = done.stdout.split()
    except (OSError, subprocess.CalledProcessError, ValueError):
        commit, when = "", ""
    commit_info.clear()
    commit_info.update({"id": commit, "time": when})


@pytest.hookimpl
def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Where the suite is installed is nobody's business either, and our clock says nothing."""
    for entry in output_json["benchmarks"]:
        entry["fullname"] = f"{entry['group']}::{entry['name']}"
        entry["options"].pop("timer", None)


def _versions() -> Iterator[tuple[str, str]]:
    from importlib.metadata import PackageNotFoundError, version

    for package in ("kstream", "torch", "numpy", "finufft", "ducc0", "sigpy", "ismrmrd", "onnxruntime", "openvino"):
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Our own table: every row with its peers."""
    path = config.getoption("benchmark_json") or RESULT
    try:
        run = Run.load(path)
    except OSError:
        return
    terminalreporter.section(f"kstream benchmarks, also in {path}")
    terminalreporter.write_line(shown(run))
