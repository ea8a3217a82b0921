"""t-SNE of a few hundred points, exactly: all pairs, no tree (van der Maaten and Hinton, JMLR 9:2579 (2008))."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...errors import ShapeError

Points = NDArray[np.float64]


def tsne(
    points: Points, n_out: int = 2, perplexity: float = 20.0, steps: int = 500, rate: float = 0.0, seed: int = 0
) -> Points:
    """Places ``(n, n_out)`` of points ``(n, features)`` at which neighbours stay neighbours.

    1. Neighbour probabilities of the points, with the perplexity that is asked for (eq. 1; less for few points).
    2. Gradient descent on the divergence to those of the places, which have Student's t distribution (eq. 4 and 5);
       with momentum, individual gains and exaggeration in the first quarter, from the first principal components.

    Parameters
    ----------
    rate : of learning; 0 takes ``n / 12``, at least 50 (Belkina et al., Nat Commun 10:5415 (2019)).

    Raises
    ------
    ShapeError : fewer than five points.
    """
    n = len(points)
    if points.ndim != 2 or n < 5:
        raise ShapeError(f"t-SNE needs points (n, features) and five of them, not {points.shape}")
    near = neighbour_probabilities(points, min(perplexity, (n - 1) / 3))
    places = _principal_components(points, n_out, seed)
    speed, gains = np.zeros_like(places), np.ones_like(places)
    eta = rate or max(n / 12, 50.0)
    for step in range(steps):
        is_early = step < steps // 4
        slope = _gradient(places, near * (12.0 if is_early else 1.0))
        gains = np.maximum(np.where(slope * speed < 0, gains + 0.2, gains * 0.8), 0.01)
        speed = (0.5 if is_early else 0.8) * speed - eta * gains * slope
        places = places + speed
    return np.asarray(places - places.mean(axis=0))


def neighbour_probabilities(points: Points, perplexity: float) -> Points:
    """Symmetric probabilities ``(n, n)``, sum 1, each point's neighbours having the entropy of the perplexity."""
    squared = _squared_distances(points)
    np.fill_diagonal(squared, np.inf)
    scale = np.nanmean(squared[np.isfinite(squared)]) or 1.0
    low, high = np.full(len(points), 1e-6), np.full(len(points), 1e6)
    for _ in range(64):  # bisection of the precision, on a logarithmic scale
        beta = np.sqrt(low * high)
        own = np.exp(-(squared - squared.min(axis=1, keepdims=True)) / scale * beta[:, None])
        own /= own.sum(axis=1, keepdims=True)
        entropy = -np.sum(own * np.log(np.maximum(own, 1e-300)), axis=1)
        is_wide = entropy > np.log(perplexity)
        low, high = np.where(is_wide, beta, low), np.where(is_wide, high, beta)
    both = own + own.T
    return np.asarray(both / both.sum())


def _gradient(places: Points, near: Points) -> Points:
    kernel = 1.0 / (1.0 + _squared_distances(places))
    np.fill_diagonal(kernel, 0.0)
    pull = (near - kernel / kernel.sum()) * kernel
    return np.asarray(4.0 * (pull.sum(axis=1, keepdims=True) * places - pull @ places))


def _squared_distances(points: Points) -> Points:
    sizes = np.square(points).sum(axis=1)
    return np.asarray(np.maximum(sizes[:, None] + sizes - 2.0 * points @ points.T, 0.0))


def _principal_components(points: Points, n_out: int, seed: int) -> Points:
    """The first components, small, with a little noise for those that the points lack."""
    centred = points - points.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    places = np.zeros((len(points), n_out))
    n_known = min(n_out, len(values))
    places[:, :n_known] = left[:, :n_known] * values[:n_known]
    spread = float(places[:, 0].std()) or 1.0
    return np.asarray(1e-4 * (places / spread + 0.01 * np.random.default_rng(seed).standard_normal(places.shape)))
