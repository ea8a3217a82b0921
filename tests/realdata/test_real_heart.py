"""Real short axes beside the simulated heart: the same readers, the same sampling, and pictures that resemble."""

from pathlib import Path

import numpy as np
import pytest

from kstream.output.phenotypes import LV_CAVITY, LV_MYOCARDIUM, RV_CAVITY
from kstream.recon.fourier import to_image, to_kspace
from kstream.simulate.heart.images import HeartScene
from kstream.simulate.heart.lines import sampled_lines
from kstream.simulate.heart.views import plan_views
from kstream.training.heart.slices import slice_points
from kstream.training.readers.cine import CineView, read_uk_biobank, synthetic_kspace_images

DATA = Path(__file__).parents[3] / "shared" / "data" / "real" / "labelled" / "cardiac"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs {DATA.name}/ beside the checkout")
SUBJECTS = "ABCDE"


def middle(subject: str) -> CineView:
    """The slice with the most blood in the left ventricle among those in the middle of the heart."""
    views = [v for v in read_uk_biobank(DATA / subject).views if v.labels is not None and (v.labels == LV_CAVITY).any()]
    return views[len(views) // 2]


def contrast(image: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Blood of left and of right ventricle over muscle."""
    left, muscle, right = (float(np.median(image[labels == i])) for i in (LV_CAVITY, LV_MYOCARDIUM, RV_CAVITY))
    return left / muscle, right / muscle


@pytest.mark.parametrize("subject", SUBJECTS)
def test_labels_lie_on_what_they_name(subject: str) -> None:
    view = middle(subject)
    assert view.labels is not None
    left, right = contrast(view.magnitude[0], view.labels[0])
    assert left > 1.8
    assert right > 1.5


def test_simulated_hearts_have_the_size_and_contrast_of_real_ones() -> None:
    real_area, real_contrast, area, contrasts = [], [], [], []
    for subject in SUBJECTS:
        view = middle(subject)
        assert view.labels is not None
        dx, dy, _ = view.geometry.voxel_size_mm
        real_area.append(float((view.labels[0] == LV_CAVITY).sum()) * dx * dy)
        real_contrast.append(contrast(view.magnitude[0], view.labels[0])[0])
    for seed in range(12):
        scene = HeartScene(seed)
        (view,) = plan_views(scene.place, scene.heart.form.length_mm, ("sax0",), (96, 96), (180.0, 180.0), 8.0)
        labels = scene.labels(view.geometry, 0.0)
        dx, dy, _ = view.geometry.voxel_size_mm
        area.append(float((labels == LV_CAVITY).sum()) * dx * dy)
        contrasts.append(contrast(scene.still(view.geometry, (1, 1), 2).image(0.0), labels)[0])
    assert 0.6 < np.mean(area) / np.mean(real_area) < 1.6
    assert 0.6 < np.mean(contrasts) / np.mean(real_contrast) < 2.0


@pytest.mark.parametrize("acceleration", [1.0, 4.0])
def test_real_images_go_through_the_same_sampling(acceleration: float) -> None:
    images = synthetic_kspace_images(middle("A"), np.random.default_rng(0))
    kspace = to_kspace(images)
    n_frames, ny, nx = kspace.shape
    lines = sampled_lines("normal", ny, n_frames, acceleration, np.random.default_rng(1))
    coordinates, values = slice_points(kspace, lines)
    assert len(values) == lines.sum() * nx
    grid = np.zeros_like(kspace)
    y, x, t = np.rint(coordinates * (ny, nx, n_frames)).astype(int).T
    grid[t, y, x] = values @ [1, 1j]
    error = np.abs(to_image(grid) - images).max() / np.abs(images).max()
    assert error < 1e-4 if acceleration == 1.0 else 0.02 < error < 1.0
