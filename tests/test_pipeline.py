"""The whole corridor on one small simulated exam: against batch references, in any order, under any runner."""

import finufft
import numpy as np
import pytest

from kstream.config import resolve
from kstream.errors import ScanError
from kstream.mrd.messages import Image
from kstream.pipeline import build_pipeline
from kstream.readouts.whitening import noise_covariance, whitening_matrix
from kstream.recon.calibration import EspiritSettings
from kstream.recon.coils import combine, volume_maps
from kstream.recon.density import angle_gaps_rad, polar_weights, readout_angle_rad
from kstream.recon.fourier import dft_matrix, to_image
from kstream.simulate.breast.exam import BreastExam, simulate_breast_exam
from kstream.simulate.breast.protocol import BreastProtocol
from kstream.stream.runners import ThreadRunner, run_inline
from kstream.types import Acquisition, AcquisitionFlag, Complex, Difference, EncodingLimit, FrameEnd, Notice, Scan

PROTOCOL = BreastProtocol(matrix=40, n_slices=9, n_spokes=21, n_coils=5, n_lesions=1)
RECON = resolve("breast-dce-recon").config


@pytest.fixture(scope="module")
def exam() -> BreastExam:
    return simulate_breast_exam(PROTOCOL, 11)


def fresh(acquisitions: list[Acquisition]) -> list[Acquisition]:
    """Copies: the stream may work in place."""
    return [Acquisition(a.header, a.data.copy(), a.trajectory) for a in acquisitions]


def run(exam: BreastExam, acquisitions: list[Acquisition], *settings: str) -> list[object]:
    config = resolve("breast-dce-recon", settings=settings).config
    return run_inline(build_pipeline(exam.scan, config).pipeline, fresh(acquisitions))


def volumes(items: list[object]) -> Complex:
    """Magnitude images as ``(frames, z, y, x)``."""
    images = [item for item in items if isinstance(item, Image)]
    order = sorted(images, key=lambda i: (int(i.header["repetition"]), int(i.header["slice"])))
    shape = exam_shape()
    return np.stack([i.data[0, 0] for i in order]).reshape(-1, *shape)


def exam_shape() -> tuple[int, int, int]:
    return PROTOCOL.n_slices, PROTOCOL.matrix, PROTOCOL.matrix


def split(exam: BreastExam) -> tuple[list[Acquisition], list[Acquisition]]:
    noise = [a for a in exam.acquisitions if a.has(AcquisitionFlag.IS_NOISE_MEASUREMENT)]
    return noise, [a for a in exam.acquisitions if not a.has(AcquisitionFlag.IS_NOISE_MEASUREMENT)]


def batch_coil_images(exam: BreastExam, frame: int) -> Complex:
    """Whitened coil images ``(coils, z, y, x)`` of one frame by FINUFFT, all samples at once."""
    noise, imaging = split(exam)
    whiten = whitening_matrix(noise_covariance([a.data for a in noise]))
    n, n_z, n_spokes, n_kz = PROTOCOL.matrix, PROTOCOL.n_slices, PROTOCOL.n_spokes, PROTOCOL.n_partitions
    first = frame * n_spokes * n_kz
    planes = np.zeros((PROTOCOL.n_coils, n_kz, n, n), np.complex128)
    for p in range(n_kz):
        spokes = imaging[first + p : first + n_spokes * n_kz : n_kz]
        k = np.concatenate([a.trajectory for a in spokes]).astype(np.float64)
        gaps = angle_gaps_rad(np.array([readout_angle_rad(a.trajectory) for a in spokes]))
        flat = [np.pad(a.trajectory, ((0, 0), (0, 1))) for a in spokes]
        w = np.concatenate([polar_weights(k_, gap) for k_, gap in zip(flat, gaps, strict=True)])
        y = np.concatenate([whiten @ a.data for a in spokes], axis=1) * w
        scale = 2 * np.pi / n
        for c in range(PROTOCOL.n_coils):
            planes[c, p] = finufft.nufft2d1(
                k[:, 1] * scale, k[:, 0] * scale, y[c].astype(np.complex128), (n, n), eps=1e-9, isign=1
            )
    kz = np.arange(n_kz) - exam.scan.limit("kspace_encode_step_2").center
    return np.einsum("zp,cpyx->czyx", dft_matrix(kz, n_z), planes / n).astype(np.complex64)


@pytest.mark.parametrize("frame", [0, 2])
def test_combined_image_is_the_batch_adjoint_nufft(exam: BreastExam, frame: int) -> None:
    pre = batch_coil_images(exam, 0)
    maps = volume_maps(pre, EspiritSettings(24, 6, 0.02, 0.8, 64, 100))
    batch = np.abs(combine(batch_coil_images(exam, frame), maps))
    streamed = volumes(run(exam, exam.acquisitions, "gridding.angles=gaps"))[frame]
    assert np.linalg.norm(streamed - batch) < 1e-3 * np.linalg.norm(batch)
    mean_angles = volumes(run(exam, exam.acquisitions, "gridding.angles=mean"))[frame]
    assert np.linalg.norm(mean_angles - batch) > 1e-2 * np.linalg.norm(batch)


def test_any_arrival_order_gives_the_same_result(exam: BreastExam) -> None:
    noise, imaging = split(exam)
    order = np.random.default_rng(0).permutation(len(imaging))
    straight = run(exam, exam.acquisitions)
    shuffled = run(exam, noise + [imaging[i] for i in order])
    first, second = volumes(straight), volumes(shuffled)
    np.testing.assert_allclose(second, first, atol=1e-4 * first.max())
    a, b = ({d.frame: d.data for d in items if isinstance(d, Difference)} for items in (straight, shuffled))
    assert set(a) == set(b) == {1, 2}
    for frame in a:
        assert np.linalg.norm(a[frame] - b[frame]) < 1e-4 * np.linalg.norm(a[frame])


def test_threads_give_what_inline_gives(exam: BreastExam) -> None:
    inline = volumes(run(exam, exam.acquisitions))
    out: list[object] = []
    runner = ThreadRunner(build_pipeline(exam.scan, RECON).pipeline, out.append, capacity=7)
    for acquisition in fresh(exam.acquisitions):
        runner.put(acquisition)
    runner.finish()
    np.testing.assert_array_equal(volumes(out), inline)


@pytest.mark.parametrize("mode", ["absent", "user_float"])
def test_trajectory_from_counters_or_angle_gives_the_same_images(exam: BreastExam, mode: str) -> None:
    carried = volumes(run(exam, exam.acquisitions))
    other = simulate_breast_exam(BreastProtocol(**{**vars(PROTOCOL), "trajectory": mode}), 11)
    items = run(other, other.acquisitions)
    assert any(
        isinstance(i, Notice) and {"absent": "golden-angle", "user_float": "user_float"}[mode] in i.text for i in items
    )
    found = volumes(items)
    assert np.linalg.norm(found - carried) < 2e-3 * np.linalg.norm(carried)


def test_framing_by_repetition_gives_the_same_images(exam: BreastExam) -> None:
    other = simulate_breast_exam(BreastProtocol(**{**vars(PROTOCOL), "framing": "repetition"}), 11)
    np.testing.assert_allclose(
        volumes(run(other, other.acquisitions)), volumes(run(exam, exam.acquisitions)), rtol=1e-3
    )


def test_difference_shows_enhancement_and_is_scaled_by_pre_contrast(exam: BreastExam) -> None:
    difference = next(i for i in run(exam, exam.acquisitions) if isinstance(i, Difference) and i.frame == 2)
    image = np.abs(to_image(difference.data))
    lesion = exam.truth_labels > 0
    assert np.median(image[lesion]) > 3 * np.median(image)


def test_uint16_images_keep_the_ratio_between_frames(exam: BreastExam) -> None:
    floating = volumes(run(exam, exam.acquisitions))
    integer = volumes(run(exam, exam.acquisitions, "images.magnitude_type=uint16")).astype(np.float64)
    assert integer.max() > 5000
    scale = floating[0].max() / integer[0].max()
    np.testing.assert_allclose(integer * scale, floating, atol=1e-3 * floating.max())


def test_scan_that_stops_early_gives_what_is_complete_and_tells_the_rest(exam: BreastExam) -> None:
    items = run(exam, exam.acquisitions[:-50])
    ends = [i for i in items if isinstance(i, FrameEnd)]
    assert [end.is_complete for end in ends] == [True, True, False]
    assert any(isinstance(i, Notice) and i.level == "warning" and "incomplete" in i.text for i in items)
    assert np.isfinite(volumes(items)).all()


def scan_like(exam: BreastExam, **changes: object) -> Scan:
    return Scan(**{**vars(exam.scan), **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"recon_matrix": (65535, 65535, 9)},
        {"recon_matrix": (40, 40, 65535)},
        {"limits": {"kspace_encode_step_1": EncodingLimit(0, 62), "kspace_encode_step_2": EncodingLimit(0, 65535)}},
        {"limits": {"kspace_encode_step_1": EncodingLimit(0, 62)}},
        {"limits": {}},
        {"user_parameters": {}},
    ],
)
def test_impossible_headers_are_refused_before_anything_is_allocated(
    exam: BreastExam, changes: dict[str, object]
) -> None:
    with pytest.raises(ScanError):
        build_pipeline(scan_like(exam, **changes), RECON)


def test_plane_too_large_for_a_network_is_refused(exam: BreastExam) -> None:
    with pytest.raises(ScanError, match="too large to segment"):
        build_pipeline(scan_like(exam, recon_matrix=(65535, 40, 9)), resolve("breast-dce").config)


def test_preset_of_another_trajectory_is_refused(exam: BreastExam) -> None:
    with pytest.raises(ScanError, match="uniform density weights do not suit a goldenangle scan"):
        build_pipeline(exam.scan, resolve("recon-cartesian").config)
    with pytest.raises(ScanError, match="polar density weights do not suit a cartesian scan"):
        build_pipeline(scan_like(exam, trajectory="cartesian"), RECON)


def test_frames_that_never_fill_are_stopped_before_they_fill_the_memory(exam: BreastExam) -> None:
    config = resolve("breast-dce-recon", settings=["gridding.memory_gib=0.0033"]).config
    pipeline = build_pipeline(exam.scan, config).pipeline
    with pytest.raises(ScanError, match="open frames"):
        run_inline(pipeline, fresh(exam.acquisitions[:: PROTOCOL.n_spokes]))


def test_finer_encoding_than_the_recon_matrix_does_not_fold_back(exam: BreastExam) -> None:
    """Half the recon matrix over the same field of view: the image is the low-pass image, not an aliased one."""
    n, n_z = PROTOCOL.matrix // 2, PROTOCOL.n_slices
    scan = scan_like(exam, recon_matrix=(n, n, n_z))
    config = resolve("breast-dce-recon", settings=["coils.method=rss"]).config
    items = run_inline(build_pipeline(scan, config).pipeline, fresh(exam.acquisitions))
    coarse = np.stack([i.data[0, 0] for i in items if isinstance(i, Image)])[n_z // 2]
    fine = volumes(run(exam, exam.acquisitions, "coils.method=rss"))[0, n_z // 2]
    lowered = fine.reshape(n, 2, n, 2).mean(axis=(1, 3))
    assert np.corrcoef(coarse.ravel(), lowered.ravel())[0, 1] > 0.95
    assert any(isinstance(i, Notice) and "finer than the recon matrix" in i.text for i in items)
