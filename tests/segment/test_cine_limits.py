"""Limits of the cine stages: memory that a client can claim, and scans that a network was not built for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kstream.config import CineConfig
from kstream.engines.array_engine import load_array_engine
from kstream.errors import ConfigError, ScanError, ShapeError
from kstream.models.bundle import Bundle
from kstream.segment import cine, points
from kstream.segment.cine import CineModel, CinePlan
from kstream.segment.lines import AnalyseLines, line_place
from kstream.segment.points import SegmentPoints, label_frames
from kstream.types import EncodingLimit, Findings, FrameEnd, Geometry, LabelMap, Notice, Readout, Scan
from tests.hearts import disk_bundle, kmtr_bundle

GEOMETRY = Geometry(
    (24, 24, 1), (240.0, 240.0, 8.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
)
PLAN = CinePlan(5, 3, (24, 24), ("4ch", "sax0", "sax1"), 60.0)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> CineModel:
    made = disk_bundle(tmp_path_factory.mktemp("disk") / "disk-test")
    return CineModel.of(made.info, load_array_engine(made))


@pytest.fixture(scope="module")
def kmtr_made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return kmtr_bundle(tmp_path_factory.mktemp("kmtr") / "kmtr-test")


@pytest.fixture(scope="module")
def kmtr(kmtr_made: Bundle) -> CineModel:
    return CineModel.of(kmtr_made.info, load_array_engine(kmtr_made))


def config(update: str = "slice") -> CineConfig:
    return CineConfig(update=update)  # type: ignore[call-arg]


def line(nx: int = 24, ky: int = 12) -> Readout:
    trajectory = np.zeros((nx, 3), np.float32)
    trajectory[:, 1] = ky - 12
    trajectory[:, 0] = np.arange(nx) - nx // 2
    data = np.ones((1, nx), np.complex64)
    return Readout(data, trajectory, frame=0, slice=0, partition=0, key=(0, 0), received_ns=0)


def scan(n_phases: int, n_slices: int = 1) -> Scan:
    limits = {"phase": EncodingLimit(0, n_phases - 1, 0), "slice": EncodingLimit(0, n_slices - 1, 0)}
    sizes = (128, 128, 1), (128, 128, 1), (300.0, 300.0, 8.0), (300.0, 300.0, 8.0)
    return Scan(*sizes, "cartesian", limits)


def test_a_volume_is_no_cine_scan() -> None:
    volume = replace(scan(5), recon_matrix=(128, 128, 6))
    with pytest.raises(ScanError, match="a volume of 6 partitions"):
        CinePlan.of(volume, config(), 5)


class Counting:
    """An engine that notes how many pixels it was asked for at once."""

    def __init__(self, model: CineModel) -> None:
        self._engine, self.asked = model.engine, list[int]()

    def describe(self) -> dict[str, str]:
        return self._engine.describe()

    def run_arrays(self, inputs: Sequence[NDArray[np.float32]]) -> tuple[NDArray[np.float32], ...]:
        self.asked.append(inputs[2].shape[1])
        return self._engine.run_arrays(inputs)


def test_labels_are_asked_for_in_groups_and_stay_the_same(disk: CineModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    samples = rng.random((31, 3), np.float32), rng.standard_normal((31, 2)).astype(np.float32)
    plan = CinePlan(7, 1, (9, 11), (), 0.0)
    at_once = label_frames(disk, *samples, np.arange(7), plan)
    engine = Counting(disk)
    monkeypatch.setattr(points, "MAX_QUERIES", 100)
    in_groups = label_frames(replace(disk, engine=engine), *samples, np.arange(7), plan)
    assert max(engine.asked) == 100
    assert sum(engine.asked) == 7 * 9 * 11
    np.testing.assert_array_equal(in_groups, at_once)
    assert len(np.unique(at_once)) > 1


@pytest.mark.parametrize(("n_frames", "n_slices"), [(1025, 1), (1000, 9)])
def test_headers_that_promise_too_many_pixels_are_refused(n_frames: int, n_slices: int) -> None:
    with pytest.raises(ScanError, match="too many to label") as raised:
        CinePlan.of(scan(n_frames, n_slices), config(), n_frames)
    assert raised.value.hint
    assert CinePlan.of(scan(1024), config(), 1024).n_frames == 1024


def test_samples_that_are_kept_are_bounded(disk: CineModel, kmtr: CineModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cine, "MAX_KEPT_BYTES", 3 * 24 * 20)
    for stage, n_fit in ((SegmentPoints(disk, PLAN, config()), 3), (AnalyseLines(kmtr, PLAN, config()), 7)):
        for ky in range(n_fit):
            stage.push(line(ky=ky))
        with pytest.raises(ScanError, match="samples of this scan take more than"):
            stage.push(line(ky=n_fit))


def test_a_line_that_is_measured_again_is_averaged_and_takes_no_room(
    kmtr: CineModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cine, "MAX_KEPT_BYTES", 2 * 24 * 8)
    rng = np.random.default_rng(4)
    first, second, third = (rng.standard_normal((3, 24, 2)) @ [1, 1j]).astype(np.complex64)
    again, once = (AnalyseLines(kmtr, PLAN, config()) for _ in range(2))
    for ky, samples in ((3, first), (5, second), (3, third)):
        again.push(replace(line(ky=ky), data=samples[None], geometry=GEOMETRY))
    for ky, samples in ((3, (first + third) / 2), (5, second)):
        once.push(replace(line(ky=ky), data=samples[None], geometry=GEOMETRY))
    found, expected = labels_of(again.finish()), labels_of(once.finish())
    assert len(found) == PLAN.n_frames
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)


def labels_of(items: Sequence[object]) -> list[LabelMap]:
    return [item for item in items if isinstance(item, LabelMap)]


def given(stage: SegmentPoints | AnalyseLines, loudness: dict[int, float]) -> list[object]:
    """What a stage makes of a line in every frame of some slices, with frame ends; of loudness 0 it has no signal."""
    made: list[object] = []
    for number, factor in loudness.items():
        for frame in range(PLAN.n_frames):
            samples = np.random.default_rng(frame).standard_normal((1, 24, 2)) @ [factor, 1j * factor]
            made += stage.push(replace(line(), data=samples.astype(np.complex64), frame=frame, slice=number))
            made += stage.push(FrameEnd(frame, number, 1, 1, 0, GEOMETRY))
    return [*made, *stage.finish()]


@pytest.mark.parametrize("loudness", [{0: 1.0, 1: 1.0, 2: 0.0}, {0: 0.0, 1: 1.0, 2: 1.0}, {0: 1.0, 2: 1.0}])
def test_what_was_not_measured_is_not_told(disk: CineModel, kmtr: CineModel, loudness: dict[int, float]) -> None:
    """A slice of zeros has no labels, and that is an error; numbers of the whole heart need every slice."""
    for stage in (SegmentPoints(disk, PLAN, config("frame")), AnalyseLines(kmtr, PLAN, config("frame"))):
        made = given(stage, loudness)
        loud = {number for number, factor in loudness.items() if factor}
        assert {m.slice for m in labels_of(made)} == loud
        errors = [item.text for item in made if isinstance(item, Notice) and item.level == "error"]
        silent = sorted(loudness.keys() - loud)
        assert errors == [f"slice {n} has no signal in any of its readouts: there are no labels of it" for n in silent]
        (found,) = (item.values for item in made if isinstance(item, Findings))
        assert (found["frames_measured"], found["frames_planned"]) == (2 * PLAN.n_frames, 3 * PLAN.n_frames)
        told = [found[name] for name in ("phenotypes_from_labels", "phenotypes", "probabilities") if name in found]
        assert len(told) == (1 if isinstance(stage, SegmentPoints) else 3)
        numbers = {name: value for values in told[1:] for name, value in values.items()}
        assert set(numbers.values()) <= {None}
        assert found["phenotypes_from_labels"]["LVEDV_mL" if 0 in loud else "RAVmax_mL"] is None
        warnings = [item.text for item in made if isinstance(item, Notice) and item.level == "warning"]
        assert warnings == [
            "2 of 3 slices have come with a signal: phenotypes and probabilities of the network need all, "
            "and are not told"
        ] * isinstance(stage, AnalyseLines)


def test_a_scan_of_zeros_has_errors_and_nothing_else(disk: CineModel, kmtr: CineModel) -> None:
    for stage in (SegmentPoints(disk, PLAN, config("frame")), AnalyseLines(kmtr, PLAN, config("frame"))):
        made = [item for item in given(stage, {0: 0.0, 1: 0.0, 2: 0.0}) if not isinstance(item, FrameEnd)]
        assert [item.level for item in made if isinstance(item, Notice)] == ["error"] * 3
        assert len(made) == 3


def test_whole_hearts_are_told(disk: CineModel, kmtr: CineModel) -> None:
    for stage in (SegmentPoints(disk, PLAN, config()), AnalyseLines(kmtr, PLAN, config())):
        made = given(stage, {0: 1.0, 1: 1.0, 2: 1.0})
        assert not any(isinstance(item, Notice) for item in made)
        (found,) = (item.values for item in made if isinstance(item, Findings))
        assert found["frames_measured"] == found["frames_planned"] == 3 * PLAN.n_frames
        if isinstance(stage, AnalyseLines):
            assert None not in {*found["phenotypes"].values(), *found["probabilities"].values()}
        assert found["phenotypes_from_labels"]["LVEDV_mL"] is not None
        assert found["phenotypes_from_labels"]["RAVmax_mL"] is not None


def test_a_slice_of_zeros_does_not_change_the_others(kmtr: CineModel) -> None:
    with_zeros = labels_of(given(AnalyseLines(kmtr, PLAN, config()), {0: 1.0, 1: 0.0, 2: 1.0}))
    without = labels_of(given(AnalyseLines(kmtr, PLAN, config()), {0: 1.0, 2: 1.0}))
    for one, other in zip(with_zeros, without, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_frames": 6}, "n_frames is 6, expected 5"),
        ({"n_slices": 4, "views": ()}, "n_slices is 4, expected 3"),
        ({"plane": (24, 26)}, "plane is"),
        ({"views": ("4ch", "2ch", "sax0")}, "views is long long sax, expected long sax sax"),
    ],
)
def test_kmtr_refuses_another_scan_before_kspace_comes(
    kmtr: CineModel, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        AnalyseLines(kmtr, replace(PLAN, **change), config())  # type: ignore[arg-type]


def test_a_network_without_labels_is_refused(kmtr_made: Bundle) -> None:
    info = kmtr_made.info
    with pytest.raises(ConfigError, match="no segmentation"):
        CineModel.of(replace(info, outputs=info.outputs[1:]), load_array_engine(kmtr_made))


def test_lines_that_are_too_short_or_run_backwards_are_refused() -> None:
    with pytest.raises(ShapeError, match="20 samples, and the model takes 24"):
        line_place(line(20).trajectory, 0, 0, (24, 24))
    with pytest.raises(ScanError, match="grid along x"):
        line_place(line().trajectory[::-1], 0, 0, (24, 24))
    assert line_place(line().trajectory, 1, 2, (24, 24)) == (2, 1, 12)


def test_latents_with_places_refuse_another_matrix(tmp_path: Path) -> None:
    made = disk_bundle(tmp_path / "disk-test", located=(2, 3, 4))
    model = CineModel.of(made.info, load_array_engine(made))
    SegmentPoints(model, PLAN, config())
    with pytest.raises(ConfigError, match=r"disk-test does not fit the scan: plane is \(24, 26\), expected \(24, 24\)"):
        SegmentPoints(model, replace(PLAN, plane=(24, 26)), config())
