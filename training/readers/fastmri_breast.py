"""fastMRI breast: raw golden-angle k-space in HDF5, reconstructed by our stream or by the published batch recipe.

Layout of ``fastMRI_breast_NNN_2.h5``, as its authors read it: ``kspace`` float ``(re/im, spokes, samples, coils,
partitions)``, 288 spokes of 640 samples, 16 coils, 83 partitions; ``temptv`` float ``(z, frames, y, x)``, images of a
temporal total-variation reconstruction. Masks are ``NAME_mask.nii`` on the grid of 192 x 320 x 320.

Conventions of the published recipe that masks depend on: the cosine of a spoke's angle runs along y and its sine along
x, and slices come from a *forward* transform of the partitions, so they count down where ours count up.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError, RecordingError, ScanError
from ...mrd.messages import ACQUISITION_HEADER
from ...types import GOLDEN_ANGLE_RAD, Acquisition, Complex, EncodingLimit, Scan, Vector
from ..breast.data import Exam, stream_differences
from .common import Labels, differences, read_mask, synthetic_kspace

N_FRAMES = 3
SPOKES_PER_FRAME = 96
N_SLICES = 192
VOXEL_MM: Vector = (1.0, 1.0, 1.1)
PRESET = "breast-dce-recon"
METHODS = ("stream", "batch", "synthetic")

CALIBRATION, KERNEL_WIDTH, KERNEL_BETA, DENSITY_ITERATIONS = 32, 4, 8, 15


@dataclass(frozen=True)
class Layout:
    """How the spokes of a file become frames and slices; the defaults are the published ones."""

    n_frames: int = N_FRAMES
    spokes_per_frame: int = SPOKES_PER_FRAME
    n_slices: int = N_SLICES


def read_raw(path: Path) -> Complex:
    """Raw k-space as complex64 ``(partitions, coils, spokes, samples)``.

    Raises
    ------
    RecordingError : if the file is missing or has another layout.
    ScanError : if it holds values that are not finite.
    """
    raw_shape(path)
    try:
        with h5py.File(path) as file:
            stored = file["kspace"][...]
    except OSError as error:
        raise RecordingError(f"cannot read the file: {error}", where=str(path)) from error
    if not np.isfinite(stored).all():
        raise ScanError("the raw k-space holds values that are not finite", where=str(path), likely="a damaged file")
    return np.asarray((stored[0] + 1j * stored[1]).transpose(3, 2, 0, 1), np.complex64)


def raw_shape(path: Path) -> tuple[int, ...]:
    """Partitions, coils, spokes and samples of a file.

    Raises
    ------
    RecordingError : if the file is missing or has another layout.
    """
    try:
        with h5py.File(path) as file:
            found = {name: (d.shape, d.dtype.kind) for name, d in file.items() if isinstance(d, h5py.Dataset)}
    except OSError as error:
        raise RecordingError(f"cannot read the file: {error}", where=str(path)) from error
    shape, kind = found.get("kspace", ((), ""))
    if len(shape) != 5 or shape[0] != 2 or kind != "f":
        raise RecordingError(
            "kspace is not float (2, spokes, samples, coils, partitions); found "
            + (", ".join(f"{name} {shape}" for name, (shape, _) in found.items()) or "nothing"),
            where=str(path),
            likely="another data set, or coil-combined k-space",
        )
    return shape[4], shape[3], shape[1], shape[2]


def spoke_angles_rad(n_spokes: int) -> NDArray[np.float64]:
    """Golden angles as the published code counts them."""
    return np.asarray(np.arange(n_spokes) * GOLDEN_ANGLE_RAD)


def check_layout(shape: tuple[int, ...], layout: Layout) -> None:
    """Refuse a measurement ``(partitions, coils, spokes, samples)`` that is too short, or of another protocol.

    Raises
    ------
    ScanError : if there are fewer spokes than the frames need, or more partitions than slices.
    """
    n_partitions, _, n_spokes, _ = shape
    if n_spokes < layout.n_frames * layout.spokes_per_frame or n_partitions > layout.n_slices:
        raise ScanError(
            f"{n_spokes} spokes and {n_partitions} partitions cannot make {layout.n_frames} frames of "
            f"{layout.spokes_per_frame} spokes and {layout.n_slices} slices",
            likely="missing time points, or another protocol",
        )


def as_scan(raw: Complex, layout: Layout = Layout()) -> tuple[Scan, Iterator[Acquisition]]:
    """The measurement as a scanner would have streamed it: partitions of a spoke first, then the next spoke.

    Parameters
    ----------
    raw : ``(partitions, coils, spokes, samples)``; spokes beyond the last frame are left out.

    Raises
    ------
    ScanError : as `check_layout`.
    """
    check_layout(raw.shape, layout)
    n_partitions, n_coils, _, n_samples = raw.shape
    n_spokes, n = layout.spokes_per_frame, n_samples // 2
    fov = (n * VOXEL_MM[0], n * VOXEL_MM[1], layout.n_slices * VOXEL_MM[2])
    scan = Scan(
        encoded_matrix=(2 * n, 2 * n, layout.n_slices),
        recon_matrix=(n, n, layout.n_slices),
        encoded_fov_mm=(2 * fov[0], 2 * fov[1], fov[2]),
        recon_fov_mm=fov,
        trajectory="goldenangle",
        limits={
            "kspace_encode_step_1": EncodingLimit(0, layout.n_frames * n_spokes - 1, 0),
            "kspace_encode_step_2": EncodingLimit(0, n_partitions - 1, n_partitions // 2),
        },
        n_coils=n_coils,
        user_parameters={
            "n_frames": layout.n_frames,
            "spokes_per_frame": n_spokes,
            "golden_angle_deg": float(np.rad2deg(GOLDEN_ANGLE_RAD)),
            "trajectory_units": "cycles_per_fov",
        },
    )
    return scan, _acquisitions(raw, layout.n_frames * n_spokes)


def _acquisitions(raw: Complex, n_spokes: int) -> Iterator[Acquisition]:
    n_partitions, n_coils, _, n_samples = raw.shape
    position = (np.arange(n_samples) - n_samples // 2) / 2
    for spoke, angle in enumerate(spoke_angles_rad(n_spokes)):
        trajectory = np.stack([position * np.sin(angle), position * np.cos(angle)], axis=-1).astype(np.float32)
        for partition in range(n_partitions):
            header = np.zeros((), ACQUISITION_HEADER)
            header["version"] = 1
            header["scan_counter"] = spoke * n_partitions + partition
            header["number_of_samples"] = n_samples
            header["available_channels"] = header["active_channels"] = n_coils
            header["center_sample"], header["trajectory_dimensions"] = n_samples // 2, 2
            header["read_dir"], header["phase_dir"], header["slice_dir"] = np.eye(3)
            header["idx"]["kspace_encode_step_1"] = spoke
            header["idx"]["kspace_encode_step_2"] = partition
            yield Acquisition(header[()], np.ascontiguousarray(raw[partition, :, spoke]), trajectory)


def streamed(raw: Complex, layout: Layout = Layout(), preset: str = PRESET) -> tuple[Complex, tuple[int, ...]]:
    """Differences ``(frames, z, y, x)`` by our own streaming reconstruction, in the slice order of the masks."""
    scan, acquisitions = as_scan(raw, layout)
    made = stream_differences(scan, acquisitions, preset, (), "the scan")
    data = np.stack([_counted_down(difference.data) for difference in made])
    return data, tuple(difference.frame for difference in made)


def _counted_down(volume: Complex) -> Complex:
    """Slices in the order of a forward transform: ``z -> -z``, the slice at ``n // 2`` stays."""
    n = len(volume)
    return volume[(2 * (n // 2) - np.arange(n)) % n]


def batch_recipe(raw: Complex, layout: Layout = Layout()) -> Complex:
    """Coil-combined k-space ``(frames, z, y, x)`` as the published code makes it, all spokes at once.

    1. Partitions zero-filled about their centre, forward transform along z.
    2. Each frame: Pipe-Menon density compensation, Kaiser-Bessel gridding onto the image grid, no deapodisation.
    3. ESPIRiT maps of every slice from the mean over frames; images combined by them; transformed back.

    Raises
    ------
    ConfigError : if SigPy, which the recipe is made of, is not installed.
    ScanError : as `check_layout`.
    """
    try:
        sigpy, app, dcf = (importlib.import_module(name) for name in ("sigpy", "sigpy.mri.app", "sigpy.mri.dcf"))
    except ImportError as error:
        raise ConfigError("the published recipe needs SigPy", hint="pip install sigpy") from error
    check_layout(raw.shape, layout)
    n_partitions, n_coils, _, n_samples = raw.shape
    n, n_spokes = n_samples // 2, layout.spokes_per_frame
    filled = np.zeros((layout.n_slices, *raw.shape[1:]), np.complex64)
    first = layout.n_slices // 2 - n_partitions // 2
    filled[first : first + n_partitions] = raw
    slices = sigpy.fft(filled, axes=(0,))
    position = (np.arange(n_samples) - n) / 2
    angles = spoke_angles_rad(layout.n_frames * n_spokes).reshape(layout.n_frames, n_spokes, 1)
    kspace = np.zeros((layout.n_frames, layout.n_slices, n_coils, n, n), np.complex64)
    for frame in range(layout.n_frames):
        along_y, along_x = np.cos(angles[frame]) * position, np.sin(angles[frame]) * position
        places = np.stack([along_y, along_x], axis=-1).reshape(-1, 2).astype(np.float32)
        weights = dcf.pipe_menon_dcf(
            places,
            img_shape=[n, n],
            max_iter=DENSITY_ITERATIONS,
            beta=KERNEL_BETA,
            width=KERNEL_WIDTH,
            show_pbar=False,
        )
        data = slices[:, :, frame * n_spokes : (frame + 1) * n_spokes].reshape(layout.n_slices, n_coils, -1)
        kspace[frame] = sigpy.interp.gridding(
            data * weights,
            places + n // 2,
            (layout.n_slices, n_coils, n, n),
            "kaiser_bessel",
            KERNEL_WIDTH,
            KERNEL_BETA,
        )
    combined = np.zeros((layout.n_frames, layout.n_slices, n, n), np.complex64)
    for z in range(layout.n_slices):
        mean = kspace[:, z].mean(axis=0)
        maps = app.EspiritCalib(mean, min(CALIBRATION, n), show_pbar=False).run()
        images = sigpy.ifft(kspace[:, z], axes=(-2, -1))
        combined[:, z] = sigpy.fft((np.conj(maps) * images).sum(axis=1), axes=(-2, -1))
    return combined


def read_images(path: Path) -> NDArray[np.float32]:
    """The published reconstruction ``temptv`` as ``(frames, z, y, x)``.

    Raises
    ------
    RecordingError : if the file has none.
    ScanError : if it has one frame only.
    """
    images_shape(path)
    with h5py.File(path) as file:
        return np.asarray(file["temptv"][...].transpose(1, 0, 2, 3), np.float32)


def images_shape(path: Path) -> tuple[int, ...]:
    """Shape ``(frames, z, y, x)`` of the published reconstruction; raises as `read_images`."""
    try:
        with h5py.File(path) as file:
            shape = file["temptv"].shape
    except (OSError, KeyError) as error:
        raise RecordingError(f"cannot read temptv: {error}", where=str(path)) from error
    if len(shape) != 4:
        raise RecordingError(f"temptv is {shape}, expected (z, frames, y, x)", where=str(path))
    if shape[1] < 2:
        raise ScanError(
            f"{shape[1]} time point cannot be subtracted from another", likely="post-contrast frames are missing"
        )
    return shape[1], shape[0], *shape[2:]


def check_exam(path: Path, mask: Path | None, method: str, layout: Layout = Layout()) -> Labels:
    """The labels ``(z, y, x)`` of an exam, after everything that can be wrong with it but its values was looked at.

    Raises
    ------
    ConfigError : for another method.
    RecordingError, ScanError : another layout, or time points that are missing.
    ShapeError : a mask of other geometry.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}", hint=", ".join(METHODS))
    if method == "synthetic":
        grid = images_shape(path)[1:]
    else:
        shape = raw_shape(path)
        check_layout(shape, layout)
        grid = (layout.n_slices, shape[3] // 2, shape[3] // 2)
    return np.zeros(grid, np.uint8) if mask is None else read_mask(mask, grid)


def read_exam(
    path: Path, mask: Path | None, number: int = 0, method: str = "stream", layout: Layout = Layout()
) -> Exam:
    """One exam of the data set.

    Parameters
    ----------
    mask : of its lesions; None for an exam that has none.
    method : ``stream`` (our reconstruction), ``batch`` (published recipe), ``synthetic`` (transform of ``temptv``).

    Raises
    ------
    As `check_exam` and the readers.
    """
    labels = check_exam(path, mask, method, layout)
    if method == "stream":
        data, frames = streamed(read_raw(path), layout)
    else:
        batch = batch_recipe(read_raw(path), layout) if method == "batch" else synthetic_kspace(read_images(path))
        data = differences(batch)
        frames = tuple(range(1, len(data) + 1))
    source = "synthetic" if method == "synthetic" else "acquired"
    patient = path.stem.rpartition("_")[0] or path.stem
    return Exam(number, data, frames, labels, VOXEL_MM, patient, source)
