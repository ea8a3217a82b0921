"""Several sets of coil maps: an object that folds over itself shows two places in one voxel, seen differently."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from kstream.config import resolve
from kstream.errors import ScanError
from kstream.pipeline import build_pipeline
from kstream.recon.calibration import EspiritSettings
from kstream.recon.coils import CombineCoils, combine, map_sets
from kstream.recon.combine import CombineSpokes
from kstream.recon.contrast import SubtractContrast
from kstream.recon.density import AnglePlan
from kstream.recon.fourier import to_image, to_kspace
from kstream.recon.gpu import TorchSums, torch_coil_maps
from kstream.recon.iterative import (
    IterativeSettings,
    SenseOperator,
    Solution,
    solve_slice,
    total_variation_proximal,
)
from kstream.recon.partial_fourier import FillPartialFourier
from kstream.recon.sampling import Sampling
from kstream.recon.sharing import ShareFrames
from kstream.recon.stages import GridReadouts, ToImageSpace
from kstream.stream import Pipeline
from kstream.stream.runners import run_inline
from kstream.types import (
    GOLDEN_ANGLE_RAD,
    Complex,
    EncodingLimit,
    Float,
    FrameEnd,
    FrameImage,
    Geometry,
    KSpace,
    Readout,
    Scan,
)
from tests import phantom
from tests.scans import StackOfStars

N, NZ, N_COILS, N_SPOKES = 45, 3, 6, 71
MATRIX = (N, N)
GEOMETRY = Geometry((N, N, NZ), (200.0, 200.0, 50.0))
STARS = StackOfStars(nx=N, ny=N, nz=NZ, n_partitions=NZ, n_coils=N_COILS, spokes_per_frame=N_SPOKES, n_frames=1)
BRIGHT = 2
"""The slice in which the first object lies; the second lies a slab's thickness below it, and folds onto it."""


def scan() -> Scan:
    limits = {**STARS.scan().limits, "kspace_encode_step_2": EncodingLimit(0, NZ - 1, 1)}
    return replace(STARS.scan(), limits=limits)


def seen(k: np.ndarray, seed: int) -> np.ndarray:
    """Exact k-space ``(coils, ...)`` of an object; another seed is another object, seen by the coils differently."""
    rng = np.random.default_rng(seed)
    amplitudes = rng.standard_normal((N_COILS, 4)) + 1j * rng.standard_normal((N_COILS, 4))
    turned = np.asarray(k, np.float64)[..., [0, 1] if seed == 1 else [1, 0]]
    parts = np.stack([phantom.kspace(turned - wave, MATRIX) for wave in phantom.WAVES])
    return np.tensordot(amplitudes / np.linalg.norm(amplitudes), parts, axes=1)


def measured(k: np.ndarray, kz: int) -> Complex:
    """Samples of both objects, one within the slab and one beyond it: complex64 ``(coils, ...)``."""
    places = {1: 1.0, 2: 1.0 - NZ}
    total = sum(seen(k, seed) * np.exp(-2j * np.pi * kz * z / NZ) for seed, z in places.items())
    return (total / np.sqrt(NZ)).astype(np.complex64)


def coil_images() -> Complex:
    """What a fully sampled scan would show in the bright slice: complex64 ``(coils, y, x)``."""
    y, x = np.mgrid[:N, :N] - N // 2
    inside = np.hypot(y, x) <= N / 2
    k = np.stack([x, y], axis=-1)
    return to_image((sum(seen(k, seed) for seed in (1, 2)) * inside).astype(np.complex64))


def frame(number: int = 0) -> list[Readout | FrameEnd]:
    k = phantom.spokes(np.arange(N_SPOKES) * GOLDEN_ANGLE_RAD, MATRIX)
    items: list[Readout | FrameEnd] = [
        Readout(measured(k[s], p - 1), k[s], number, 0, p, (s, p), 0) for s in range(N_SPOKES) for p in range(NZ)
    ]
    return [*items, FrameEnd(number, 0, len(items), len(items), 7, GEOMETRY)]


def sampling() -> Sampling:
    return Sampling(scan(), N_SPOKES, NZ, 1, "polar", AnglePlan(np.arange(N_SPOKES) * GOLDEN_ANGLE_RAD))


def espirit(n_sets: int) -> EspiritSettings:
    return EspiritSettings(24, 6, 0.02, 0.8, 48, 100, "hard", n_sets)


def combined(n_sets: int, way: str = "zero-wait") -> KSpace:
    if way == "coil grids":
        combine_coils = CombineCoils("espirit", 0, espirit(n_sets))
        stage = Pipeline(GridReadouts(sampling(), 2.0, 6, 1.0), combine_coils, source=[Readout, FrameEnd])
    else:
        make = {"make_sum": TorchSums("cpu")} if way == "torch" else {}
        stage = CombineSpokes(sampling(), espirit(n_sets), 0, 0, 1.0, **make)  # type: ignore[arg-type, assignment]
    (kspace,) = (item for item in run_inline(stage, frame()) if isinstance(item, KSpace))
    return kspace


def magnitude(kspace: KSpace) -> Float:
    """What leaves for the scanner: float ``(z, y, x)``."""
    (image,) = ToImageSpace().push(kspace)
    assert isinstance(image, FrameImage)
    return np.abs(image.data)


@pytest.mark.parametrize("way", ["zero-wait", "torch", "coil grids"])
def test_one_set_loses_what_folds_and_two_sets_keep_it(way: str) -> None:
    """The root sum of squares of two sets is that of the coils; one set lacks what it is blind for."""
    expected = np.linalg.norm(coil_images(), axis=0)
    bright = expected > 0.3 * expected.max()
    one, two = (magnitude(combined(n_sets, way))[BRIGHT] for n_sets in (1, 2))
    lost, left = (np.linalg.norm((found - expected)[bright]) / np.linalg.norm(expected[bright]) for found in (one, two))
    assert left < 0.01
    assert lost > 4 * left
    worst = [np.abs(found - expected)[bright].max() / expected.max() for found in (one, two)]
    assert worst[0] > 0.15
    assert worst[1] < 0.05


def test_zero_wait_sets_are_those_of_batch_coil_images() -> None:
    for ours, batch in zip(combined(2).sets, combined(2, "coil grids").sets, strict=True):
        assert np.linalg.norm(ours - batch) < 2e-3 * np.linalg.norm(batch)


def test_first_of_several_sets_is_what_a_single_set_gives() -> None:
    """A network that was trained with one set sees the same."""
    one, two = combined(1), combined(2)
    assert one.further is None
    np.testing.assert_array_equal(one.data, two.data)
    changed = [SubtractContrast(0), SubtractContrast(0)]
    differences = [
        [*step.push(kspace), *step.push(replace(kspace, frame=1, data=2 * kspace.data))][-1]
        for step, kspace in zip(changed, (one, two), strict=True)
    ]
    np.testing.assert_array_equal(differences[0].data, differences[1].data)


def test_every_set_is_filled_and_shared() -> None:
    rng = np.random.default_rng(0)
    sets = (rng.standard_normal((2, 7, 5, 6)) + 1j * rng.standard_normal((2, 7, 5, 6))).astype(np.complex64)
    geometry = Geometry((6, 5, 7), (60.0, 50.0, 70.0))
    limits = {**STARS.scan().limits, "kspace_encode_step_2": EncodingLimit(0, 4, 1)}
    partly = replace(STARS.scan(), limits=limits, recon_matrix=(6, 5, 7))
    both = KSpace.of_sets(list(sets), 0, 0, 0, geometry)
    *_, filled = FillPartialFourier(partly, 5, "pocs").push(both)
    for number, data in enumerate(filled.sets):
        *_, alone = FillPartialFourier(partly, 5, "pocs").push(KSpace(sets[number], 0, 0, 0, geometry))
        np.testing.assert_array_equal(data, alone.data)
    share = ShareFrames(2)
    share.push(both)
    (window,) = share.push(replace(both.changed(lambda data: 3 * data), frame=1))
    for number, data in enumerate(window.sets):
        np.testing.assert_allclose(data, 2 * sets[number], rtol=1e-6)


def test_magnitude_does_not_depend_on_the_basis_of_the_sets() -> None:
    """Where both eigenvalues are 1, the two eigenvectors are any two of their plane."""
    rng = np.random.default_rng(1)
    images = (rng.standard_normal((2, 3, 5, 7)) + 1j * rng.standard_normal((2, 3, 5, 7))).astype(np.complex64)
    turned = np.stack([0.6 * images[0] + 0.8j * images[1], 0.8j * images[0] + 0.6 * images[1]])
    found = [magnitude(KSpace.of_sets(list(to_kspace(sets)), 0, 0, 0, GEOMETRY)) for sets in (images, turned)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


@pytest.mark.parametrize("weighting", ["hard", "soft"])
def test_torch_finds_the_same_sets(weighting: str) -> None:
    images = coil_images()[:, None]
    ours, theirs = (
        map_sets(images, replace(espirit(2), weighting=weighting, find=find))  # type: ignore[arg-type]
        for find in (espirit(2).find, partial(torch_coil_maps, device="cpu"))
    )
    for a, b in zip(ours, theirs, strict=True):
        inside = (np.abs(a).sum(0) > 0) & (np.abs(b).sum(0) > 0)
        assert inside.mean() > 0.95 * (np.abs(a).sum(0) > 0).mean() > 0.1
        assert np.abs(a - b)[:, inside].mean() < 2e-3


# Iterated images


def sense(n_sets: int, step: int) -> tuple[SenseOperator, Complex]:
    """Every `step`-th Cartesian line of the folded slice, and maps of all lines."""
    images = coil_images()
    maps = map_sets(images[:, None], replace(espirit(n_sets), map_size=64))[:, :, 0]
    kspace, position = to_kspace(images), np.arange(N) - N // 2
    lines = np.flatnonzero((position % step == 0) | (np.abs(position) < 7))
    ky, kx = (part.ravel() for part in np.meshgrid(position[lines], position, indexing="ij"))
    trajectory = np.stack([kx, ky], axis=1).astype(np.float32)
    operator = SenseOperator(trajectory, np.ones(len(kx), np.float32), maps if n_sets > 1 else maps[0])
    return operator, kspace[:, lines].reshape(N_COILS, -1)


def unexplained(n_sets: int) -> tuple[float, Solution]:
    """Share of the samples that the iterated image leaves."""
    operator, samples = sense(n_sets, 3)
    solution = solve_slice(operator, samples, IterativeSettings(iterations=40, tolerance=0))
    return float(np.linalg.norm(operator.forward(solution.image) - samples) / np.linalg.norm(samples)), solution


def test_soft_sense_explains_the_samples_of_an_object_that_folds_and_one_set_does_not() -> None:
    (of_one, _), (of_two, solution) = unexplained(1), unexplained(2)
    assert solution.image.shape == (2, N, N)
    assert of_two < 0.25 * of_one
    expected = np.linalg.norm(coil_images(), axis=0)
    found = np.linalg.norm(solution.image, axis=0)
    assert np.linalg.norm(found - expected) < 0.15 * np.linalg.norm(expected)


def test_operator_of_two_sets_and_its_adjoint_agree() -> None:
    rng = np.random.default_rng(2)
    operator, samples = sense(2, 2)
    image = (rng.standard_normal((2, N, N)) + 1j * rng.standard_normal((2, N, N))).astype(np.complex64)
    data = (rng.standard_normal(samples.shape) + 1j * rng.standard_normal(samples.shape)).astype(np.complex64)
    left, right = np.vdot(data, operator.forward(image)), np.vdot(operator.adjoint(data), image)
    assert abs(left - right) < 1e-4 * abs(left)
    expected = operator.weighted_adjoint(operator.forward(image))
    assert np.linalg.norm(operator.normal(image) - expected) < 1e-4 * np.linalg.norm(expected)


def test_total_variation_smooths_every_set_alone() -> None:
    rng = np.random.default_rng(3)
    images = (rng.standard_normal((2, 9, 7)) + 0j).astype(np.complex64)
    found = total_variation_proximal(images, 0.3)
    for number in range(2):
        np.testing.assert_array_equal(found[number], total_variation_proximal(images[number], 0.3))


def test_combination_of_sets_is_that_of_each() -> None:
    images = coil_images()[:, None]
    maps = map_sets(images, espirit(2))
    both = combine(images, maps)
    for number in range(2):
        np.testing.assert_allclose(both[number], combine(images, maps[number]), rtol=1e-5, atol=1e-6)


# By option


@pytest.mark.parametrize(
    "way", ["gridding.method=zero-wait", "gridding.method=coil-grids", "iterative.method=cg-sense"]
)
def test_sets_are_an_option_of_every_way_of_combination(way: str) -> None:
    small = StackOfStars(nx=21, ny=21, nz=2, n_partitions=2, n_coils=5, spokes_per_frame=15, n_frames=1)
    acquisitions = small.acquisitions(np.random.default_rng(4))

    def images(n_sets: int) -> Float:
        settings = (
            way,
            f"coils.sets={n_sets}",
            "coils.crop=0.3",
            "coils.calibration_size=12",
            "contrast.subtract=false",
        )
        config = resolve("breast-dce-recon", settings=settings).config
        made = run_inline(build_pipeline(small.scan(), config).pipeline, acquisitions)
        return np.stack([item.data for item in made if hasattr(item, "data")])

    one, two = images(1), images(2)
    assert one.shape == two.shape
    assert np.linalg.norm(two) > 1.05 * np.linalg.norm(one)


def test_sets_of_a_root_sum_of_squares_are_refused() -> None:
    settings = ("coils.method=rss", "coils.sets=2", "contrast.subtract=false")
    with pytest.raises(ScanError, match="has no maps"):
        build_pipeline(scan(), resolve("breast-dce-recon", settings=settings).config)
