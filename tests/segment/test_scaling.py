"""The scale of samples: what it is, and that networks of a cine scan do not see a receiver's gain, companded or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kstream.engines.array_engine import load_array_engine
from kstream.recon.fourier import to_kspace
from kstream.segment.cine import CineModel, CinePlan
from kstream.segment.lines import analyse_lines
from kstream.segment.points import label_frames, real_values
from kstream.segment.scaling import sample_scale, scaled_samples
from tests.hearts import disk_bundle, kmtr_bundle

PLAN = CinePlan(5, 3, (24, 24), ("4ch", "sax0", "sax1"), 60.0)


def test_fully_sampled_kspace_gets_the_rms_of_its_image() -> None:
    rng = np.random.default_rng(1)
    image = (rng.random((5, 7, 11)) + 1j * rng.random((5, 7, 11))).astype(np.complex64)
    rms = np.sqrt(np.mean(np.abs(image) ** 2))
    assert sample_scale(real_values(to_kspace(image).reshape(-1))) == pytest.approx(rms, rel=1e-5)


def test_scaled_samples_have_no_gain_and_zeros_stay_zero() -> None:
    values = np.random.default_rng(2).standard_normal((13, 2)).astype(np.float32)
    np.testing.assert_allclose(scaled_samples(1e-7 * values), scaled_samples(3e5 * values), rtol=1e-5)
    assert np.mean(np.square(scaled_samples(values))) == pytest.approx(0.5, rel=1e-5)  # of each part
    assert not scaled_samples(np.zeros((3, 2), np.float32)).any()
    assert sample_scale(np.zeros((0, 2), np.float32)) == 1.0


@pytest.mark.parametrize("compand", [0.0, 0.5])
def test_labels_do_not_depend_on_a_receivers_gain(compand: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    made = disk_bundle(tmp_path / "disk-test", compand)
    disk = CineModel.of(made.info, load_array_engine(made))
    coordinates, values = rng.random((91, 3), np.float32), rng.standard_normal((91, 2), np.float32)
    first, second = (label_frames(disk, coordinates, gain * values, np.arange(5), PLAN) for gain in (1, 2**13))
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(first)) > 1
    made = kmtr_bundle(tmp_path / "kmtr-test", compand)
    kmtr = CineModel.of(made.info, load_array_engine(made))
    places = np.stack([rng.integers(0, n, 17) for n in (3, 5, 24)], axis=-1).astype(np.float32)
    lines = rng.standard_normal((17, 48), np.float32)
    one, other = (analyse_lines(kmtr, places, gain * lines, PLAN) for gain in (1, 2**13))
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_allclose(one.phenotypes, other.phenotypes, rtol=1e-5)
