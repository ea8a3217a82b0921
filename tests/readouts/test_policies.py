"""Declared policies for readouts that are damaged, lost, late, oddly placed, too long, or of odd coils."""

from dataclasses import replace

import numpy as np
import pytest

from kstream.errors import ScanError
from kstream.readouts.framing import FramePlan, FrameReadouts
from kstream.readouts.oversampling import RemoveOversampling, cropped
from kstream.readouts.routing import LostReadout, NoiseReadout, RouteReadouts
from kstream.readouts.trajectory import (
    PlacedAcquisition,
    ResolveTrajectory,
    SpokeOrder,
    golden_angle_rad,
    planned_angles_rad,
)
from kstream.readouts.whitening import Prewhiten
from kstream.stream.telemetry import Counters
from kstream.types import GOLDEN_ANGLE_RAD, Acquisition, EncodingLimit, FrameEnd, Notice, Readout, Scan
from tests import phantom
from tests.scans import StackOfStars

STARS = StackOfStars()


def one(spoke: int = 0, partition: int = 0) -> Acquisition:
    rng = np.random.default_rng(spoke)
    data = (rng.standard_normal((3, STARS.n_samples)) + 1j).astype(np.complex64)
    return STARS.acquisition(data, np.zeros((STARS.n_samples, 0), np.float32), spoke, partition)


def notices(items: list[object]) -> list[str]:
    return [item.text for item in items if isinstance(item, Notice)]


# Samples that cannot be samples


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38, 1j * 1e30])
def test_damaged_samples_become_zero_by_option_and_are_counted(value: complex) -> None:
    stage = RouteReadouts(STARS.scan(), "header", Counters(), "zero")
    out: list[object] = []
    for spoke in range(3):
        damaged = one(spoke)
        damaged.data[1, 4] = value
        out += stage.push(damaged)
    mended = [item for item in out if isinstance(item, Acquisition)]
    assert len(mended) == 3
    assert all(item.data[1, 4] == 0 and np.isfinite(item.data).all() for item in mended)
    np.testing.assert_array_equal(mended[2].data[0], one(2).data[0])
    assert ["1 samples" in text for text in notices(out)] == [True]
    assert "3 readouts" in notices(stage.finish())[0]


def test_damaged_samples_end_the_measurement_by_option() -> None:
    damaged = one()
    damaged.data[0, 0] = np.nan
    with pytest.raises(ScanError, match="NaN, Inf or huge"):
        RouteReadouts(STARS.scan(), "header", Counters(), "error").push(damaged)


def test_sizes_that_square_to_infinity_are_damage_and_strong_signals_are_not() -> None:
    counters = Counters()
    stage = RouteReadouts(STARS.scan(), "header", counters)
    strong, huge = one(), one(1)
    strong.data *= np.float32(1e9)
    huge.data[2, 0] = 1e20
    assert isinstance(stage.push(strong)[-1], Acquisition)
    assert isinstance(stage.push(huge)[-1], LostReadout)
    assert counters.set_aside == {"not finite": 1}


# Frames that lack readouts


def framed(items: list[object], close_after: int = -1) -> tuple[list[object], Counters]:
    scan, counters = STARS.scan(), Counters()
    stage = FrameReadouts(scan, FramePlan.of(scan, "windows", 0, 0), counters, close_after)
    out = [made for item in items for made in stage.push(item)]  # type: ignore[arg-type]
    return [*out, "finish", *stage.finish()], counters


def placed(spoke: int, partition: int) -> PlacedAcquisition:
    return PlacedAcquisition(one(spoke, partition), np.zeros((STARS.n_samples, 3), np.float32))


ALL: list[object] = [placed(s, p) for s in range(39) for p in range(4)]


def test_frame_does_not_wait_for_a_readout_that_is_known_to_be_lost() -> None:
    out, counters = framed([*ALL[:7], LostReadout(one(1, 3)), *ALL[8:]])
    ends = [item for item in out[: out.index("finish")] if isinstance(item, FrameEnd)]
    assert [(end.frame, end.n_readouts, end.is_complete) for end in ends] == [
        (0, 51, False),
        (1, 52, True),
        (2, 52, True),
    ]
    assert any("51 of 52 readouts came, 1 could not be used" in text for text in notices(out))
    assert counters.frames == 3


def test_lost_readout_may_close_its_frame_or_be_sent_again() -> None:
    out, _ = framed([*ALL[:51], LostReadout(one(12, 3))])
    assert isinstance(out[out.index("finish") - 1], FrameEnd)
    again, _ = framed([LostReadout(one(0, 0)), *ALL[:52]])
    assert [end.is_complete for end in again if isinstance(end, FrameEnd)] == [True]


def test_frame_of_lost_readouts_only_makes_no_image() -> None:
    lost = [LostReadout(one(s, p)) for s in range(13) for p in range(4)]
    out, counters = framed([*lost, *ALL[52:]])
    assert [end.frame for end in out if isinstance(end, FrameEnd)] == [1, 2]
    assert any("no image of it" in text for text in notices(out))
    assert counters.frames == 2


@pytest.mark.parametrize(("n_came", "told"), [(52, (2, 1)), (60, (1, 2)), (105, None), (0, None)])
def test_frames_that_never_came_are_told_and_counted(n_came: int, told: tuple[int, int] | None) -> None:
    """Unless nothing came, which others tell: three frames of 52 readouts."""
    out, _ = framed(ALL[:n_came])
    found = [i for i in out if isinstance(i, Notice) and "never came" in i.text]
    if told is None:
        assert not found
        return
    (notice,) = found
    n_absent, first = told
    assert notice.text == f"{n_absent} of 3 planned frames never came, the first is frame {first} slice 0"
    assert (notice.level, notice.kind, notice.amount) == ("warning", "missing_frames", n_absent)


def test_frame_that_lacks_a_readout_ends_when_later_ones_have_passed_by_option() -> None:
    waiting, _ = framed([*ALL[:30], *ALL[31:]], close_after=0)
    assert not any(isinstance(i, FrameEnd) and i.frame == 0 for i in waiting[: waiting.index("finish")])
    out, counters = framed([*ALL[:30], *ALL[31:], ALL[30]], close_after=5)
    at = next(i for i, item in enumerate(out) if isinstance(item, FrameEnd) and item.frame == 0)
    assert sum(isinstance(item, Readout) and item.frame == 1 for item in out[:at]) == 5
    assert counters.set_aside == {"after its frame was over": 1}
    assert [end.frame for end in out if isinstance(end, FrameEnd)] == [0, 1, 2]


def test_frame_that_lacks_a_readout_ends_when_a_later_frame_has_come() -> None:
    out, counters = framed([*ALL[:30], *ALL[31:], ALL[30], ALL[29]])
    at = next(i for i, item in enumerate(out) if isinstance(item, FrameEnd) and item.frame == 0)
    assert sum(isinstance(item, Readout) and item.frame == 1 for item in out[:at]) == 52
    assert not any(isinstance(item, Readout) and item.frame == 2 for item in out[:at])
    assert any("frame 0 slice 0 is incomplete: 51 of 52" in text for text in notices(out))
    assert counters.set_aside == {"after its frame was over": 1, "repeated": 1}
    every, _ = framed([item for i, item in enumerate(ALL) if i % 52 != 7])  # each frame lacks one
    assert [i.frame for i in every[: every.index("finish")] if isinstance(i, FrameEnd)] == [0]


def test_frame_that_still_gets_readouts_is_not_closed() -> None:
    """A readout of its own starts the count anew: late ones mean that more may come."""
    order = [*ALL[:50], *ALL[52:100], ALL[50], *ALL[100:150], ALL[51], *ALL[150:]]
    out, counters = framed(order)
    assert [end.is_complete for end in out if isinstance(end, FrameEnd)] == [True] * 3
    assert not counters.set_aside


@pytest.mark.parametrize("n_segments", [2, 3, 13])
def test_segmented_frames_are_not_closed_between_their_segments(n_segments: int) -> None:
    """Frames take turns, as heart phases do: long gaps, but no later frame comes as a whole."""
    limits = {**STARS.scan().limits, "phase": EncodingLimit(0, 19, 0), "kspace_encode_step_1": EncodingLimit(0, 12, 0)}
    scan, counters = replace(STARS.scan(), limits=limits), Counters()
    stage = FrameReadouts(scan, FramePlan.of(scan, "phase", 0, 0), counters)
    out: list[object] = []
    for spokes in np.array_split(np.arange(13), n_segments):
        for phase in range(20):
            for spoke in spokes:
                for partition in range(4):
                    item = placed(int(spoke), partition)
                    item.acquisition.header["idx"]["phase"] = phase
                    out += stage.push(item)
    assert [end.is_complete for end in out if isinstance(end, FrameEnd)] == [True] * 20
    assert not counters.set_aside


def test_frames_that_come_backwards_or_shuffled_are_whole() -> None:
    for order in (ALL[::-1], [ALL[i] for i in np.random.default_rng(1).permutation(len(ALL))]):
        out, _ = framed(order)
        assert sorted(end.frame for end in out if isinstance(end, FrameEnd) and end.is_complete) == [0, 1, 2]


def test_finished_frames_cost_next_to_nothing_and_are_still_known() -> None:
    limits = {
        "kspace_encode_step_1": EncodingLimit(0, 12, 0),
        "kspace_encode_step_2": EncodingLimit(0, 3, 2),
        "repetition": EncodingLimit(0, 99, 0),
    }
    scan, counters = replace(STARS.scan(), limits=limits, user_parameters={}), Counters()
    stage = FrameReadouts(scan, FramePlan.of(scan, "auto", 0, 0), counters)
    items = [placed(s, p) for s in range(13) for p in range(4)]
    for repetition in range(20):
        for item in items[: 52 - (repetition == 19)]:
            item.acquisition.header["idx"]["repetition"] = repetition
            stage.push(item)
    stage.finish()
    assert not stage._frames
    assert sum(len(runs._first) for runs in stage._over.values()) == 20
    items[0].acquisition.header["idx"]["repetition"] = 3
    stage.push(items[0])
    stage.push(items[0])
    items[51].acquisition.header["idx"]["repetition"] = 19
    stage.push(items[51])
    assert counters.set_aside == {"repeated": 2, "after its frame was over": 1}


def test_readouts_per_frame_say_how_many_spokes_there_are_where_the_header_does_not() -> None:
    scan = STARS.scan()
    limits = {name: limit for name, limit in scan.limits.items() if name != "kspace_encode_step_1"}
    scan = replace(scan, limits={**limits, "average": EncodingLimit(0, 1, 0)}, user_parameters={})
    plan = FramePlan.of(scan, "single", 0, 13 * 4 * 2)
    assert (plan.n_spokes, plan.n_expected) == (13, 104)
    angles = planned_angles_rad(replace(scan, trajectory="radial"), "uniform-half", plan.n_spokes, SpokeOrder())
    assert angles is not None
    assert len(np.unique(np.round(angles, 3))) == 13


# Where samples lie


def resolve(scan: Scan, source: str = "auto", **options: object) -> ResolveTrajectory:
    return ResolveTrajectory(scan, source, "header", STARS.spokes_per_frame, 0, 0.0, **options)  # type: ignore[arg-type]


def angle_of(stage: ResolveTrajectory, acquisition: Acquisition) -> float:
    item = stage.push(acquisition)[-1]
    assert isinstance(item, PlacedAcquisition)
    x, y = item.trajectory[-1, :2] - item.trajectory[0, :2]
    return float(np.arctan2(y, x) % (2 * np.pi))


def test_tiny_golden_angles_follow_wundrak() -> None:
    assert np.rad2deg(golden_angle_rad(1)) == pytest.approx(111.246, abs=1e-3)
    assert np.rad2deg(golden_angle_rad(7)) == pytest.approx(23.628, abs=1e-3)
    stage = resolve(STARS.scan(), "golden-angle", order=SpokeOrder(golden_order=7))
    assert angle_of(stage, one(5)) == pytest.approx(5 * np.deg2rad(23.62814), abs=1e-5)


def test_header_angle_is_used_unless_an_order_is_set() -> None:
    scan = replace(STARS.scan(), user_parameters={"golden_angle_deg": 68.75})
    assert angle_of(resolve(scan, "golden-angle"), one(2)) == pytest.approx(np.deg2rad(137.5))
    ours = resolve(scan, "golden-angle", order=SpokeOrder(golden_order=1))
    assert angle_of(ours, one(2)) == pytest.approx(2 * GOLDEN_ANGLE_RAD % (2 * np.pi))


@pytest.mark.parametrize(
    ("source", "order", "expected_deg"),
    [
        ("uniform-half", SpokeOrder(), 3 * 180 / 13),
        ("uniform-full", SpokeOrder(), 3 * 360 / 13),
        ("uniform-half", SpokeOrder(alternate=True), 3 * 180 / 13 + 180),
        ("uniform-half", SpokeOrder(first_angle_deg=20, clockwise=True), 20 - 3 * 180 / 13),
    ],
)
def test_uniform_angles_may_alternate_turn_back_and_start_anywhere(
    source: str, order: SpokeOrder, expected_deg: float
) -> None:
    found = angle_of(resolve(STARS.scan(), source, order=order), one(3))
    assert np.rad2deg(found) == pytest.approx(expected_deg % 360, abs=1e-3)


def test_alternating_half_circle_is_that_of_the_heart_recording() -> None:
    """7.2 degree steps, every second spoke reversed, from 180 degrees backwards: spoke s at 180 - 187.2 s."""
    scan = STARS.scan()
    order = SpokeOrder(first_angle_deg=180, alternate=True, clockwise=True)
    stage = ResolveTrajectory(scan, "uniform-half", "header", 25, 0, 0.0, order=order)
    for spoke in (0, 1, 2, 7):
        turned = np.rad2deg(angle_of(stage, one(spoke))) - (180 - 187.2 * spoke)
        assert turned % 360 == pytest.approx(0, abs=1e-3) or turned % 360 == pytest.approx(360, abs=1e-3)


def test_golden_angles_run_on_through_whatever_numbers_the_frames() -> None:
    limits = {
        **STARS.scan().limits,
        "contrast": EncodingLimit(0, 2, 0),
        "kspace_encode_step_1": EncodingLimit(0, 12, 0),
    }
    acquisition = one(4)
    acquisition.header["idx"]["contrast"] = 2
    found = angle_of(resolve(replace(STARS.scan(), limits=limits), "golden-angle"), acquisition)
    assert found == pytest.approx((2 * 13 + 4) * GOLDEN_ANGLE_RAD % (2 * np.pi), abs=1e-4)


def test_stored_angles_of_alternating_spokes_turn_every_second_one() -> None:
    stored, scan = 0.4, replace(STARS.scan(), user_parameters={"spoke_angle_rad": "user_float_0"})
    for spoke, turned in ((4, 0.0), (5, np.pi)):
        acquisition = one(spoke)
        acquisition.header["user_float"][0] = stored
        found = angle_of(resolve(scan, "user_float", order=SpokeOrder(alternate=True)), acquisition)
        assert found == pytest.approx(stored + turned, abs=1e-5)
        assert angle_of(resolve(scan, "user_float"), acquisition) == pytest.approx(stored, abs=1e-5)


@pytest.mark.parametrize(("name", "units"), [("spoke_angle_deg", "header"), ("", "deg"), ("spoke_angle_rad", "deg")])
def test_stored_angles_may_be_in_degrees_if_declared(name: str, units: str) -> None:
    scan = replace(STARS.scan(), user_parameters={name: "user_float_0"} if name else {})
    acquisition = one(3)
    acquisition.header["user_float"][0] = 33.0
    assert np.rad2deg(angle_of(resolve(scan, "user_float", angle_units=units), acquisition)) == pytest.approx(
        33, abs=1e-3
    )
    if name == "spoke_angle_deg":
        assert np.rad2deg(angle_of(resolve(scan), acquisition)) == pytest.approx(33, abs=1e-3)


def test_planned_angles_are_those_that_the_stage_gives() -> None:
    scan, order = STARS.scan(), SpokeOrder(golden_order=3, first_angle_deg=11)
    planned = planned_angles_rad(scan, "golden-angle", 13, order)
    assert planned is not None
    stage = resolve(scan, "golden-angle", order=order)
    found = [angle_of(stage, one(spoke)) for spoke in range(13)]
    np.testing.assert_allclose(np.exp(1j * planned), np.exp(1j * np.array(found)), atol=1e-5)
    assert planned_angles_rad(replace(scan, trajectory="radial"), "auto", 13, order) is None


def carried(bad: slice | list[int], value: float) -> Acquisition:
    acquisition = one(2)
    acquisition.trajectory = STARS.spoke(2).copy()
    acquisition.trajectory[bad] = value
    return acquisition


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_samples_outside_the_declared_range_are_refused_or_masked(value: float) -> None:
    acquisition = carried(slice(30, 33), value)
    with pytest.raises(ScanError, match=r"trajectory.outside=mask"):
        resolve(STARS.scan()).push(acquisition)
    stage = resolve(STARS.scan(), outside="mask")
    notice, item = stage.push(acquisition)
    assert "3 samples lie outside" in notice.text
    assert not item.acquisition.data[:, 30:33].any()
    np.testing.assert_array_equal(item.acquisition.data[:, :30], acquisition.data[:, :30])
    np.testing.assert_allclose(item.trajectory[:, :2], STARS.spoke(2), atol=1e-4)


@pytest.mark.parametrize("bad", [slice(-4, None), slice(0, 5), [0, 1, 20, 36, 37]])
def test_masked_ends_go_on_along_the_spoke(bad: slice | list[int]) -> None:
    """A spoke that bends has no place in zero-wait combination, which ended the measurement."""
    stage = resolve(STARS.scan(), outside="mask")
    _, item = stage.push(carried(bad, np.nan))
    assert not item.acquisition.data[:, bad].any()
    np.testing.assert_allclose(item.trajectory[:, :2], STARS.spoke(2), atol=1e-4)


def test_two_samples_of_which_one_is_outside_stay_finite() -> None:
    acquisition = STARS.acquisition(np.ones((3, 2), np.complex64), np.array([[1, 2], [np.nan, 0]], np.float32), 0, 0)
    _, item = resolve(STARS.scan(), outside="mask").push(acquisition)
    np.testing.assert_array_equal(item.trajectory, [[1, 2, 0], [1, 2, 0]])


def test_trajectory_mostly_outside_is_lost_counted_and_told_once() -> None:
    counters = Counters()
    stage = resolve(STARS.scan(), outside="mask", counters=counters)
    first, second = (stage.push(carried(slice(0, 30), np.nan)) for _ in range(2))
    assert [type(item) for item in first] == [Notice, LostReadout]
    assert [type(item) for item in second] == [LostReadout]
    assert counters.set_aside == {"trajectory outside its range": 2}


# Noise and coils


def noise(n_samples: int = 400, n_coils: int = 3, dwell_us: float = 0.0, seed: int = 0) -> Acquisition:
    rng = np.random.default_rng(seed)
    data = rng.standard_normal((n_coils, n_samples)) + 1j * rng.standard_normal((n_coils, n_samples))
    acquisition = STARS.acquisition((3 * data).astype(np.complex64), np.zeros((n_samples, 0), np.float32), 0, 0)
    acquisition.header["sample_time_us"] = dwell_us
    return acquisition


def whitened(readouts: list[Acquisition], image: Acquisition) -> tuple[np.ndarray, list[str]]:
    stage = Prewhiten(True, Counters())
    out: list[object] = []
    for acquisition in readouts:
        out += stage.push(NoiseReadout(acquisition))
    out += stage.push(image)
    return out[-1].data, notices(out)  # type: ignore[attr-defined]


def test_noise_is_scaled_to_the_dwell_time_of_the_images() -> None:
    image = one()
    image.header["sample_time_us"] = 8.0
    same, _ = whitened([noise(dwell_us=8.0)], image)
    faster, told = whitened([noise(dwell_us=2.0)], image)
    np.testing.assert_allclose(faster, 2 * same, rtol=1e-4)
    assert any("times 0.25" in text for text in told)
    undeclared, _ = whitened([noise()], image)
    np.testing.assert_allclose(undeclared, same, rtol=1e-5)


def test_dead_coil_gives_nothing_and_is_named() -> None:
    silent, image = noise(), one()
    silent.data[1] = 0
    data, told = whitened([silent], image)
    assert not data[1].any()
    assert data[0].any()
    assert any("disconnected and not used: 1" in text for text in told)


def test_loud_coil_and_scarce_noise_are_told() -> None:
    loud = noise()
    loud.data[2] *= 50
    assert any("noise variance: 2" in text for text in whitened([loud], one())[1])
    data, told = whitened([noise(n_samples=12)], one())
    assert any("only variances are used" in text for text in told)
    ratio = data / one().data
    np.testing.assert_allclose(ratio, ratio[:, :1] * np.ones_like(ratio), rtol=1e-4)  # no mixing of coils
    unwhitened, told = whitened([noise(n_samples=3)], one())
    np.testing.assert_array_equal(unwhitened, one().data)
    assert any("3 noise samples for 3 coils" in text for text in told)


def test_noise_that_is_not_finite_is_counted_and_not_used() -> None:
    counters = Counters()
    stage = Prewhiten(True, counters)
    bad = noise()
    bad.data[0, 0] = np.nan
    assert ["NaN" in text for text in notices(stage.push(NoiseReadout(bad)))] == [True]
    assert counters.set_aside == {"noise not finite": 1}


def test_coil_without_signal_is_told_once() -> None:
    stage = Prewhiten(True, Counters())
    out: list[object] = []
    for spoke in range(40):
        image = one(spoke)
        image.data[2] = 0
        out += stage.push(image)
    assert [text for text in notices(out) if "without any signal" in text] == [
        "coils without any signal in the first 32 readouts: 2"
    ]


# Readout oversampling


@pytest.mark.parametrize(("n", "n_kept"), [(38, 19), (40, 20), (39, 26), (41, 17)])
def test_cropped_readout_is_exact_for_an_object_inside(n: int, n_kept: int) -> None:
    """A few points in the kept field of view, sampled on both grids."""
    rng = np.random.default_rng(n)
    position = rng.integers(-(n_kept // 2) + 1, n_kept // 2, 5)
    value = rng.standard_normal((2, 5)) + 1j * rng.standard_normal((2, 5))

    def sampled(count: int) -> np.ndarray:
        k = (np.arange(count) - count // 2) / count  # cycles per fine voxel; the step grows as samples get fewer
        return (value @ np.exp(-2j * np.pi * np.outer(position, k))).astype(np.complex64)

    np.testing.assert_allclose(cropped(sampled(n), n_kept), sampled(n_kept), atol=1e-4)


def test_oversampling_of_spokes_is_removed_with_its_trajectory() -> None:
    scan, matrix = STARS.scan(), (19, 19)
    k = phantom.spokes(np.array([0.7]), matrix)[0]
    acquisition = STARS.acquisition(phantom.coil_kspace(k, matrix, 3), k[:, :0], 0, 0)
    notice, item = RemoveOversampling(scan, True).push(PlacedAcquisition(acquisition, k))
    assert "38 -> 19 samples" in notice.text
    assert item.acquisition.data.shape == (3, 19)
    np.testing.assert_allclose(item.trajectory, k[1::2], atol=1e-4)
    middle = slice(3, -3)  # the ends of the readout see the rim of a truncated transform
    expected = phantom.coil_kspace(item.trajectory, matrix, 3)
    error = np.abs(item.acquisition.data - expected)[:, middle].max()
    assert error < 0.02 * np.abs(expected).max()
    assert int(item.acquisition.header["number_of_samples"]) == 19


def test_curved_readouts_keep_their_oversampling_and_the_user_is_told() -> None:
    k = STARS.spoke(0)
    curved = np.pad(k, ((0, 0), (0, 1)))
    curved[:, 1] = k[:, 0] ** 2 / 10
    notice, item = RemoveOversampling(STARS.scan(), True).push(PlacedAcquisition(one(), curved))
    assert "not straight" in notice.text
    assert item.acquisition.data.shape == (3, 38)
    off = PlacedAcquisition(one(), curved)
    assert RemoveOversampling(STARS.scan(), False).push(off) == [off]
