"""Latent vectors with places in image and heartbeat, which read k-space samples by their phases.

Beyond paper 001, whose latents have no place: they must find out by themselves that a sample at k says something about
a place r by ``exp(2 pi i k r)``. Told so, they read the measurement after minutes of training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .sines import padded, sine_features

EPSILON = 1e-12


class LocatedLatents(nn.Module):
    """Samples to latent vectors at the points of a grid over frames, y and x.

    For each point (r, t) and each filter j, with samples v_n at k_n and time t_n::

        z_j(r, t) = sum_n a_j(k_n, t_n - t) v_n exp(2 pi i k_n r)

    which is a coarse image for every learned filter a_j, a small network of the place in k-space and of the distance in
    the heartbeat, which is a circle. Real part, imaginary part and magnitude of all filters, each filter divided by its
    own root mean square, so that no gain matters, give the latent vector; the features of its place are added. The sum
    takes samples in any order and number.

    Parameters
    ----------
    width : of the latent vectors.
    grid : points over (frames, y, x).
    plane : y and x of the image's matrix, which says how many cycles per field of view a coordinate is.
    n_filters : filters a_j.
    n_hidden : features inside the network of the filters.
    n_frequencies : of the sine features.

    Raises
    ------
    ValueError : if the grid or the plane has another number of sizes, or one below 1.
    """

    def __init__(
        self,
        width: int,
        grid: Sequence[int],
        plane: Sequence[int],
        n_filters: int = 16,
        n_hidden: int = 32,
        n_frequencies: int = 4,
    ) -> None:
        super().__init__()
        if len(grid) != 3 or len(plane) != 2 or min(*grid, *plane) < 1:
            raise ValueError(f"a grid has 3 sizes and a plane 2, all at least 1, not {tuple(grid)} and {tuple(plane)}")
        times, *rows = ((torch.arange(n) + 0.5) / n for n in grid)
        self.register_buffer("times", times, persistent=False)
        self.register_buffer("places", torch.cartesian_prod(*rows), persistent=False)
        self.register_buffer("plane", torch.tensor(plane), persistent=False)
        points = torch.cat((self.places.repeat(grid[0], 1), times.repeat_interleave(len(self.places))[:, None]), dim=-1)
        self.register_buffer("features", padded(sine_features(points, n_frequencies), width), persistent=False)
        self._n_frequencies, self._n_filters = n_frequencies, n_filters
        self.filters = nn.Sequential(
            nn.Linear(4 * (1 + 2 * n_frequencies), n_hidden),
            nn.ReLU(),
            nn.Linear(n_hidden, n_hidden),
            nn.ReLU(),
            nn.Linear(n_hidden, 2 * n_filters),
        )
        self.output = nn.Linear(3 * n_filters, width)

    def forward(self, coordinates: Tensor, values: Tensor) -> Tensor:
        """Latent vectors ``(batch, frames * y * x of the grid, width)``.

        Parameters
        ----------
        coordinates : ``(batch, n, yxt)``, index over size, in ``[0, 1)``.
        values : ``(batch, n, 2)``, real and imaginary part.
        """
        read = self.read(coordinates, values)
        size = read.square().sum(dim=-1)
        read = read / (size.mean(dim=1, keepdim=True) + EPSILON).sqrt()[..., None]
        magnitude = (read.square().sum(dim=-1) + EPSILON).sqrt()
        latents: Tensor = self.output(torch.cat((read.flatten(2), magnitude), dim=-1)) + self.features
        return latents

    def read(self, coordinates: Tensor, values: Tensor) -> Tensor:
        """The sums z: ``(batch, frames * y * x of the grid, filters, 2)``, real and imaginary part."""
        middle = self.plane // 2
        k = coordinates[..., :2] * self.plane - middle
        phase = 2 * math.pi * k @ (self.places - middle / self.plane).mT
        cosine, sine = phase.cos().mT, phase.sin().mT
        frames = []
        for time in self.times:
            weighted = self.weigh(coordinates, values, time)
            real, imaginary = weighted.chunk(2, dim=-1)
            z = (cosine @ real - sine @ imaginary, cosine @ imaginary + sine @ real)
            frames.append(torch.stack(z, dim=-1))
        return torch.cat(frames, dim=1)

    def weigh(self, coordinates: Tensor, values: Tensor, time: Tensor) -> Tensor:
        """``a_j v`` for one frame of the grid, ``(batch, n, 2 filters)``: real parts, then imaginary parts."""
        place = 2 * coordinates[..., :2] - 1
        radius = (place.square().sum(dim=-1, keepdim=True) + 1e-6).log() / 8
        apart = coordinates[..., 2:] - time
        apart = apart - apart.round()  # the beat after the last frame is the first again
        features = sine_features(torch.cat((place, radius, apart), dim=-1), self._n_frequencies)
        a, b = self.filters(features).chunk(2, dim=-1)
        real, imaginary = values[..., :1], values[..., 1:]
        return torch.cat((a * real - b * imaginary, a * imaginary + b * real), dim=-1)
