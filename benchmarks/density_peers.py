"""Error of density weights against an object whose k-space is known exactly: `python -m benchmarks.density_peers`.

One image by one weighted adjoint (FINUFFT, 1e-9) of ellipses of known k-space; 129 x 129, readout twice oversampled;
relative error against the object that spokes can show. Times include making the weights of the whole frame.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import finufft
import numpy as np

from kstream.recon.density import (
    angle_gaps_rad,
    pipe_menon_weights,
    polar_weights,
    readout_angle_rad,
    voronoi_weights,
)
from kstream.types import GOLDEN_ANGLE_RAD
from tests import phantom

MATRIX = (129, 129)


def gaps(k: np.ndarray) -> np.ndarray:
    steps = angle_gaps_rad(np.array([readout_angle_rad(spoke) for spoke in k]))
    return np.stack([polar_weights(spoke, step) for spoke, step in zip(k, steps, strict=True)])


METHODS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean step": lambda k: np.stack([polar_weights(spoke, np.pi / len(k)) for spoke in k]),
    "angle gaps": gaps,
    "Voronoi": voronoi_weights,
    "Pipe-Menon, published": lambda k: pipe_menon_weights(k, MATRIX),
    "Pipe-Menon, grid x 2": lambda k: pipe_menon_weights(k, MATRIX, oversampling=2),
}
ANGLES = {
    "uniform 203": np.arange(203) * np.pi / 203,
    "golden 203": np.arange(203) * GOLDEN_ANGLE_RAD,
    "golden 96": np.arange(96) * GOLDEN_ANGLE_RAD,
    "golden 70 of 96": np.arange(70) * GOLDEN_ANGLE_RAD,
    "golden 34": np.arange(34) * GOLDEN_ANGLE_RAD,
    "random 200": np.random.default_rng(0).uniform(0, np.pi, 200),
}


def image(k: np.ndarray, weights: np.ndarray) -> np.ndarray:
    flat = k.reshape(-1, 3).astype(np.float64) * (2 * np.pi / MATRIX[0])
    values = (phantom.kspace(k, MATRIX) * weights).ravel()
    return finufft.nufft2d1(flat[:, 1].copy(), flat[:, 0].copy(), values, MATRIX[::-1], isign=1, eps=1e-9) / MATRIX[0]


def main() -> None:
    exact = phantom.truth(MATRIX)
    print(f"{'relative error (s)':20}" + "".join(f"{name:>24}" for name in METHODS))
    for name, angles in ANGLES.items():
        k = phantom.spokes(angles, MATRIX)
        row = []
        for method in METHODS.values():
            begin = time.perf_counter()
            weights = method(k)
            elapsed = time.perf_counter() - begin
            error = np.linalg.norm(image(k, weights) - exact) / np.linalg.norm(exact)
            row.append(f"{error:.4f} ({elapsed:.3f})")
        print(f"{name:20}" + "".join(f"{cell:>24}" for cell in row))


if __name__ == "__main__":
    main()
