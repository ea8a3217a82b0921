"""Latents with places: exact Fourier sums, additive over samples, blind to gains, on a circle in time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kstream.models import located
from kstream.models.disk import DiSK
from kstream.models.kmtr import KMTR
from kstream.models.located import LocatedLatents, LocatedLines

GRID, WIDTH, N_FILTERS = (3, 2, 4), 29, 5


def reader(plane: tuple[int, int] = (9, 12)) -> LocatedLatents:
    torch.manual_seed(3)
    return LocatedLatents(WIDTH, GRID, plane, N_FILTERS, n_hidden=7, n_frequencies=2).double()


def samples(n: int, seed: int = 4) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.random((2, n, 3))), torch.from_numpy(rng.standard_normal((2, n, 2)))


@pytest.mark.parametrize("plane", [(9, 12), (8, 7), (1, 1)])
def test_what_is_read_is_the_fourier_sum_of_the_weighted_samples(plane: tuple[int, int]) -> None:
    latents, (coordinates, values) = reader(plane), samples(31)
    with torch.no_grad():
        found = torch.view_as_complex(latents.read(coordinates, values)).numpy()
        weighted = [latents.weigh(coordinates, values, time).numpy() for time in latents.times]
    size = np.array(plane)
    k = coordinates[..., :2].numpy() * size - size // 2
    rows, columns = ((np.arange(n) + 0.5) / n for n in GRID[1:])
    for t, parts in enumerate(weighted):
        v = parts[..., :N_FILTERS] + 1j * parts[..., N_FILTERS:]
        for m, (y, x) in enumerate((y, x) for y in rows for x in columns):
            r = np.array([y, x]) - size // 2 / size
            exact = (v * np.exp(2j * np.pi * (k @ r))[..., None]).sum(axis=1)
            np.testing.assert_allclose(found[:, t * GRID[1] * GRID[2] + m], exact, atol=1e-5)  # places are float32


def test_samples_add_up_in_any_order_and_number() -> None:
    latents, (coordinates, values) = reader(), samples(23)
    order = torch.randperm(23)
    with torch.no_grad():
        whole = latents.read(coordinates, values)
        parts = latents.read(coordinates[:, :8], values[:, :8]) + latents.read(coordinates[:, 8:], values[:, 8:])
        shuffled = latents.read(coordinates[:, order], values[:, order])
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(shuffled, whole)


@pytest.mark.parametrize("at_once", [1, 7, 23, 24])
def test_the_sums_do_not_depend_on_how_many_are_taken_at_once(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    latents, (coordinates, values) = reader(), samples(23)
    in_training = latents.read(coordinates, values).detach()
    sizes: list[int] = []
    weigh = latents.weigh
    monkeypatch.setattr(latents, "weigh", lambda c, v, t: (sizes.append(c.shape[1]), weigh(c, v, t))[1])
    monkeypatch.setattr(located, "SAMPLES_AT_ONCE", at_once)
    with torch.no_grad():
        torch.testing.assert_close(latents.read(coordinates, values), in_training)
    assert max(sizes) <= at_once
    assert sum(sizes) == 23 * GRID[0]


@pytest.mark.parametrize("gain", [1e-3, 41.0])
def test_no_gain_matters(gain: float) -> None:
    latents, (coordinates, values) = reader(), samples(17)
    with torch.no_grad():
        torch.testing.assert_close(
            latents(coordinates, gain * values), latents(coordinates, values), rtol=1e-3, atol=1e-5
        )


def test_the_beat_is_a_circle() -> None:
    latents, (coordinates, values) = reader(), samples(6)
    last, first = coordinates.clone(), coordinates.clone()
    last[..., 2], first[..., 2] = 0.98, -0.02
    with torch.no_grad():
        weighted = [latents.weigh(c, values, latents.times[0]) for c in (last, first)]
    torch.testing.assert_close(*weighted)


def test_samples_of_nothing_give_finite_latents() -> None:
    latents, (coordinates, values) = reader(), samples(5)
    assert latents(coordinates, torch.zeros_like(values)).isfinite().all()


@pytest.mark.parametrize(("grid", "plane"), [((2, 3), (8, 8)), ((2, 3, 4), (8,)), ((2, 0, 4), (8, 8))])
def test_sizes_are_checked(grid: tuple[int, ...], plane: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a grid has 3 sizes"):
        LocatedLatents(WIDTH, grid, plane)


def test_disk_with_located_latents_learns_in_every_parameter() -> None:
    torch.manual_seed(5)
    network = DiSK(width=32, n_layers=2, located=GRID, plane=(9, 12), n_filters=N_FILTERS)
    coordinates, values = (part.float() for part in samples(19))
    logits = network(coordinates, values, torch.rand(2, 13, 3))
    assert logits.shape == (2, 4, 13)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_lines_read_as_the_samples_that_they_are() -> None:
    n_slices, n_frames, (ny, nx) = 2, 6, (9, 12)
    torch.manual_seed(3)
    lines = LocatedLines(WIDTH, (n_slices, *GRID), n_frames, (ny, nx), N_FILTERS).double()
    rng = np.random.default_rng(7)
    places = np.stack([rng.integers(0, n, (2, 15)) for n in (n_slices, n_frames, ny)], axis=-1)
    values = rng.standard_normal((2, 15, 2, nx))
    with torch.no_grad():
        found = lines.read(torch.from_numpy(values).flatten(2), torch.from_numpy(places).double())
    found = found.unflatten(1, (n_slices, -1))
    for subject, own in enumerate(places):
        for number in range(n_slices):
            picked = own[:, 0] == number
            ky, frame = np.repeat(own[picked, 2], nx) / ny, np.repeat(own[picked, 1], nx) / n_frames
            coordinates = np.stack((ky, np.tile(np.arange(nx), picked.sum()) / nx, frame), axis=-1)
            pairs = values[subject, picked].transpose(0, 2, 1).reshape(-1, 2)
            with torch.no_grad():
                exact = lines.points.read(torch.from_numpy(coordinates)[None], torch.from_numpy(pairs)[None])[0]
            torch.testing.assert_close(found[subject, number], exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("at_once", [1, 25, 15 * 12])
def test_the_sums_of_lines_do_not_depend_on_how_many_are_taken_at_once(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    lines = LocatedLines(WIDTH, (2, *GRID), 6, (9, 12), N_FILTERS).double()
    rng = np.random.default_rng(7)
    places = torch.from_numpy(np.stack([rng.integers(0, n, (2, 15)) for n in (2, 6, 9)], axis=-1)).double()
    values = torch.from_numpy(rng.standard_normal((2, 15, 24)))
    in_training = lines.read(values, places).detach()
    sizes: list[int] = []
    weigh = lines.points.weigh
    monkeypatch.setattr(lines.points, "weigh", lambda c, v, t: (sizes.append(c.shape[1]), weigh(c, v, t))[1])
    monkeypatch.setattr(located, "SAMPLES_AT_ONCE", at_once)
    with torch.no_grad():
        torch.testing.assert_close(lines.read(values, places), in_training)
    assert max(sizes) <= max(at_once, 12), "a line at least"
    assert sum(sizes) == 15 * 12 * GRID[0]


def test_kmtr_with_located_tokens_learns_in_every_parameter() -> None:
    torch.manual_seed(5)
    heads = ("segmentation", "regression", "reconstruction")
    network = KMTR(heads, 3, 1, 10, (16, 24), (5, 8, 8), 35, 3, n_heads=5, located=4,
                   segmentation_width=12, feature_size=2)  # fmt: skip
    rng = np.random.default_rng(8)
    places = np.stack([rng.integers(0, n, (2, 31)) for n in (3, 10, 16)], axis=-1)
    labels, phenotypes, images = network(torch.randn(2, 31, 48), torch.from_numpy(places).float())
    assert labels.shape == (2, 3, 6, 10, 16, 24)
    assert phenotypes.shape == (2, 18)
    assert images.shape == (2, 2, 3, 10, 16, 24)
    (labels.square().sum() + phenotypes.square().sum() + images.square().sum()).backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert still == []
