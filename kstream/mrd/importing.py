"""Raw data that is not an ISMRMRD recording, or one with a poor header, becomes a recording that replays.

Two doors: arrays (MATLAB v5 or NumPy files with one array of samples, and perhaps one of trajectories), and ISMRMRD
files whose header needs mending. What the source does not say (field of view, timing) is a placeholder, and the header
says so in the user parameter ``placeholders``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, RecordingError
from ..types import GOLDEN_ANGLE_RAD, Acquisition, AcquisitionFlag, EncodingLimit, Scan, Vector
from .header import build_header
from .messages import ACQUISITION_HEADER
from .recording import Recording

Angles = Literal["", "full-circle", "half-circle", "golden"]
COUNTED = ("kspace_encode_step_1", "kspace_encode_step_2", "slice", "repetition")
NOT_IMAGING = (
    AcquisitionFlag.IS_NOISE_MEASUREMENT
    | AcquisitionFlag.IS_NAVIGATION_DATA
    | AcquisitionFlag.IS_PHASECORR_DATA
    | AcquisitionFlag.IS_DUMMYSCAN_DATA
    | AcquisitionFlag.IS_SURFACECOILCORRECTIONSCAN_DATA
)
AXES = ("slices", "lines", "coils", "samples")


@dataclass(frozen=True)
class ArraySource:
    """How to read an array file.

    Parameters
    ----------
    key : variable of a MATLAB file; empty for NumPy.
    axes : order of the stored axes, out of ``slices lines coils samples``; absent ones have length 1.
    trajectory_key : complex variable ``(samples, lines)``, ``kx + i ky`` in cycles per sample.
    angles : without a stored trajectory, how spoke angles follow from spoke numbers; empty means Cartesian lines.
    oversampling : of the readout: the image is this factor smaller than the readout is long.
    field_of_view_mm : of the image; the placeholder 300 unless known.
    """

    key: str
    axes: tuple[str, ...]
    trajectory_key: str = ""
    angles: Angles = ""
    oversampling: int = 1
    field_of_view_mm: float = 300.0

    def __post_init__(self) -> None:
        if self.oversampling < 1 or not 0 < self.field_of_view_mm < 10_000:
            raise ConfigError(
                f"oversampling {self.oversampling} and field of view {self.field_of_view_mm} mm are not possible",
                hint="--oversampling 1 or more, --fov-mm above 0",
            )


def import_arrays(path: Path, source: ArraySource) -> tuple[Scan, list[Acquisition]]:
    """Header and acquisitions of an array file; lines that hold only zeros were not acquired and are left out.

    Raises
    ------
    RecordingError : the file cannot be read, or lacks a variable.
    ConfigError : the named axes do not fit the array.
    """
    data = _ordered(_load(path, source.key), source.axes, path)
    n_slices, n_lines, n_coils, n_samples = data.shape
    trajectory = _trajectory(path, source, n_lines, n_samples)
    n = n_samples // source.oversampling
    if n < 1:
        raise ConfigError(f"oversampling {source.oversampling} leaves nothing of {n_samples} samples", where=str(path))
    n_y = n if trajectory is not None else n_lines
    fov = source.field_of_view_mm
    fov_y = fov * n_y / n if trajectory is None else fov
    scan = Scan(
        encoded_matrix=(n_samples, n_samples if trajectory is not None else n_lines, 1),
        recon_matrix=(n, n_y, 1),
        encoded_fov_mm=(fov * source.oversampling, fov_y * (source.oversampling if trajectory is not None else 1), 5.0),
        recon_fov_mm=(fov, fov_y, 5.0),
        trajectory="radial" if trajectory is not None else "cartesian",
        limits={
            "kspace_encode_step_1": EncodingLimit(0, n_lines - 1, n_lines // 2),
            "slice": EncodingLimit(0, n_slices - 1, n_slices // 2),
        },
        n_coils=n_coils,
        h1_frequency_hz=63_870_000,
        protocol_name=path.stem,
        user_parameters={
            "placeholders": "field of view, slice thickness, dwell time, field strength",
            **({"trajectory_units": "cycles_per_sample"} if trajectory is not None else {}),
        },
    )
    scan = replace(scan, xml=build_header(scan))
    acquisitions: list[Acquisition] = []
    for slice_ in range(n_slices):
        for line in range(n_lines):
            if data[slice_, line].any():
                k = trajectory[:, line] if trajectory is not None else np.zeros((n_samples, 0), np.float32)
                acquisitions.append(_acquisition(data[slice_, line], k, line, slice_, len(acquisitions)))
    _flag_ends(acquisitions)
    return scan, acquisitions


def mend_recording(
    path: Path, *, trajectory: str = "", trajectory_units: str = "", fov_scale: float = 1.0, group: str | None = None
) -> tuple[Scan, list[Acquisition]]:
    """A recording with limits counted from its acquisitions, a declared trajectory unit and a field of view in mm.

    Noise readouts stay; others that are not for imaging, or whose length differs from the rest, are left out.

    Parameters
    ----------
    trajectory : trajectory type to write into the header; empty keeps the source's.
    trajectory_units : what the carried trajectories are in; empty keeps what the header declares.
    fov_scale : multiplies the field of view (1000 for one written in metres).
    """
    with Recording(path, group) as source:
        scan, acquisitions = source.scan, list(source.acquisitions())
    imaging = [a for a in acquisitions if not a.has(NOT_IMAGING)]
    if not imaging:
        raise RecordingError(f"{path.name} has no acquisitions for imaging", where=str(path))
    lengths = [a.data.shape[1] for a in imaging]
    usual = max(set(lengths), key=lengths.count)
    kept = [a for a in imaging if a.data.shape[1] == usual]
    limits = {name: _counted(kept, name, scan.limits.get(name)) for name in (*scan.limits, *COUNTED)}
    noise = AcquisitionFlag.IS_NOISE_MEASUREMENT
    chosen = [a for a in acquisitions if a.has(noise) or (not a.has(NOT_IMAGING) and a.data.shape[1] == usual)]
    units = {"trajectory_units": trajectory_units} if trajectory_units else {}
    mended = replace(
        scan,
        trajectory=trajectory or scan.trajectory,
        encoded_matrix=(usual if scan.trajectory == "cartesian" else scan.encoded_matrix[0], *scan.encoded_matrix[1:]),
        encoded_fov_mm=_scaled(scan.encoded_fov_mm, fov_scale),
        recon_fov_mm=_scaled(scan.recon_fov_mm, fov_scale),
        limits=limits,
        n_coils=kept[0].data.shape[0],
        user_parameters={**scan.user_parameters, **units},
    )
    return replace(mended, xml=build_header(mended)), chosen


def _scaled(fov_mm: Vector, scale: float) -> Vector:
    """In-plane extent scaled; the slice thickness is left alone."""
    return fov_mm[0] * scale, fov_mm[1] * scale, fov_mm[2]


def _counted(acquisitions: Sequence[Acquisition], counter: str, declared: EncodingLimit | None) -> EncodingLimit:
    """Range that the acquisitions really use; a centre that the header declares is kept if it lies in it."""
    values = [a.counter(counter) for a in acquisitions]
    low, high = min(values), max(values)
    is_declared = declared is not None and low <= declared.center <= high
    return EncodingLimit(low, high, declared.center if declared and is_declared else (low + high + 1) // 2)


def _load(path: Path, key: str) -> NDArray[Any]:
    try:
        if path.suffix == ".mat":
            import scipy.io

            variables = scipy.io.loadmat(path)
            if key not in variables:
                names = ", ".join(name for name in variables if not name.startswith("__"))
                raise RecordingError(
                    f"{path.name} has no variable {key!r}", likely="another name", hint=f"has: {names}"
                )
            return np.asarray(variables[key])
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError, NotImplementedError) as error:
        raise RecordingError(f"cannot read {path.name}: {error}", where=str(path)) from error


def _ordered(array: NDArray[Any], axes: tuple[str, ...], path: Path) -> NDArray[np.complex64]:
    if len(axes) != array.ndim or not set(axes) <= set(AXES) or len(set(axes)) != len(axes):
        raise ConfigError(
            f"axes {','.join(axes)} do not fit an array of shape {array.shape}",
            where=str(path),
            hint=f"name each stored axis once, out of {', '.join(AXES)}",
        )
    if array.dtype.kind not in "fciu":
        raise RecordingError(f"{path.name} holds {array.dtype}, expected numbers", where=str(path))
    full = array.reshape(*array.shape, *(1 for _ in range(len(AXES) - len(axes))))
    names = [*axes, *(name for name in AXES if name not in axes)]
    return np.ascontiguousarray(full.transpose([names.index(name) for name in AXES]), np.complex64)


def _trajectory(path: Path, source: ArraySource, n_lines: int, n_samples: int) -> NDArray[np.float32] | None:
    """Float32 ``(samples, lines, 2)`` in cycles per sample, or None for Cartesian lines."""
    if source.trajectory_key:
        k = _load(path, source.trajectory_key)
        if k.shape != (n_samples, n_lines):
            raise ConfigError(
                f"trajectory {source.trajectory_key!r} has shape {k.shape}, expected {(n_samples, n_lines)}",
                where=str(path),
            )
        return np.stack([k.real, k.imag], axis=-1).astype(np.float32)
    if not source.angles:
        return None
    step = {"full-circle": 2 * np.pi / n_lines, "half-circle": np.pi / n_lines, "golden": GOLDEN_ANGLE_RAD}
    angle = np.arange(n_lines) * step[source.angles]
    radius = (np.arange(n_samples) - n_samples // 2) / n_samples
    return np.stack([np.outer(radius, np.cos(angle)), np.outer(radius, np.sin(angle))], axis=-1).astype(np.float32)


def _acquisition(data: NDArray[Any], trajectory: NDArray[Any], line: int, slice_: int, number: int) -> Acquisition:
    header = np.zeros(1, ACQUISITION_HEADER)[0]
    n_coils, n_samples = data.shape
    header["version"] = 1
    header["scan_counter"] = number + 1
    header["number_of_samples"] = n_samples
    header["available_channels"] = header["active_channels"] = n_coils
    header["center_sample"] = n_samples // 2
    header["trajectory_dimensions"] = trajectory.shape[1]
    header["sample_time_us"] = 5.0
    header["read_dir"], header["phase_dir"], header["slice_dir"] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    header["position"] = (0, 0, 5.0 * slice_)
    header["idx"]["kspace_encode_step_1"], header["idx"]["slice"] = line, slice_
    return Acquisition(header, np.ascontiguousarray(data), np.ascontiguousarray(trajectory, np.float32))


def _flag_ends(acquisitions: list[Acquisition]) -> None:
    """Mark first and last readout of each slice, and the last of all."""
    for i, acquisition in enumerate(acquisitions):
        slice_ = acquisition.counter("slice")
        if i == 0 or acquisitions[i - 1].counter("slice") != slice_:
            acquisition.header["flags"] |= np.uint64(AcquisitionFlag.FIRST_IN_SLICE)
        if i + 1 == len(acquisitions) or acquisitions[i + 1].counter("slice") != slice_:
            acquisition.header["flags"] |= np.uint64(AcquisitionFlag.LAST_IN_SLICE)
    if acquisitions:
        acquisitions[-1].header["flags"] |= np.uint64(AcquisitionFlag.LAST_IN_MEASUREMENT)
