"""What the live page keeps: bounded, exact where somebody asks, and never held up by a page that reads slowly."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kstream.errors import ProtocolError
from kstream.serve import board as module
from kstream.serve.board import Board, Viewer, window_of
from kstream.serve.worker_wire import array_fields
from kstream.stream.telemetry import Durations

SHAPE = (5, 7, 11)


def tell(board: Board, kind: str, array: NDArray[Any] | None = None, **fields: Any) -> None:
    """An event as it comes from the tap."""
    more = {} if array is None else array_fields(array)
    payload = memoryview(b"" if array is None else array.tobytes())
    board.take({"kstream": 1, "kind": kind, "id": 1, **fields, **more}, payload)


def tell_session(board: Board, name: str = "1", **fields: Any) -> None:
    tell(board, "session", session=name, at_s=1.0, state="measuring", **fields)


def volume(seed: int, shape: tuple[int, ...] = SHAPE) -> NDArray[np.complex64]:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def tell_image(board: Board, frame: int, array: NDArray[Any], name: str = "1", slice_: int = 0) -> None:
    geometry = {"voxel_size_mm": [2.0, 3.0, 5.0], "affine_lps": np.eye(4).tolist()}
    tell(board, "image", array, session=name, frame=frame, slice=slice_, **geometry)


def tell_labels(board: Board, frame: int, array: NDArray[Any], name: str = "1") -> None:
    fields: dict[str, Any] = {"voxel_size_mm": [2.0, 3.0, 5.0], "affine_lps": np.eye(4).tolist()}
    fields |= {"table": [["background", 0, 0, 0], ["lesion", 255, 0, 0]], "provenance": {"model": "toy"}}
    tell(board, "labels", array, session=name, frame=frame, slice=0, **fields)


def read(viewer: Viewer) -> list[tuple[str, dict[str, Any]]]:
    """What a page reads next: names and data of events."""
    text = asyncio.run(viewer.next(5))
    found = []
    for part in text.split("\n\n")[:-1]:
        name, data = part.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_planes_are_those_of_the_volume() -> None:
    board, sent = Board(), volume(1)
    tell_session(board)
    tell_image(board, 2, sent)
    found = board.plane("1", 2, 3, "image")
    assert found is not None
    np.testing.assert_array_equal(found, sent[3])
    assert board.plane("1", 2, 5, "image") is None
    assert board.plane("1", 1, 3, "image") is None
    assert board.plane("2", 2, 3, "image") is None
    assert board.plane("1", 2, 3, "labels") is None
    assert board.plane("1", 2, -1, "image") is None


def test_planes_run_through_slices_and_then_z() -> None:
    board = Board()
    tell_session(board, plan={"first_slice": 4, "n_slices": 3})
    slices = {number: volume(number, (2, 7, 11)) for number in (4, 5, 6)}
    for number in (6, 4, 5):  # interleaved scans end them in another order
        tell_image(board, 0, slices[number], slice_=number)
    for place, (number, z) in enumerate((n, z) for n in (4, 5, 6) for z in (0, 1)):
        found = board.plane("1", 0, place, "image")
        assert found is not None
        np.testing.assert_array_equal(found, slices[number][z])


def test_a_slice_that_has_not_come_does_not_move_the_others() -> None:
    board = Board()
    tell_session(board, plan={"first_slice": 0, "n_slices": 3})
    tell_image(board, 0, volume(2, (1, 7, 11)), slice_=2)
    assert board.plane("1", 0, 0, "image") is None
    assert board.plane("1", 0, 2, "image") is not None


def test_the_curve_is_the_magnitude_of_one_voxel_in_every_frame() -> None:
    board = Board()
    tell_session(board)
    sent = [volume(frame) for frame in range(3)]
    for frame in (0, 2, 1):
        tell_image(board, frame, sent[frame])
    curve = board.curve("1", plane=3, y=6, x=10)
    assert curve["frames"] == [0, 1, 2]
    np.testing.assert_allclose(curve["values"], [abs(v[3, 6, 10]) for v in sent], rtol=1e-6)
    nothing = {"frames": [], "values": [], "has_first": False}
    assert board.curve("1", plane=3, y=7, x=10) == nothing
    assert board.curve("no such session", 0, 0, 0) == nothing


def test_the_curve_says_when_it_does_not_begin_with_the_first_frame() -> None:
    board = Board(volume_bytes=2 * volume(0).nbytes)
    tell_session(board)
    for frame in (0, 1):
        tell_image(board, frame, volume(frame))
    assert board.curve("1", 0, 0, 0)["has_first"]
    tell_image(board, 2, volume(2))
    assert not board.curve("1", 0, 0, 0)["has_first"]


def test_every_volume_has_a_revision_of_its_own_and_evictions_are_told() -> None:
    board = Board(volume_bytes=3 * volume(0).nbytes)
    tell_session(board, plan={"first_slice": 0, "n_slices": 2})
    viewer = board.enter()
    read(viewer)
    tell_image(board, 0, volume(0), slice_=0)
    tell_image(board, 0, volume(1), slice_=1)
    tell_labels(board, 0, np.ones(SHAPE, np.uint8))
    tell_labels(board, 0, np.zeros(SHAPE, np.uint8))
    told = [data["revisions"] for name, data in read(viewer) if name == "frame"]
    assert told[:2] == [{"image": {"0": 1}, "labels": {}}, {"image": {"0": 1, "1": 2}, "labels": {}}]
    assert [revisions["labels"] for revisions in told[2:]] == [{"0": 3}, {"0": 4}]
    tell_image(board, 1, volume(2))
    tell_image(board, 2, volume(3))
    last = {data["frame"]: data for name, data in read(viewer) if name == "frame"}
    assert last[0]["revisions"] == {"image": {}, "labels": {"0": 4}}
    assert (last[0]["has_image"], last[0]["has_labels"]) == (False, True)


def test_the_mark_points_at_lesions_where_there_are_any_and_in_the_slice_that_has_most() -> None:
    board = Board()
    tell_session(board, plan={"first_slice": 0, "n_slices": 2})
    labels = np.zeros((3, 1, *SHAPE[1:]), np.uint8)
    labels[1, 0, 1:6] = 1  # no lesion
    labels[1, 0, 3, 4] = 2
    labels[0, 0, 2, 2:5] = 2
    fields: dict[str, Any] = {"voxel_size_mm": None, "affine_lps": None, "provenance": {}, "session": "1", "frame": 0}
    table = [["background", 0, 0, 0], ["breast", 0, 255, 0], ["left lesion", 255, 0, 0]]
    for slice_ in (0, 1):
        tell(board, "labels", labels[slice_], table=table, slice=slice_, **fields)
    [frame] = board.everything()["sessions"][0]["frames"]
    assert frame["mark"] == {"plane": 0, "y": 2, "x": 3}
    assert "volumes_ml" not in frame  # of voxels without a size


def test_a_number_that_json_does_not_know_costs_its_event_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    board = Board()
    viewer = board.enter()
    read(viewer)
    tell_session(board, scan={"field_strength_t": float("nan")})
    tell(board, "server", at_s=1.0)
    assert [name for name, _ in read(viewer)] == ["server"]
    assert "not finite" in caplog.text
    paths = np.float32([[[-7, 0], [np.nan, np.inf]]])
    tell(board, "spokes", paths, session="1", frames=[0], spokes=[4], levels=[])
    assert read(viewer)[0][1]["spokes"][0]["path"] == [-7, 0, 0, 0]


def test_volumes_are_bounded_and_the_first_go_first() -> None:
    size = volume(0).nbytes
    board = Board(volume_bytes=3 * size)
    tell_session(board)
    for frame in range(7):
        tell_image(board, frame, volume(frame))
        assert board.n_bytes <= 3 * size
    assert [frame for frame in range(7) if board.plane("1", frame, 0, "image") is not None] == [4, 5, 6]
    frames = {f["frame"]: f["has_image"] for f in board.everything()["sessions"][0]["frames"]}
    assert frames == {0: False, 1: False, 2: False, 3: False, 4: True, 5: True, 6: True}


def test_a_frame_that_comes_again_replaces_itself() -> None:
    board = Board()
    tell_session(board)
    tell_image(board, 0, volume(1))
    tell_image(board, 0, volume(2))
    assert board.n_bytes == volume(2).nbytes
    found = board.plane("1", 0, 0, "image")
    assert found is not None
    np.testing.assert_array_equal(found, volume(2)[0])


def test_labels_tell_their_volume_and_where_to_look() -> None:
    board = Board()
    tell_session(board)
    labels = np.zeros(SHAPE, np.uint8)
    labels[1, 0, 0] = 1
    labels[3, 2:5, 4:9] = 1
    tell_labels(board, 2, labels)
    [frame] = board.everything()["sessions"][0]["frames"]
    assert frame["volumes_ml"][1] == pytest.approx(16 * 2 * 3 * 5 / 1000)
    assert frame["mark"] == {"plane": 3, "y": 3, "x": 6}
    assert (frame["has_labels"], frame["provenance"]) == (True, {"model": "toy"})


def test_no_label_at_all_gives_no_place_to_look() -> None:
    board = Board()
    tell_session(board)
    tell_labels(board, 2, np.zeros(SHAPE, np.uint8))
    assert board.everything()["sessions"][0]["frames"][0]["mark"] is None


def test_a_new_page_is_told_everything_first_and_news_afterwards() -> None:
    board = Board()
    tell_session(board, preset="breast-dce")
    tell_image(board, 0, volume(0))
    tell(board, "line", time_s=1.0, level="WARNING", session="1", text="careful")
    viewer = board.enter()
    [(name, all_)] = read(viewer)
    assert name == "everything"
    assert all_["sessions"][0]["about"]["preset"] == "breast-dce"
    assert all_["sessions"][0]["about"]["warnings"] == ["careful"]
    assert [line["text"] for line in all_["lines"]] == ["careful"]
    tell(board, "server", at_s=2.0)
    tell_image(board, 1, volume(1))
    assert [name for name, _ in read(viewer)] == ["server", "frame"]


def test_a_page_that_reads_slowly_holds_little_and_is_told_everything_anew() -> None:
    board = Board()
    tell_session(board)
    viewer = board.enter()
    read(viewer)
    for number in range(20 * module.WAITING_EVENTS):
        tell(board, "server", at_s=float(number))
        assert len(viewer._waiting) <= module.WAITING_EVENTS
    assert [name for name, _ in read(viewer)] == ["everything"]
    tell(board, "server", at_s=-1.0)
    assert read(viewer) == [("server", {"at_s": -1.0})]


def test_a_slow_page_does_not_hold_up_another_one() -> None:
    board = Board()
    slow, quick = board.enter(), board.enter()
    read(slow), read(quick)
    for number in range(3 * module.WAITING_EVENTS):
        tell(board, "server", at_s=float(number))
        assert read(quick) == [("server", {"at_s": float(number)})]
    board.leave(slow)
    assert board.n_viewers == 1


def test_long_events_count_by_their_length() -> None:
    board = Board()
    viewer = board.enter()
    read(viewer)
    for _ in range(9):
        tell(board, "line", time_s=1.0, level="INFO", session="-", text="x" * (module.WAITING_CHARACTERS // 4))
    assert viewer._n_characters <= module.WAITING_CHARACTERS


def test_a_silent_board_gives_a_comment() -> None:
    board = Board()
    viewer = board.enter()
    read(viewer)
    assert asyncio.run(viewer.next(0.01)).startswith(":")


def test_old_sessions_go_with_their_volumes() -> None:
    board = Board()
    viewer = board.enter()
    read(viewer)
    for number in range(module.MAX_SESSIONS + 3):
        tell_session(board, str(number))
        tell_image(board, 0, volume(number), name=str(number))
    assert len(board.everything()["sessions"]) == module.MAX_SESSIONS
    assert [data["session"] for name, data in read(viewer) if name == "forgotten"] == ["0", "1", "2"]
    assert board.n_bytes == module.MAX_SESSIONS * volume(0).nbytes
    assert board.plane("2", 0, 0, "image") is None
    assert board.plane("3", 0, 0, "image") is not None


def test_spokes_keep_the_level_of_those_that_were_sampled() -> None:
    board = Board()
    tell_session(board)
    paths = np.float32([[[-7, 0], [7, 0]], [[0, -7], [0, 7]]])
    tell(board, "spokes", paths, session="1", frames=[0, 0], spokes=[4, 5], levels=[[0, 5, 30, [1, 2, 3]]])
    [first, second] = board.everything()["sessions"][0]["spokes"]
    assert first == {"frame": 0, "spoke": 4, "path": [-7.0, 0.0, 7.0, 0.0]}
    assert second == {"frame": 0, "spoke": 5, "path": [0.0, -7.0, 0.0, 7.0], "n_samples": 30, "level_db": [1, 2, 3]}
    tell(board, "spokes", paths[:1], session="1", frames=[1], spokes=[0], levels=[])
    assert [spoke["frame"] for spoke in board.everything()["sessions"][0]["spokes"]] == [1]  # the frame that comes


def test_history_holds_the_latency_of_each_interval() -> None:
    board = Board()
    durations = Durations()
    tell_session(board, latency={"counts": list(durations.counts)}, queued_bytes=7)
    for _ in range(50):
        durations.add(2_000_000)
    tell_session(board, latency={"counts": list(durations.counts)}, queued_bytes=8)
    for _ in range(50):
        durations.add(64_000_000)
    tell_session(board, latency={"counts": list(durations.counts)}, queued_bytes=9)
    history = board.everything()["sessions"][0]["history"]
    assert [point[1] for point in history] == [7, 8, 9]
    assert history[0][2:] == [None, None, None]
    assert [math.log2(history[i][2] / expected) for i, expected in ((1, 2), (2, 64))] == pytest.approx([0, 0], abs=0.3)


def test_what_the_tap_cannot_have_told_is_refused() -> None:
    board = Board()
    with pytest.raises(ProtocolError, match="tap told"):
        tell(board, "nonsense")
    with pytest.raises(ProtocolError):
        tell_image(board, 0, volume(0)[0])
    with pytest.raises(ProtocolError):
        tell_image(board, 0, volume(0).real.astype(np.float32))


def test_windows_are_percentiles_of_finite_magnitudes() -> None:
    data = np.arange(1000, dtype=np.float32).reshape(10, 10, 10).astype(np.complex64)
    data[0, 0, 0] = np.nan
    assert window_of(data) == pytest.approx((11, 996), abs=1)
    assert window_of(np.zeros(SHAPE, np.complex64)) == (0.0, 1.0)
    assert window_of(np.full(SHAPE, np.nan, np.complex64)) == (0.0, 1.0)
