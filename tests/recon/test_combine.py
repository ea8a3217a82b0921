"""Spokes to combined k-space as a stage: any order, any timing, and what happens to bad data."""

import threading
from collections.abc import Callable

import numpy as np
import pytest

from kstream.config import resolve
from kstream.errors import ScanError
from kstream.mrd.messages import Image
from kstream.pipeline import build_pipeline
from kstream.recon.calibration import EspiritSettings
from kstream.recon.coils import CombineCoils
from kstream.recon.combine import CombineSpokes, frame_sums
from kstream.recon.density import AnglePlan
from kstream.recon.late_density import CorrectDensity
from kstream.recon.sampling import Sampling
from kstream.recon.sharing import ShareFrames
from kstream.recon.stages import GridReadouts
from kstream.recon.zero_wait import SpokeSum
from kstream.stream import Pipeline
from kstream.stream.crew import InlineCrew, Task, Wake
from kstream.stream.runners import ThreadCrew, ThreadRunner, run_inline
from kstream.types import (
    GOLDEN_ANGLE_RAD,
    Complex,
    Float,
    FrameEnd,
    Geometry,
    KSpace,
    MissingReadout,
    Notice,
    Readout,
)
from tests.scans import StackOfStars

STARS = StackOfStars(nx=24, ny=24, nz=5, n_partitions=4, n_coils=3, spokes_per_frame=13, n_frames=3)
ESPIRIT = EspiritSettings(12, 4, 0.02, 0.5, 16, 30)
GEOMETRY = Geometry((24, 24, 5), (200.0, 200.0, 50.0))


def sampling(stars: StackOfStars = STARS) -> Sampling:
    return Sampling(stars.scan(), stars.spokes_per_frame, stars.n_partitions, 1, "polar")


def stage(n_calibration: int = 0, **changes: object) -> CombineSpokes:
    arguments = {"espirit": ESPIRIT, "calibration_frame": 0, "n_calibration": n_calibration, "memory_gib": 1.0}
    return CombineSpokes(sampling(), **{**arguments, **changes})  # type: ignore[arg-type]


def blobs(k: np.ndarray, kz: float, frame: int) -> np.ndarray:
    """Samples ``(coils, samples)`` of three Gaussian blobs, each seen differently by the coils."""
    coils = np.array([[1, 0.5j, 0.2], [0.3, 1, -0.4j], [0.2j, 0.1, 0.8]])
    places, widths = np.array([[3.0, -5, 0.5], [-6, 2, -1], [1, 6, 0]]), np.array([1.5, 2.0, 4.0])
    wave = np.exp(-2j * np.pi * (k[:, :2] @ places[:, :2].T + kz * places[:, 2]) / 24)
    return (coils @ (wave * np.exp(-((np.linalg.norm(k, axis=1)[:, None] * widths / 24) ** 2))).T * (1 + frame)).astype(
        np.complex64
    )


def readouts(frames: tuple[int, ...] = (0, 1), stars: StackOfStars = STARS) -> list[Readout]:
    made = []
    for frame in frames:
        for spoke in range(stars.spokes_per_frame):
            k = np.pad(stars.spoke(frame * stars.spokes_per_frame + spoke), ((0, 0), (0, 1)))
            made += [Readout(blobs(k, p - 2, frame), k, frame, 0, p, (spoke, p), 7) for p in range(stars.n_partitions)]
    return made


def with_ends(items: list[Readout], n_expected: int = 13 * 4) -> list[Readout | FrameEnd]:
    """Frame ends as `FrameReadouts` sends them: with the last readout, or at the end for frames that lack some."""
    count: dict[int, int] = {}
    out: list[Readout | FrameEnd] = []
    for item in items:
        out.append(item)
        count[item.frame] = count.get(item.frame, 0) + 1
        if count[item.frame] == n_expected:
            out.append(FrameEnd(item.frame, 0, n_expected, n_expected, 7, GEOMETRY))
    late = [f for f, n in sorted(count.items()) if n < n_expected]
    return out + [FrameEnd(f, 0, count[f], n_expected, 7, GEOMETRY) for f in late]


def volumes(items: list[object]) -> dict[int, np.ndarray]:
    return {i.frame: i.data for i in items if isinstance(i, KSpace)}


def notices(items: list[object], level: str = "warning") -> list[str]:
    return [i.text for i in items if isinstance(i, Notice) and i.level == level]


ORDERS: dict[str, Callable[[list[Readout]], list[Readout]]] = {
    "angles outer": lambda r: r,
    "partitions outer": lambda r: sorted(r, key=lambda i: (i.frame, i.partition, i.key)),
    "partitions backwards": lambda r: sorted(r, key=lambda i: (i.frame, i.key[0], -i.partition)),
    "at random": lambda r: [r[i] for i in np.random.default_rng(0).permutation(len(r))],
}


@pytest.mark.parametrize("order", ORDERS)
def test_zero_wait_is_the_combination_of_batch_coil_images_in_any_order(order: str) -> None:
    """The batch way: a grid for every coil, maps from the whole calibration frame."""
    items = with_ends(ORDERS[order](readouts()))
    found = volumes(run_inline(stage(), items))
    batch = Pipeline(
        GridReadouts(sampling(), 2.0, 6, 1.0),
        CombineCoils("espirit", 0, EspiritSettings(12, 4, 0.02, 0.5, 16, 30)),
        source=[Readout, FrameEnd],
    )
    expected = volumes(run_inline(batch, items))
    assert set(found) == set(expected) == {0, 1}
    for frame in expected:
        error = np.linalg.norm(found[frame] - expected[frame]) / np.linalg.norm(expected[frame])
        assert error < 1e-3


@pytest.mark.parametrize("order", ORDERS)
def test_maps_of_the_first_spokes_are_the_same_in_any_order(order: str) -> None:
    straight, other = (volumes(run_inline(stage(9), with_ends(ORDERS[o](readouts())))) for o in ("angles outer", order))
    for frame in straight:
        assert np.linalg.norm(other[frame] - straight[frame]) < 1e-4 * np.linalg.norm(straight[frame])


class SlowCrew(InlineCrew):
    """Background work that is done when the test says so; wakes are sent by hand."""

    def __init__(self) -> None:
        self.work: list[Callable[[], object]] = []
        self.values: dict[int, object] = {}
        self.n_wakes = 0

    def submit(self, work: Callable[[], object]) -> Task[object]:  # type: ignore[override]
        self.work.append(work)
        return SlowTask(self, len(self.work) - 1)

    def wake(self) -> bool:
        self.n_wakes += 1
        return True


class SlowTask:
    def __init__(self, crew: SlowCrew, number: int) -> None:
        self._crew, self._number = crew, number

    @property
    def is_done(self) -> bool:
        return self._number in self._crew.values

    def result(self) -> object:
        if not self.is_done:
            self._crew.values[self._number] = self._crew.work[self._number]()
        return self._crew.values[self._number]


def corrected(**changes: object) -> Pipeline:
    """Combination with planned angles, of which the density is put right afterwards."""
    plan = AnglePlan(np.arange(13) * GOLDEN_ANGLE_RAD, n_frames=0)
    right = Sampling(STARS.scan(), 13, 4, 1, "polar", plan)
    combine = CombineSpokes(right, ESPIRIT, 0, 9, 1.0, **changes)  # type: ignore[arg-type]
    return Pipeline(combine, CorrectDensity(plan), source=[Readout, MissingReadout, FrameEnd, Wake])


def lossy(kind: str) -> list[Readout | MissingReadout | FrameEnd]:
    """Three frames: whole, without some spokes, without a calibration readout, or with one that is told as lost."""
    items = readouts((0, 1, 2))
    if kind == "whole":
        return [*with_ends(items)]
    without = [r for r in items if (r.frame, r.key[0]) not in {(1, 2), (1, 7), (2, 12)}]
    if kind == "calibration":
        without = [r for r in without if (r.frame, r.key) != (0, (4, 1))]
    if kind != "lost":
        return [*with_ends(without)]
    at = next(i for i, r in enumerate(without) if r.key == (4, 1))
    ended = with_ends(without[:at] + without[at + 1 :])
    return [*ended[:at], MissingReadout(0, 0, (4, 1)), *ended[at:]]


@pytest.mark.parametrize("kind", ["whole", "spokes", "calibration", "lost"])
@pytest.mark.parametrize("ready_after", [0, 1, 30, 60, 1000])
def test_results_do_not_depend_on_when_the_maps_are_ready(ready_after: int, kind: str) -> None:
    items = lossy(kind)
    at_once = run_inline(corrected(), items)
    expected = volumes(at_once)
    assert set(expected) == {0, 1, 2}
    assert any("density put right" in text for text in notices(at_once, "info")) == (kind != "whole")
    crew = SlowCrew()
    slow, out, left = corrected(crew=crew), [], ready_after
    for item in items:
        out += slow.push(item)
        if crew.work:
            left -= 1
            if left == 0:
                crew.values[0] = crew.work[0]()
                out += slow.push(Wake())
    out += slow.finish()
    found = volumes(out)
    for frame in expected:
        np.testing.assert_array_equal(found[frame], expected[frame])


def test_maps_do_not_wait_for_one_missing_readout_once_the_next_frame_has_begun() -> None:
    items = readouts((0, 1))
    kept = [r for r in items if (r.frame, r.key) != (0, (4, 1))]
    crew = SlowCrew()
    step = stage(9, crew=crew)
    began = [len(crew.work) for item in kept for _ in [step.push(item)]]
    assert began.index(1) == 13 * 4 - 1  # with the first readout of the next frame
    few = [r for r in kept if r.frame == 1 or r.key[0] not in (2, 3)]
    crew = SlowCrew()
    step = stage(9, crew=crew)
    for item in few:
        step.push(item)
    assert not crew.work  # too few: the end of the frame is waited for


def test_maps_do_not_wait_for_a_readout_that_was_lost() -> None:
    crew = SlowCrew()
    step, items = stage(9, crew=crew), readouts((0,))
    at = next(i for i, r in enumerate(items) if r.key == (4, 1))
    lost = MissingReadout(0, 0, (4, 1))
    began = [len(crew.work) for item in [*items[:at], lost, *items[at + 1 :]] for _ in [step.push(item)]]
    assert began.index(1) == 9 * 4 - 1
    crew = SlowCrew()
    step = stage(9, crew=crew)
    again = [lost, *items]  # sent again after all
    assert [len(crew.work) for item in again for _ in [step.push(item)]].index(1) == 9 * 4
    last = [r for r in items if r.key != (8, 3)]
    crew = SlowCrew()
    step = stage(9, crew=crew)
    out = [made for item in [*last, MissingReadout(0, 0, (8, 3))] for made in step.push(item)]
    assert len(crew.work) == 1
    assert "coil maps from 35 of 36 calibration readouts: the others did not come" in notices(out)


def test_frames_that_take_turns_do_not_start_the_maps_early() -> None:
    """The first readout of a later frame comes when half of the calibration has: the rest follows."""
    first, second = readouts((0,)), readouts((1,))
    turns = [*first[:20], *second[:20], *first[20:], *second[20:]]
    out = run_inline(stage(9), with_ends(turns))
    assert not any("did not come" in text for text in notices(out))
    found, expected = volumes(out), volumes(run_inline(stage(9), with_ends(first + second)))
    for frame in expected:
        np.testing.assert_allclose(found[frame], expected[frame], rtol=1e-4, atol=1e-6)


def test_readouts_go_before_what_waited_for_the_maps() -> None:
    """After the maps came, each wake adds one angle that waited: no readout waits for all of them."""
    crew = SlowCrew()
    slow = stage(9, crew=crew)
    items = with_ends(readouts((0,)))
    for item in items[:-2]:
        slow.push(item)
    crew.values[0] = crew.work[0]()
    slow.push(Wake())
    assert crew.n_wakes == 1
    slow.push(items[-2])
    assert crew.n_wakes == 1  # a wake is on its way: the readout did no other work
    out, n_pushes = [], 0
    out += slow.push(items[-1])
    while crew.n_wakes > n_pushes:
        n_pushes += 1
        out += slow.push(Wake())
    assert set(volumes(out)) == {0}
    assert n_pushes >= 12


def test_thread_crew_gives_what_inline_gives() -> None:
    items = with_ends(readouts())
    expected = volumes(run_inline(stage(9), items))
    crew, out = ThreadCrew(2), []
    pipeline = Pipeline(stage(9, crew=crew), source=[Readout, FrameEnd, Wake])
    runner = ThreadRunner(pipeline, out.append, crew=crew)
    for item in items:
        runner.put(item)
    runner.finish()
    found = volumes(out)
    assert set(found) == {0, 1}
    for frame in expected:
        np.testing.assert_array_equal(found[frame], expected[frame])
    for thread in threading.enumerate():
        if thread.name.startswith(("kstream-crew", "kstream-background")):
            thread.join(5)
            assert not thread.is_alive()


def test_error_of_background_work_ends_the_stream_with_its_reason() -> None:
    narrow = stage(0, espirit=EspiritSettings(12, 12, 0.02, 0.5, 16, 30))
    with pytest.raises(ScanError, match="calibration region"):
        run_inline(narrow, with_ends(readouts((0,))))


def test_missing_readouts_leave_the_sum_of_the_others() -> None:
    """Angles without all partitions are added when their frame ends: the frame is that with zeros in their place."""
    all_items = readouts((0, 1))
    lost = {(1, (3, 1)), (1, (3, 2)), (1, (8, 0))}
    kept = [r for r in all_items if (r.frame, r.key) not in lost]
    zeroed = [
        Readout(r.data * ((r.frame, r.key) not in lost), r.trajectory, r.frame, 0, r.partition, r.key, 7)
        for r in all_items
    ]
    found = volumes(run_inline(stage(), with_ends(kept)))
    expected = volumes(run_inline(stage(), with_ends(zeroed)))
    assert np.linalg.norm(found[1] - expected[1]) < 1e-5 * np.linalg.norm(expected[1])


def test_incomplete_calibration_frame_is_told() -> None:
    out = run_inline(stage(), with_ends(readouts((0, 1))[5:]))
    assert any("calibration readouts" in text for text in notices(out))
    assert set(volumes(out)) == {0, 1}


def test_missing_calibration_frame_is_told_and_replaced() -> None:
    out = run_inline(stage(), with_ends(readouts((1, 2))))
    assert any("never came; maps from 1" in text for text in notices(out))
    assert set(volumes(out)) == {1, 2}


def test_dead_coils_are_told_and_do_no_harm() -> None:
    items = readouts()
    for item in items:
        item.data[1] = 0
    out = run_inline(stage(), with_ends(items))
    assert any("coils without signal: 1" in text for text in notices(out))
    assert all(np.isfinite(data).all() and data.any() for data in volumes(out).values())


@pytest.mark.parametrize("kind", ["silence", "noise"])
def test_frames_without_an_object_stay_finite(kind: str) -> None:
    rng = np.random.default_rng(3)
    items = readouts()
    for item in items:
        noise = rng.standard_normal(item.data.shape) + 1j * rng.standard_normal(item.data.shape)
        item.data[:] = noise * (kind == "noise")
    out = run_inline(stage(), with_ends(items))
    assert set(volumes(out)) == {0, 1}
    assert all(np.isfinite(data).all() for data in volumes(out).values())
    assert bool(notices(out, "error")) == (kind == "silence")


def test_too_few_spokes_for_the_calibration_are_told_once() -> None:
    out = run_inline(stage(5), with_ends(readouts()))
    assert len([text for text in notices(out) if "5 spokes sample only the inner 3" in text]) == 1


def test_memory_stays_bounded_when_no_angle_becomes_full() -> None:
    """Every angle misses a partition: those that are open beyond the limit are added early, and the sum is right."""
    kept = [r for r in readouts() if r.partition != 2 or r.frame == 0]
    free = volumes(run_inline(stage(n_calibration=4), with_ends(kept)))
    angle_bytes, loose = 4 * 3 * 48 * 8, stage()
    limit = loose._fixed_bytes(3, 1) + 2 * 8 * angle_bytes  # one open frame; half for open angles, and one to add
    tight, most = stage(n_calibration=4, memory_gib=limit / 2**30), 0
    out: list[object] = []
    for item in with_ends(kept):
        out += tight.push(item)
        most = max(most, tight._held_bytes)
    out += tight.finish()
    assert 6 * angle_bytes < most <= 8 * angle_bytes
    assert tight._held_bytes == 0
    for frame, data in volumes(out).items():
        assert np.linalg.norm(data - free[frame]) < 1e-4 * np.linalg.norm(free[frame])


def test_too_much_that_waits_is_refused() -> None:
    with pytest.raises(ScanError, match="open frames"):
        run_inline(stage(memory_gib=1e-3, calibration_frame=2), with_ends(readouts((0, 1)) * 9))


def test_torch_volumes_are_those_of_the_compiled_loops() -> None:
    from kstream.recon.gpu import TorchSums

    items = with_ends(readouts())
    ours = volumes(run_inline(stage(), items))
    theirs = volumes(run_inline(stage(make_sum=TorchSums("cpu")), items))
    for frame in ours:
        assert np.linalg.norm(ours[frame] - theirs[frame]) < 1e-5 * np.linalg.norm(ours[frame])


def test_unknown_device_is_refused() -> None:
    import torch

    from kstream.errors import ConfigError

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="no CUDA device"):
        frame_sums("cuda")


def test_sliding_window_is_the_frame_of_all_its_spokes() -> None:
    """Windows of 13 spokes that share two frames equal frames of 26 spokes, with weights for 26."""
    items = with_ends(readouts((0, 1, 2)))
    combined = run_inline(stage(), items)
    shared = volumes(run_inline(ShareFrames(2), [i for i in combined if isinstance(i, KSpace)]))
    single = volumes(combined)
    assert set(shared) == {1, 2}
    np.testing.assert_allclose(shared[2], (single[1] + single[2]) / 2, rtol=1e-5, atol=1e-7)
    both = [
        Readout(r.data, r.trajectory, 0, 0, r.partition, (r.key[0] + 13 * r.frame, r.partition), 7)
        for r in readouts((0, 1))
    ]
    long = Sampling(STARS.scan(), 26, 4, 1, "polar")
    whole = CombineSpokes(long, ESPIRIT, 0, 13, 1.0)
    (frame,) = volumes(run_inline(whole, with_ends(both, 26 * 4))).values()
    assert np.linalg.norm(shared[1] - frame) < 1e-4 * np.linalg.norm(frame)


@pytest.mark.parametrize("share", [1, 3])
def test_a_sliding_window_adds_only_its_new_spokes(share: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the whole pipeline: angles that were added until each window's image, not three times as many."""
    stars = StackOfStars(nx=15, ny=15, nz=3, n_partitions=2, spokes_per_frame=13, n_frames=5)
    added, add = [], SpokeSum.add

    def counted(self: SpokeSum, samples: Complex, trajectory: Float, weights: Float) -> None:
        added.append(samples.shape)
        add(self, samples, trajectory, weights)

    monkeypatch.setattr(SpokeSum, "add", counted)
    settings = ("coils.calibration_frame=0", "trajectory.delay=off", f"frames.share={share}")
    pipeline = build_pipeline(stars.scan(), resolve("recon-radial", settings=settings).config).pipeline
    added_until: list[int] = []
    for acquisition in stars.acquisitions(np.random.default_rng(0)):
        made = pipeline.push(acquisition)
        added_until += [len(added)] * any(isinstance(item, Image) for item in made)
    pipeline.finish()
    assert added_until == [13 * frame for frame in range(share, 6)]
    assert added == [(2, 3, 30)] * (13 * 5)


# Memory and pace


def held_after(step: CombineSpokes, items: list[Readout | FrameEnd]) -> int:
    """Most bytes that waited at any time."""
    most = 0
    for item in items:
        step.push(item)
        most = max(most, step._held_bytes)
    return most


def test_carried_kz_does_not_make_an_angle_of_every_partition() -> None:
    flat = readouts((0,))
    raised = [
        Readout(r.data, r.trajectory + np.array([0, 0, r.partition - 2], np.float32), 0, 0, r.partition, r.key, 7)
        for r in flat
    ]
    step = stage()
    for item in raised[:-1]:
        step.push(item)
    (state,) = step._slices.values()
    assert len(state.open) == 1
    assert len(state.ready) == 12
    found, expected = (volumes(run_inline(stage(), with_ends(items)))[0] for items in (raised, flat))
    np.testing.assert_array_equal(found, expected)


def test_trajectories_that_turn_with_the_partition_hold_only_what_came() -> None:
    turned = []
    for r in readouts((0,)):
        k = np.pad(STARS.spoke(4 * r.key[0] + r.partition), ((0, 0), (0, 1)))
        turned.append(Readout(blobs(k, r.partition - 2, 0), k, 0, 0, r.partition, r.key, 7))
    step = stage()
    assert held_after(step, turned[:-1]) == sum(r.data.nbytes for r in turned[:-1])
    assert set(volumes(run_inline(stage(), with_ends(turned)))) == {0}


def test_fast_sender_does_not_pile_up_angles() -> None:
    """Wakes come after everything that is in the queue, here never: readouts themselves work off what waits."""
    crew = SlowCrew()
    step, items = stage(9, crew=crew), readouts((0, 1, 2))
    n_ready, out = [], []
    for number, item in enumerate(items):
        if number == 60:
            crew.values[0] = crew.work[0]()
            out += step.push(Wake())
        out += step.push(item)
        n_ready.append(len(step._slices[0].ready))
    waited = n_ready[60]
    assert waited > 10
    assert max(n_ready[60:]) <= waited + 4  # no more than had to wait, and a few
    assert n_ready[-1] <= 5  # and ever fewer
    out += step.finish()
    sums = run_inline(stage(9), items)
    assert notices(out) == notices(sums)


@pytest.mark.parametrize("order", ["angles outer", "partitions outer"])
@pytest.mark.parametrize("ready_after", [0, 30, 10**6])
def test_memory_that_suffices_suffices_whenever_the_maps_are_ready(ready_after: int, order: str) -> None:
    items = readouts((0,)) + ORDERS[order](readouts((1, 2)))
    angle_bytes, volume_bytes = 4 * 3 * 48 * 8, 5 * 24 * 24 * 8
    limit = (stage()._fixed_bytes(3, 2) + 18 * angle_bytes) / 2**30
    expected = volumes(run_inline(stage(9, memory_gib=limit), with_ends(items)))
    crew, out, left = SlowCrew(), [], ready_after
    step = stage(9, crew=crew, memory_gib=limit)
    for item in with_ends(items):
        out += step.push(item)
        assert step._needed_bytes(3) <= limit * 2**30 + volume_bytes  # room for one more is part of what is needed
        if crew.work:
            left -= 1
            if left == 0:
                crew.values[0] = crew.work[0]()
                out += step.push(Wake())
    found = volumes(out + step.finish())
    assert set(found) == {0, 1, 2}
    for frame in expected:
        np.testing.assert_array_equal(found[frame], expected[frame])


def test_frame_that_ends_without_calibration_readouts_gives_maps_from_the_others() -> None:
    items = [r for r in readouts((0, 1)) if r.frame == 1 or r.key[0] >= 9]
    ended = [*items[:16], FrameEnd(0, 0, 16, 52, 7, GEOMETRY), *items[16:], FrameEnd(1, 0, 52, 52, 7, GEOMETRY)]
    step, out = stage(9), []
    for item in ended:
        out += step.push(item)
    assert set(volumes(out)) == {0, 1}
    assert any("no calibration readout of frame 0 came" in text for text in notices(out))


# Sliding windows


def kspaces(frames: list[int]) -> list[KSpace]:
    return [KSpace(np.full((2, 3, 5), 10.0**f, np.complex64), f, 0, 7 + f, GEOMETRY) for f in frames]


def test_windows_are_given_in_whatever_order_frames_end() -> None:
    straight = volumes(run_inline(ShareFrames(3), kspaces([0, 1, 2, 3, 4])))
    assert set(straight) == {2, 3, 4}
    for order in ([1, 2, 0, 4, 3], [4, 3, 2, 1, 0], [2, 0, 1, 3, 4]):
        step = ShareFrames(3)
        out = run_inline(step, kspaces(order))
        assert [type(item) for item in out] == [KSpace] * 3
        found = volumes(out)
        for frame in straight:
            np.testing.assert_array_equal(found[frame], straight[frame])


def test_windows_keep_only_the_frames_that_are_still_needed() -> None:
    step = ShareFrames(2)
    for kspace in kspaces(list(range(9))):
        step.push(kspace)
        assert len(step._slices[0].frames) <= 2


def test_windows_that_lack_a_frame_are_told() -> None:
    out = run_inline(ShareFrames(2), kspaces([0, 1, 3, 4, 5]))
    assert set(volumes(out)) == {1, 4, 5}
    (text,) = notices(out)
    assert "frames 2 did not come" in text
    assert "end with frames 2, 3" in text
