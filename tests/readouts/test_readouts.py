import numpy as np
import pytest

from kstream.errors import ConfigError, ScanError, ShapeError
from kstream.readouts.framing import FramePlan, FrameReadouts
from kstream.readouts.routing import NoiseReadout, RouteReadouts
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
    assert [type(item) for item in told] == [Notice]
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
    assert (plan.by, plan.n_frames, plan.spokes_per_frame) == ("repetition", 2, 13)


def test_too_few_spokes_for_the_frames_are_refused() -> None:
    with pytest.raises(ScanError, match="39 spokes cannot make 40 frames"):
        FramePlan.of(STARS.scan(), "windows", 40, 0)
