"""Gradient delays and iterative reconstruction on real recordings; needs the data beside the checkout."""

import numpy as np
import pytest

from kstream.config import resolve
from kstream.mrd.messages import Image
from kstream.pipeline import build_pipeline
from kstream.readouts.delays import fit_delays, shift_of
from kstream.recon.calibration import EspiritSettings
from kstream.recon.coils import volume_maps
from kstream.recon.density import angle_gaps_rad, polar_weights, readout_angle_rad
from kstream.recon.iterative import IterativeSettings, SenseOperator, solve_slice
from kstream.stream.runners import run_inline
from kstream.types import Complex, Float, Notice
from tests.realdata.test_real_recordings import DATA, imported

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the recordings in {DATA.name}/ beside the checkout")
FOV = (300.0, 300.0)


def spokes(name: str, slice_: int) -> tuple[Complex, Float, int]:
    """Data ``(spokes, coils, samples)``, nominal trajectory in cycles per field of view, and matrix size."""
    scan, acquisitions, _ = imported(name)
    chosen = [a for a in acquisitions if a.counter("slice") == slice_]
    scale = scan.encoded_matrix[0] * scan.recon_fov_mm[0] / scan.encoded_fov_mm[0]
    k = np.stack([np.pad(a.trajectory * scale, ((0, 0), (0, 1))) for a in chosen]).astype(np.float32)
    return np.stack([a.data for a in chosen]), k, scan.recon_matrix[0]


def solved(data: Complex, k: Float, n: int) -> tuple[Complex, float, SenseOperator, Complex, Float]:
    """CG-SENSE image, and the part of the weighted data that it leaves unexplained."""
    gaps = angle_gaps_rad(np.array([readout_angle_rad(spoke) for spoke in k]))
    weights = np.stack([polar_weights(spoke, gap) for spoke, gap in zip(k, gaps, strict=True)])
    weights = np.where((np.abs(k) <= n / 2 + 1e-3).all(axis=2), weights, 0).ravel().astype(np.float32)
    samples, flat = data.transpose(1, 0, 2).reshape(data.shape[1], -1), k.reshape(-1, 3)
    coil = SenseOperator(flat, weights, np.ones((1, n, n), np.complex64))
    images = np.stack([coil.weighted_adjoint(one[None]) for one in samples])[:, None]
    operator = SenseOperator(flat, weights, volume_maps(images, EspiritSettings(24, 6, 0.02, 0.8, 64, 100))[:, 0])
    image = solve_slice(operator, samples, IterativeSettings(15, 0.0)).image
    left = np.linalg.norm((operator.forward(image) - samples) * np.sqrt(weights))
    return image, float(left / np.linalg.norm(samples * np.sqrt(weights))), operator, samples, weights


@pytest.mark.parametrize(
    ("name", "slice_", "centre", "data"),
    [("phantom", 0, 0.8, 1.0), ("phantom", 1, 0.7, 0.985), ("phantom", 2, 0.98, 0.99), ("heart", 0, 0.75, 0.97)],
)
def test_correction_of_delays_makes_real_spokes_more_consistent(
    name: str, slice_: int, centre: float, data: float
) -> None:
    """The centre agrees better with itself, and an image explains more of all samples (not only of the centre)."""
    measured, k, n = spokes(name, slice_)
    fit = fit_delays(measured, k, FOV)
    assert fit.is_significant(0.05)
    assert fit.residual < centre * fit.residual_before
    moved = np.stack([spoke + shift_of(fit, spoke, FOV) for spoke in k])
    assert solved(measured, moved, n)[1] < data * solved(measured, k, n)[1]


def test_simulated_spokes_have_no_delays_and_a_wrong_centre_is_found() -> None:
    measured, k, _ = spokes("head", 0)
    found = fit_delays(measured[::16], k[::16], FOV)
    # the file's k = 0 lies between samples 191 and 192; the import takes sample 192, half a sample late
    np.testing.assert_allclose(found.matrix, -0.5 * np.eye(2), atol=0.02)
    true = np.stack([spoke + shift_of(found, spoke, FOV) for spoke in k[::16]])
    assert not fit_delays(measured[::16], true, FOV).is_significant(0.05)


def test_phantom_is_corrected_in_the_stream_and_sharper() -> None:
    """Slice 1, the one with the largest delays: more gradient energy, less entropy of the iterated image."""

    def run(delay: str) -> tuple[np.ndarray, str]:
        scan, acquisitions, _ = imported("phantom")
        config = resolve("recon-cg-sense", settings=[f"trajectory.delay={delay}", "coils.map_size=64"]).config
        items = run_inline(build_pipeline(scan, config).pipeline, acquisitions)
        images = [item.data[0, 0] for item in items if isinstance(item, Image)]
        return images[1], "\n".join(item.text for item in items if isinstance(item, Notice))

    (before, _), (after, told) = run("off"), run("estimate")
    assert "slice 1: gradient delays corrected" in told
    assert gradient_energy(after) > 1.01 * gradient_energy(before)
    assert entropy(after) < entropy(before)


def gradient_energy(image: np.ndarray) -> float:
    return float(sum((part**2).sum() for part in np.gradient(image)) / (image**2).sum())


def entropy(image: np.ndarray) -> float:
    share = image / np.linalg.norm(image)
    return float(-(share * np.log(share + 1e-12)).sum())


@pytest.mark.parametrize(("name", "slice_"), [("heart", 0), ("phantom", 0), ("phantom", 1), ("phantom", 2)])
def test_iterated_images_agree_with_sigpy(name: str, slice_: int) -> None:
    mr = pytest.importorskip("sigpy.mri")
    measured, k, n = spokes(name, slice_)
    ours, _, operator, samples, weights = solved(measured, k, n)
    coord = k.reshape(-1, 3)[:, [1, 0]]
    theirs = mr.app.SenseRecon(
        samples, operator.maps, lamda=0, weights=weights, coord=coord, max_iter=15, tol=0, show_pbar=False
    ).run()
    assert np.linalg.norm(ours - theirs) < 0.01 * np.linalg.norm(theirs)
