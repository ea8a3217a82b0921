"""The report of cine scans that are not whole: what came is shown, and nothing is made up for what did not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kstream.cli.results import write_results
from kstream.serve.replay import replay
from kstream.simulate.heart.exam import save_cine_exam, simulate_cine_exam
from tests.hearts import SMALL, disk_bundle, kmtr_bundle, serving

BUNDLES = {"cine-disk": disk_bundle, "cine-kmtr": kmtr_bundle}


@pytest.mark.parametrize("preset", BUNDLES)
@pytest.mark.parametrize("n_came", [1, 2])
def test_slices_that_never_came_are_neither_drawn_nor_scored(preset: str, n_came: int, tmp_path: Path) -> None:
    exam = simulate_cine_exam(SMALL, 3)
    came = [a for a in exam.acquisitions if a.counter("slice") < n_came]
    recording, images, run = tmp_path / "scan.h5", tmp_path / "images.h5", tmp_path / "run"
    save_cine_exam(replace(exam, acquisitions=came), recording)
    with serving(BUNDLES[preset](tmp_path / "model")) as port:
        result = replay(recording, port=port, preset=preset, output=images)
    info = write_results(run, recording, result, title="half", images=images)
    true = exam.truth_labels[:n_came]
    voxel_ml = (256 / 24) ** 2 * 8 / 1000
    expected = [np.count_nonzero(true == n) * voxel_ml / SMALL.n_frames for n in range(1, 6)]
    assert [score.truth_ml for score in info.classes] == pytest.approx(expected, rel=1e-3)
    assert not info.probabilities
    assert not any(row.from_network for row in info.phenotypes)
    assert (run / "beating.gif").is_file()
    n_absent = (len(exam.views) - n_came) * SMALL.n_frames
    told = f"{n_absent} of 15 planned frames never came, the first is frame 0 slice {n_came}"
    assert told in (run / "report.html").read_text()
