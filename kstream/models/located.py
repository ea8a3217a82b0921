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
SAMPLES_AT_ONCE = 2**16
"""Some 100 MiB with a grid of 8 x 8."""


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

    times: Tensor
    places: Tensor
    plane: Tensor
    features: Tensor

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
        return self.latents(self.read(coordinates, values)) + self.features

    def latents(self, read: Tensor) -> Tensor:
        """Sums ``(batch, points, filters, 2)`` as vectors ``(batch, points, width)`` that no gain changes."""
        size = read.square().sum(dim=-1)
        read = read / (size.mean(dim=1, keepdim=True) + EPSILON).sqrt()[..., None]
        magnitude = (read.square().sum(dim=-1) + EPSILON).sqrt()
        vectors: Tensor = self.output(torch.cat((read.flatten(2), magnitude), dim=-1))
        return vectors

    def read(self, coordinates: Tensor, values: Tensor) -> Tensor:
        """The sums z: ``(batch, frames * y * x of the grid, filters, 2)``, real and imaginary part.

        Outside of training the sum goes over at most `SAMPLES_AT_ONCE` at a time, so that memory does not grow with
        what a client sends. Compiled engines bound their samples themselves.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._read(coordinates, values)
        parts = zip(*(torch.split(part, SAMPLES_AT_ONCE, dim=1) for part in (coordinates, values)), strict=True)
        return torch.stack([self._read(*part) for part in parts]).sum(dim=0)

    def _read(self, coordinates: Tensor, values: Tensor) -> Tensor:
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


class LocatedLines(nn.Module):
    """`LocatedLatents` of several slices from Cartesian lines, summed along x first and then over lines.

    Parameters
    ----------
    width : of the latent vectors; nothing is added to them.
    grid : points over (slices, frames, y, x).
    n_frames, plane : of the examination, whose lines are counted by (slice, frame, ky).
    n_filters : as for `LocatedLatents`; all slices share them.
    """

    rows: Tensor
    columns: Tensor
    samples: Tensor

    def __init__(self, width: int, grid: Sequence[int], n_frames: int, plane: Sequence[int], n_filters: int) -> None:
        super().__init__()
        self._n_slices, self._n_frames, self._nx = grid[0], n_frames, plane[1]
        self.points = LocatedLatents(width, grid[1:], plane, n_filters)
        for name, n, size in (("rows", grid[2], plane[0]), ("columns", grid[3], plane[1])):
            self.register_buffer(name, (torch.arange(n) + 0.5) / n - size // 2 / size, persistent=False)
        self.register_buffer("samples", torch.arange(plane[1]) / plane[1], persistent=False)

    def forward(self, values: Tensor, places: Tensor) -> Tensor:
        """Latent vectors ``(batch, slices * frames * y * x of the grid, width)``.

        Parameters
        ----------
        values : ``(batch, n, 2 nx)``, real parts, then imaginary parts of each line.
        places : ``(batch, n, 3)``, slice, frame and ky.
        """
        return self.points.latents(self.read(values, places))

    def read(self, values: Tensor, places: Tensor) -> Tensor:
        """The sums: ``(batch, slices * frames * y * x of the grid, filters, 2)``, real and imaginary part.

        Outside of training in parts, as `LocatedLatents.read`.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._read(values, places)
        at_once = max(SAMPLES_AT_ONCE // self._nx, 1)
        parts = zip(*(torch.split(part, at_once, dim=1) for part in (values, places)), strict=True)
        return torch.stack([self._read(*part) for part in parts]).sum(dim=0)

    def _read(self, values: Tensor, places: Tensor) -> Tensor:
        batch, n = values.shape[:2]
        ny, nx = self.points.plane
        pairs = values.reshape(batch, n, 2, self._nx).transpose(2, 3).flatten(1, 2)
        own = (places[..., None, 2] / ny, self.samples, places[..., None, 1] / self._n_frames)
        coordinates = torch.stack([part.expand(batch, n, self._nx) for part in own], dim=-1).flatten(1, 2)
        along_x = 2 * math.pi * (torch.arange(self._nx, device=values.device) - nx // 2)[:, None] * self.columns
        along_y = 2 * math.pi * (places[..., 2:] - ny // 2) * self.rows
        slices = torch.arange(self._n_slices, device=values.device)
        is_of = (places[..., :1].round() == slices).to(values.dtype)[..., None]
        cosine, sine = ((is_of * part[:, :, None]).flatten(2).mT for part in (along_y.cos(), along_y.sin()))
        frames = []
        for time in self.points.times:
            weighted = self.points.weigh(coordinates, pairs, time).reshape(batch, n, self._nx, -1)
            real, imaginary = weighted.transpose(2, 3).chunk(2, dim=2)
            lines = (real @ along_x.cos() - imaginary @ along_x.sin(), real @ along_x.sin() + imaginary @ along_x.cos())
            real, imaginary = (part.flatten(2) for part in lines)
            z = (cosine @ real - sine @ imaginary, cosine @ imaginary + sine @ real)
            frames.append(
                torch.stack(z, dim=-1).reshape(batch, self._n_slices, len(self.rows), -1, len(self.columns), 2)
            )
        whole = torch.stack(frames, dim=2).transpose(4, 5)  # batch, slice, frame, y, x, filter, 2
        return whole.flatten(1, 4)
