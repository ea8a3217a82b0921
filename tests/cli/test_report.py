"""``kstream report``: from what a run left, the report again."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from kstream.cli import app
from kstream.cli.report import rebuild
from kstream.errors import RecordingError
from kstream.mrd.header import build_header
from kstream.mrd.images import label_images, magnitude_images
from kstream.mrd.recording import ImageWriter, write_recording
from kstream.output.nifti import write_nifti
from kstream.output.runinfo import ModelUsed, RunInfo
from kstream.types import FrameImage, Geometry, LabelMap, LabelTable, Origin
from tests.scans import StackOfStars

GEOMETRY = Geometry((23, 17, 5), (46.0, 51.0, 20.0), (5.0, -4.0, 3.0))
TABLE = LabelTable(("background", "lesion"), ((0, 0, 0), (255, 64, 64)))
LESION = (slice(1, 4), slice(5, 10), slice(12, 18))
STARS = StackOfStars()


def magnitude(frame: int) -> np.ndarray:
    volume = np.full(GEOMETRY.shape, 40, np.complex64)
    volume[LESION] = (40, 100, 90)[frame]
    return volume


def labels() -> np.ndarray:
    volume = np.zeros(GEOMETRY.shape, np.uint8)
    volume[LESION] = 1
    return volume


def make_run(folder: Path, *, has_labels: bool = True, slope: float | None = None) -> Path:
    """A folder as `kstream demo` leaves it, with three frames 60 s apart, and one lesion."""
    folder.mkdir()
    scan = replace(STARS.scan(), user_parameters={"time_stamp_tick_ms": 2.5})
    write_recording(folder / "scan.h5", build_header(scan), STARS.acquisitions(np.random.default_rng(0)))
    n_images = 0
    with ImageWriter(folder / "images.h5") as writer:
        for frame in range(3):
            place = replace(GEOMETRY, origin=Origin(acquisition_time_stamp=777 + 24_000 * frame))
            item = FrameImage(magnitude(frame), frame, 0, 0, place)
            for image in magnitude_images(item, item.data, scan, 1, rescale_slope=slope):
                writer.append(image)
                n_images += 1
        for image in label_images(LabelMap(labels(), TABLE, 2, 0, 0, place), scan, 2) if has_labels else []:
            writer.append(image)
            n_images += 1
    info = RunInfo(recording="scan.h5", started_at="now", preset="p", frames=3, images_sent=n_images)
    if has_labels:
        write_nifti(folder / "scan.truth.nii.gz", labels(), GEOMETRY)
        info = info.model_copy(update={"model": ModelUsed(name="no-such-model")})
    (folder / "run.json").write_text(info.to_json())
    return folder


def report(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


@pytest.mark.parametrize("slope", [None, 0.01])
def test_a_run_gets_lesions_curves_and_agreement(tmp_path: Path, slope: float | None) -> None:
    run = make_run(tmp_path / "run", slope=slope)
    done = report(run, "--json")
    assert done.exit_code == 0, done.exception
    told = json.loads(done.stdout)
    assert told == json.loads((run / "run.json").read_text())
    (lesion,) = told["lesions"]
    assert lesion["enhancement_percent"] == pytest.approx([0, 150, 125])
    assert lesion["volume_ml"] == pytest.approx(3 * 5 * 6 * 0.024)
    assert lesion["touches"] == ["lesion 1"]
    assert told["frame_times_s"] == [0, 60, 120]
    assert told["dice"] == told["scores"][0]["dice"] == 1
    html = (run / "report.html").read_text()
    assert html.count("Enhancement curve") == 1
    assert html.count("data:image/png") == 1 + 3
    assert html.count("data:image/gif") == 1


def test_a_report_that_is_made_twice_stays_the_same(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "scan.h5").write_bytes((run / "scan.h5").read_bytes())
    pages = []
    for _ in range(2):
        assert report(run).exit_code == 0
        pages.append(((run / "report.html").read_text(), (run / "run.json").read_text()))
    assert pages[0] == pages[1]


def test_pictures_of_an_earlier_run_in_the_folder_are_not_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in ("overlay_z01.png", "overlay_z99.png", "overlay_zoom.png"):
        (run / name).write_bytes(b"\x89PNG of another run")
    rebuild(run)
    assert {path.name for path in run.glob("overlay_z*.png")} == {
        *(f"overlay_z{z:02d}.png" for z in (2, 3, 4)),
        "overlay_zoom.png",  # not ours
    }


def test_a_run_without_labels_shows_its_magnitude(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", has_labels=False)
    (run / "overview.png").write_bytes(b"\x89PNG of another run")
    assert report(run).exit_code == 0
    html = (run / "report.html").read_text()
    assert "<h2>Magnitude</h2>" in html
    assert html.count("data:image/png") == html.count("data:image/gif") == 1
    assert "Enhancement curve" not in html


def test_what_does_not_belong_to_the_run_is_told_and_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    info = RunInfo.from_json((run / "run.json").read_text())
    (run / "run.json").write_text(info.model_copy(update={"recording_sha256": "0" * 64}).to_json())
    (run / "scan.truth.nii.gz").unlink()
    write_nifti(run / "scan.truth.nii.gz", labels(), replace(GEOMETRY, position_mm=(6.0, -4.0, 3.0)))
    told = json.loads(report(run, "--json").stdout)
    assert told["dice"] is None
    texts = [notice["text"] for notice in told["notices"]]
    assert any("checksum" in text for text in texts)
    assert any("lies elsewhere in the patient" in text for text in texts)
    html = (run / "report.html").read_text()
    assert html.index("checksum") < html.index("<img")
    (run / "run.json").write_text(info.model_copy(update={"images_sent": 3}).to_json())
    told = json.loads(report(run, "--json").stdout)
    assert told["lesions"] == []
    assert "has 20 images, but this run gave 3" in told["notices"][-1]["text"]


def test_missing_images_leave_a_report_from_the_account(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "images.h5").unlink()
    told = json.loads(report(run, "--json").stdout)
    assert told["lesions"] == []
    assert "no enhancement" in told["notices"][0]["text"]
    assert "Research use only" in (run / "report.html").read_text()


def test_files_may_lie_elsewhere(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in ("scan.h5", "images.h5", "scan.truth.nii.gz"):
        (run / name).rename(tmp_path / f"other-{name}")
    options = [
        *("--recording", tmp_path / "other-scan.h5", "--images", tmp_path / "other-images.h5"),
        *("--truth", tmp_path / "other-scan.truth.nii.gz"),
    ]
    told = json.loads(report(run, *options, "--json").stdout)
    assert told["dice"] == 1
    assert told["frame_times_s"] == [0, 60, 120]


def test_a_folder_without_a_run_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    for arguments in ((tmp_path,), (make_run(tmp_path / "run"), "--truth", tmp_path / "no.nii.gz")):
        assert isinstance(report(*arguments).exception, RecordingError)
    (tmp_path / "run" / "run.json").write_text("{}")
    found = report(tmp_path / "run").exception
    assert isinstance(found, RecordingError)
    assert "run.json" in found.where
