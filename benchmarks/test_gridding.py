"""From readouts to combined k-space: what one angle costs while it comes, and what is left after the last one.

The peers are batch transforms, which start when the last readout is in: FINUFFT, ducc0, SigPy and, where it is
installed, BART. How they are compared is written at the head of ``recon_peers.py``; for the papers' 192 slices run that
by hand.
"""

from __future__ import annotations

from functools import partial

import finufft
import numpy as np
import pytest

from kstream.benchmarks.turns import OURS, Turns, Way, installed
from kstream.recon import kernels
from kstream.recon.density import polar_weights
from kstream.recon.gridding import FrameGrid, PlaneGridder
from kstream.types import Complex, Float

Spokes = list[tuple[Float, Complex, Float]]


def spokes(n: int, n_spokes: int, n_coils: int) -> Spokes:
    """Trajectory, samples and weights of every spoke of one slice."""
    rng = np.random.default_rng(0)
    radius = np.arange(2 * n) / 2 - n / 2
    found = []
    for angle in np.arange(n_spokes) * 1.9416:
        k = np.stack([radius * np.cos(angle), radius * np.sin(angle), 0 * radius], 1).astype(np.float32)
        y = rng.standard_normal((n_coils, 2 * n, 2), np.float32).view(np.complex64)[..., 0]
        found.append((k, y, polar_weights(k, np.pi / n_spokes)))
    return found


def test_after_the_last_spoke_with_a_grid_per_coil(turns: Turns) -> None:
    """The way for spirals and Cartesian scans: gridded while it came, against a batch NUFFT that starts now."""
    n, n_spokes, n_coils = turns.pick((128, 55, 8), (16, 5, 2))
    frame = spokes(n, n_spokes, n_coils)
    grid = FrameGrid(PlaneGridder((n, n)), 1, n_coils)
    for k, y, w in frame:
        grid.add(y, k, w, 0)
    radians = (np.concatenate([k for k, _, _ in frame]) * (2 * np.pi / n)).astype(np.float32)
    y_radians, x_radians = (np.ascontiguousarray(radians[:, axis]) for axis in (1, 0))
    weighted = np.concatenate([y * w for _, y, w in frame], axis=1)

    def ours() -> None:
        grid.to_images(np.ones((1, 1), np.complex64))

    def batch() -> None:
        finufft.nufft2d1(y_radians, x_radians, weighted, (n, n), eps=1e-4, isign=1, nthreads=1)

    what = f"after the last spoke, a grid per coil: slice of {n} x {n}, {n_coils} coils, {n_spokes} spokes"
    turns(what, ours, {"finufft 1e-4, all spokes": batch}, rounds=20, budgets={"finufft 1e-4, all spokes": 1.0})


def test_one_angle(turns: Turns) -> None:
    """Adding the spokes of one angle coil-combined, against gridding them coil by coil."""
    pytest.importorskip("sigpy")
    pytest.importorskip("ducc0")
    from kstream.benchmarks.recon_peers import Frame, Size, smooth_maps
    from kstream.recon.zero_wait import SpokeSum

    size = turns.pick(Size(n_slices=8, n_partitions=8, n_spokes=2), Size(64, 2, 2, 2, 2))
    frame, n = Frame(size), size.matrix
    kernels.warm_up()
    total = SpokeSum(smooth_maps(size), frame.to_z)
    grid = FrameGrid(PlaneGridder((n, n)), size.n_partitions, size.n_coils)
    samples, k, weights = frame.samples[0], frame.k[0], frame.weights[0]

    def per_coil() -> None:
        for partition in range(size.n_partitions):
            grid.add(samples[partition], k, weights, partition)

    turns(
        f"one angle, coil-combined: {size.n_slices} slices of {n} x {n}, {size.n_coils} coils, one thread",
        partial(total.add, samples, k, weights),
        {"a grid per coil": per_coil},
        rounds=20,
    )


def test_last_readout_to_combined_kspace(turns: Turns) -> None:
    """What is left to do, beside those who begin there; errors below 1e-3 against the exact one, also off z = 0."""
    if not installed("sigpy", "ducc0"):
        pytest.skip("sigpy and ducc0 are not installed: pip install 'kstream[test,peers]'")
    from kstream.benchmarks.recon_peers import Size, compare_adjoint

    size = turns.pick(Size(), Size(64, 4, 3, 2, 5, 1))
    found = compare_adjoint(size)
    results = {(OURS if name == "ours" else name): result for name, result in found["results"].items()}
    assert results[OURS]["error"] < 1e-3 or turns.is_quick
    ways: dict[str, Way] = {name: partial(float, result["latency_s"]) for name, result in results.items()}
    turns(
        f"last readout to combined k-space: {size.n_slices} slices of {size.matrix} x {size.matrix}, {size.n_coils} "
        f"coils, {size.n_spokes} spokes",
        ways.pop(OURS),
        ways,
        rounds=1,
        warm=False,
        budgets={"finufft 1e-3": 30, "sigpy": 100},
        found=found,
        readme=True,
    )
