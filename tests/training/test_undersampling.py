from __future__ import annotations

import numpy as np
import pytest

from kstream.training.breast.undersampling import (
    CENTRE_FRACTIONS,
    SNRS_DB,
    cartesian_mask,
    centre_fraction,
    fibonacci_prefixes,
    kept_spokes,
    noise_level,
    noisy,
    scenario_seed,
    undersample,
)

# fastMRI's own masks for the published seeds (patient 0), run with fastMRI at commit 91f2df47.
GOLDEN = {
    (16, 0): "19 57 73 96 106 114 142 153 158 159 160 161 162 171 183 203 228 229 263 272 276 304 318",
    (24, 0): "112 159 160 161 196 211 245 289 312",
    (48, 0): "70 115 160 164 190 214 265 273 278 286 290",
    (48, 16): "86 100 110 141 160 174 285 290",
}


def lines(acceleration: int, z_start: int) -> list[int]:
    seed = scenario_seed(acceleration, 0, z_start)
    mask = cartesian_mask(320, acceleration, CENTRE_FRACTIONS[acceleration], seed)
    return [int(line) for line in np.flatnonzero(mask)]


@pytest.mark.parametrize(("acceleration", "z_start"), GOLDEN)
def test_masks_are_those_of_fastmri(acceleration: int, z_start: int) -> None:
    assert lines(acceleration, z_start) == [int(line) for line in GOLDEN[acceleration, z_start].split()]


def test_the_fourfold_mask_is_that_of_fastmri() -> None:
    kept = lines(4, 0)
    assert len(kept) == 84
    assert kept[:8] == [9, 11, 17, 24, 27, 28, 30, 35]


def test_seeds_are_the_published_ones() -> None:
    assert [scenario_seed(r, 0) for r in (4, 16, 24, 48)] == [4000135, 16000171, 24000195, 48000267]
    assert [scenario_seed(noise_level(db), 0) for db in (0, -5, -10)] == [123, 3794965919, 3294964419]
    assert len(CENTRE_FRACTIONS) == 11
    assert len(SNRS_DB) == 10


@pytest.mark.parametrize(
    ("acceleration", "n_centre", "expected", "deviation"),
    [(2, 13, 160, 9.0), (4, 26, 80, 6.7), (8, 13, 40, 5.0), (16, 5, 20, 3.7), (48, 1, 6.67, 2.3)],
)
def test_the_number_of_lines_is_an_expectation(
    acceleration: int, n_centre: int, expected: float, deviation: float
) -> None:
    masks = np.stack([cartesian_mask(320, acceleration, CENTRE_FRACTIONS[acceleration], s) for s in range(600)])
    start = (320 - n_centre + 1) // 2
    assert masks[:, start : start + n_centre].all()
    counts = masks.sum(axis=1)
    assert counts.mean() == pytest.approx(expected, abs=4 * deviation / np.sqrt(600))
    assert counts.std() == pytest.approx(deviation, rel=0.15)


def test_one_exam_has_one_mask_and_patches_have_their_own() -> None:
    kspace = np.ones((5, 7, 320), np.complex64)
    whole = undersample(kspace, 16, patient_index=3)
    assert (whole == whole[:1, :1]).all()
    assert 0 < np.count_nonzero(whole[0, 0]) < 60
    assert not np.array_equal(whole, undersample(kspace, 16, 3, z_start=16))
    assert not np.array_equal(whole, undersample(kspace, 16, 4))
    assert undersample(kspace, 1, 3) is kspace


def test_small_planes_keep_a_centre() -> None:
    assert centre_fraction(12, 320) == 0.02
    assert [round(64 * centre_fraction(r, 64)) for r in (2, 4, 6, 8, 10, 12, 16, 24)] == [3, 5, 3, 3, 2, 2, 1, 1]


def test_noise_has_the_asked_power_and_is_repeatable() -> None:
    rng = np.random.default_rng(0)
    kspace = (rng.standard_normal((6, 20, 30)) * 3 + 1j * rng.standard_normal((6, 20, 30))).astype(np.complex64)
    noise = noisy(kspace, -5, 2) - kspace
    ratio_db = 10 * np.log10(np.mean(np.abs(kspace) ** 2) / np.mean(np.abs(noise) ** 2))
    assert ratio_db == pytest.approx(-5, abs=0.2)
    assert np.var(noise.real) == pytest.approx(np.var(noise.imag), rel=0.1)
    np.testing.assert_array_equal(noisy(kspace, -5, 2), noisy(kspace, -5, 2))
    assert not np.array_equal(noisy(kspace, -5, 2), noisy(kspace, -5, 3))


@pytest.mark.parametrize("scheme", ["uniform", "contiguous", "random"])
def test_spokes_are_kept_once_and_in_order(scheme: str) -> None:
    for factor in (1, 2, 3.3, 11, 500):
        kept = kept_spokes(55, factor, scheme, seed=4)  # type: ignore[arg-type]
        assert len(kept) == max(round(55 / factor), 1)
        assert (np.diff(kept) > 0).all()
        assert kept[0] >= 0
        assert kept[-1] < 55


def test_schemes_keep_what_their_names_say() -> None:
    assert kept_spokes(12, 3, "contiguous").tolist() == [0, 1, 2, 3]
    assert kept_spokes(12, 3, "uniform").tolist() == [0, 3, 6, 9]
    assert kept_spokes(12, 3, "random", 1).tolist() != kept_spokes(12, 3, "random", 2).tolist()


def test_golden_prefixes_are_fibonacci_numbers() -> None:
    assert fibonacci_prefixes(96) == (8, 13, 21, 34, 55, 89)
    assert fibonacci_prefixes(34) == (8, 13, 21, 34)
    assert fibonacci_prefixes(7) == ()
