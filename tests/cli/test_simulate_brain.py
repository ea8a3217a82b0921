"""``kstream simulate --case brain``: what it makes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from kstream.cli import app
from kstream.mrd.recording import Recording
from kstream.output.nifti import write_nifti
from kstream.types import Geometry

TINY = ("--case", "brain", "--matrix", "30", "--slices", "2", "--quiet")


def kstream(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_a_brain_scan_lies_beside_its_truth(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    options = ("--lines", "0.5", "--centre-lines", "8", "--noise", "0.2", "--concatenations", "2", "--json")
    done = kstream("simulate", str(path), *TINY, *options)
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert made["truth"]["protocol"]["noise"] == 0.2
    assert made["truth"]["protocol"]["matrix"] == [25, 30]
    assert len(made["truth"]["lines"]) == 15
    assert Path(made["truth_labels"]).is_file()
    with Recording(path) as source:
        assert source.n_acquisitions == made["acquisitions"] == 16 + 2 * 15
        assert source.scan.protocol_name == "brain_spin_echo"


def test_a_phantom_file_is_scanned_instead(tmp_path: Path) -> None:
    tissues = np.full((20, 30, 20), 3, np.uint8)
    write_nifti(tmp_path / "head.nii.gz", tissues, Geometry((20, 30, 20), (200.0, 300.0, 200.0)))
    done = kstream("simulate", str(tmp_path / "scan.h5"), *TINY, "--brainweb", str(tmp_path / "head.nii.gz"), "--json")
    voxels = json.loads(done.stdout)["truth"]["voxels"]
    assert voxels["white_matter"] > 0
    assert voxels["grey_matter"] == voxels["csf"] == 0


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--case", "brain", "--spokes", "5"), "--spokes"),
        (("--case", "brain", "--lesions", "1", "--frame-starts", "0,1"), "--frame-starts, --lesions"),
        (("--case", "breast", "--noise", "0.1"), "--noise"),
        (("--case", "knee"), "knee"),
        (("--case", "brain", "--concatenations", "99"), "concatenations"),
        (("--case", "brain", "--brainweb", "nowhere.rawb"), "cannot read a BrainWeb phantom"),
    ],
)
def test_what_a_case_does_not_have_is_refused(options: tuple[str, ...], word: str, tmp_path: Path) -> None:
    done = kstream("simulate", str(tmp_path / "scan.h5"), "--quiet", *options)
    assert done.exit_code != 0
    assert word in f"{done.output} {done.exception}"
    assert list(tmp_path.iterdir()) == []
