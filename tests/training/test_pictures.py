from __future__ import annotations

import numpy as np

from kstream.recon.fourier import to_kspace
from kstream.training.breast.pictures import GREEN, blend, fullest_slice, outline, side_by_side


def test_truth_is_outlined_and_prediction_filled() -> None:
    image = np.full((9, 11), 2.0)
    truth, predicted = np.zeros((9, 11), np.uint8), np.zeros((9, 11), np.uint8)
    truth[2:6, 2:7] = 1
    predicted[1:4, 8:10] = 1
    picture = blend(image, truth, predicted)
    assert tuple(picture[2, 2]) == tuple(round(255 * c) for c in GREEN)
    assert tuple(picture[3, 4]) == (255, 255, 255)  # inside the outline the image shows
    red, green, _ = picture[2, 9]
    assert red > green
    assert outline(truth > 0).sum() == 2 * 4 + 2 * 5 - 4


def test_the_fullest_slice_is_shown_twice() -> None:
    labels = np.zeros((5, 8, 10), np.uint8)
    labels[3, 2:5, 2:5] = labels[1, 2, 2] = 1
    assert fullest_slice(labels) == 3
    assert fullest_slice(labels * 0) == 2
    picture = side_by_side(to_kspace(labels.astype(np.complex64)), labels, labels)
    assert picture.shape == (8, 20, 3)
    assert not np.array_equal(picture[:, :10], picture[:, 10:])
