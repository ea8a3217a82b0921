"""Model workers as real processes: what kills, stops or spoils one costs at most the frame that it held."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from kstream.config import SegmentConfig
from kstream.errors import ConfigError, KstreamError, ModelError, ScanError
from kstream.segment import Segment
from kstream.serve.worker import EXIT_REPLACE, make_keys
from kstream.serve.worker_link import Keys
from kstream.serve.workers import MAX_PAUSE_S, ModelWorkers, WorkerSettings, pause_s
from kstream.types import Difference, Geometry, LabelMap, Notice
from tests.serve import odd_worker as odd
from tests.serve.lying_worker import LIES
from tests.serve.odd_worker import Ask
from tests.serve.test_store import bundle

ODD = (sys.executable, "-X", "faulthandler", odd.__file__)
LIAR = (sys.executable, str(Path(odd.__file__).with_name("lying_worker.py")))
SHAPE = (5, 7, 11)
GEOMETRY = Geometry((11, 7, 5), (22.0, 14.0, 10.0))
START_S = 30.0
TOY = b'{"kstream": 1, "kind": "segment", "id": 1, "model": "toy"'


def difference(request: int = Ask.THRESHOLD, seconds: float = 0.0) -> Difference:
    """A volume with its bright voxels, and in its first voxel what the odd worker shall do."""
    data = np.zeros(SHAPE, np.complex64)
    data[2, 3, 4:9] = 200
    data[0, 0, 0] = request + 1j * seconds
    return Difference(data, 1.0, 2, 0, 0, 77, GEOMETRY)


def is_clean(made: list[Any]) -> bool:
    """The frame came back with the labels that the volume has."""
    [label_map] = made
    return (
        isinstance(label_map, LabelMap)
        and label_map.labels.dtype == np.uint8
        and np.array_equal(label_map.labels, difference().data.real > 100)
    )


def stage(workers: ModelWorkers, model: str = "toy", on_failure: Any = "stop") -> Segment:
    made = workers.segment_stage(SegmentConfig(model=model, frames=(), on_failure=on_failure))
    assert made is not None
    return made


def pid_of(workers: ModelWorkers, number: int = 0) -> int:
    return int(workers.describe()["workers"][number]["pid"])


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.01)
    return True


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


Pool = Callable[..., ModelWorkers]


@pytest.fixture
def pool() -> Iterator[Pool]:
    """Makes started pools; afterwards nothing of them is left."""
    made: list[ModelWorkers] = []

    def start(**settings: Any) -> ModelWorkers:
        given = {"n_processes": 1, "command": ODD, "start_s": START_S, "wait_s": START_S, "memory_gib": 0, **settings}
        workers = ModelWorkers(WorkerSettings(**given))
        made.append(workers)
        workers.start()
        return workers

    yield start
    for workers in made:
        pids = [w["pid"] for w in workers.describe()["workers"] if w["pid"]]
        folders = {Path(w["address"][6:]).parent for w in workers.describe()["workers"] if w["pid"]}
        workers.stop()
        assert all(is_gone(pid) for pid in pids)
        assert not any(folder.exists() for folder in folders)
    assert not [t for t in threading.enumerate() if t.name.startswith("kstream-worker")]


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Callable[..., tuple[str, subprocess.Popen[bytes]]]]:
    """Starts workers that no server owns, on ipc addresses."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*options: str, address: str = "") -> tuple[str, subprocess.Popen[bytes]]:
        address = address or f"ipc://{tmp_path}/w{len(processes)}"
        processes.append(subprocess.Popen([*ODD, "--address", address, "--model", "toy", *options]))
        return address, processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_fault_33_a_worker_that_is_killed_between_frames_is_replaced_and_nobody_notices(pool: Pool) -> None:
    workers = pool()
    segment = stage(workers)
    assert is_clean(segment.push(difference()))
    before = pid_of(workers)
    os.kill(before, signal.SIGKILL)
    assert until(lambda: workers.counters.restarts == 1 and workers.wait_ready(0))
    assert pid_of(workers) != before
    assert is_clean(segment.push(difference()))
    assert (workers.counters.deaths, workers.counters.retries, workers.counters.failed) == (1, 0, 0)


def test_fault_33_a_worker_that_is_killed_under_a_frame_loses_no_frame(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ODD_MARK", str(tmp_path / "mark"))
    workers = pool()
    assert is_clean(stage(workers).push(difference(Ask.DIE_ONCE)))
    assert (workers.counters.retries, workers.counters.deaths, workers.counters.failed) == (1, 1, 0)


def test_fault_33_a_frame_that_kills_two_workers_is_the_culprit_and_the_next_scan_is_clean(pool: Pool) -> None:
    workers = pool(n_processes=2, n_threads=1)
    with pytest.raises(ModelError, match="model worker died: signal SIGSEGV; so did the worker before") as caught:
        stage(workers).push(difference(Ask.SEGFAULT))
    assert "frame 2" in caught.value.where
    assert caught.value.code == "worker_died"
    assert is_clean(stage(workers).push(difference()))
    assert workers.counters.deaths == 2
    assert until(lambda: workers.wait_ready(0, n=2))


@pytest.mark.parametrize("request_", [Ask.HANG, Ask.STOP])
def test_fault_33_a_worker_that_hangs_costs_one_frame_within_its_deadline(pool: Pool, request_: int) -> None:
    workers = pool(timeout_s=0.5)
    segment = stage(workers)
    before, begin = pid_of(workers), time.monotonic()
    with pytest.raises(ModelError, match=r"did not answer within 0\.5 s"):
        segment.push(difference(request_))
    assert time.monotonic() - begin < 3
    assert is_clean(segment.push(difference()))
    assert is_gone(before)
    assert (workers.counters.timeouts, workers.counters.retries) == (1, 0)


def test_fault_33_other_sessions_are_served_by_the_replacement(pool: Pool) -> None:
    workers = pool(timeout_s=1.0)
    segment = stage(workers)
    results: list[bool] = []
    errors: list[KstreamError] = []

    def hang() -> None:
        try:
            segment.push(difference(Ask.HANG))
        except ModelError as error:
            errors.append(error)

    hanging = threading.Thread(target=hang)
    hanging.start()
    assert until(lambda: workers.describe()["workers"][0]["state"] == "busy")
    waiting = [threading.Thread(target=lambda: results.append(is_clean(segment.push(difference())))) for _ in range(3)]
    for thread in waiting:
        thread.start()
    for thread in [hanging, *waiting]:
        thread.join(30)
    assert len(errors) == 1
    assert results == [True, True, True]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Ask.RAISE, "the model cannot do this"),
        (Ask.DEFECT, "KeyError"),
        (Ask.WRONG_CLASS, "class 2, but names 2 classes"),
    ],
)
def test_fault_33_a_model_that_raises_fails_its_frame_and_the_worker_goes_on(
    pool: Pool, request_: int, message: str
) -> None:
    workers = pool()
    segment = stage(workers)
    before = pid_of(workers)
    with pytest.raises(ModelError, match=message):
        segment.push(difference(request_))
    assert is_clean(segment.push(difference()))
    assert pid_of(workers) == before


def test_fault_34_a_worker_whose_device_failed_for_good_is_replaced_after_its_frame(pool: Pool) -> None:
    workers = pool()
    segment = stage(workers, "fragile")
    before = pid_of(workers)
    with pytest.raises(ModelError, match="the model cannot do this"):
        segment.push(difference(Ask.RAISE))
    assert is_clean(segment.push(difference()))
    assert pid_of(workers) != before
    assert workers.counters.recycled == 1


def test_fault_34_a_device_that_failed_for_good_under_arrays_has_its_worker_replaced(pool: Pool) -> None:
    workers = pool()
    zeros, ones = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    (made,), before = workers.evaluate("arrays", [ones])
    np.testing.assert_array_equal(made, ones)
    with pytest.raises(ModelError, match="nothing but zeros"):
        workers.evaluate("arrays", [zeros])
    assert workers.evaluate("arrays", [ones])[1]["pid"] != before["pid"]
    assert workers.counters.recycled == 1


def test_arrays_are_not_given_to_other_weights_than_the_scan_began_with(pool: Pool) -> None:
    workers, ones = pool(), np.ones((2, 3), np.float32)
    assert workers.evaluate("arrays", [ones], "weights of arrays")
    with pytest.raises(ModelError, match="other weights"):
        workers.evaluate("arrays", [ones], "weights of yesterday")


@pytest.mark.parametrize("request_", [Ask.WRONG_SHAPE, Ask.WRONG_TYPE])
def test_fault_33_labels_of_another_shape_or_type_are_a_model_error(pool: Pool, request_: int) -> None:
    workers = pool()
    with pytest.raises(ModelError, match="no valid answer"):
        stage(workers).push(difference(request_))
    assert is_clean(stage(workers).push(difference()))
    assert workers.counters.garbage == 1


def test_fault_33_a_worker_that_lies_is_replaced(pool: Pool) -> None:
    workers = pool(command=LIAR)
    for n_replaced, lie in enumerate(LIES, start=1):
        segment = stage(workers, str(lie))
        with pytest.raises(ModelError, match="no valid answer"):
            segment.push(difference())
        assert until(lambda n=n_replaced: workers.counters.restarts == n), f"after lie {lie}"
    assert workers.counters.garbage == len(LIES)


def test_fault_33_a_worker_that_leaks_is_replaced_after_its_frame(pool: Pool) -> None:
    workers = pool(memory_gib=0.25)
    segment = stage(workers)
    before = pid_of(workers)
    assert is_clean(segment.push(difference(Ask.LEAK)))
    assert until(lambda: workers.counters.restarts == 1 and workers.wait_ready(0))
    assert pid_of(workers) != before
    assert is_clean(segment.push(difference()))
    assert (workers.counters.recycled, workers.counters.deaths, workers.counters.failed) == (1, 0, 0)


def test_fault_33_with_images_wanted_a_failure_is_told_in_place_of_the_labels(pool: Pool) -> None:
    segment = stage(pool(), on_failure="images")
    [notice] = segment.push(difference(Ask.RAISE))
    assert isinstance(notice, Notice)
    assert notice.level == "error"
    assert "no labels for frame 2, slice 0: the model cannot do this" in notice.text
    assert "another volume" in notice.text
    assert is_clean(segment.push(difference()))


def test_fault_34_a_damaged_model_fails_before_k_space_comes(pool: Pool) -> None:
    workers = pool()
    with pytest.raises(ModelError, match="damaged are damaged") as caught:
        stage(workers, "damaged")
    assert (caught.value.hint, caught.value.code) == ("fetch it again", "model")
    assert is_clean(stage(workers).push(difference()))


def test_fault_34_with_images_wanted_a_damaged_model_is_told_and_each_frame_says_it(pool: Pool) -> None:
    segment = stage(pool(), "damaged", on_failure="images")
    assert segment.failure is not None
    assert "are damaged" in str(segment.failure)
    [notice] = segment.push(difference())
    assert notice.level == "error"
    assert "are damaged" in notice.text


def test_fault_34_a_model_that_kills_its_workers_while_it_loads_is_a_model_error(pool: Pool) -> None:
    workers = pool()
    with pytest.raises(ModelError, match="SIGSEGV"):
        stage(workers, "fatal")
    assert is_clean(stage(workers).push(difference()))


def test_workers_that_cannot_start_are_said_at_once_and_never_fall_back(pool: Pool) -> None:
    workers = pool(command=(sys.executable, "-c", "raise SystemExit(3)"), when_absent="local")
    with pytest.raises(ModelError, match="exit code 3"):
        stage(workers)


def test_values_that_are_not_finite_come_back_as_the_scans_error(pool: Pool, tmp_path: Path) -> None:
    workers = pool(command=WorkerSettings().command)
    segment = stage(workers, str(bundle(tmp_path / "toy", 1.0)))
    item = difference()
    item.data[1, 2, 3] = np.nan
    with pytest.raises(ScanError, match="not finite"):
        segment.push(item)
    assert workers.counters.restarts == 0


def test_labels_of_a_worker_are_those_of_this_process_to_the_byte(pool: Pool, tmp_path: Path) -> None:
    from kstream.serve.store import ModelStore

    config = SegmentConfig(model=str(bundle(tmp_path / "toy", 1.0)), frames=())
    rng = np.random.default_rng(3)
    data = (rng.standard_normal((9, 21, 35)) + 1j * rng.standard_normal((9, 21, 35))).astype(np.complex64)
    item = Difference(data, 1.0, 2, 0, 0, 77, Geometry((35, 21, 9), (35.0, 21.0, 9.0)))
    remote = pool(command=WorkerSettings().command).segment_stage(config)
    local = ModelStore().segment_stage(config)
    assert remote is not None
    assert local is not None
    [there], [here] = remote.push(item), local.push(item)
    assert there.labels.any()
    assert there.labels.tobytes() == here.labels.tobytes()
    assert there.table == here.table
    proofs = [each.provenance.pop("gate") for each in (there, here)]  # in float64 where that does not take too long
    assert all(proof.startswith("4x21x35 against float") for proof in proofs)
    assert there.provenance == here.provenance


def test_a_server_with_workers_does_not_import_torch() -> None:
    code = (
        "import sys\n"
        "from kstream.serve.workers import ModelWorkers, WorkerSettings\n"
        "import kstream.pipeline, kstream.serve.server\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_frames_wait_in_bounded_number_and_for_bounded_time(pool: Pool) -> None:
    workers = pool(max_waiting=1, wait_s=START_S)
    segment = stage(workers)
    threads = [threading.Thread(target=segment.push, args=(difference(Ask.SLOW, 0.6),)) for _ in range(2)]
    threads[0].start()
    assert until(lambda: workers.describe()["workers"][0]["state"] == "busy")
    threads[1].start()
    assert until(lambda: workers.describe()["waiting"] == 1)
    with pytest.raises(ModelError, match="1 volumes wait"):
        segment.push(difference())
    for thread in threads:
        thread.join(20)
    assert workers.counters.refused == 1


def test_a_frame_does_not_wait_longer_than_it_may(pool: Pool) -> None:
    workers = pool(wait_s=0.2)
    assert workers.wait_ready(START_S)
    segment = stage(workers)
    thread = threading.Thread(target=segment.push, args=(difference(Ask.SLOW, 0.6),))
    thread.start()
    assert until(lambda: workers.describe()["workers"][0]["state"] == "busy")
    with pytest.raises(ModelError, match=r"free within 0\.2 s"):
        segment.push(difference())
    thread.join(20)


def test_stopping_fails_the_frame_that_runs_and_does_not_wait_for_it(pool: Pool) -> None:
    workers = pool()
    segment = stage(workers)
    errors: list[str] = []

    def push() -> None:
        try:
            segment.push(difference(Ask.HANG))
        except ModelError as error:
            errors.append(str(error))

    thread = threading.Thread(target=push)
    thread.start()
    assert until(lambda: workers.describe()["workers"][0]["state"] == "busy")
    begin = time.monotonic()
    workers.stop()
    thread.join(10)
    assert time.monotonic() - begin < 5
    assert len(errors) == 1
    assert "the server stops" in errors[0]


def test_workers_end_when_their_server_is_killed() -> None:
    code = (
        "import sys\n"
        "from kstream.serve.workers import ModelWorkers, WorkerSettings\n"
        f"workers = ModelWorkers(WorkerSettings(n_processes=2, n_threads=1, command={ODD!r}))\n"
        "workers.start()\n"
        f"assert workers.wait_ready({START_S}, n=2)\n"
        "for worker in workers.describe()['workers']: print(worker['pid'], worker['address'], flush=True)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stdin is not None
    lines = [server.stdout.readline().split() for _ in range(2)]
    assert server.stdout.readline() == "ready\n"
    server.kill()
    server.wait()
    server.stdout.close()
    server.stdin.close()
    assert until(lambda: all(is_gone(int(pid)) for pid, _ in lines), 5.0)
    assert until(lambda: not Path(lines[0][1][6:]).parent.exists(), 5.0)


def test_nothing_is_left_open_after_many_replacements(pool: Pool) -> None:
    workers = pool()
    segment = stage(workers)

    def replace() -> None:
        n = workers.counters.restarts
        os.kill(pid_of(workers), signal.SIGKILL)
        assert until(lambda: workers.counters.restarts > n and workers.wait_ready(0))
        assert is_clean(segment.push(difference()))

    def n_open() -> int:
        return len(os.listdir("/proc/self/fd"))

    replace()
    before, threads = n_open(), threading.active_count()
    folder = Path(workers.describe()["workers"][0]["address"][6:]).parent
    for _ in range(4):
        replace()
    assert n_open() == before
    assert threading.active_count() == threads
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(list(folder.iterdir())) == 1


# Workers that nobody of ours owns


def test_two_workers_on_two_addresses_share_the_load_and_one_that_dies_loses_no_frame(pool: Pool, outside: Any) -> None:
    (first, dying), (second, _) = outside(), outside()
    workers = pool(n_processes=0, addresses=(first, second))
    assert workers.wait_ready(START_S, n=2)
    segment = stage(workers)
    pids = {segment.push(difference())[0].provenance["pid"] for _ in range(6)}
    assert len(pids) == 2
    results: list[Any] = []

    def push() -> None:
        results.extend(segment.push(difference(Ask.SLOW, 0.6)))

    threads = [threading.Thread(target=push) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert until(lambda: [w["state"] for w in workers.describe()["workers"]] == ["busy", "busy"])
    dying.kill()
    for thread in threads:
        thread.join(20)
    assert [is_clean([r]) for r in results] == [True, True]
    assert {r.provenance["pid"] for r in results} == pids - {str(dying.pid)}
    assert workers.counters.retries == 1


def test_workers_that_died_while_idle_do_not_make_the_next_frame_the_culprit(pool: Pool, outside: Any) -> None:
    started = [outside() for _ in range(3)]
    workers = pool(n_processes=0, addresses=tuple(address for address, _ in started))
    assert workers.wait_ready(START_S, n=3)
    segment = stage(workers)
    for _, process in started[:2]:
        process.kill()
        process.wait()
    for _ in range(3):
        assert is_clean(segment.push(difference()))
    assert workers.counters.failed == 0


def test_a_worker_on_an_address_may_come_later_and_come_back(pool: Pool, outside: Any, tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/later"
    workers = pool(n_processes=0, addresses=(address,))
    assert until(lambda: workers.describe()["workers"][0]["state"] == "absent")
    with pytest.raises(ModelError, match="no model worker can be had"):
        stage(workers)
    _, process = outside(address=address)
    assert workers.wait_ready(START_S)
    segment = stage(workers)
    assert is_clean(segment.push(difference()))
    process.kill()
    process.wait()
    outside(address=address)
    assert until(lambda: _succeeds(lambda: segment.push(difference())))


def _succeeds(push: Callable[[], list[Any]]) -> bool:
    try:
        return is_clean(push())
    except ModelError:
        return False


def test_without_a_worker_the_server_segments_itself_if_told_so_and_says_it(pool: Pool, tmp_path: Path) -> None:
    workers = pool(n_processes=0, addresses=(f"ipc://{tmp_path}/nobody",), when_absent="local")
    assert until(lambda: workers.describe()["workers"][0]["state"] == "absent")
    notice, label_map = stage(workers, str(bundle(tmp_path / "toy", 1.0))).push(difference())
    assert notice.level == "warning"
    assert "in the server's own process" in notice.text
    assert isinstance(label_map, LabelMap)
    assert workers.counters.local == 1


def test_a_worker_on_an_address_serves_the_models_that_it_was_given_and_no_others(pool: Pool, outside: Any) -> None:
    address, _ = outside()
    workers = pool(n_processes=0, addresses=(address,))
    assert workers.wait_ready(START_S)
    with pytest.raises(ModelError, match="does not serve the model '/etc'"):
        stage(workers, "/etc")


def test_fault_34_a_worker_that_is_started_by_hand_does_not_run_without_its_model(outside: Any) -> None:
    _, process = outside("--model", "damaged")
    assert process.wait(START_S) not in (0, EXIT_REPLACE)


def test_fault_33_a_worker_whose_model_raises_something_odd_while_it_loads_ends_and_does_not_live_on_mute(
    outside: Any,
) -> None:
    _, process = outside("--model", "defective")
    assert process.wait(START_S) not in (0, EXIT_REPLACE)


def test_a_pool_that_was_never_started_can_be_stopped() -> None:
    ModelWorkers(WorkerSettings(n_processes=2)).stop()


def test_pauses_between_tries_grow_to_a_limit_however_long_a_worker_is_away() -> None:
    pauses = [pause_s(n) for n in range(1, 20)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pause_s(100_000)) == (0.2, MAX_PAUSE_S)


@pytest.mark.slow
def test_fault_33_a_worker_that_stops_reacting_is_noticed_by_its_heartbeat_and_loses_no_frame(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ODD_MARK", str(tmp_path / "mark"))
    workers = pool(timeout_s=60.0)
    begin = time.monotonic()
    assert is_clean(stage(workers).push(difference(Ask.STOP_ONCE)))
    assert time.monotonic() - begin < 30
    assert (workers.counters.deaths, workers.counters.retries) == (1, 1)


def test_a_worker_that_runs_over_the_deadline_ends_itself(pool: Pool, outside: Any) -> None:
    address, process = outside()
    workers = pool(n_processes=0, addresses=(address,), timeout_s=0.5)
    assert workers.wait_ready(START_S)
    with pytest.raises(ModelError, match="did not answer"):
        stage(workers).push(difference(Ask.HANG))
    assert process.wait(10) == EXIT_REPLACE


def test_a_worker_finishes_its_frame_when_it_is_told_to_end(
    pool: Pool, outside: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ODD_MARK", str(tmp_path / "mark"))
    address, process = outside()
    workers = pool(n_processes=0, addresses=(address,))
    assert workers.wait_ready(START_S)
    segment = stage(workers)
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.extend(segment.push(difference(Ask.SLOW, 0.6))))
    thread.start()
    assert until((tmp_path / "mark").exists)
    process.terminate()
    thread.join(20)
    assert len(results) == 1
    assert process.wait(10) == 0


NONSENSE: list[list[bytes]] = [
    [b""],
    [b"\xff\x00", b""],
    [b"{}", b""],
    [TOY + b"}", b""],
    [TOY + b', "timeout_s": "soon"}', b""],
    [TOY + b', "timeout_s": NaN}', b""],
    [TOY + b', "timeout_s": 1' + b"0" * 400 + b"}", b""],
    [TOY + b', "timeout_s": 9, "dtype": "O", "shape": [1]}', b"1"],
    [TOY + b', "timeout_s": 9, "dtype": "complex64", "shape": [99999999999, 99999999999, 8]}', b"1"],
    [TOY + b', "timeout_s": 9, "dtype": "complex64", "shape": null}', b"1"],
    [b'{"kstream": 1, "kind": "import os", "id": 1}', b""],
    [b"[" * 60000, b""],
]


def test_a_worker_answers_nonsense_with_an_error_and_goes_on(outside: Any) -> None:
    address, process = outside()
    context = zmq.Context()
    client = context.socket(zmq.DEALER)
    client.set(zmq.LINGER, 0)
    client.connect(address)
    for frames in NONSENSE:
        client.send_multipart(frames)
        assert client.poll(10_000), frames[0][:80]
        assert b'"error"' in client.recv_multipart()[0], frames[0][:80]
    client.send_multipart([b'{"kstream": 1, "kind": "status", "id": 2}', b""])
    assert client.poll(10_000)
    assert b'"pid"' in client.recv_multipart()[0]
    assert process.poll() is None
    client.close()
    context.term()


# tcp: only with keys


@pytest.fixture
def keys(tmp_path: Path) -> tuple[list[str], Keys, Path]:
    """Options of a worker on a free port, and the keys of a server that it lets in."""
    worker, client = make_keys(tmp_path / "keys")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = ["--curve-key", str(worker), "--curve-clients", str(tmp_path / "keys" / "clients")]
    return [f"tcp://127.0.0.1:{port}", *options], Keys(client, worker.with_suffix(".key")), tmp_path


def test_a_worker_on_tcp_serves_who_has_the_key(pool: Pool, outside: Any, keys: Any) -> None:
    (address, *options), allowed, _ = keys
    outside(*options, address=address)
    workers = pool(n_processes=0, addresses=(address,), keys=allowed)
    assert workers.wait_ready(START_S)
    assert is_clean(stage(workers).push(difference()))


def test_a_worker_on_tcp_refuses_another_key_and_says_so(pool: Pool, outside: Any, keys: Any) -> None:
    (address, *options), allowed, folder = keys
    _, process = outside(*options, address=address)
    _, stranger = make_keys(folder / "stranger")
    workers = pool(n_processes=0, addresses=(address,), keys=Keys(stranger, allowed.worker))
    assert until(lambda: "refused our key" in workers.describe()["workers"][0]["reason"])
    with pytest.raises(ModelError, match="refused our key"):
        stage(workers)
    assert process.poll() is None


def test_a_worker_on_tcp_does_not_answer_in_the_clear(outside: Any, keys: Any) -> None:
    (address, *options), _, _ = keys
    outside(*options, address=address)
    context = zmq.Context()
    client = context.socket(zmq.DEALER)
    client.set(zmq.LINGER, 0)
    monitor = client.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
    client.connect(address)
    client.send_multipart([b'{"kstream": 1, "kind": "status", "id": 2}', b""])
    assert monitor.poll(20_000)
    assert not client.poll(0)
    client.disable_monitor()
    monitor.close()
    client.close()
    context.term()


def test_no_keys_no_tcp_on_both_sides(outside: Any) -> None:
    _, process = outside(address="tcp://127.0.0.1:*")
    assert process.wait(START_S) != 0
    with pytest.raises(ConfigError, match="needs keys"):
        ModelWorkers(WorkerSettings(addresses=("tcp://127.0.0.1:5555",)))
    with pytest.raises(ConfigError, match="unknown kind of address"):
        ModelWorkers(WorkerSettings(addresses=("udp://127.0.0.1:5555",)))
