"""What is left to do when the last spoke is in, beside batch transforms that start there: `make bench`."""

import finufft
import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from kstream.recon.coils import volume_maps
from kstream.recon.density import polar_weights
from kstream.recon.gridding import FrameGrid, PlaneGridder

COILS, N, SPOKES = 8, 128, 55


@pytest.fixture(scope="module")
def frame() -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Trajectories, data and weights of one slice."""
    rng = np.random.default_rng(0)
    radius = np.arange(2 * N) / 2 - N / 2
    angles = np.arange(SPOKES) * 1.9416
    k = [np.stack([radius * np.cos(a), radius * np.sin(a), 0 * radius], 1).astype(np.float32) for a in angles]
    shape = (COILS, 2 * N)
    y = [(rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64) for _ in k]
    return k, y, [polar_weights(spoke, np.pi / SPOKES) for spoke in k]


@pytest.mark.benchmark(group="after the last spoke, per slice, 8 coils")
def test_finish_of_the_incremental_grid(benchmark: BenchmarkFixture, frame: tuple[list[np.ndarray], ...]) -> None:
    grid = FrameGrid(PlaneGridder((N, N)), 1, COILS)
    for k, y, w in zip(*frame, strict=True):
        grid.add(y, k, w, 0)
    assert np.isfinite(benchmark(grid.to_images, np.ones((1, 1), np.complex64))).all()


@pytest.mark.benchmark(group="after the last spoke, per slice, 8 coils")
def test_batch_finufft(benchmark: BenchmarkFixture, frame: tuple[list[np.ndarray], ...]) -> None:
    k = (np.concatenate(frame[0]) * (2 * np.pi / N)).astype(np.float32)
    y = np.concatenate([d * w for d, w in zip(frame[1], frame[2], strict=True)], axis=1)
    x, z = np.ascontiguousarray(k[:, 1]), np.ascontiguousarray(k[:, 0])
    image = benchmark(lambda: finufft.nufft2d1(x, z, y, (N, N), eps=1e-4, isign=1, nthreads=1))
    assert image.shape == (COILS, N, N)


@pytest.mark.benchmark(group="one spoke added to the grid, 8 coils")
def test_add_one_spoke(benchmark: BenchmarkFixture, frame: tuple[list[np.ndarray], ...]) -> None:
    grid = FrameGrid(PlaneGridder((N, N)), 1, COILS)
    k, y, w = (part[0] for part in frame)
    benchmark(grid.add, y, k, w, 0)


@pytest.mark.benchmark(group="coil maps, per slice, 8 coils")
def test_espirit(benchmark: BenchmarkFixture) -> None:
    rng = np.random.default_rng(0)
    images = (rng.standard_normal((COILS, 1, N, N)) + 1j * rng.standard_normal((COILS, 1, N, N))).astype(np.complex64)
    maps = benchmark(volume_maps, images, 24, 6, 0.02, 0.8, 64, 100)
    assert maps.shape == images.shape
