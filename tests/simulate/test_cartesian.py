"""Lines that are kept, samples of Cartesian lines, and what happens during a readout."""

import numpy as np
import pytest

from kstream.readouts.oversampling import cropped
from kstream.recon.fourier import to_image, to_kspace
from kstream.simulate.brain.lines import Imperfections, LineReadout, gaussian_lines

NX, NY = 14, 21


def plane(fx: int = 1, fy: int = 1, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = (NY * fy, NX * fx)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def maps(off_resonance: float = 0.0, decay: float = 0.0, dephasing: float = 0.0, fx: int = 1) -> Imperfections:
    full = [np.full((NY, NX * fx), value, np.float32) for value in (off_resonance, decay, dephasing)]
    return Imperfections(*full)


@pytest.mark.parametrize(("n", "fraction"), [(216, 0.3), (101, 0.3), (54, 0.5), (20, 1.0)])
def test_the_wanted_number_of_lines_is_kept_with_its_centre(n: int, fraction: float) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        lines = gaussian_lines(n, fraction, 16, rng)
        assert lines.sum() == round(fraction * n)
        assert lines[n // 2 - 8 + n % 2 : n // 2 + 8].all()


def test_lines_are_dense_at_the_centre_and_thin_out_on_both_sides() -> None:
    rng = np.random.default_rng(2)
    share = np.mean([gaussian_lines(216, 0.3, 16, rng) for _ in range(400)], axis=0)
    middle = share[100:116]
    assert (middle == 1).all()
    near, far = share[[80, 90, 125, 135]].mean(), share[[5, 15, 200, 210]].mean()
    assert near > 3 * far > 0
    assert abs(share[:100].sum() - share[116:].sum()) < 3


def test_without_room_the_centre_is_all_that_is_kept() -> None:
    lines = gaussian_lines(40, 0.1, 16, np.random.default_rng(3))
    assert lines.sum() == 16


def test_samples_of_a_plane_are_its_kspace() -> None:
    image = plane()
    samples = LineReadout((NX, NY), (1, 1), 1, 10.0).sample(image)
    np.testing.assert_allclose(samples, to_kspace(image), atol=2e-5)


def test_removing_readout_oversampling_gives_the_samples_without_it() -> None:
    image = plane(2, 3)
    plain = LineReadout((NX, NY), (2, 3), 1, 10.0).sample(image)
    twice = LineReadout((NX, NY), (2, 3), 2, 5.0).sample(image)
    assert twice.shape == (NY, 2 * NX)
    np.testing.assert_allclose(twice[:, ::2], plain, atol=1e-5)
    on_grid = plane()  # has no detail that the crop could fold
    cut = cropped(LineReadout((NX, NY), (1, 1), 2, 5.0).sample(on_grid), NX)
    np.testing.assert_allclose(cut, to_kspace(on_grid), atol=5e-5)


def test_a_fine_grid_is_cropped_to_its_low_frequencies() -> None:
    """A band-limited object gives the same samples on any grid."""
    kspace = np.zeros((NY, NX), np.complex64)
    kspace[NY // 2 - 2 : NY // 2 + 3, NX // 2 - 3 : NX // 2 + 2] = plane()[:5, :5]
    fine_y, fine_x = 3, 2
    y, x = (np.arange(n * f) / f - n // 2 for n, f in ((NY, fine_y), (NX, fine_x)))
    ky, kx = (np.arange(n) - n // 2 for n in (NY, NX))
    by, bx = np.exp(2j * np.pi / NY * np.outer(y, ky)), np.exp(2j * np.pi / NX * np.outer(x, kx))
    image = (by @ kspace @ bx.T / np.sqrt(NX * NY)).astype(np.complex64)
    samples = LineReadout((NX, NY), (fine_x, fine_y), 1, 10.0).sample(image)
    np.testing.assert_allclose(samples, kspace, atol=2e-5)


def test_off_resonance_moves_the_object_along_the_readout() -> None:
    """By its value over the bandwidth per pixel: here two voxels."""
    image = np.zeros((NY, NX), np.complex64)
    image[7, 5] = 1
    dwell_us = 20.0
    per_pixel_hz = 1e6 / (dwell_us * NX)
    samples = LineReadout((NX, NY), (1, 1), 1, dwell_us).sample(image, maps(off_resonance=2 * per_pixel_hz))
    found = np.abs(to_image(samples))
    assert np.unravel_index(found.argmax(), found.shape) == (7, 7)
    assert found[7, 7] == pytest.approx(1.0, abs=1e-4)


def test_decay_falls_through_the_readout_and_dephasing_to_both_sides_of_the_echo() -> None:
    image = plane()
    readout = LineReadout((NX, NY), (1, 1), 1, 1000.0)  # 1 ms between samples
    plain = readout.sample(image)
    t_ms = np.arange(NX) - NX // 2
    np.testing.assert_allclose(readout.sample(image, maps(decay=0.03)), plain * np.exp(-0.03 * t_ms), atol=1e-4)
    both = readout.sample(image, maps(dephasing=0.03))
    np.testing.assert_allclose(both, plain * np.exp(-0.03 * np.abs(t_ms)), atol=1e-4)


def test_perfect_fields_give_what_no_fields_give() -> None:
    image = plane(3, 1)
    readout = LineReadout((NX, NY), (3, 1), 2, 10.0)
    np.testing.assert_allclose(readout.sample(image, maps(fx=3)), readout.sample(image), atol=2e-5)


def test_planes_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="a plane of"):
        LineReadout((NX, NY), (2, 1), 1, 10.0).sample(plane())
