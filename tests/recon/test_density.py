"""Density weights against areas, against the exact object, and against the published iterative recipe."""

import finufft
import numpy as np
import pytest

from kstream.errors import ShapeError
from kstream.recon.density import (
    AnglePlan,
    angle_gaps_rad,
    density_gain,
    pipe_menon_weights,
    polar_weights,
    readout_angle_rad,
    turn_rad,
    voronoi_weights,
)
from kstream.recon.fourier import to_image, to_kspace
from kstream.types import GOLDEN_ANGLE_RAD, Float, Readout
from tests import phantom

GOLDEN_96 = np.arange(96) * GOLDEN_ANGLE_RAD


def test_weights_of_spokes_fill_the_disc() -> None:
    """Weights are areas: those of all spokes add up to the disc that they cover."""
    n_samples, n_spokes = 64, 21
    radius = (np.arange(n_samples) - n_samples // 2) / 2
    k = np.stack([radius, 0 * radius, 0 * radius], 1).astype(np.float32)
    total = n_spokes * polar_weights(k, np.pi / n_spokes).sum()
    assert total == pytest.approx(np.pi * (n_samples / 4) ** 2, rel=0.02)


def test_weights_of_spiral_interleaves_fill_the_disc() -> None:
    t = np.linspace(0, 1, 4000)
    radius, turns, n_interleaves = 20 * t, 6, 11
    k = np.stack([radius * np.cos(2 * np.pi * turns * t), radius * np.sin(2 * np.pi * turns * t), 0 * t], 1)
    total = n_interleaves * polar_weights(k.astype(np.float32), 2 * np.pi / n_interleaves).sum()
    assert total == pytest.approx(np.pi * 20**2, rel=0.02)


@pytest.mark.parametrize("offset", [0.0, 0.2, 0.5, 0.8])
def test_ramp_integrates_a_smooth_function_wherever_the_centre_lies_between_samples(offset: float) -> None:
    """Sum of weights times a Gaussian is its integral: without the correction at the centre it is off by 4 %."""
    radius = (np.arange(-40, 40) - offset) * 0.5
    k = np.stack([radius, 0 * radius, 0 * radius], 1).astype(np.float32)
    gaussian = np.exp(-np.pi * radius**2 / 4)
    assert 7 * (polar_weights(k, np.pi / 7) * gaussian).sum() == pytest.approx(4, rel=2e-3)
    outward = k[40:] if offset == 0 else k[41:]
    assert 9 * (polar_weights(outward, 2 * np.pi / 9) * gaussian[-len(outward) :]).sum() == pytest.approx(4, rel=2e-3)


def test_spoke_serves_two_directions_and_an_interleave_one() -> None:
    radius = np.arange(-8, 8, dtype=np.float32)
    spoke = np.stack([radius, radius, 0 * radius], 1)
    assert turn_rad(spoke) == pytest.approx(np.pi)
    assert turn_rad(spoke[8:] + 0.5) == pytest.approx(2 * np.pi)


def test_gaps_of_any_angles_fill_the_turn_and_those_of_uniform_angles_are_equal() -> None:
    rng = np.random.default_rng(0)
    for turn in (np.pi, 2 * np.pi):
        assert angle_gaps_rad(rng.uniform(-9, 9, 31), turn).sum() == pytest.approx(turn)
    np.testing.assert_allclose(angle_gaps_rad(2 * np.pi * np.arange(33) / 33), np.pi / 33)
    np.testing.assert_allclose(angle_gaps_rad(np.array([0.3, 0.3, 1.3])), [(np.pi - 1) / 2, 0.5, np.pi / 2])


def test_golden_angles_leave_gaps_of_at_most_three_sizes() -> None:
    gaps = np.diff(np.sort(GOLDEN_96 % np.pi), append=np.pi)
    assert len(np.unique(np.round(gaps, 9))) == 3
    assert len(np.unique(np.round(angle_gaps_rad(GOLDEN_96), 9))) > 1


def test_planned_gaps_hold_for_every_golden_window_and_not_for_spokes_elsewhere() -> None:
    planned = np.arange(34) * GOLDEN_ANGLE_RAD
    plan, aspect = AnglePlan(planned, n_averages=2, aspect=0.7), 0.7

    def step(spoke: int, angle: float, frame: int, n_readouts: float = 68) -> float:
        k = phantom.spokes(np.array([angle]), (17, 17), aspect)[0]
        return plan.step_rad(Readout(np.zeros((1, 34), np.complex64), k, frame, 0, 0, (2 * spoke, 0), 0), n_readouts)

    gaps = angle_gaps_rad(planned)
    for frame, turned in ((0, 0.0), (1, 34 * GOLDEN_ANGLE_RAD)):
        found = [step(i, planned[i] + turned, frame) for i in range(34)]
        np.testing.assert_allclose(found, gaps / 2)
    assert step(5, planned[5] + 0.4, 0) == pytest.approx(np.pi / 68)
    np.testing.assert_allclose(step(7, planned[7], 0, 26), angle_gaps_rad(planned[:13])[7] / 2)


def steps(angles: np.ndarray, order: list[int], n_partitions: int = 1) -> np.ndarray:
    """Steps by partition and spoke, of spokes that come in `order`, all of one partition first."""
    plan, found = AnglePlan(np.arange(13) * GOLDEN_ANGLE_RAD), np.zeros((n_partitions, 13))
    k = phantom.spokes(angles, (17, 17))
    for partition in range(n_partitions):
        for i in order:
            readout = Readout(np.zeros((1, 34), np.complex64), k[i], 0, 0, partition, (i, partition), 0)
            found[partition, i] = plan.step_rad(readout, 13)
    return found


@pytest.mark.parametrize("stray", [0, 1, 7, 12])
def test_stray_spoke_takes_no_gaps_from_the_others_wherever_it_comes(stray: int) -> None:
    planned = np.arange(13) * GOLDEN_ANGLE_RAD
    angles, gaps = planned + 0.9, angle_gaps_rad(planned)
    angles[stray] += 0.3
    others = np.arange(13) != stray
    for order in (list(range(13)), list(range(12, -1, -1)), [stray, *np.flatnonzero(others).tolist()]):
        found = steps(angles, order, n_partitions=3)
        np.testing.assert_allclose(found[:, others], np.tile(gaps[others], (3, 1)))
        np.testing.assert_allclose(found[:, stray], gaps[stray] if order.index(stray) < 2 else np.pi / 13)


def test_angles_that_follow_no_plan_get_the_mean_gap_from_the_third_on() -> None:
    angles = np.random.default_rng(8).uniform(0, np.pi, 13)
    np.testing.assert_allclose(steps(angles, list(range(13)))[0, 2:], np.pi / 13)


def test_frames_that_are_long_over_are_forgotten() -> None:
    plan = AnglePlan(np.arange(13) * GOLDEN_ANGLE_RAD)
    k = phantom.spokes(np.arange(13) * GOLDEN_ANGLE_RAD, (17, 17))
    for frame in range(40):
        for slice_ in range(3):
            plan.step_rad(Readout(np.zeros((1, 34), np.complex64), k[2], frame, slice_, 0, (2, 0), 0), 13)
    assert sorted(plan._came) == [0, 1, 2]
    assert all(list(frames) == list(range(32, 40)) for frames in plan._came.values())


def test_frames_that_end_are_forgotten_then_however_many_are_open() -> None:
    plan = AnglePlan(np.arange(13) * GOLDEN_ANGLE_RAD, n_frames=0)
    k = phantom.spokes(np.arange(13) * GOLDEN_ANGLE_RAD, (17, 17))
    for spoke in (2, 3):
        for frame in range(40):
            plan.step_rad(Readout(np.zeros((1, 34), np.complex64), k[spoke], frame, 0, 0, (spoke, 0), 0), 13)
    assert [len(plan.end_frame(0, frame)) for frame in range(40)] == [2] * 40
    assert plan._came == {0: {}}


def test_voronoi_cells_of_a_grid_are_its_spacing_and_shared_places_share() -> None:
    y, x = np.mgrid[:9, :13]
    k = np.stack([2 * (x - 6), 3 * (y - 4)], axis=-1).astype(np.float32)
    np.testing.assert_allclose(voronoi_weights(k), 6, rtol=1e-5)
    twice = voronoi_weights(np.stack([k, k]))
    np.testing.assert_allclose(twice, 3, rtol=1e-5)


def test_voronoi_cells_of_spokes_are_their_sectors() -> None:
    k = phantom.spokes(np.arange(21) * GOLDEN_ANGLE_RAD, (15, 15))
    gaps = angle_gaps_rad(np.arange(21) * GOLDEN_ANGLE_RAD)
    polar = np.stack([polar_weights(spoke, gap) for spoke, gap in zip(k, gaps, strict=True)])
    for side in (slice(2, 10), slice(20, 28)):  # away from the centre and from the ends
        np.testing.assert_allclose(voronoi_weights(k)[:, side], polar[:, side], rtol=0.02)


def test_samples_on_a_line_have_no_voronoi_cells() -> None:
    with pytest.raises(ShapeError, match="at least four"):
        voronoi_weights(np.zeros((3, 2), np.float32))


def test_iterative_weights_are_the_published_recipe() -> None:
    mr = pytest.importorskip("sigpy.mri")
    k = phantom.spokes(GOLDEN_96[:34], (33, 33))
    theirs = np.abs(mr.pipe_menon_dcf(k[..., [1, 0]], img_shape=(33, 33), max_iter=15, show_pbar=False))
    ours = pipe_menon_weights(k, (33, 33))
    np.testing.assert_allclose(ours / ours.sum(), theirs / theirs.sum(), atol=1e-5 * 33)


def adjoint(samples: np.ndarray, k: Float, weights: Float, matrix: tuple[int, int]) -> np.ndarray:
    nx, ny = matrix
    flat = k.reshape(-1, 3).astype(np.float64)
    y, x = flat[:, 1] * (2 * np.pi / ny), flat[:, 0] * (2 * np.pi / nx)
    values = (samples * weights).ravel().astype(np.complex128)
    return finufft.nufft2d1(y, x, values, (ny, nx), isign=1, eps=1e-9) / np.sqrt(nx * ny)


def error(angles: np.ndarray, method: str, matrix: tuple[int, int] = (65, 65), aspect: float = 1.0) -> float:
    """Relative error of the weighted adjoint against the exact object."""
    k = phantom.spokes(angles, matrix, aspect)
    if method == "mean":
        weights = np.stack([polar_weights(s, np.pi / len(k), aspect) for s in k])
    elif method == "gaps":
        gaps = angle_gaps_rad(np.array([readout_angle_rad(s, aspect) for s in k]))
        weights = np.stack([polar_weights(s, gap, aspect) for s, gap in zip(k, gaps, strict=True)])
    elif method == "voronoi":
        weights = voronoi_weights(k, aspect)
    else:
        weights = pipe_menon_weights(k, (matrix[1], matrix[0]), oversampling=int(method))
    exact = phantom.truth(matrix)
    image = adjoint(phantom.kspace(k, matrix), k, weights, matrix)
    return float(np.linalg.norm(image - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("n_spokes", [110, 96, 48])
def test_gaps_beat_the_mean_step_and_the_published_recipe_on_golden_angles(n_spokes: int) -> None:
    angles = np.arange(n_spokes) * GOLDEN_ANGLE_RAD
    found = {method: error(angles, method) for method in ("mean", "gaps", "voronoi", "1")}
    assert found["gaps"] < 0.85 * found["mean"]
    assert found["gaps"] < 0.9 * found["voronoi"]
    assert found["gaps"] < 0.5 * found["1"]


def test_analytic_weights_come_close_to_the_object_where_spokes_satisfy_nyquist() -> None:
    uniform = np.arange(105) * np.pi / 105
    assert error(uniform, "gaps") < 0.02
    assert error(uniform, "mean") == pytest.approx(error(uniform, "gaps"), rel=1e-3)
    # a finer grid makes the iterative weights usable; it is for trajectories that nothing is known of
    assert error(uniform, "3") < 0.04


def test_anisotropic_field_of_view_is_as_accurate() -> None:
    matrix, aspect = (64, 45), 45 / 64
    angles = np.arange(110) * np.pi / 110
    assert error(angles, "gaps", matrix, aspect) < 0.03


# Put right afterwards


def gained(angles: np.ndarray, steps: np.ndarray, matrix: tuple[int, int], aspect: float = 1.0) -> tuple[float, float]:
    """Error of the image of spokes that were weighted with `steps`, before and after `density_gain`."""
    k, exact = phantom.spokes(angles, matrix, aspect), phantom.truth(matrix)
    weights = np.stack([polar_weights(spoke, step, aspect) for spoke, step in zip(k, steps, strict=True)])
    image = adjoint(phantom.kspace(k, matrix) * 1.0, k, weights, matrix).astype(np.complex64)
    gain = density_gain(angles, steps, matrix[::-1], aspect)
    right = image if gain is None else to_image(to_kspace(image) * gain)
    before, after = (float(np.linalg.norm(found - exact) / np.linalg.norm(exact)) for found in (image, right))
    return before, after


SPOKES = np.arange(90) * np.pi / 90
SOME = np.sort(np.random.default_rng(0).permutation(90)[:80])
WRONG = {
    "part of a golden frame": (np.arange(50) * GOLDEN_ANGLE_RAD, angle_gaps_rad(np.arange(68) * GOLDEN_ANGLE_RAD)[:50]),
    "lost spokes": (SPOKES[SOME], np.full(80, np.pi / 90)),
    "random": (np.random.default_rng(1).uniform(0, np.pi, 90), np.full(90, np.pi / 90)),
    "window of three frames": (np.arange(102) * GOLDEN_ANGLE_RAD, np.tile(angle_gaps_rad(GOLDEN_96[:34]), 3) / 3),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize(("matrix", "aspect"), [((65, 65), 1.0), ((65, 48), 48 / 65)])
def test_density_that_was_wrong_is_put_right_in_combined_k_space(
    case: str, matrix: tuple[int, int], aspect: float
) -> None:
    """A third to all of the error over that of the gaps that the spokes have goes away."""
    angles, steps = WRONG[case]
    before, after = gained(angles, steps, matrix, aspect)
    best, _ = gained(angles, angle_gaps_rad(angles), matrix, aspect)
    assert best < after < before
    assert after - best < 0.65 * (before - best)


def test_density_that_was_right_is_left_alone() -> None:
    for angles in (SPOKES, GOLDEN_96, np.repeat(SPOKES, 2)):
        steps = angle_gaps_rad(np.unique(angles % np.pi))[np.unique(angles % np.pi, return_inverse=True)[1]]
        assert density_gain(angles, steps * len(np.unique(angles % np.pi)) / len(angles), (9, 7)) is None


def test_a_wedge_without_spokes_is_not_blown_up() -> None:
    gain = density_gain(SPOKES[:50], np.full(50, np.pi / 90), (33, 33))
    assert gain is not None
    assert 1 < gain.max() <= 2
    assert gain[16, 16] == pytest.approx(90 / 50)


def test_arbitrary_angles_are_learned_from_the_first_whole_frame() -> None:
    angles = np.random.default_rng(9).uniform(0, np.pi, 13)
    gaps, plan = angle_gaps_rad(angles), AnglePlan(learns=True)

    def frame_of(number: int, turned: float = 0.0) -> list[float]:
        k = phantom.spokes(angles + turned, (17, 17))
        data = np.zeros((1, 34), np.complex64)
        return [plan.step_rad(Readout(data, k[i], number, 0, 0, (i, 0), 0), 13) for i in range(13)]

    np.testing.assert_allclose(frame_of(0), np.pi / 13)
    np.testing.assert_allclose(frame_of(1), gaps, rtol=1e-5)
    np.testing.assert_allclose(frame_of(2, 0.7), gaps, rtol=1e-5)
    np.testing.assert_allclose(frame_of(0), np.pi / 13)  # what a spoke was taken for stays
    np.testing.assert_allclose([spoke.step_rad for spoke in plan.used(0, 1)], gaps, rtol=1e-5)
    assert plan.used(0, 7) == []
