"""Images under the labels of a cine scan: from its own lines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from kstream.cli.underlay import cine_underlay, shared_lines
from kstream.simulate.heart.dataset import cine_subject
from kstream.simulate.heart.exam import save_cine_exam, simulate_cine_exam
from kstream.simulate.heart.protocol import CineProtocol
from tests.hearts import SMALL


def scanned(protocol: CineProtocol, folder: Path) -> Path:
    save_cine_exam(simulate_cine_exam(protocol, 3), folder / "scan.h5")
    return folder / "scan.h5"


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.reshape(-1), other.reshape(-1))[0, 1])


def test_a_full_scan_gives_the_image_of_the_object(tmp_path: Path) -> None:
    protocol = replace(SMALL, acceleration=1.0)
    under = cine_underlay(scanned(protocol, tmp_path))
    truth = np.abs(cine_subject(protocol, 3).images)
    assert likeness(under.measured, truth) > 0.999
    np.testing.assert_array_equal(under.measured, under.shared)


def test_lines_of_other_frames_make_an_undersampled_image_better(tmp_path: Path) -> None:
    under = cine_underlay(scanned(SMALL, tmp_path))
    truth = np.abs(cine_subject(SMALL, 3).images)
    assert under.shared.shape == truth.shape
    assert likeness(under.measured, truth) + 0.2 < likeness(under.shared, truth)


def test_spokes_have_an_image_too(tmp_path: Path) -> None:
    protocol = replace(SMALL, trajectory="radial", order="frames")
    under = cine_underlay(scanned(protocol, tmp_path))
    assert likeness(under.measured, np.abs(cine_subject(protocol, 3).images)) > 0.6


def test_each_line_comes_from_the_nearest_frame_of_the_closed_heartbeat() -> None:
    kspace = np.zeros((5, 7, 3), np.complex64)
    kspace[0, 2], kspace[3, 2], kspace[1, 4] = 1, 4, 2
    filled = shared_lines(kspace)
    assert filled[:, 2, 0].real.tolist() == [1, 1, 4, 4, 1]  # frame 4 is as near to 0 as to 3
    assert filled[:, 4, 0].real.tolist() == [2] * 5
    assert not filled[:, [0, 1, 3, 5, 6]].any()
