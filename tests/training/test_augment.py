from __future__ import annotations

import numpy as np
import pytest

from kstream.recon.fourier import to_image, to_kspace
from kstream.training.breast.augment import add_noise, augment, flip_kspace, shift_kspace
from kstream.training.breast.undersampling import random_lines
from kstream.training.experiment import AugmentConfig


def random_image(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((*shape, 2), np.float32).view(np.complex64)[..., 0]


@pytest.mark.parametrize("shape", [(3, 5, 7), (3, 6, 8), (4, 5, 8)])
@pytest.mark.parametrize(
    ("axes", "numbers"), [("z", (0,)), ("y", (1,)), ("x", (2,)), ("zx", (0, 2)), ("zyx", (0, 1, 2))]
)
def test_a_flip_in_kspace_is_a_flip_of_the_image(shape: tuple[int, int, int], axes: str, numbers: tuple) -> None:
    image = random_image(shape)
    flipped = to_image(flip_kspace(to_kspace(image), list(axes)))
    np.testing.assert_allclose(flipped, np.flip(image, numbers), atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 6, 8)])
def test_a_shift_in_kspace_rolls_the_image(shape: tuple[int, int, int]) -> None:
    image = random_image(shape)
    np.testing.assert_allclose(
        to_image(shift_kspace(to_kspace(image), (2, -3))), np.roll(image, (2, -3), (1, 2)), atol=1e-5
    )


def test_labels_move_with_the_image() -> None:
    labels = np.zeros((3, 8, 10), np.uint8)
    labels[1, 2:4, 5:9] = 1
    config = AugmentConfig(shift_voxels=3, scale=1.3)
    for seed in range(8):
        kspace, moved = augment(to_kspace(labels.astype(np.complex64)), labels, config, np.random.default_rng(seed))
        magnitude = np.abs(to_image(kspace))
        np.testing.assert_array_equal(magnitude > 0.5 * magnitude.max(), moved == 1)
        assert 1 / 1.31 < magnitude.max() < 1.31


def test_noise_has_the_asked_power() -> None:
    kspace = random_image((6, 20, 30), seed=1)
    noise = add_noise(kspace, -5.0, np.random.default_rng(2)) - kspace
    ratio_db = 10 * np.log10(np.mean(np.abs(kspace) ** 2) / np.mean(np.abs(noise) ** 2))
    assert ratio_db == pytest.approx(-5.0, abs=0.2)
    assert np.var(noise.real) == pytest.approx(np.var(noise.imag), rel=0.1)


def test_lines_keep_the_centre_and_the_mean_acceleration() -> None:
    rng = np.random.default_rng(0)
    masks = np.stack([random_lines(320, 8, 0.04, rng) for _ in range(300)])
    assert masks[:, 154:167].all()
    assert masks.sum(axis=1).mean() == pytest.approx(40, rel=0.03)


def test_undersampled_patches_lose_whole_lines_along_x() -> None:
    kspace = random_image((3, 6, 32))
    config = AugmentConfig(flip_axes=(), phase=False, lines="wide", lines_probability=1.0)
    thinned, _ = augment(kspace, np.zeros(kspace.shape, np.uint8), config, np.random.default_rng(1))
    lost = (thinned == 0).all(axis=(0, 1))
    assert 0 < lost.sum() < 32
    np.testing.assert_array_equal(thinned[..., ~lost], kspace[..., ~lost])
