"""Takes the JSON of runs, gives tables: one run, two runs side by side, the rows of the README."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from kstream.errors import ConfigError

BEGIN = "<!-- begin: python -m kstream.benchmarks table -->"
END = "<!-- end -->"
OURS = "kstream"


@dataclass(frozen=True)
class Row:
    """One benchmark of one run.

    Parameters
    ----------
    name, group : of the test and its module.
    what : title, with sizes.
    seconds : by who did it (``kstream`` and its peers), round by round.
    facts : whatever else the test kept.
    """

    name: str
    group: str
    what: str
    seconds: dict[str, list[float]]
    facts: dict[str, Any] = field(default_factory=dict)

    def median_s(self, who: str = OURS) -> float:
        return statistics.median(self.seconds[who])

    def noise(self, who: str = OURS) -> float:
        """Standard error of the median, relative to it, from the quartiles (0.93 IQR / sqrt(n)); NaN for one round."""
        times = self.seconds[who]
        if len(times) < 3:
            return math.nan
        low, _, high = statistics.quantiles(times, n=4, method="inclusive")
        return 0.93 * (high - low) / math.sqrt(len(times)) / self.median_s(who)

    def ratio(self, peer: str) -> float:
        """How many times longer the peer took."""
        return self.median_s(peer) / self.median_s()


@dataclass(frozen=True)
class Run:
    """All benchmarks of one run, by name, in the order in which they ran."""

    rows: dict[str, Row]
    machine: dict[str, Any]
    commit: str
    when: str

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Run:
        """Read what ``pytest --benchmark`` wrote.

        Raises
        ------
        OSError : there is no such file.
        ConfigError : it holds something else.
        """
        try:
            plain = json.loads(Path(path).read_text("utf-8"))
            rows = [
                Row(entry["name"], entry["group"], entry["extra_info"]["what"], entry["extra_info"]["seconds"], extra)
                for entry in plain["benchmarks"]
                for extra in [entry["extra_info"]]
            ]
            machine, commit = plain["machine_info"], plain["commit_info"]
            return cls({r.name: r for r in rows}, machine, str(commit.get("id", ""))[:7], plain["datetime"][:10])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"not a result of `pytest --benchmark`: {error!r}", where=str(path), hint="pytest --benchmark"
            ) from error


def shown(run: Run) -> str:
    """Every row with its peers, as text."""
    lines, group = [], ""
    for row in run.rows.values():
        if row.group != group:
            group = row.group
            lines.append(f"\n{group}")
        lines.append(f"  {row.what}")
        for who in row.seconds:
            rate = _rate(row, who)
            beside = "" if who == OURS else f"  {row.ratio(who):8.2f} x"
            lines.append(f"    {who:<44} {_time(row.median_s(who)):>10} {rate:>14}{beside}")
        lines += [f"    {line}" for line in _more(row)]
    return "\n".join(lines)


def compared(before: Run, after: Run) -> str:
    """Two runs side by side: how many times longer the second took, and whether that is more than noise.

    The last column divides by what happened to the peers meanwhile: a machine that was busier is seen there.
    """
    header = f"{'':<58} {'before':>10} {'after':>10} {'ratio':>7} {'noise':>7}  {'':<7} {'beside peers':>12}"
    lines = [f"before: {_origin(before)}", f"after:  {_origin(after)}", "", header]
    for name, old in before.rows.items():
        new = after.rows.get(name)
        if new is None:
            lines.append(f"{name[:58]:<58} {_time(old.median_s()):>10} {'-':>10}")
            continue
        ratio = new.median_s() / old.median_s()
        noise = 2 * math.hypot(old.noise(), new.noise())
        verdict = "?" if math.isnan(noise) else "same" if abs(math.log(ratio)) < noise else _verdict(ratio)
        peers = [who for who in old.seconds if who != OURS and who in new.seconds]
        drift = [new.median_s(who) / old.median_s(who) for who in peers]
        beside = f"{ratio / statistics.geometric_mean(drift):.2f}" if drift else "-"
        percent = "-" if math.isnan(noise) else f"{100 * noise:.0f} %"
        lines.append(
            f"{name[:58]:<58} {_time(old.median_s()):>10} {_time(new.median_s()):>10} {ratio:>7.2f} {percent:>7}  "
            f"{verdict:<7} {beside:>12}"
        )
    lines += [f"{name[:58]:<58} {'-':>10} {_time(new.median_s()):>10}" for name, new in _only(after, before)]
    return "\n".join(lines)


def markdown(run: Run) -> str:
    """The README's table: one line for each row that says so (``readme``), with those that it is measured beside."""
    lines = ["| what | kstream | beside it (and how many times longer that took) |", "|---|---|---|"]
    for row in run.rows.values():
        if row.facts.get("readme"):
            ours = ", ".join([_value(row), *_more(row)])
            peers = [f"{who} {_value(row, who)} ({_short(row.ratio(who))} x)" for who in row.seconds if who != OURS]
            lines.append(f"| {row.what} | {ours} | {', '.join(peers)} |")
    return "\n".join([*lines, "", f"*{_origin(run)}*"])


def write_between(path: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Replace what stands between the markers of a file.

    Raises
    ------
    ConfigError : it has no markers.
    """
    before = path.read_text("utf-8")
    pattern = re.compile(f"({re.escape(begin)}\n).*?(\n{re.escape(end)})", re.DOTALL)
    after, n = pattern.subn(lambda found: f"{found[1]}{text}{found[2]}", before)
    if n != 1:
        raise ConfigError(f"{n} places for the table, expected one", where=str(path), hint=f"{begin} ... {end}")
    path.write_text(after, encoding="utf-8")


def between(text: str, begin: str = BEGIN, end: str = END) -> str:
    """What stands between the markers; empty without them."""
    found = re.search(f"{re.escape(begin)}\n(.*?)\n{re.escape(end)}", text, re.DOTALL)
    return found[1] if found else ""


def _only(run: Run, other: Run) -> list[tuple[str, Row]]:
    return [(name, row) for name, row in run.rows.items() if name not in other.rows]


def _verdict(ratio: float) -> str:
    return "slower" if ratio > 1 else "faster"


def _origin(run: Run) -> str:
    cpu = run.machine.get("cpu", {}).get("brand_raw", run.machine.get("machine", ""))
    packages = run.machine.get("packages", {})
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "numpy") if name in packages)
    commit = f"commit {run.commit}, " if run.commit else ""
    load = max((max(row.facts.get("load", [0.0])) for row in run.rows.values()), default=0.0)
    busy = f"; a busy machine (load {load:.0f})" if load > 2 * run.machine.get("cores", load) else ""
    return f"{run.machine.get('cores', '?')} cores of {cpu}; {versions}; {commit}{run.when}{busy}"


def _value(row: Row, who: str = OURS) -> str:
    return _rate(row, who) or _time(row.median_s(who))


def _rate(row: Row, who: str) -> str:
    n_items = row.facts.get("n_items")
    return f"{_short(n_items / row.median_s(who))}/s" if n_items else ""


def _more(row: Row) -> Sequence[str]:
    """Further numbers that a test wants shown beside its time."""
    told: dict[str, str] = row.facts.get("shown", {})
    return [f"{key} {value}" for key, value in told.items()]


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1:
            return f"{_short(seconds * scale)} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def _short(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}".replace(",", " ") if value >= 100 else f"{value:.3g}"
