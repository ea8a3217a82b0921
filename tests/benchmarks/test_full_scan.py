"""A run at the scanner's pace that does not keep what is promised must not pass for one that does."""

from __future__ import annotations

from typing import Any

import pytest

from kstream.benchmarks.full_scan import broken_promises

GOOD = {
    "readouts_per_second": 200.0,
    "peak_gib": 1.7,
    "sender_late_s": 0.3,
    "maps_ready_s": 32.3,
    "first_readout_of_frame_1_s": 39.8,
    "dropped": 0,
}


def test_a_run_that_keeps_up_breaks_no_promise() -> None:
    assert broken_promises(GOOD, 3) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"peak_gib": 4.0}, "4.00 GiB"),
        ({"sender_late_s": 1.01}, "1.01 s late"),
        ({"maps_ready_s": 39.8}, "ready after 39.8 s"),
        ({"maps_ready_s": None}, "never"),
        ({"dropped": 2}, "2 readouts were dropped"),
    ],
)
def test_each_broken_promise_is_a_line(changed: dict[str, Any], words: str) -> None:
    (line,) = broken_promises({**GOOD, **changed}, 2)
    assert words in line


def test_beyond_the_scanners_pace_spokes_may_wait_for_the_maps() -> None:
    assert broken_promises({**GOOD, "maps_ready_s": 40.0, "readouts_per_second": 400.0}, 3) == []


def test_a_scan_of_one_frame_promises_nothing_about_the_next() -> None:
    assert broken_promises({**GOOD, "maps_ready_s": None}, 1) == []
