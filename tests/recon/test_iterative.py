"""The operator against its definition, and its solutions against the exact object and against SigPy."""

import numpy as np
import pytest

from kstream.errors import ScanError
from kstream.recon.density import angle_gaps_rad, polar_weights
from kstream.recon.fourier import to_image
from kstream.recon.iterative import (
    IterativeSettings,
    ReconstructIteratively,
    SenseOperator,
    conjugate_gradients,
    soft_threshold,
    solve_slice,
    total_variation_proximal,
)
from kstream.recon.sampling import Sampling
from kstream.stream.runners import run_inline
from kstream.types import GOLDEN_ANGLE_RAD, Complex, EncodingLimit, Float, FrameEnd, Geometry, KSpace, Notice, Readout
from tests import phantom
from tests.scans import StackOfStars

MATRIX = (45, 38)
ASPECT = MATRIX[1] / MATRIX[0]
N_COILS = 5
MAPS = phantom.coil_maps(MATRIX, N_COILS)


def complex_noise(rng: np.random.Generator, *shape: int) -> Complex:
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def spokes(n_spokes: int, maps: Complex = MAPS) -> tuple[SenseOperator, Complex, Float, Float]:
    """Operator, exact samples, trajectory and weights of golden-angle spokes."""
    angles = np.arange(n_spokes) * GOLDEN_ANGLE_RAD
    k = phantom.spokes(angles, MATRIX, ASPECT)
    weights = np.stack([polar_weights(s, g, ASPECT) for s, g in zip(k, angle_gaps_rad(angles), strict=True)]).ravel()
    flat = k.reshape(-1, 3)
    return SenseOperator(flat, weights, maps), phantom.coil_kspace(flat, MATRIX, N_COILS), flat, weights


def error(found: Complex) -> float:
    exact = phantom.truth(MATRIX)
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def test_adjoint_is_the_transpose_of_forward() -> None:
    rng = np.random.default_rng(0)
    operator, samples, _, _ = spokes(11, complex_noise(rng, N_COILS, MATRIX[1], MATRIX[0]))
    image, samples = complex_noise(rng, MATRIX[1], MATRIX[0]), complex_noise(rng, *samples.shape)
    left, right = np.vdot(samples, operator.forward(image)), np.vdot(operator.adjoint(samples), image)
    assert abs(left - right) < 1e-4 * abs(left)


def test_forward_is_the_exact_sum() -> None:
    rng = np.random.default_rng(1)
    operator, _, k, _ = spokes(3)
    image = complex_noise(rng, MATRIX[1], MATRIX[0])
    y, x = np.mgrid[: MATRIX[1], : MATRIX[0]]
    chosen = [0, 40, 45, 133]
    turns = k[chosen, 0, None, None] * (x - MATRIX[0] // 2) / MATRIX[0]
    turns = turns + k[chosen, 1, None, None] * (y - MATRIX[1] // 2) / MATRIX[1]
    exact = np.einsum("cyx,yx,syx->cs", MAPS, image, np.exp(-2j * np.pi * turns)) / np.sqrt(MATRIX[0] * MATRIX[1])
    np.testing.assert_allclose(operator.forward(image)[:, chosen], exact, atol=1e-4 * np.abs(exact).max())


def test_normal_operator_is_weighted_adjoint_after_forward() -> None:
    operator, _, _, _ = spokes(17)
    image = complex_noise(np.random.default_rng(2), MATRIX[1], MATRIX[0])
    expected = operator.weighted_adjoint(operator.forward(image))
    assert np.linalg.norm(operator.normal(image) - expected) < 1e-4 * np.linalg.norm(expected)


def test_conjugate_gradients_solve_a_known_system_and_stop_when_it_is_solved() -> None:
    values = np.linspace(1, 4, 35, dtype=np.float32).reshape(5, 7)
    rhs = complex_noise(np.random.default_rng(3), 5, 7)
    solution = conjugate_gradients(lambda x: values * x, rhs, 100, 1e-5, l2=0.5)
    np.testing.assert_allclose(solution.image, rhs / (values + 0.5), atol=1e-4)
    assert len(solution.residuals) < 30
    assert solution.residuals[-1] <= 1e-5
    assert not conjugate_gradients(lambda x: values * x, 0 * rhs, 10, 1e-3).residuals


def test_iterations_remove_the_streaks_of_undersampling() -> None:
    operator, samples, _, _ = spokes(21)
    combined = np.sum(np.abs(MAPS) ** 2, axis=0)
    adjoint = operator.weighted_adjoint(samples) / combined
    iterated = solve_slice(operator, samples, IterativeSettings(iterations=20)).image
    assert error(iterated) < 0.35 * error(adjoint)
    assert error(iterated) < 0.1


def test_total_variation_helps_where_noise_is_strong() -> None:
    operator, samples, _, _ = spokes(13)
    noisy = samples + 0.25 * complex_noise(np.random.default_rng(4), *samples.shape)
    plain = solve_slice(operator, noisy, IterativeSettings(iterations=40, tolerance=0)).image
    smooth = solve_slice(operator, noisy, IterativeSettings(40, 0.0, method="tv", weight=0.003)).image
    assert error(smooth) < 0.75 * error(plain)


def test_temporal_prior_takes_from_the_frame_before_what_did_not_change() -> None:
    operator, samples, _, _ = spokes(8)
    noisy = samples + 0.1 * complex_noise(np.random.default_rng(5), *samples.shape)
    settings = IterativeSettings(40, 0.0, method="temporal", weight=0.01)
    alone = solve_slice(operator, noisy, settings)
    with_past = solve_slice(operator, noisy, settings, phantom.truth(MATRIX))
    assert error(with_past.image) < 0.3 * error(alone.image)


def test_agrees_with_sigpy_on_the_same_samples_maps_and_weights() -> None:
    mr = pytest.importorskip("sigpy.mri")
    operator, samples, k, weights = spokes(21)
    app = mr.app.SenseRecon(
        samples, MAPS, lamda=0, weights=weights, coord=k[:, [1, 0]], max_iter=10, tol=0, show_pbar=False
    )
    theirs = app.run()
    ours = solve_slice(operator, samples, IterativeSettings(iterations=10, tolerance=0)).image
    assert np.linalg.norm(ours - theirs) < 5e-3 * np.linalg.norm(theirs)


def test_total_variation_proximal_is_the_minimum() -> None:
    """No small change in any direction lowers ``|x - y|^2 / 2 + w TV(x)``."""
    rng = np.random.default_rng(6)
    image, weight = complex_noise(rng, 9, 6), 0.4

    def cost(x: Complex) -> float:
        dy, dx = np.zeros_like(x), np.zeros_like(x)
        dy[:-1], dx[:, :-1] = np.diff(x, axis=0), np.diff(x, axis=1)
        total = np.sqrt(np.abs(dy) ** 2 + np.abs(dx) ** 2).sum()
        return float(0.5 * np.linalg.norm(x - image) ** 2 + weight * total)

    found = total_variation_proximal(image, weight, 400)
    best = cost(found)
    assert best < cost(image)
    for _ in range(50):
        assert cost(found + 0.02 * complex_noise(rng, 9, 6)) > best - 1e-3
    assert total_variation_proximal(image, 0.0) is image


def test_soft_threshold_keeps_the_phase() -> None:
    found = soft_threshold(np.array([3 + 4j, 0.3j, 0], np.complex64), 1.0)
    np.testing.assert_allclose(found, [0.8 * (3 + 4j), 0, 0], atol=1e-6)


# The stage

NZ, N_PARTITIONS, N_SPOKES = 3, 3, 13
STARS = StackOfStars(nx=MATRIX[0], ny=MATRIX[1], nz=NZ)
GEOMETRY = Geometry((*MATRIX, NZ), (200.0, 200.0, 50.0))


def sampling() -> Sampling:
    scan = STARS.scan()
    limits = {**scan.limits, "kspace_encode_step_2": EncodingLimit(0, N_PARTITIONS - 1, 1)}
    scan = type(scan)(**{**vars(scan), "limits": limits, "recon_fov_mm": (200.0, 200.0 * ASPECT, 50.0)})
    return Sampling(scan, N_SPOKES, N_PARTITIONS, 1, "polar")


def frame_of(number: int, scale: float = 1.0) -> list[Readout | FrameEnd]:
    """A frame whose only bright slice is the middle one: the same samples in every partition."""
    k = phantom.spokes(np.arange(N_SPOKES) * GOLDEN_ANGLE_RAD, MATRIX, ASPECT)
    data = phantom.coil_kspace(k, MATRIX, N_COILS).transpose(1, 0, 2) * np.float32(scale / np.sqrt(NZ))
    items: list[Readout | FrameEnd] = [
        Readout(data[s], k[s], number, 0, p, (s, p), 0) for s in range(N_SPOKES) for p in range(N_PARTITIONS)
    ]
    return [*items, FrameEnd(number, 0, len(items), len(items), 7, GEOMETRY)]


def known_maps(images: Complex) -> Complex:
    assert images.shape == (N_COILS, NZ, MATRIX[1], MATRIX[0])
    return np.repeat(MAPS[:, None], NZ, axis=1)


def stage(
    calibration_frame: int = 0, memory_gib: float = 1.0, settings: IterativeSettings | None = None
) -> ReconstructIteratively:
    settings = settings or IterativeSettings()
    return ReconstructIteratively(sampling(), known_maps, calibration_frame, settings, memory_gib)


def test_frame_is_solved_when_it_ends_slice_by_slice() -> None:
    step = stage()
    items = frame_of(0)
    assert all(step.push(item) == [] for item in items[:-1])
    out = step.push(items[-1])
    assert [type(item) for item in out] == [FrameEnd, Notice, KSpace]
    image = to_image(out[2].data)
    assert error(image[1]) < 0.25
    assert np.linalg.norm(image[0]) < 1e-3 * np.linalg.norm(image[1])


def test_frames_before_the_calibration_frame_wait_for_its_maps() -> None:
    step = stage(calibration_frame=1)
    first = [made for item in frame_of(0) for made in step.push(item)]
    assert [type(item) for item in first] == [FrameEnd]
    second = [made for item in frame_of(1, 2.0) for made in step.push(item)]
    solved = [item for item in second if isinstance(item, KSpace)]
    assert [item.frame for item in solved] == [1, 0]
    np.testing.assert_allclose(solved[0].data, 2 * solved[1].data, atol=1e-2 * np.abs(solved[0].data).max())
    alone = stage(calibration_frame=1)
    for item in frame_of(0):
        alone.push(item)
    assert [type(item) for item in alone.finish()] == [Notice, Notice, KSpace]


@pytest.mark.parametrize("density", ["voronoi", "pipe-menon"])
def test_weights_may_come_from_where_the_samples_of_a_frame_lie(density: str) -> None:
    step = stage(settings=IterativeSettings(density=density))  # type: ignore[arg-type]
    (kspace,) = (made for item in frame_of(0) for made in step.push(item) if isinstance(made, KSpace))
    assert error(to_image(kspace.data)[1]) < 0.25


def test_memory_is_bounded_and_partitions_must_share_their_spokes() -> None:
    with pytest.raises(ScanError, match="take more than"):
        stage(memory_gib=1e-6)  # coil images and maps alone
    images_gib = 3 * N_COILS * NZ * MATRIX[0] * MATRIX[1] * 8 / 2**30
    tight = stage(memory_gib=images_gib + 1e-5)
    with pytest.raises(ScanError, match="readouts that wait"):
        run_inline(tight, frame_of(0))
    frame_bytes = sum(item.data.nbytes for item in frame_of(0) if isinstance(item, Readout))
    again = stage(memory_gib=images_gib + 1.5 * frame_bytes / 2**30)
    for number in range(3):
        for item in frame_of(number):
            again.push(item)
    step = stage()
    items = frame_of(0)
    turned = items[4]
    assert isinstance(turned, Readout)
    turned.trajectory = turned.trajectory[:, [1, 0, 2]]
    for item in items[:-1]:
        step.push(item)
    with pytest.raises(ScanError, match="different trajectories"):
        step.push(items[-1])
