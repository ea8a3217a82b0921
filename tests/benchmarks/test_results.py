from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kstream.benchmarks import full_frame
from kstream.benchmarks.results import BEGIN, END, Run, between, compared, markdown, write_between
from kstream.errors import ConfigError

ROOT = Path(__file__).parents[2]
COMMITTED = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def a_run(path: Path, ours: list[float], peer: list[float], name: str = "test_a", **facts: Any) -> Path:
    extra = {"what": f"does {name}", "seconds": {"kstream": ours, "peer": peer}, "readme": True} | facts
    benchmark = {"name": name, "group": "a", "extra_info": extra}
    machine = {"cores": 2, "cpu": {"brand_raw": "a processor"}, "packages": {"torch": "2.13"}}
    commit = {"id": "0123456789"}
    plain = {"benchmarks": [benchmark], "machine_info": machine, "commit_info": commit, "datetime": "2026-11-21T08:00"}
    path.write_text(json.dumps(plain))
    return path


STEADY = [1.0, 1.01, 0.99, 1.02, 0.98]
NOISY = [1.0, 1.6, 0.5, 1.3, 0.7]


def cells(table: str, name: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(name)]
    return re.split(r"\s{2,}", line.strip())


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [(STEADY, "same"), ([2 * s for s in STEADY], "slower"), ([s / 3 for s in STEADY], "faster"), (NOISY, "same")],
)
def test_a_difference_counts_where_it_is_more_than_noise(tmp_path: Path, ours: list[float], verdict: str) -> None:
    before, after = a_run(tmp_path / "a.json", STEADY, STEADY), a_run(tmp_path / "b.json", ours, STEADY)
    assert verdict in cells(compared(Run.load(before), Run.load(after)), "test_a")


def test_a_busier_machine_is_seen_beside_the_peers(tmp_path: Path) -> None:
    before = a_run(tmp_path / "a.json", STEADY, STEADY)
    after = a_run(tmp_path / "b.json", [2 * s for s in STEADY], [2 * s for s in STEADY])
    found = cells(compared(Run.load(before), Run.load(after)), "test_a")
    assert found[3] == "2.00"
    assert found[-1] == "1.00"


def test_one_round_has_no_noise_to_judge_by_and_a_lost_row_is_shown(tmp_path: Path) -> None:
    before, after = a_run(tmp_path / "a.json", [1.0], [1.0]), a_run(tmp_path / "b.json", [9.0], [1.0])
    assert "?" in cells(compared(Run.load(before), Run.load(after)), "test_a")
    other = a_run(tmp_path / "c.json", [1.0], [1.0], "test_c")
    table = compared(Run.load(before), Run.load(other))
    assert cells(table, "test_a")[-1] == "-"
    assert cells(table, "test_c")[1] == "-"


def test_the_table_has_rates_ratios_and_what_else_a_test_shows(tmp_path: Path) -> None:
    run = Run.load(a_run(tmp_path / "a.json", [0.5], [2.0], n_items=50, shown={"p99": "7 ms"}))
    (row,) = [line for line in markdown(run).splitlines() if line.startswith("| does")]
    assert row == "| does test_a | 100/s, p99 7 ms | peer 25/s (4 x) |"
    assert "2 cores of a processor; torch 2.13; commit 0123456, 2026-11-21" in markdown(run)


def test_the_table_replaces_what_stands_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"before\n{BEGIN}\nold\nlines\n{END}\nafter\n")
    write_between(page, "| new \\1 |")
    assert page.read_text() == f"before\n{BEGIN}\n| new \\1 |\n{END}\nafter\n"
    assert between(page.read_text()) == "| new \\1 |"
    page.write_text("no markers\n")
    with pytest.raises(ConfigError, match="0 places"):
        write_between(page, "x")


def test_the_commands_say_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("[1]")
    for name, word in (("other.json", "not a result"), ("missing.json", "missing.json")):
        command = [sys.executable, "-m", "kstream.benchmarks", "show", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert word in done.stderr


def test_the_page_on_whole_frames_shows_what_was_measured() -> None:
    """``python -m kstream.benchmarks.full_frame --tables FRAME.json --markdown docs/explanation/whole-frames.md``."""
    found = json.loads((ROOT / "benchmarks" / "results" / "by-hand" / "full-frame.json").read_text("utf-8"))
    page = (ROOT / "docs" / "explanation" / "whole-frames.md").read_text("utf-8")
    assert between(page, full_frame.BEGIN, full_frame.END) == full_frame.markdown(found)


def test_the_readme_shows_what_was_measured() -> None:
    """``python -m kstream.benchmarks table benchmarks/results/NAME.json --write README.md``."""
    assert between((ROOT / "README.md").read_text("utf-8")) in [markdown(Run.load(path)) for path in COMMITTED]
