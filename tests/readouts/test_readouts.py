import numpy as np
import pytest

from kstream.errors import ConfigError, ScanError, ShapeError
from kstream.readouts.framing import FramePlan, FrameReadouts
from kstream.readouts.routing import LostReadout, NoiseReadout, RouteReadouts
from kstream.readouts.trajectory import GOLDEN_ANGLE_RAD, PlacedAcquisition, ResolveTrajectory
from kstream.readouts.whitening import Prewhiten, noise_covariance, whitening_matrix
from kstream.stream.telemetry import Counters
from kstream.types import Acquisition, AcquisitionFlag, EncodingLimit, FrameEnd, Notice, Readout, Scan
from tests.scans import StackOfStars

STARS = StackOfStars()


def one(spoke: int = 0, partition: int = 0, n_samples: int = STARS.n_samples, flags: int = 0) -> Acquisition:
    rng = np.random.default_rng(spoke)
    data = (rng.standard_normal((3, n_samples)) + 1j).astype(np.complex64)
    acquisition = STARS.acquisition(data, np.zeros((n_samples, 0), np.float32), spoke, partition)
    acquisition.header["flags"] = np.uint64(flags)
    return acquisition


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        (AcquisitionFlag.IS_DUMMYSCAN_DATA, "dummy"),
        (AcquisitionFlag.IS_NAVIGATION_DATA, "navigator"),
        (AcquisitionFlag.IS_PHASECORR_DATA, "phase correction"),
        (AcquisitionFlag.IS_PARALLEL_CALIBRATION, "parallel calibration"),
    ],
)
def test_what_is_not_imaging_is_left_aside_and_counted(flag: AcquisitionFlag, reason: str) -> None:
    counters = Counters()
    stage = RouteReadouts(STARS.scan(), "header", counters)
    assert stage.push(one(flags=flag)) == []
    assert counters.set_aside == {reason: 1}
    assert counters.dropped == 0


def test_noise_goes_its_own_way_and_calibration_that_is_also_imaging_goes_on() -> None:
    stage = RouteReadouts(STARS.scan(), "header", Counters())
    assert isinstance(stage.push(one(flags=AcquisitionFlag.IS_NOISE_MEASUREMENT))[0], NoiseReadout)
    both = AcquisitionFlag.IS_PARALLEL_CALIBRATION | AcquisitionFlag.IS_PARALLEL_CALIBRATION_AND_IMAGING
    assert isinstance(stage.push(one(flags=both))[0], Acquisition)


def test_readout_that_contradicts_the_header_says_what_where_and_what_to_try() -> None:
    stage = RouteReadouts(STARS.scan(), "header", Counters())
    with pytest.raises(ShapeError) as raised:
        stage.push(one(spoke=5, n_samples=31))
    text = str(raised.value)
    assert "readout 1 has 31 samples, but the header promises 38" in text
    assert "kspace_encode_step_1 = 5" in text
    assert "--set readouts.samples=31" in text


def test_coils_that_change_are_refused() -> None:
    stage = RouteReadouts(STARS.scan(), "header", Counters())
    acquisition = one()
    acquisition.data = acquisition.data[:2]
    with pytest.raises(ShapeError, match="2 coils, but this scan has 3"):
        stage.push(acquisition)


def test_samples_that_are_not_finite_are_counted_as_dropped_and_told_once() -> None:
    counters = Counters()
    stage = RouteReadouts(STARS.scan(), "header", counters)
    told = []
    for spoke in range(3):
        bad = one(spoke)
        bad.data[1, 4] = np.nan
        told += stage.push(bad)
    assert [type(item) for item in told] == [Notice, LostReadout, LostReadout, LostReadout]
    assert counters.dropped == 3


def test_reversed_readouts_are_turned_round() -> None:
    acquisition = one(flags=AcquisitionFlag.IS_REVERSE)
    before = acquisition.data.copy()
    (turned,) = RouteReadouts(STARS.scan(), "header", Counters()).push(acquisition)
    np.testing.assert_array_equal(turned.data, before[:, ::-1])


def test_whitened_noise_has_unit_covariance() -> None:
    rng = np.random.default_rng(0)
    mix = np.array([[1, 0.5j, 0], [0, 2, 0.1], [0, 0, 0.3]])
    noise = (mix @ (rng.standard_normal((3, 40000)) + 1j * rng.standard_normal((3, 40000)))).astype(np.complex64)
    matrix = whitening_matrix(noise_covariance([noise]))
    np.testing.assert_allclose(noise_covariance([matrix @ noise]).matrix, np.eye(3), atol=2e-3)


def test_prewhitening_applies_to_image_readouts_after_noise() -> None:
    rng = np.random.default_rng(1)
    stage = Prewhiten(True, Counters())
    for acquisition in STARS.acquisitions(rng, noise=4)[:4]:
        stage.push(NoiseReadout(acquisition))
    image = one()
    before = image.data.copy()
    *_, whitened = stage.push(image)
    assert not np.allclose(whitened.data, before)


def test_noise_after_imaging_is_told_and_not_used() -> None:
    counters = Counters()
    stage = Prewhiten(True, counters)
    stage.push(one())
    (notice,) = stage.push(NoiseReadout(one(1)))
    assert notice.level == "warning"
    assert counters.set_aside == {"noise after imaging": 1}


def resolve(scan: Scan, source: str = "auto", units: str = "header", delay: float = 0.0) -> ResolveTrajectory:
    return ResolveTrajectory(scan, source, units, STARS.spokes_per_frame, 0, delay)  # type: ignore[arg-type]


def placed(stage: ResolveTrajectory, acquisition: Acquisition) -> PlacedAcquisition:
    found = stage.push(acquisition)[-1]
    assert isinstance(found, PlacedAcquisition)
    return found


def test_trajectory_carried_computed_and_from_user_float_are_the_same() -> None:
    scan = STARS.scan()
    carried = one(7)
    carried.trajectory = STARS.spoke(7)
    computed = one(7)
    angled = one(7)
    angled.header["user_float"][0] = 7 * GOLDEN_ANGLE_RAD
    first = placed(resolve(scan), carried).trajectory
    np.testing.assert_allclose(placed(resolve(scan, "golden-angle"), computed).trajectory, first, atol=1e-3)
    np.testing.assert_allclose(placed(resolve(scan, "user_float"), angled).trajectory, first, atol=1e-3)


@pytest.mark.parametrize(("units", "factor"), [("cycles_per_sample", 19.0), ("cycles_per_metre", 0.2)])
def test_declared_units_are_converted(units: str, factor: float) -> None:
    acquisition = one(2)
    acquisition.trajectory = STARS.spoke(2) / np.float32(factor)
    found = placed(resolve(STARS.scan(), units=units), acquisition).trajectory
    np.testing.assert_allclose(found[:, :2], STARS.spoke(2), atol=1e-4)


def test_undeclared_units_are_never_guessed() -> None:
    scan = StackOfStars().scan()
    bare = Scan(**{**vars(scan), "user_parameters": {}})
    acquisition = one(2)
    acquisition.trajectory = STARS.spoke(2)
    with pytest.raises(ConfigError, match="not declared"):
        resolve(bare).push(acquisition)


def test_trajectory_in_wrong_units_is_refused() -> None:
    acquisition = one(2)
    acquisition.trajectory = STARS.spoke(2) * 100
    with pytest.raises(ScanError, match=r"beyond .*"):
        resolve(STARS.scan()).push(acquisition)


def test_delay_moves_the_centre_along_the_readout() -> None:
    acquisition = one(3)
    still = placed(resolve(STARS.scan(), "golden-angle"), one(3)).trajectory
    moved = placed(resolve(STARS.scan(), "golden-angle", delay=1.0), acquisition).trajectory
    np.testing.assert_allclose(moved[1:], still[:-1], atol=1e-4)


def test_the_policy_that_was_used_is_told_once() -> None:
    stage = resolve(STARS.scan(), "golden-angle")
    assert [type(i) for i in stage.push(one(0))] == [Notice, PlacedAcquisition]
    assert [type(i) for i in stage.push(one(1))] == [PlacedAcquisition]


def frames(order: list[tuple[int, int]], by: str = "windows") -> tuple[list[object], Counters]:
    scan, counters = STARS.scan(), Counters()
    stage = FrameReadouts(scan, FramePlan.of(scan, by, 0, 0), counters)  # type: ignore[arg-type]
    out: list[object] = []
    for spoke, partition in order:
        acquisition = one(spoke, partition)
        out += stage.push(PlacedAcquisition(acquisition, np.zeros((STARS.n_samples, 3), np.float32)))
    return out + stage.finish(), counters


ALL = [(s, p) for s in range(39) for p in range(4)]


def test_last_spoke_closes_frame() -> None:
    out, counters = frames(ALL)
    ends = [item for item in out if isinstance(item, FrameEnd)]
    assert [end.frame for end in ends] == [0, 1, 2]
    assert all(end.is_complete for end in ends)
    assert isinstance(out[13 * 4], FrameEnd)
    assert counters.frames == 3


def test_any_order_of_readouts_makes_the_same_frames() -> None:
    shuffled = [ALL[i] for i in np.random.default_rng(0).permutation(len(ALL))]
    ends = [item for item in frames(shuffled)[0] if isinstance(item, FrameEnd)]
    assert sorted(end.frame for end in ends) == [0, 1, 2]
    assert all(end.is_complete for end in ends)
    members = {(r.frame, r.key) for r in frames(shuffled)[0] if isinstance(r, Readout)}
    assert members == {(r.frame, r.key) for r in frames(ALL)[0] if isinstance(r, Readout)}


def test_missing_readouts_leave_an_incomplete_frame_that_is_told() -> None:
    out, _ = frames(ALL[:-3])
    end = [item for item in out if isinstance(item, FrameEnd)][-1]
    assert not end.is_complete
    assert (end.n_readouts, end.n_expected) == (49, 52)
    assert any(isinstance(i, Notice) and "49 of 52" in i.text for i in out)


def test_repeated_readouts_do_not_count_twice() -> None:
    out, counters = frames([ALL[0], ALL[0], *ALL[1:]])
    assert counters.set_aside == {"repeated": 1}
    assert sum(isinstance(i, FrameEnd) for i in out) == 3


def test_counters_beyond_the_plan_are_dropped_and_told() -> None:
    out, counters = frames([(0, 0), (39, 0), (65535, 3)])
    assert counters.set_aside == {"outside the planned frames": 2}
    assert sum(isinstance(i, Notice) and "outside" in i.text for i in out) == 1


def test_repetition_numbers_the_frames_when_the_header_has_repetitions() -> None:
    scan = STARS.scan()
    limits = {**scan.limits, "repetition": EncodingLimit(0, 1, 0), "kspace_encode_step_1": EncodingLimit(0, 12, 0)}
    plan = FramePlan.of(Scan(**{**vars(scan), "limits": limits}), "auto", 0, 0)
    assert (plan.by, plan.n_frames, plan.n_spokes) == ("repetition", 2, 13)


def test_too_few_spokes_for_the_frames_are_refused() -> None:
    with pytest.raises(ScanError, match="39 spokes cannot make 40 frames"):
        FramePlan.of(STARS.scan(), "windows", 40, 0)


def with_limits(**limits: EncodingLimit) -> Scan:
    scan = STARS.scan()
    return Scan(**{**vars(scan), "limits": {**scan.limits, **limits}})


def test_readouts_after_a_full_frame_make_no_second_frame() -> None:
    scan, counters = with_limits(kspace_encode_step_1=EncodingLimit(0, 12, 0)), Counters()
    stage = FrameReadouts(scan, FramePlan.of(scan, "single", 0, 20), counters)
    out: list[object] = []
    for spoke, partition in [(s, p) for s in range(13) for p in range(4)]:
        out += stage.push(PlacedAcquisition(one(spoke, partition), np.zeros((STARS.n_samples, 3), np.float32)))
    assert sum(isinstance(i, FrameEnd) for i in out) == 1
    assert counters.set_aside == {"after its frame was over": 32}


def test_header_that_does_not_say_how_many_readouts_make_a_frame_is_refused() -> None:
    scan = Scan(**{**vars(STARS.scan()), "limits": {}})
    with pytest.raises(ScanError, match="how many readouts make a frame"):
        FramePlan.of(scan, "single", 0, 0)
    assert FramePlan.of(scan, "single", 0, 7).n_expected == 7


@pytest.mark.parametrize("value", ["abc", 3.5, 0, -1, 10**9, float("nan")])
def test_impossible_number_of_frames_in_the_header_is_refused(value: object) -> None:
    scan = Scan(**{**vars(STARS.scan()), "user_parameters": {"n_frames": value}})
    with pytest.raises(ScanError, match="n_frames"):
        FramePlan.of(scan, "auto", 0, 0)


def test_second_running_counter_is_refused_and_averages_are_not_repeats() -> None:
    two = with_limits(repetition=EncodingLimit(0, 2, 0), contrast=EncodingLimit(0, 1, 0))
    with pytest.raises(ScanError, match="contrast runs too"):
        FramePlan.of(two, "auto", 1, 0)
    averaged = with_limits(average=EncodingLimit(0, 1, 0), kspace_encode_step_1=EncodingLimit(0, 12, 0))
    counters = Counters()
    stage = FrameReadouts(averaged, FramePlan.of(averaged, "single", 0, 0), counters)
    out: list[object] = []
    for average in (0, 1):
        for spoke, partition in [(s, p) for s in range(13) for p in range(4)]:
            acquisition = one(spoke, partition)
            acquisition.header["idx"]["average"] = average
            out += stage.push(PlacedAcquisition(acquisition, np.zeros((STARS.n_samples, 3), np.float32)))
    assert counters.set_aside == {}
    assert sum(isinstance(i, FrameEnd) for i in out) == 1


def test_reversed_readout_is_the_forward_readout_measured_backwards() -> None:
    """Sample, position and delay must all turn round together, with and without a carried trajectory."""
    scan = STARS.scan()
    forward = one(5)
    forward.trajectory = STARS.spoke(5)
    backward = one(5, flags=AcquisitionFlag.IS_REVERSE)
    backward.data = forward.data[:, ::-1].copy()
    backward.trajectory = STARS.spoke(5)[::-1].copy()
    backward.header["center_sample"] = STARS.n_samples - 1 - STARS.n_samples // 2
    for source in ("auto", "golden-angle"):
        route = RouteReadouts(scan, "header", Counters())
        first, second = (placed(resolve(scan, source), route.push(a)[0]) for a in (forward, backward))
        np.testing.assert_allclose(second.trajectory, first.trajectory, atol=1e-4)
        np.testing.assert_array_equal(second.acquisition.data, first.acquisition.data)


def test_stages_leave_the_callers_acquisition_as_it_was() -> None:
    acquisition = one(flags=AcquisitionFlag.IS_REVERSE)
    before = acquisition.data.copy()
    (turned,) = RouteReadouts(STARS.scan(), "header", Counters()).push(acquisition)
    stage = Prewhiten(True, Counters())
    for noise in STARS.acquisitions(np.random.default_rng(0), noise=3)[:3]:
        stage.push(NoiseReadout(noise))
    stage.push(turned)
    np.testing.assert_array_equal(acquisition.data, before)


def test_samples_to_be_discarded_are_taken_off_both_ends() -> None:
    acquisition = one()
    acquisition.header["discard_pre"], acquisition.header["discard_post"] = 3, 5
    (trimmed,) = RouteReadouts(STARS.scan(), "header", Counters()).push(acquisition)
    np.testing.assert_array_equal(trimmed.data, acquisition.data[:, 3:-5])
    assert int(trimmed.header["center_sample"]) == STARS.n_samples // 2 - 3


def test_disconnected_coil_cannot_dominate_the_whitened_data() -> None:
    rng = np.random.default_rng(0)
    noise = 2000 * (rng.standard_normal((3, 4000)) + 1j * rng.standard_normal((3, 4000)))
    noise[1] = 0
    matrix = whitening_matrix(noise_covariance([noise.astype(np.complex64)]))
    assert abs(matrix[1, 1]) <= 1.1 * abs(matrix[0, 0])


def test_rectangular_field_of_view_keeps_the_angle_in_millimetres() -> None:
    scan = Scan(**{**vars(STARS.scan()), "recon_fov_mm": (200.0, 100.0, 50.0), "encoded_fov_mm": (400.0, 200.0, 50.0)})
    found = placed(resolve(scan, "golden-angle"), one(1)).trajectory
    per_mm = found[:, :2] / (200.0, 100.0)
    angle = np.arctan2(per_mm[-1, 1], per_mm[-1, 0])
    assert np.angle(np.exp(1j * (angle - GOLDEN_ANGLE_RAD))) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("level", [1e-41, 1e-31, 1e-20, 1.0, 1e20])
def test_whitened_samples_are_finite_at_every_level(level: float) -> None:
    rng = np.random.default_rng(12)
    noise = (level * (rng.standard_normal((3, 97)) + 1j * rng.standard_normal((3, 97)))).astype(np.complex64)
    image = (50 * level * (rng.standard_normal((3, 41)) + 1j * rng.standard_normal((3, 41)))).astype(np.complex64)
    whitened = whitening_matrix(noise_covariance([noise])) @ image
    assert np.isfinite(whitened).all()
    assert whitened.any()
