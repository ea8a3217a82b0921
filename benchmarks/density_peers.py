"""Error of density weights against an object whose k-space is known exactly: `python -m benchmarks.density_peers`.

One image by one weighted adjoint (FINUFFT, 1e-9) of ellipses of known k-space; 129 x 129, readout twice oversampled;
relative error against the object that spokes can show. Times include making the weights of the whole frame.

"As it came" is what a stream has whose spokes were weighted before their neighbours were known: by the mean step, or by
the gaps of the angles that were planned; "put right" is that after `density_gain` on the combined k-space. "Least
squares" is the inverse: the image that explains the samples best (conjugate gradients on the exact normal equations).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import finufft
import numpy as np
import scipy.sparse.linalg

from kstream.recon.density import (
    angle_gaps_rad,
    density_gain,
    pipe_menon_weights,
    polar_weights,
    readout_angle_rad,
    voronoi_weights,
)
from kstream.recon.fourier import to_image, to_kspace
from kstream.types import GOLDEN_ANGLE_RAD
from tests import phantom

MATRIX = (129, 129)


def gaps(k: np.ndarray) -> np.ndarray:
    steps = angle_gaps_rad(np.array([readout_angle_rad(spoke) for spoke in k]))
    return np.stack([polar_weights(spoke, step) for spoke, step in zip(k, steps, strict=True)])


def mean_step(k: np.ndarray) -> np.ndarray:
    return np.stack([polar_weights(spoke, np.pi / len(k)) for spoke in k])


METHODS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean step": mean_step,
    "angle gaps": gaps,
    "Voronoi": voronoi_weights,
    "Pipe-Menon, published": lambda k: pipe_menon_weights(k, MATRIX),
    "Pipe-Menon, grid x 2": lambda k: pipe_menon_weights(k, MATRIX, oversampling=2),
}
RANDOM = np.random.default_rng(0)
LOST = np.sort(RANDOM.permutation(200)[:180])


def golden(n: int) -> np.ndarray:
    return np.asarray(np.arange(n) * GOLDEN_ANGLE_RAD)


@dataclass(frozen=True)
class Order:
    """Angles of the spokes that came, and the angle that each was taken for when it came."""

    angles: np.ndarray
    steps: np.ndarray

    @classmethod
    def unplanned(cls, angles: np.ndarray) -> Order:
        return cls(angles, np.full(len(angles), np.pi / len(angles)))


ORDERS = {
    "uniform 203": Order.unplanned(np.arange(203) * np.pi / 203),
    "golden 203": Order.unplanned(golden(203)),
    "golden 96": Order.unplanned(golden(96)),
    "golden 34": Order.unplanned(golden(34)),
    "70 of golden 96": Order(golden(70), angle_gaps_rad(golden(96))[:70]),
    "180 of uniform 200": Order(LOST * np.pi / 200, np.full(180, np.pi / 200)),
    "3 x golden 34": Order(golden(102), np.tile(angle_gaps_rad(golden(34)), 3) / 3),
    "random 200": Order.unplanned(RANDOM.uniform(0, np.pi, 200)),
    "random 96": Order.unplanned(RANDOM.uniform(0, np.pi, 96)),
}


def image(k: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return adjoint(k, phantom.kspace(k, MATRIX) * weights)


def adjoint(k: np.ndarray, samples: np.ndarray) -> np.ndarray:
    y, x = places(k)
    return np.asarray(finufft.nufft2d1(y, x, samples.ravel(), MATRIX[::-1], isign=1, eps=1e-9) / MATRIX[0])


def places(k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    flat = k.reshape(-1, 3).astype(np.float64) * (2 * np.pi / MATRIX[0])
    return flat[:, 1].copy(), flat[:, 0].copy()


def as_it_came(k: np.ndarray, order: Order) -> np.ndarray:
    return image(k, np.stack([polar_weights(spoke, step) for spoke, step in zip(k, order.steps, strict=True)]))


def put_right(k: np.ndarray, order: Order) -> np.ndarray:
    """Weighted as in a stream, and corrected when the frame is over."""
    first = as_it_came(k, order).astype(np.complex64)
    gain = density_gain(order.angles, order.steps, MATRIX[::-1])
    return first if gain is None else to_image(to_kspace(first) * gain)


def least_squares(k: np.ndarray, n_iterations: int = 60) -> np.ndarray:
    """The image that explains the samples best, with the weights of the gaps as a preconditioner."""
    (y, x), weights, samples = places(k), gaps(k), phantom.kspace(k, MATRIX)

    def normal(flat: np.ndarray) -> np.ndarray:
        forward = finufft.nufft2d2(y, x, flat.reshape(MATRIX[::-1]).copy(), isign=-1, eps=1e-9) / MATRIX[0]
        return adjoint(k, forward * weights.ravel()).ravel()

    size = MATRIX[0] * MATRIX[1]
    operator = scipy.sparse.linalg.LinearOperator((size, size), normal, dtype=np.complex128)
    found, _ = scipy.sparse.linalg.cg(operator, adjoint(k, samples * weights).ravel(), rtol=1e-9, maxiter=n_iterations)
    return np.asarray(found).reshape(MATRIX[::-1])


def main() -> None:
    exact = phantom.truth(MATRIX)

    def cell(make: Callable[..., np.ndarray], *arguments: Any) -> str:
        begin = time.perf_counter()
        found = make(*arguments)
        return f"{np.linalg.norm(found - exact) / np.linalg.norm(exact):.4f} ({time.perf_counter() - begin:.3f})"

    columns = [*METHODS, "as it came", "put right", "least squares"]
    print(f"{'relative error (s)':20}" + "".join(f"{name:>23}" for name in columns))
    for name, order in ORDERS.items():
        k = phantom.spokes(order.angles, MATRIX)
        row = [cell(lambda k, m: image(k, m(k)), k, method) for method in METHODS.values()]
        row += [cell(as_it_came, k, order), cell(put_right, k, order), cell(least_squares, k)]
        print(f"{name:20}" + "".join(f"{text:>23}" for text in row))


if __name__ == "__main__":
    main()
