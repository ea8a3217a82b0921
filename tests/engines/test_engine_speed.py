"""The table of speeds: what is demanded, what counts, and the page that is written from the numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kstream.benchmarks import engine_speed
from kstream.benchmarks.engine_speed import BASELINE, BEGIN, CASES, END, between_marks, markdown

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "by-hand" / "engines.json"


def row(ratio: float, of_peak: float, gate: str = "passed") -> dict[str, Any]:
    return {"seconds": 1.0, "ratio": ratio, "of_peak": of_peak, "gate": gate, "precision": "bf16", "peak_mib": 500.0}


def test_an_engine_whose_logits_are_wrong_is_not_the_best() -> None:
    rows = {
        BASELINE: row(1, 0.1),
        "default": row(2.4, 0.3),
        "aot bf16": row(9, 0.9, "failed"),
        "openvino bf16": row(5, 0.5),
    }
    default, fastest, peak = engine_speed._verdicts("breast-hybrid", {**rows, "tensorrt": {"error": "not here"}})
    assert (default["found"], default["met"]) == (2.4, False)
    assert (fastest["engine"], fastest["found"], fastest["target"], fastest["met"]) == ("openvino bf16", 5, 4.8, True)
    assert (peak["engine"], peak["found"], peak["met"]) == ("openvino bf16", 0.5, False)


def test_what_takes_the_time_is_told_of_the_default_and_the_fastest_below_the_peak() -> None:
    parts = {"profile": [["aten::mkldnn_convolution", 0.62], ["other operators", 0.38]]}
    rows = {
        BASELINE: row(1, 0.1),
        "default": row(3, 0.3) | parts,
        "torch bf16": row(2.9, 0.2) | parts,
        "aot bf16": row(5, 0.7) | parts,
        "openvino bf16": row(6, 0.4),
    }
    assert [name for name, _ in engine_speed._below_peak({"rows": rows})] == ["default"]
    rows["aot bf16"]["of_peak"] = 0.59
    assert [name for name, _ in engine_speed._below_peak({"rows": rows})] == ["default", "aot bf16"]
    line = engine_speed._profile_line("case", "aot bf16", rows["aot bf16"])
    assert line == "| case | aot bf16 | 59 % | aten::mkldnn_convolution 62 %, other operators 38 % |"
    assert engine_speed._below_peak({"rows": {BASELINE: row(1, 0.1), "default": row(3, 0.3)}}) == []


def test_every_case_has_a_demand_and_runs_default_and_baseline() -> None:
    assert len(CASES) == 5
    for name, (model, shape) in CASES.items():
        assert model in engine_speed.BEST_RATIO
        assert name.endswith("x".join(map(str, shape)))
    assert engine_speed.FAST[:2] == (BASELINE, "default")
    assert set(engine_speed.FAST) < set(engine_speed.VARIANTS)
    assert set(engine_speed.EVERY_ENGINE) < set(CASES)


def test_only_what_is_between_the_marks_is_written() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert between_marks(page, "new\n") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    assert between_marks("a page without marks", "new\n") == "new\n"


def test_the_tables_of_the_documentation_are_those_of_the_numbers() -> None:
    page = (ROOT / "docs" / "engines.md").read_text("utf-8")
    report = json.loads(RESULTS.read_text("utf-8"))
    assert between_marks(page, markdown(report)) == page, (
        "python -m kstream.benchmarks.engine_speed --tables benchmarks/results/by-hand/engines.json "
        "--markdown docs/engines.md"
    )
    assert set(report["cases"]) == set(CASES)


@pytest.mark.slow
def test_a_small_case_is_measured_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = tmp_path / "engines.json"
    arguments = ["engine_speed", "--quick", "--rounds", "1", "--engine", "torch bf16", "--json", str(written)]
    monkeypatch.setattr("sys.argv", arguments)
    engine_speed.main()
    report = json.loads(written.read_text("utf-8"))
    ((name, case),) = report["cases"].items()
    assert name == "default bundle 8x32x32"
    assert set(case["rows"]) == {BASELINE, "torch bf16"}
    measured = case["rows"]["torch bf16"]
    assert measured["gate"] == "passed"
    assert measured["peak_mib"] > 50
    assert len(measured["all_seconds"]) == len(measured["beside_seconds"]) == 1
    assert {verdict["what"].partition(",")[0] for verdict in case["verdicts"]} == {"best engine"}
    assert "/" not in report["command"], "no folder of this machine"
