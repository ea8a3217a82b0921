"""The side tap: what sessions leave for those who look on is bounded, newest first to stay, and never in the way."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from kstream.config import resolve
from kstream.pipeline import Measurement, build_pipeline
from kstream.readouts.framing import FrameReadouts
from kstream.serve import tap as module
from kstream.serve.logs import REDACTION
from kstream.serve.tap import Event, SessionTap, Tap, drawn, levels_db
from kstream.stream.telemetry import Durations
from kstream.types import Acquisition, FrameImage, Geometry, Readout
from tests.scans import StackOfStars

STARS = StackOfStars(nx=15, ny=15, nz=3, n_partitions=4, n_coils=3, spokes_per_frame=7, n_frames=3)
GEOMETRY = Geometry((11, 7, 5), (22.0, 14.0, 10.0))


@dataclass
class Queues:
    queued_bytes: int = 1234
    unsent_bytes: int = 56


@pytest.fixture
def tap() -> Iterator[Tap]:
    tap = Tap()
    yield tap
    tap.close()


def plain_pipeline() -> Measurement:
    """Without the delays, whose estimate would hold back the first spokes."""
    return build_pipeline(STARS.scan(), resolve("breast-dce-recon", settings=("trajectory.delay=off",)).config)


def begun(tap: Tap, name: str = "3") -> tuple[SessionTap, Measurement]:
    """A session whose pipeline is observed."""
    session = tap.enter(name, "MRD", "127.0.0.1 port 4711", Queues())
    measurement = plain_pipeline()
    session.header("breast-dce-recon", STARS.scan())
    session.begin("breast-dce-recon", STARS.scan(), measurement, Durations())
    return session, measurement


def acquisitions(seed: int = 0) -> list[Acquisition]:
    return STARS.acquisitions(np.random.default_rng(seed))


def everything(tap: Tap) -> list[Event]:
    """Gather until nothing is new but states."""
    events: list[Event] = []
    while True:
        news = [event for event in tap.gather() if event.kind not in ("server", "session")]
        events += news
        if not news:
            return events


def of(kind: str, events: list[Event]) -> list[Event]:
    return [event for event in events if event.kind == kind]


def test_a_scan_tells_spokes_frame_ends_and_volumes(tap: Tap) -> None:
    _, measurement = begun(tap)
    for acquisition in acquisitions():
        measurement.pipeline.push(acquisition)
    measurement.pipeline.finish()
    events = everything(tap)
    spokes = of("spokes", events)
    numbers = [number for event in spokes for number in event.fields["spokes"]]
    frames = [frame for event in spokes for frame in event.fields["frames"]]
    assert list(zip(frames, numbers, strict=True)) == [(frame, spoke) for frame in range(3) for spoke in range(7)]
    assert [event.fields["frame"] for event in of("frame_end", events)] == [0, 1, 2]
    assert {event.fields["n_readouts"] for event in of("frame_end", events)} == {7 * 4}
    images = of("image", events)
    assert [event.fields["frame"] for event in images] == [2, 1, 0]  # newest first
    assert all(e.array is not None and e.array.shape == (3, 15, 15) and e.array.dtype == np.complex64 for e in images)


def test_straight_spokes_are_told_as_their_two_ends(tap: Tap) -> None:
    _, measurement = begun(tap)
    for acquisition in acquisitions()[:8]:
        measurement.pipeline.push(acquisition)
    [event] = of("spokes", everything(tap))
    assert event.array is not None
    assert event.array.shape == (2, 2, 2)
    np.testing.assert_allclose(event.array[1], STARS.spoke(1)[[0, -1]], atol=1e-5)


def test_only_the_central_partition_is_sampled_and_its_level_is_that_of_all_coils(tap: Tap) -> None:
    session, measurement = begun(tap)
    sent = acquisitions()[:8]
    for acquisition in sent:
        measurement.pipeline.push(acquisition)
    partition = session.describe()["plan"]["partition"]
    assert partition == 1  # the header's centre
    levels = {(frame, spoke): level for frame, spoke, _, level in of("spokes", everything(tap))[0].fields["levels"]}
    whitened = sent[4 + partition].data  # of the second spoke; this scan has no noise readouts
    expected = 10 * np.log10((np.abs(whitened) ** 2).sum(axis=0))
    assert set(levels) == {(0, 0), (0, 1)}
    np.testing.assert_allclose(levels[0, 1], expected, atol=0.51)


def test_observing_changes_no_image(tap: Tap) -> None:
    _, watched = begun(tap)
    alone = plain_pipeline()
    made: list[list[Any]] = [[], []]
    for measurement, out in zip((watched, alone), made, strict=True):
        for acquisition in acquisitions():
            out += measurement.pipeline.push(acquisition)
        out += measurement.pipeline.finish()
    pixels = [[item.data.tobytes() for item in out if hasattr(item, "data")] for out in made]
    assert pixels[0] == pixels[1]
    assert pixels[0]


def test_what_nobody_fetches_stays_bounded_and_the_newest_stays(tap: Tap) -> None:
    session, _ = begun(tap)
    step = np.float32([[-7, 0, 0], [0, 0, 0], [7, 0, 0]])
    for spoke in range(10 * module.PATHS):
        data = np.ones((3, 3), np.complex64)
        session._see_readout(Readout(data, step, 0, 0, 1, (spoke, 1), 0))
        session.delivered("magnitude", spoke, 0, 1.0, 2.0)
    assert len(tap.paths) == module.PATHS
    assert len(session.newest) == module.SAMPLED
    events = everything(tap)
    told = [number for event in of("spokes", events) for number in event.fields["spokes"]]
    assert told == list(range(9 * module.PATHS, 10 * module.PATHS))
    assert [event.fields["frame"] for event in of("delivered", events)][-1] == 10 * module.PATHS - 1
    assert len(of("delivered", events)) == module.MOMENTS


def test_volumes_that_wait_are_bounded_in_bytes(tap: Tap, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = np.zeros((5, 7, 11), np.complex64)
    monkeypatch.setattr(tap._volumes, "_max_bytes", 3 * volume.nbytes)
    session, _ = begun(tap)
    for frame in range(8):
        session._see_image(FrameImage(volume, frame, 0, 0, GEOMETRY))
    session._see_image(FrameImage(np.zeros((5, 70, 110), np.complex64), 8, 0, 0, GEOMETRY))  # larger than all room
    assert [event.fields["frame"] for event in of("image", everything(tap))] == [7, 6, 5]  # newest first
    assert tap._volumes.n_lost == 6


def test_one_answer_holds_one_volume(tap: Tap) -> None:
    session, _ = begun(tap)
    for frame in range(3):
        session._see_image(FrameImage(np.zeros((5, 7, 11), np.complex64), frame, 0, 0, GEOMETRY))
    assert [len(of("image", list(tap.gather()))) for _ in range(4)] == [1, 1, 1, 0]


def a_frame(frame: int, geometry: Geometry = GEOMETRY) -> FrameImage:
    return FrameImage(np.zeros((5, 7, 11), np.complex64), frame, 0, 0, geometry)


def test_a_volume_that_waits_is_replaced_by_the_one_that_supersedes_it(tap: Tap) -> None:
    session, _ = begun(tap)
    for frame in (0, 1, 0):
        session._see_image(a_frame(frame))
    assert [event.fields["frame"] for event in of("image", everything(tap))] == [0, 1]


def test_the_end_of_a_session_waits_for_its_own_volumes_only(tap: Tap) -> None:
    first, second = begun(tap, "1")[0], begun(tap, "2")[0]
    for frame in range(2):
        first._see_image(a_frame(frame))
    first.ended("completed")
    second.ended("completed")
    rounds = [[e.fields["session"] for e in of("session", list(tap.gather()))] for _ in range(3)]
    assert rounds == [["2"], ["1"], []]


def test_spokes_that_nobody_fetched_in_time_are_counted(tap: Tap) -> None:
    session, _ = begun(tap)
    for spoke in range(module.PATHS + 3):
        session._see_readout(Readout(np.ones((3, 3), np.complex64), STARS.spoke(0)[:3], 0, 0, 1, (spoke, 1), 0))
    [server] = of("server", list(tap.gather()))
    assert server.fields["n_lost_paths"] == 3


def test_numbers_that_json_does_not_know_are_told_as_nothing(tap: Tap) -> None:
    session, _ = begun(tap)
    session.header("breast-dce-recon", replace(STARS.scan(), field_strength_t=float("inf")))
    session._see_image(a_frame(0, replace(GEOMETRY, position_mm=(float("nan"), 0.0, 0.0))))
    for event in tap.gather():
        json.dumps(event.fields, allow_nan=False)
        if event.kind == "image":
            assert event.fields["affine_lps"] is None
            assert event.fields["voxel_size_mm"] == [2.0, 2.0, 2.0]


def test_state_names_counters_queues_and_stages(tap: Tap) -> None:
    _, measurement = begun(tap)
    for acquisition in acquisitions()[:5]:
        measurement.pipeline.push(acquisition)
    [state] = of("session", list(tap.gather()))
    assert state.fields["counters"]["received"] == 5
    assert (state.fields["queued_bytes"], state.fields["unsent_bytes"]) == (1234, 56)
    assert state.fields["client"] == "127.0.0.1 port 4711"
    assert [row[0] for row in state.fields["stages"]] == [type(stage).__name__ for stage in measurement.pipeline.stages]
    assert {row[0]: row[1] for row in state.fields["stages"]}["RouteReadouts"] == 5


def test_an_ended_session_is_told_once_and_holds_nothing(tap: Tap) -> None:
    session, measurement = begun(tap)
    for acquisition in acquisitions()[:5]:
        measurement.pipeline.push(acquisition)
    session.ended("completed")
    told = of("session", list(tap.gather()))
    assert [(e.fields["state"], e.fields["outcome"], e.fields["counters"]["received"]) for e in told] == [
        ("ended", "completed", 5)
    ]
    assert session._measurement is None
    assert not session.newest
    assert not of("session", list(tap.gather()))


def test_probes_are_not_told(tap: Tap) -> None:
    session = tap.enter("9", "MRD", "127.0.0.1 port 4711", Queues())
    session.ended("probe")
    assert not of("session", list(tap.gather()))


def test_a_closed_tap_keeps_nothing(tap: Tap) -> None:
    session, measurement = begun(tap)
    tap.close()
    for acquisition in acquisitions():
        measurement.pipeline.push(acquisition)
    session.delivered("magnitude", 0, 0, 1.0, 2.0)
    session.ended("completed")
    assert not everything(tap)
    assert not tap.paths
    assert not list(tap._sessions)


def test_log_lines_are_told_as_they_are_written_without_names(tap: Tap) -> None:
    tap.listen_to_logs()
    words = frozenset({"Mustermann"})
    REDACTION.add(words)
    try:
        logging.getLogger("kstream.serve").error("scan of Mustermann, %d readouts", 7, extra={"session": 3})
    finally:
        REDACTION.remove(words)
    [line] = of("line", everything(tap))
    assert line.fields["text"] == "scan of [redacted], 7 readouts"
    assert (line.fields["level"], line.fields["session"]) == ("ERROR", "3")


def test_gathering_beside_a_running_scan_loses_no_session(tap: Tap) -> None:
    """Two threads at once: one streams and ends sessions, one gathers."""
    ended: list[str] = []
    is_over = threading.Event()

    def gather() -> None:
        while True:
            was_over = is_over.is_set()
            ended.extend(
                e.fields["session"] for e in tap.gather() if e.kind == "session" and e.fields["state"] == "ended"
            )
            if was_over:
                return

    gatherer = threading.Thread(target=gather)
    gatherer.start()
    for number in range(20):
        session, measurement = begun(tap, str(number))
        for acquisition in acquisitions()[:20]:
            measurement.pipeline.push(acquisition)
        session.ended("completed")
    is_over.set()
    gatherer.join(30)
    assert ended == [str(number) for number in range(20)]


def test_a_readout_costs_microseconds(tap: Tap) -> None:
    """Generous, for other work disturbs it: the measured figure is in docs/live-page.md."""
    session, _ = begun(tap)
    trajectory = STARS.spoke(0)
    readouts = [Readout(np.ones((3, 30), np.complex64), trajectory, 0, 0, p, (0, p), 0) for p in range(4)]
    spans = []
    for _ in range(50):
        begin = time.perf_counter()
        for readout in readouts * 25:
            session._see_readout(readout)
        spans.append((time.perf_counter() - begin) / 100)
    assert min(spans) < 20e-6


def test_curved_paths_stay_curves_and_straight_ones_become_their_ends() -> None:
    turn = np.linspace(0, 4 * np.pi, 101, dtype=np.float32)
    spiral = np.stack([turn * np.cos(turn), turn * np.sin(turn)], axis=1)
    assert drawn(spiral) is spiral
    line = np.linspace([-7, 3], [7, -3], 101, dtype=np.float32)
    np.testing.assert_array_equal(drawn(line), line[[0, -1]])


def test_levels_are_means_over_equal_parts_and_bear_odd_samples() -> None:
    data = np.zeros((2, 300), np.complex64)
    data[:, 150:] = 10
    levels = levels_db(data)
    assert len(levels) == module.POINTS
    assert levels[0] == -120
    assert levels[-1] == round(10 * np.log10(200))
    assert levels_db(np.full((1, 1), np.nan, np.complex64)) == [-120]
    assert levels_db(np.zeros((2, 0), np.complex64)) == []


def test_the_first_stage_that_gives_a_type_is_the_one_that_is_observed() -> None:
    seen: list[Any] = []
    measurement = plain_pipeline()
    measurement.pipeline.observe(Readout, seen.append)
    for acquisition in acquisitions():
        measurement.pipeline.push(acquisition)
    assert len(seen) == 3 * 7 * 4
    assert any(isinstance(stage, FrameReadouts) for stage in measurement.pipeline.stages)
