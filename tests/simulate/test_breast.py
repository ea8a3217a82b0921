"""The breast phantom: volumes, places, labels and repeatability."""

import numpy as np
import pytest

from kstream.errors import ConfigError
from kstream.simulate.breast.anatomy import BreastPhantom
from kstream.simulate.breast.lesions import Lesion, Shape, fibonacci_sphere, random_malignant, random_surface
from kstream.simulate.breast.protocol import BreastProtocol
from kstream.types import Geometry

COARSE = Geometry((41, 37, 13), (320.0, 320.0, 128.0))


def _with_lesion(seed: int = 3) -> BreastPhantom:
    return BreastPhantom(seed, n_lesions=1)


@pytest.mark.parametrize("shape", ["smooth", "lobulated", "irregular", "spiculated"])
def test_surface_encloses_the_volume_of_the_equivalent_sphere(shape: Shape) -> None:
    surface = random_surface(np.random.default_rng(8), shape)
    lesion = Lesion((1.0, 2.0, 3.0), 16.0, shape, "washout", 0.5, 0.3, 0.02, 0.5, *surface)
    rng = np.random.default_rng(9)
    half = lesion.reach_mm
    points = rng.uniform(-half, half, (400_000, 3)) + lesion.centre_mm
    distance, radius = lesion.polar(*points.T)
    volume_ml = np.mean(distance <= radius) * (2 * half) ** 3 * 1e-3
    assert volume_ml == pytest.approx(lesion.volume_ml, rel=0.03)
    assert lesion.volume_ml == pytest.approx(4 / 3 * np.pi * 8**3 * 1e-3)


def test_margins_grow_rougher_from_smooth_to_spiculated() -> None:
    unit = fibonacci_sphere(4000)
    roughness = []
    for shape in ("smooth", "lobulated", "spiculated"):
        spreads = []
        for seed in range(6):
            surface = random_surface(np.random.default_rng(seed), shape)
            lesion = Lesion((0, 0, 0), 10.0, shape, "washout", 0.5, 0.3, 0.0, 0.0, *surface)
            radius = lesion.polar(*unit.T)[1]
            spreads.append(radius.max() / radius.mean())
        roughness.append(np.mean(spreads))
    assert roughness[0] < roughness[1] < roughness[2]


def test_rim_takes_up_more_than_core() -> None:
    rng = np.random.default_rng(10)
    lesion = next(m for m in (random_malignant(rng, (0, 0, 0), 25.0) for _ in range(99)) if m.rim > 0.4)
    assert lesion.uptake(np.array([0.1]))[0] < 0.7 < 1.0 < lesion.uptake(np.array([0.95]))[0]


def test_label_volume_equals_the_analytic_volume() -> None:
    phantom = _with_lesion()
    (lesion,) = phantom.lesions
    x, y, z = lesion.centre_mm
    fine = Geometry((61, 59, 57), (61.0, 59.0, 57.0), (x, y, z))
    labels = phantom.labels(fine, subsamples=3)
    assert labels.sum() * 1e-3 == pytest.approx(lesion.volume_ml, rel=0.04)


def test_labels_follow_an_oblique_volume() -> None:
    phantom = _with_lesion()
    protocol = BreastProtocol(matrix=63, n_slices=31, rotation_deg=(8.0, -11.0, 20.0), position_mm=(5.0, -9.0, 3.0))
    labels = phantom.labels(protocol.geometry)
    index = np.argwhere(labels).mean(axis=0)[::-1]
    centroid = protocol.geometry.affine_lps @ np.append(index, 1.0)
    np.testing.assert_allclose(centroid[:3], phantom.lesions[0].centre_mm, atol=4.0)


def test_a_voxel_is_labelled_when_half_of_it_is_inside() -> None:
    """A sphere of 3.1 voxels radius: the label is the voxel set whose sub-sampled occupancy reaches one half."""
    sphere = (np.ones(3), np.zeros((0, 3)), np.zeros(0), np.zeros(0))
    phantom = _with_lesion()
    phantom.lesions = [Lesion((0.0, 0.0, 0.0), 62.0, "smooth", "washout", 0.5, 0.3, 0.0, 0.0, *sphere)]
    geometry = Geometry((9, 11, 13), (90.0, 110.0, 130.0))
    labels = phantom.labels(geometry, subsamples=9)
    z, y, x = np.meshgrid(*[np.arange(n) - n // 2 for n in (13, 11, 9)], indexing="ij")
    distance = np.sqrt(x**2 + y**2 + z**2)
    assert np.all(labels[distance < 2.6] == 1)
    assert np.all(labels[distance > 3.6] == 0)
    assert labels[6, 5, 4 + 3] == 1
    assert labels[6, 5, 4 + 4] == 0


def test_lesion_free_phantom_has_no_labels_but_still_enhances() -> None:
    phantom = BreastPhantom(5, n_lesions=0)
    assert phantom.lesions == []
    assert not phantom.labels(COARSE).any()
    assert phantom.rasterise(COARSE)["ktrans_per_min"].max() > 0.2  # heart and nipples


def test_benign_masses_enhance_without_a_label() -> None:
    phantom = next(
        p for p in (BreastPhantom(seed, 0) for seed in range(50)) if any(m.diameter_mm > 10 for m in p.benign)
    )
    mass = max(phantom.benign, key=lambda m: m.diameter_mm)
    around = Geometry((11, 11, 11), (22.0, 22.0, 22.0), mass.centre_mm)
    maps = phantom.rasterise(around, (1, 1, 1))
    assert maps["ktrans_per_min"][5, 5, 5] > 0.02
    assert not phantom.labels(around).any()


@pytest.mark.parametrize("n_lesions", [0, 1, 2, 3])
def test_number_of_lesions_is_as_asked_and_leaves_the_anatomy_alone(n_lesions: int) -> None:
    phantom, plain = BreastPhantom(11, n_lesions), BreastPhantom(11, 0)
    assert len(phantom.lesions) == n_lesions
    assert phantom.density == plain.density
    np.testing.assert_array_equal([v.start for v in phantom.vessels], [v.start for v in plain.vessels])


def test_random_number_of_lesions_covers_none_to_three() -> None:
    counts = {len(BreastPhantom(seed).lesions) for seed in range(40)}
    assert counts == {0, 1, 2, 3}


@pytest.mark.parametrize("wrong", [-1, 4, "many"])
def test_impossible_number_of_lesions_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match="n_lesions"):
        BreastPhantom(1, wrong)  # type: ignore[arg-type]


def test_lesions_lie_in_breasts_apart_from_each_other() -> None:
    for seed in range(12):
        lesions = BreastPhantom(seed, 3).lesions
        for i, lesion in enumerate(lesions):
            assert 10.0 <= lesion.diameter_mm <= 32.0
            assert lesion.centre_mm[1] < 25.0
            for other in lesions[:i]:
                gap = np.linalg.norm(np.subtract(lesion.centre_mm, other.centre_mm))
                assert gap > 0.5 * (lesion.diameter_mm + other.diameter_mm)


def test_patient_lies_prone_with_the_heart_on_the_left() -> None:
    maps = BreastPhantom(2, 0).rasterise(COARSE, (1, 1, 1))
    density = maps["proton_density"]
    assert not density[:, 0].any()  # air in front of the breasts
    assert density[6, 20, 20] > 0  # chest behind the sternum
    x = maps.positions_mm[0]
    assert x[maps["vp"] > 0.5].mean() > 5.0  # blood pools: LPS x is positive to the left


def test_finer_grids_converge_on_the_same_water() -> None:
    phantom = BreastPhantom(4, 1)
    water = []
    for factor in (2, 4):
        maps = phantom.rasterise(COARSE, (factor, factor, 2))
        water.append(float(np.mean(maps["proton_density"] * (1 - maps["fat_fraction"]), dtype=np.float64)))
    assert water[0] == pytest.approx(water[1], rel=0.02)


def test_equal_seeds_give_equal_phantoms() -> None:
    first, second, other = (BreastPhantom(seed, 2).rasterise(COARSE, (1, 1, 1)) for seed in (6, 6, 7))
    for name, values in first.values.items():
        np.testing.assert_array_equal(values, second[name])
    assert np.any(first["ktrans_per_min"] != other["ktrans_per_min"])
