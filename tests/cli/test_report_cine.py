"""The report of cine scans that are not whole: what came is shown, and nothing is made up for what did not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kstream.cli.results import write_results
from kstream.serve.replay import replay
from kstream.serve.settings import ServerSettings
from kstream.simulate.heart.exam import save_cine_exam, simulate_cine_exam
from tests.hearts import SMALL, disk_bundle, kmtr_bundle, serving
from tests.serve.conftest import serving as plain

BUNDLES = {"cine-disk": disk_bundle, "cine-kmtr": kmtr_bundle}


def test_slices_that_make_no_volume_are_told_and_the_report_is_written(tmp_path: Path) -> None:
    """Labels of four short axes of which the second never came; magnitudes of views that lie crosswise."""
    exam = simulate_cine_exam(replace(SMALL, n_short_axis=4), 3)
    came = [a for a in exam.acquisitions if a.counter("slice") != 2]
    recording, images, run = tmp_path / "scan.h5", tmp_path / "images.h5", tmp_path / "run"
    save_cine_exam(replace(exam, acquisitions=came), recording)
    run.mkdir()
    for name in ("labels_systole.nii.gz", "labels.nii.gz", "overview.png", "overlay_z07.png", "overlay_zoom.png"):
        (run / name).write_text("of an earlier run")
    with plain(ServerSettings()) as other, serving(disk_bundle(tmp_path / "model")) as port:
        for preset, at in (("cine-disk", port), ("recon-cartesian", other.port)):
            result = replay(recording, port=at, preset=preset, output=images)
            info = write_results(run, recording, result, title=preset, images=images)
            what = {"cine-disk": "labels", "recon-cartesian": "magnitudes"}[preset]
            assert [n.text.partition(": ")[0] for n in info.notices if n.text.startswith("no volume of ")] == [
                f"no volume of {what} was written"
            ]
            assert f"no volume of {what} was written" in (run / "report.html").read_text()
            assert not list(run.glob("*.nii.gz"))
            assert (run / "beating.gif").is_file() == (preset == "cine-disk")
            assert (run / "overview.png").is_file() == (preset == "cine-disk")
    assert any(notice.text.startswith("nothing is drawn or measured on a volume: ") for notice in info.notices)
    assert [path.name for path in run.glob("overlay_*.png")] == ["overlay_zoom.png"]  # which is not ours


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
    assert not info.phenotypes
    assert (run / "beating.gif").is_file()
    n_absent = (len(exam.views) - n_came) * SMALL.n_frames
    told = f"{n_absent} of 15 planned frames never came, the first is frame 0 slice {n_came}"
    assert told in (run / "report.html").read_text()
