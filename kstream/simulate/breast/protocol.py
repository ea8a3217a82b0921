"""Takes the settings of a scan, gives everything that follows from them: counts, angles, times, trajectory, header."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError
from ...types import EncodingLimit, Float, Geometry, Scan, Vector
from .anatomy import LesionCount

GOLDEN_ANGLE_DEG = 111.246117975
TICK_S = 2.5e-3

_FIELD_STRENGTH_T = 2.893
_GAMMA_HZ_PER_T = 42.577_478_92e6


@dataclass(frozen=True)
class BreastProtocol:
    """A dynamic contrast-enhanced stack-of-stars protocol.

    Parameters
    ----------
    matrix : recon voxels along x and along y.
    n_slices : encoded partitions and recon slices.
    partial_fourier : part of the partitions that is acquired, over 0.5 and at most 1; low kz is left out.
    field_of_view_mm : recon space along x, y, z.
    position_mm, rotation_deg : centre of the volume (LPS) and rotation about x, then y, then z.
    n_coils : receive loops.
    n_spokes : spokes per frame; a Fibonacci number covers angles evenly.
    frame_starts_s : when each frame begins; the first is before the contrast agent.
    injection_s : start of the injection; it reaches the breast some 12..20 s later.
    readout_oversampling : samples per spoke over `matrix`.
    tr_ms, te_ms, flip_angle_deg : of the spoiled gradient echo.
    bandwidth_hz_per_pixel : sets the dwell time.
    n_lesions : malignant masses, 0..3 or ``"random"``.
    snr : fibroglandular tissue before contrast over the noise of one frame's coil-combined image, 0 for no noise.
    gradient_delays_samples : per physical axis (LPS x, y, z); the reported trajectory stays nominal.
    trajectory : ``"present"``, ``"absent"`` or ``"user_float"`` (spoke angle in rad in ``user_float[0]``).
    framing : ``"global"`` (kspace_encode_step_1 counts spokes over the scan) or ``"repetition"`` (per frame).
    n_noise_readouts : acquisitions of the noise scan.
    oversampling : fine samples per recon voxel along x, y, z of the simulated object.
    """

    matrix: int = 128
    n_slices: int = 32
    partial_fourier: float = 0.75
    field_of_view_mm: Vector = (320.0, 320.0, 128.0)
    position_mm: Vector = (0.0, 0.0, 0.0)
    rotation_deg: Vector = (0.0, 0.0, 0.0)
    n_coils: int = 8
    n_spokes: int = 55
    frame_starts_s: tuple[float, ...] = (0.0, 75.0, 150.0)
    injection_s: float = 10.0
    readout_oversampling: int = 2
    tr_ms: float = 6.0
    te_ms: float = 2.5
    flip_angle_deg: float = 12.0
    bandwidth_hz_per_pixel: float = 488.0
    n_lesions: LesionCount = "random"
    snr: float = 25.0
    gradient_delays_samples: Vector = (0.0, 0.0, 0.0)
    trajectory: Literal["present", "absent", "user_float"] = "present"
    framing: Literal["global", "repetition"] = "global"
    n_noise_readouts: int = 32
    oversampling: tuple[int, int, int] = (2, 2, 2)

    def __post_init__(self) -> None:
        _require(self.matrix >= 4 and self.n_slices >= 1, "matrix and n_slices are too small")
        _require(self.n_coils >= 1 and self.n_spokes >= 1, "n_coils and n_spokes must be at least 1")
        _require(
            0.5 < self.partial_fourier <= 1.0, f"partial_fourier is {self.partial_fourier}", "use 0.75, or 1 for all"
        )
        _require(min(self.field_of_view_mm) > 0, "field_of_view_mm must be positive")
        _require(len(self.frame_starts_s) >= 1, "frame_starts_s is empty")
        _require(self.readout_oversampling >= 1, "readout_oversampling must be at least 1")
        _require(min(self.oversampling) >= 1, "oversampling must be at least 1")
        _require(0 <= self.snr < np.inf, f"snr is {self.snr}", "0 for no noise, or a number above it")
        _require(
            all(abs(delay) <= 8 for delay in self.gradient_delays_samples),  # not true of NaN either
            f"gradient_delays_samples are {self.gradient_delays_samples}",
            "-8 to 8 samples; real ones are below 1",
        )
        _require(self.trajectory in ("present", "absent", "user_float"), f"trajectory is {self.trajectory!r}")
        _require(self.framing in ("global", "repetition"), f"framing is {self.framing!r}")
        readout_ms = self.n_samples * self.dwell_us * 1e-3
        _require(0 < self.te_ms < self.tr_ms, "te_ms must lie between 0 and tr_ms")
        _require(
            readout_ms < 2.0 * min(self.te_ms, self.tr_ms - self.te_ms),
            f"a readout of {readout_ms:.2f} ms does not fit around TE {self.te_ms} ms in TR {self.tr_ms} ms",
            "raise bandwidth_hz_per_pixel or tr_ms",
        )
        frame_s = self.n_spokes * self.n_partitions * self.tr_ms * 1e-3
        gaps = np.diff(self.frame_starts_s)
        _require(
            bool(np.all(gaps >= frame_s - 1e-9)),
            f"a frame lasts {frame_s:.1f} s, but the frames start {self.frame_starts_s} s",
            "lower n_spokes or n_slices, or move frame_starts_s apart",
        )

    @property
    def n_frames(self) -> int:
        return len(self.frame_starts_s)

    @property
    def n_samples(self) -> int:
        """Samples per spoke."""
        return self.matrix * self.readout_oversampling

    @property
    def dwell_us(self) -> float:
        return 1e6 / (self.bandwidth_hz_per_pixel * self.n_samples)

    @property
    def n_partitions(self) -> int:
        """Acquired partitions."""
        return min(self.n_slices, max(self.n_slices // 2 + 1, round(self.n_slices * self.partial_fourier)))

    @property
    def center_partition(self) -> int:
        """Partition at kz = 0."""
        return self.n_slices // 2 - (self.n_slices - self.n_partitions)

    @property
    def directions(self) -> NDArray[np.float64]:
        """Rows are the read, phase and slice directions (LPS)."""
        ax, ay, az = np.deg2rad(self.rotation_deg)
        rx = np.array([[1, 0, 0], [0, np.cos(ax), -np.sin(ax)], [0, np.sin(ax), np.cos(ax)]])
        ry = np.array([[np.cos(ay), 0, np.sin(ay)], [0, 1, 0], [-np.sin(ay), 0, np.cos(ay)]])
        rz = np.array([[np.cos(az), -np.sin(az), 0], [np.sin(az), np.cos(az), 0], [0, 0, 1]])
        return np.asarray((rz @ ry @ rx).T)

    @property
    def geometry(self) -> Geometry:
        """The reconstruction grid in the patient."""
        read, phase, slice_ = ((float(x), float(y), float(z)) for x, y, z in self.directions)
        return Geometry(
            (self.matrix, self.matrix, self.n_slices), self.field_of_view_mm, self.position_mm, read, phase, slice_
        )

    @property
    def spoke_angles_rad(self) -> NDArray[np.float64]:
        """Angle of every spoke of the scan, in ``[0, 2 pi)``."""
        turns = np.mod(np.arange(self.n_frames * self.n_spokes) * GOLDEN_ANGLE_DEG, 360.0)
        return np.asarray(np.deg2rad(turns))

    @property
    def readout_times_s(self) -> NDArray[np.float64]:
        """When each readout is excited: ``(spokes of the scan, partitions)``."""
        within = np.arange(self.n_spokes * self.n_partitions) * self.tr_ms * 1e-3
        times = np.asarray(self.frame_starts_s)[:, None] + within
        return np.asarray(times.reshape(self.n_frames * self.n_spokes, self.n_partitions))

    @property
    def sample_positions(self) -> NDArray[np.float64]:
        """Nominal k along a spoke in cycles per field of view."""
        return (np.arange(self.n_samples) - self.n_samples // 2) / self.readout_oversampling

    def trajectory_xy(self) -> Float:
        """Nominal trajectory of every spoke: float32 ``(spokes, samples, xy)`` in cycles per field of view."""
        angle, k = self.spoke_angles_rad[:, None], self.sample_positions
        return np.stack([k * np.cos(angle), k * np.sin(angle)], axis=-1).astype(np.float32)

    def sampled_xy(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where the samples really are: each physical gradient lags by its delay.

        The part of the error along the slice normal, which only oblique volumes have, is left out.
        """
        angle, k = self.spoke_angles_rad[:, None], self.sample_positions
        read, phase, _ = self.directions
        spoke = np.cos(angle) * read + np.sin(angle) * phase
        lag = spoke * np.asarray(self.gradient_delays_samples) / self.readout_oversampling
        return k * np.cos(angle) - (lag @ read)[:, None], k * np.sin(angle) - (lag @ phase)[:, None]

    def scan(self) -> Scan:
        """What the MRD header says, without the XML itself."""
        n, os = self.matrix, self.readout_oversampling
        fx, fy, fz = self.field_of_view_mm
        total = self.n_frames * self.n_spokes
        per_repetition = self.framing == "repetition"
        limits = {
            "kspace_encode_step_1": EncodingLimit(0, (self.n_spokes if per_repetition else total) - 1, 0),
            "kspace_encode_step_2": EncodingLimit(0, self.n_partitions - 1, self.center_partition),
            "repetition": EncodingLimit(0, self.n_frames - 1 if per_repetition else 0, 0),
        }
        user: dict[str, int | float | str] = {
            "n_frames": self.n_frames,
            "spokes_per_frame": self.n_spokes,
            "golden_angle_deg": GOLDEN_ANGLE_DEG,
            "time_stamp_tick_ms": TICK_S * 1e3,
        }
        if self.trajectory == "present":
            user["trajectory_units"] = "cycles_per_fov"
        if self.trajectory == "user_float":
            user["spoke_angle_rad"] = "user_float_0"
        return Scan(
            encoded_matrix=(n * os, n * os, self.n_slices),
            recon_matrix=(n, n, self.n_slices),
            encoded_fov_mm=(fx * os, fy * os, fz),
            recon_fov_mm=self.field_of_view_mm,
            trajectory="goldenangle",
            limits=limits,
            n_coils=self.n_coils,
            h1_frequency_hz=round(_FIELD_STRENGTH_T * _GAMMA_HZ_PER_T),
            field_strength_t=_FIELD_STRENGTH_T,
            tr_ms=self.tr_ms,
            te_ms=self.te_ms,
            flip_angle_deg=self.flip_angle_deg,
            protocol_name="breast_dce_stack_of_stars",
            user_parameters=user,
        )


def _require(condition: bool, what: str, hint: str = "") -> None:
    if not condition:
        raise ConfigError(what, where="breast protocol", hint=hint)
