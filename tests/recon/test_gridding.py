import numpy as np
import pytest

from kstream.recon.density import polar_weights
from kstream.recon.fourier import dft_matrix, to_image, to_kspace
from kstream.recon.gridding import FrameGrid, PlaneGridder
from tests.scans import exact_adjoint


def spokes(n_spokes: int, nx: int, ny: int) -> list[np.ndarray]:
    radius = np.arange(2 * nx) / 2 - nx / 2
    angles = np.arange(n_spokes) * 1.9416
    return [
        np.stack([radius * np.cos(a), radius * np.sin(a) * ny / nx, 0 * radius], 1).astype(np.float32) for a in angles
    ]


@pytest.mark.parametrize(("oversampling", "width", "error"), [(1.5, 5, 1e-3), (2.0, 5, 2e-4), (1.25, 6, 1e-3)])
def test_sum_of_gridded_spokes_is_the_exact_adjoint(oversampling: float, width: int, error: float) -> None:
    rng = np.random.default_rng(0)
    ny, nx, n_coils = 14, 19, 3
    gridder = PlaneGridder((ny, nx), oversampling, width)
    grid = FrameGrid(gridder, 1, n_coils)
    exact = np.zeros((n_coils, ny, nx), complex)
    for trajectory in spokes(11, nx, ny):
        data = (rng.standard_normal((n_coils, 2 * nx)) + 1j * rng.standard_normal((n_coils, 2 * nx))).astype(
            np.complex64
        )
        weights = polar_weights(trajectory, np.pi / 11)
        grid.add(data, trajectory, weights, 0)
        exact += exact_adjoint(data, trajectory, weights, (ny, nx))
    images = grid.to_images(np.ones((1, 1), np.complex64))[:, 0]
    assert np.linalg.norm(images - exact) < error * np.linalg.norm(exact)


def test_gridding_is_the_adjoint_of_sampling() -> None:
    """<A x, y> = <x, A^H y> for random x and y; A is the exact forward transform."""
    rng = np.random.default_rng(1)
    ny, nx = 13, 17
    trajectory = spokes(1, nx, ny)[0]
    x = rng.standard_normal((ny, nx)) + 1j * rng.standard_normal((ny, nx))
    y = (rng.standard_normal((1, 2 * nx)) + 1j * rng.standard_normal((1, 2 * nx))).astype(np.complex64)
    rows, columns = np.mgrid[:ny, :nx]
    phase = (
        trajectory[:, 0, None, None] * (columns - nx // 2) / nx + trajectory[:, 1, None, None] * (rows - ny // 2) / ny
    )
    forward = np.einsum("yx,syx->s", x, np.exp(-2j * np.pi * phase)) / np.sqrt(nx * ny)
    grid = FrameGrid(PlaneGridder((ny, nx), 2.0, 6), 1, 1)
    grid.add(y, trajectory, np.ones(2 * nx, np.float32), 0)
    adjoint = grid.to_images(np.ones((1, 1), np.complex64))[0, 0]
    assert np.vdot(forward, y[0]) == pytest.approx(np.vdot(x, adjoint), rel=1e-4)


def test_gridding_is_linear_and_forgets_the_order() -> None:
    rng = np.random.default_rng(2)
    gridder = PlaneGridder((11, 13))
    lines = spokes(5, 13, 11)
    data = [(rng.standard_normal((2, 26)) + 1j * rng.standard_normal((2, 26))).astype(np.complex64) for _ in lines]
    weights = np.ones(26, np.float32)
    forward, backward, doubled = (FrameGrid(gridder, 1, 2) for _ in range(3))
    for d, k in zip(data, lines, strict=True):
        forward.add(d, k, weights, 0)
        doubled.add(2 * d, k, weights, 0)
    for d, k in zip(data[::-1], lines[::-1], strict=True):
        backward.add(d, k, weights, 0)
    one = np.ones((1, 1), np.complex64)
    np.testing.assert_allclose(backward.to_images(one), forward.to_images(one), atol=1e-5)
    np.testing.assert_allclose(doubled.to_images(one), 2 * forward.to_images(one), atol=1e-5)


def test_cartesian_samples_give_the_centred_inverse_transform() -> None:
    rng = np.random.default_rng(3)
    ny, nx = 9, 12
    kspace = (rng.standard_normal((1, ny, nx)) + 1j * rng.standard_normal((1, ny, nx))).astype(np.complex64)
    grid = FrameGrid(PlaneGridder((ny, nx), 2.0, 6), 1, 1)
    for line in range(ny):
        k = np.stack([np.arange(nx) - nx // 2, np.full(nx, line - ny // 2), np.zeros(nx)], 1).astype(np.float32)
        grid.add(kspace[:, line], k, np.ones(nx, np.float32), 0)
    images = grid.to_images(np.ones((1, 1), np.complex64))[:, 0]
    np.testing.assert_allclose(images, to_image(kspace), atol=2e-4)


def test_fully_sampled_spokes_return_the_object_in_its_own_units() -> None:
    """A disc of height 3 seen by more spokes than Nyquist asks for comes back with height 3."""
    n, n_spokes = 48, 151
    radius = np.arange(2 * n) / 2 - n / 2
    disc = 9.0  # radius in voxels
    from scipy.special import j1

    argument = 2 * np.pi * np.abs(radius) / n * disc
    safe = np.where(argument > 0, argument, 1)
    data = 3 * np.where(argument > 0, 2 * j1(safe) / safe, 1) * np.pi * disc**2 / n
    grid = FrameGrid(PlaneGridder((n, n)), 1, 1)
    for angle in np.arange(n_spokes) * np.pi / n_spokes:
        k = np.stack([radius * np.cos(angle), radius * np.sin(angle), 0 * radius], 1).astype(np.float32)
        grid.add(data[None].astype(np.complex64), k, polar_weights(k, np.pi / n_spokes), 0)
    image = grid.to_images(np.ones((1, 1), np.complex64))[0, 0]
    assert image[n // 2 - 4 : n // 2 + 5, n // 2 - 4 : n // 2 + 5].real.mean() == pytest.approx(3, rel=0.02)
    assert abs(image[2, 2]) < 0.1


@pytest.mark.parametrize("n", [7, 8])
def test_partition_transform_is_the_centred_inverse_transform(n: int) -> None:
    rng = np.random.default_rng(4)
    kspace = (rng.standard_normal(n) + 1j * rng.standard_normal(n)).astype(np.complex64)
    np.testing.assert_allclose(
        dft_matrix(np.arange(n) - n // 2, n) @ kspace, to_image(kspace[None], axes=(1,))[0], atol=1e-5
    )


def test_fourier_pair_is_unitary_and_its_own_inverse() -> None:
    rng = np.random.default_rng(5)
    image = (rng.standard_normal((2, 5, 8)) + 1j * rng.standard_normal((2, 5, 8))).astype(np.complex64)
    assert np.linalg.norm(to_kspace(image)) == pytest.approx(np.linalg.norm(image), rel=1e-5)
    np.testing.assert_allclose(to_image(to_kspace(image)), image, atol=1e-5)
    point = np.zeros((1, 5, 8), np.complex64)
    point[0, 2, 4] = 1  # the centre voxel n // 2 has flat k-space
    np.testing.assert_allclose(to_kspace(point), np.full((1, 5, 8), 1 / np.sqrt(40)), atol=1e-6)
