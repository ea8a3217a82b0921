"""``kstream demo`` for the heart and the brain: simulated, through a real server and its worker, to the report."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kstream.cli.own_server import own_server, wait_for_worker
from kstream.models.bundle import Bundle
from kstream.mrd.images import frame_of
from kstream.mrd.recording import read_images
from kstream.output.nifti import read_nifti
from kstream.output.phenotypes import PHENOTYPES, SLICE_MEASURES
from kstream.output.runinfo import RunInfo
from kstream.serve.replay import replay
from kstream.simulate.brain.exam import save_brain_exam, simulate_brain_exam
from kstream.simulate.brain.protocol import BrainProtocol
from kstream.training.brain.heads import HeadExam
from kstream.training.brain.task import Slice, predict
from tests import demo_bundles

KSTREAM = str(Path(sys.executable).parent / "kstream")


def demo(folder: Path, *options: str) -> tuple[str, RunInfo]:
    """Its last line, and its account."""
    command = [KSTREAM, "demo", "--output", str(folder), "--speed", "0", "--quiet", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    assert not re.search("[Tt]raceback|ERROR", (folder / "server.log").read_text())
    return done.stdout.strip().splitlines()[-1], RunInfo.from_json((folder / "run.json").read_text())


def n_pictures(path: Path) -> int:
    with Image.open(path) as film:
        return int(getattr(film, "n_frames", 1))


def test_a_heart_beats_in_its_labels(tmp_path: Path) -> None:
    errors = {"test": {"dice_3x": 0.5, "areas": {"LV_area_max_cm2": {"mae": 1.25}, "RV_area_max_cm2": 2.5}}}
    model = demo_bundles.heart(tmp_path / "disk", metrics=errors)
    run = tmp_path / "run"
    line, info = demo(run, "--case", "heart", "--model", str(model))
    counted = re.match(
        r"received (\d+), frames 5, images sent (\d+), dropped 0, last readout to label \d+ ms, Dice", line
    )
    assert counted, line
    assert "LV cavity" in line
    assert int(counted[1]) == 16 + 5 * 8  # noise readouts, and a third of 24 lines of each frame
    finals = read_images(run / "images.h5")[2]
    assert [frame_of(image) for image in finals] == [0, 1, 2, 3, 4]
    assert n_pictures(run / "beating.gif") == 5
    assert not list(run.glob("overlay_z*.png"))
    systole, _ = read_nifti(run / "labels_systole.nii.gz")
    diastole, _ = read_nifti(run / "labels_diastole.nii.gz")
    assert (diastole == 1).sum() >= (systole == 1).sum()
    assert diastole.shape == (1, 24, 24)
    assert info.findings["phenotypes_from_labels"] == dict.fromkeys(PHENOTYPES)  # one slice has no volume
    assert not any("cine findings" in notice.text for notice in info.notices)
    rows = {row.name: row for row in info.phenotypes}
    assert set(rows) <= {name.rpartition("_")[0].replace("_", " ") for name in SLICE_MEASURES}
    assert (rows["LV area max"].labels_error, rows["LV area max"].unit) == (1.25, "cm²")
    assert rows["RV area max"].labels_error == 2.5
    html = (run / "report.html").read_text()
    assert "test cohort (test)" in html
    assert "± 1.2" in html
    assert html.count("data:image/gif") == 1


def test_kmtr_gives_phenotypes_and_probabilities_beside_the_truth(tmp_path: Path) -> None:
    model = demo_bundles.heart(tmp_path / "kmtr", kmtr=True)
    run = tmp_path / "run"
    _, info = demo(run, "--case", "heart", "--preset", "cine-kmtr", "--model", str(model), "--acceleration", "3")
    truth = json.loads((run / "scan.truth.json").read_text())
    assert [row.from_network for row in info.phenotypes] == list(info.findings["phenotypes"].values())
    assert [row.truth for row in info.phenotypes] == pytest.approx(list(truth["phenotypes"].values()))
    assert {chance.name: chance.truth for chance in info.probabilities} == {
        name.replace("_", " "): ill for name, ill in truth["diseases"].items()
    }
    assert "no error bars" in info.phenotypes_note
    html = (run / "report.html").read_text()
    assert "Class probabilities" in html
    assert "From the network" in html


def test_a_head_comes_back_in_colours_slice_by_slice(tmp_path: Path) -> None:
    run = tmp_path / "run"
    line, info = demo(run, "--case", "brain", "--model", str(demo_bundles.brain(tmp_path / "head")))
    assert re.search(
        r"frames 3, images sent 6, dropped 0, last line of a slice to its labels \d+ ms, longest \d+ ms", line
    )
    assert re.search(r"Dice 0\.\d+ \(csf .*, grey matter .*, white matter ", line)
    assert len(info.label_latencies_ms) == 3
    assert info.model is not None
    assert info.model.sha256 == Bundle.load(tmp_path / "head").info.sha256
    assert re.fullmatch("torch-cpu, (fp32|bf16)", info.model.engine)  # engine and precision
    assert n_pictures(run / "volume.gif") == 3
    assert len(list(run.glob("overlay_z*.png"))) == 3
    labels, truth = read_nifti(run / "labels.nii.gz")[0], read_nifti(run / "scan.truth.nii.gz")[0]
    for index, score in enumerate(info.classes, start=1):
        both = int(((labels == index) & (truth == index)).sum())
        assert score.dice == pytest.approx(2 * both / int((labels == index).sum() + (truth == index).sum()))
    assert "From the last line of a slice to its labels" in (run / "report.html").read_text()


def test_the_worker_of_a_server_gives_the_labels_of_the_training_loop_also_early(tmp_path: Path) -> None:
    model = demo_bundles.brain(tmp_path / "head")
    protocol = BrainProtocol(
        matrix=(40, 48), n_slices=3, voxel_mm=(4.5, 4.5, 12.0), n_centre=8, concatenations=3, readout_oversampling=1
    )
    exam = simulate_brain_exam(protocol, 5)
    save_brain_exam(exam, tmp_path / "scan.h5")
    log = tmp_path / "server.log"
    with own_server(log, "--warm-up", "brain-seranet", "--set", f"segment.model={model}") as (port, _):
        assert wait_for_worker(log)
        result = replay(tmp_path / "scan.h5", port=port, preset="brain-seranet", parameters={"frames.early": [9]})
    assert not result.errors
    network = Bundle.load(model).build()
    acquired = [a.counter("kspace_encode_step_1") for a in exam.acquisitions if a.counter("slice") == 0][
        -protocol.n_lines :
    ]
    first = np.isin(np.arange(48), acquired[:9])
    for series, lines in ((2, exam.lines), (4, first)):
        head = HeadExam(5, exam.samples[:, 0], exam.truth_labels, exam.head.white)
        rng = np.random.default_rng(0)
        slices = [Slice(*head.measured(z, lines, 0.0, rng), head.labels[z]) for z in range(3)]
        with torch.inference_mode():
            expected = predict(network, slices)
        assert len(np.unique(expected)) > 1
        images = {int(image.header["slice"]): image for image in result.images[series]}
        assert sorted(images) == [0, 1, 2]
        for z, image in images.items():
            assert (image.data[0, 0] == expected[z]).mean() > 0.998
            assert image.meta.get("kstream_lines") == (None if series == 2 else f"9 of {protocol.n_lines}")
