"""Options of the reconstruction on one small simulated exam, from acquisitions to images."""

from dataclasses import replace

import numpy as np
import pytest

from kstream.config import resolve
from kstream.errors import ScanError
from kstream.mrd.messages import Image
from kstream.pipeline import build_pipeline
from kstream.simulate.breast.exam import BreastExam, simulate_breast_exam
from kstream.simulate.breast.protocol import BreastProtocol
from kstream.stream.runners import run_inline
from kstream.types import Acquisition, AcquisitionFlag, Complex, EncodingLimit, FrameEnd, Notice

SETTINGS = {"matrix": 40, "n_slices": 9, "n_spokes": 21, "n_coils": 5, "n_lesions": 1}
PROTOCOL = BreastProtocol(**SETTINGS)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def exam() -> BreastExam:
    return simulate_breast_exam(PROTOCOL, 11)


def run(exam: BreastExam, *settings: str, acquisitions: list[Acquisition] | None = None) -> list[object]:
    config = resolve("breast-dce-recon", settings=settings).config
    return run_inline(build_pipeline(exam.scan, config).pipeline, acquisitions or exam.acquisitions)


def volumes(items: list[object]) -> Complex:
    """Magnitude images as ``(frames, z, y, x)``."""
    images = [item for item in items if isinstance(item, Image)]
    order = sorted(images, key=lambda i: (int(i.header["repetition"]), int(i.header["slice"])))
    return np.stack([i.data[0, 0] for i in order]).reshape(-1, 9, 40, 40)


def told(items: list[object]) -> str:
    return "\n".join(item.text for item in items if isinstance(item, Notice))


def difference(found: Complex, expected: Complex) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_gradient_delays_are_found_in_the_stream_and_taken_back(exam: BreastExam) -> None:
    delays = (0.7, -0.4, 0.0)
    late = simulate_breast_exam(BreastProtocol(**SETTINGS, gradient_delays_samples=delays), 11)  # type: ignore[arg-type]
    right = volumes(run(exam, "trajectory.delay=off"))
    wrong = volumes(run(late, "trajectory.delay=off"))
    items = run(late)
    assert "gradient delays corrected: Sx = 0.7" in told(items)
    assert "Sy = -0.4" in told(items) or "Sy = -0.3" in told(items)
    # samples lie elsewhere than in the exam without delays, and so do the streaks: they cannot agree fully
    assert difference(volumes(items), right) < 0.75 * difference(wrong, right)
    known = volumes(run(late, "trajectory.delay=[0.7, -0.4, 0.0]"))
    assert difference(known, volumes(items)) < 0.1 * difference(wrong, right)


def test_exam_without_delays_is_left_alone_and_told_so(exam: BreastExam) -> None:
    items = run(exam)
    assert "no significant gradient delays" in told(items)
    np.testing.assert_array_equal(volumes(items), volumes(run(exam, "trajectory.delay=off")))


def test_virtual_coils_give_nearly_the_same_images(exam: BreastExam) -> None:
    items = run(exam, "coils.compress=4")
    assert "5 coils compressed to 4" in told(items)
    assert difference(volumes(items), volumes(run(exam))) < 0.15


def test_oversampling_removed_from_spokes_gives_nearly_the_same_images(exam: BreastExam) -> None:
    items = run(exam, "readouts.remove_oversampling=true")
    assert "80 -> 40 samples" in told(items)
    assert difference(volumes(items), volumes(run(exam))) < 0.25


@pytest.mark.parametrize("method", ["homodyne", "pocs"])
def test_partial_fourier_is_filled_by_option(exam: BreastExam, method: str) -> None:
    items = run(exam, f"partial_fourier.method={method}")
    assert f"filled by {method}" in told(items)
    assert 0.01 < difference(volumes(items), volumes(run(exam))) < 0.5


@pytest.mark.parametrize("method", ["cg-sense", "tv", "temporal"])
def test_iterated_images_have_fewer_streaks(exam: BreastExam, method: str) -> None:
    """Outside the body there should be nothing; relative to the brightest tenth."""
    adjoint, iterated = volumes(run(exam)), volumes(run(exam, f"iterative.method={method}", "iterative.iterations=5"))
    assert iterated.shape == adjoint.shape
    empty = adjoint[0] < np.quantile(adjoint[0], 0.3)
    levels = [v[2][empty].mean() / np.sort(v[2].ravel())[-1440:].mean() for v in (adjoint, iterated)]
    assert levels[1] < 0.9 * levels[0]


def test_damaged_and_missing_readouts_leave_finite_images_and_the_client_hears_of_them(exam: BreastExam) -> None:
    damaged = [Acquisition(a.header, a.data.copy(), a.trajectory) for a in exam.acquisitions]
    imaging = [a for a in damaged if not a.has(AcquisitionFlag.IS_NOISE_MEASUREMENT)]
    imaging[20].data[2, 7] = np.nan
    items = run(exam, acquisitions=damaged)
    ends = [i for i, item in enumerate(items) if isinstance(item, FrameEnd)]
    assert [items[i].is_complete for i in ends] == [False, True, True]  # type: ignore[attr-defined]
    assert "could not be used" in told(items)
    images = volumes(items)
    assert np.isfinite(images).all()
    assert difference(images[2], volumes(run(exam))[2]) < 0.1


def test_dead_coil_leaves_finite_images(exam: BreastExam) -> None:
    dead = [Acquisition(a.header, a.data.copy(), a.trajectory) for a in exam.acquisitions]
    for acquisition in dead:
        acquisition.data[3] = 0
    items = run(exam, acquisitions=dead)
    assert "disconnected and not used: 3" in told(items)
    assert "without any signal in the first 32 readouts: 3" in told(items)
    assert np.isfinite(volumes(items)).all()
    assert difference(volumes(items), volumes(run(exam))) < 0.6


@pytest.mark.parametrize(
    "path", ["gridding.method=zero-wait", "gridding.method=coil-grids", "iterative.method=cg-sense"]
)
def test_soft_weighting_reaches_every_way_of_combination(exam: BreastExam, path: str) -> None:
    few = ("iterative.iterations=2", path)
    assert difference(volumes(run(exam, *few, "coils.weighting=soft")), volumes(run(exam, *few))) > 1e-4


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (("iterative.method=cg-sense", "coils.method=rss"), "needs coil maps"),
        (("iterative.method=cg-sense", "gridding.method=zero-wait"), "images are iterated"),
        (("iterative.method=cg-sense", "gridding.device=cuda"), "images are iterated"),
        (("gridding.method=coil-grids", "gridding.device=cuda"), "coil-grids"),
        (("coils.method=rss", "gridding.device=cuda"), "coils.method is rss"),
        (("coils.method=rss", "gridding.method=zero-wait"), "coils.method is rss"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    exam: BreastExam, settings: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(ScanError, match=reason):
        build_pipeline(exam.scan, resolve("breast-dce-recon", settings=settings).config)


@pytest.mark.parametrize("method", ["off", "cg-sense"])
def test_coil_images_too_large_for_the_memory_are_refused_before_anything_is_allocated(
    exam: BreastExam, method: str
) -> None:
    limits = {**exam.scan.limits, "kspace_encode_step_2": EncodingLimit(0, 511, 256)}
    scan = replace(exam.scan, recon_matrix=(2048, 2048, 512), n_coils=32, limits=limits)
    with pytest.raises(ScanError, match="GiB"):
        build_pipeline(scan, resolve("breast-dce-recon", settings=(f"iterative.method={method}",)).config)


def test_one_readout_that_never_comes_does_not_hold_up_the_images(exam: BreastExam) -> None:
    lost = next(i for i, a in enumerate(exam.acquisitions) if a.counter("kspace_encode_step_1") == 3)
    kept = [a for i, a in enumerate(exam.acquisitions) if i != lost]
    pipeline = build_pipeline(exam.scan, resolve("breast-dce-recon").config).pipeline
    early = [item for acquisition in kept for item in pipeline.push(acquisition)]
    assert {int(i.header["repetition"]) for i in early if isinstance(i, Image)} == {0, 1, 2}
    assert "coil maps from 146 of 147 calibration readouts" in told(early)
    assert not any(isinstance(i, Image) for i in pipeline.finish())
