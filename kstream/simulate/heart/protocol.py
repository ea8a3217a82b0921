"""Takes the settings of a cine scan, gives everything that follows from them: lines, times, trajectories, header."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError
from ...types import GOLDEN_ANGLE_RAD, EncodingLimit, Float, Scan
from .lines import Density, Lines, sampled_lines
from .views import LONG_AXIS_VIEWS, view_names

_FIELD_STRENGTH_T = 1.494
_GAMMA_HZ_PER_T = 42.577_478_92e6


@dataclass(frozen=True)
class CineProtocol:
    """A cardiac cine protocol: every view of every phase of the heartbeat.

    Parameters
    ----------
    matrix : recon voxels along x and along y.
    n_frames : phases of the heartbeat.
    n_short_axis, n_long_axis : views; long axes are the 4-, 2- and 3-chamber view.
    field_of_view_mm, thickness_mm : of every view; what lies outside the field of view is saturated.
    trajectory : ``cartesian`` lines, or golden-angle ``radial`` spokes that go on through the frames.
    acceleration : lines over acquired lines; for spokes, ``matrix`` over spokes of a frame.
    density : how Cartesian lines are chosen.
    order : ``segmented`` acquires a few lines of every phase in each heartbeat, as breath-hold cine does; ``frames``
        acquires a whole frame in each heartbeat, one after another, around the frame's own phase. Either way the heart
        is still while a frame is acquired; this is no real-time cine, whose heart moves on.
    n_coils, readout_oversampling : receive loops; samples of a readout over `matrix`.
    tr_ms, flip_angle_deg, bandwidth_hz_per_pixel : of the balanced steady-state sequence; the echo is at TR/2.
    snr : blood over the noise of a fully sampled, coil-combined image; 0 for no noise.
    breath_mm : travel of the diaphragm, 0 for a breath-hold; breath_period_s : of one breath.
    n_breath_states : steps into which a breath is cut.
    n_noise_readouts : acquisitions of the noise scan.
    oversampling, through_samples : fine samples per voxel in the plane, and through the slice.
    """

    matrix: int = 128
    n_frames: int = 50
    n_short_axis: int = 6
    n_long_axis: int = 3
    field_of_view_mm: float = 256.0
    thickness_mm: float = 8.0
    trajectory: Literal["cartesian", "radial"] = "cartesian"
    acceleration: float = 4.0
    density: Density = "vista"
    order: Literal["segmented", "frames"] = "segmented"
    n_coils: int = 4
    readout_oversampling: int = 2
    tr_ms: float = 2.8
    flip_angle_deg: float = 55.0
    bandwidth_hz_per_pixel: float = 977.0
    snr: float = 30.0
    breath_mm: float = 0.0
    breath_period_s: float = 4.0
    n_breath_states: int = 5
    n_noise_readouts: int = 16
    oversampling: int = 2
    through_samples: int = 2

    def __post_init__(self) -> None:
        _require(self.matrix >= 8 and self.n_frames >= 1, "matrix and n_frames are too small")
        _require(self.n_short_axis >= 0 and 0 <= self.n_long_axis <= len(LONG_AXIS_VIEWS), "impossible views")
        _require(self.n_short_axis + self.n_long_axis >= 1, "there is no view")
        _require(self.n_coils >= 1 and self.readout_oversampling >= 1, "n_coils and readout_oversampling start at 1")
        _require(1.0 <= self.acceleration <= self.matrix, f"acceleration is {self.acceleration}", "1 to the matrix")
        _require(self.trajectory in ("cartesian", "radial"), f"trajectory is {self.trajectory!r}")
        _require(self.order in ("segmented", "frames"), f"order is {self.order!r}")
        _require(0 <= self.snr < np.inf, f"snr is {self.snr}")
        _require(self.breath_mm >= 0 and self.breath_period_s > 0 and self.n_breath_states >= 1, "impossible breath")
        _require(min(self.oversampling, self.through_samples) >= 1, "oversampling starts at 1")

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views, long axes first; the index is the MRD counter ``slice``."""
        return view_names(self.n_short_axis, self.n_long_axis)

    @property
    def readouts_per_frame(self) -> int:
        return max(round(self.matrix / self.acceleration), 1)

    @property
    def n_samples(self) -> int:
        return self.matrix * self.readout_oversampling

    @property
    def dwell_us(self) -> float:
        return 1e6 / (self.bandwidth_hz_per_pixel * self.n_samples)

    def lines(self, rng: np.random.Generator) -> Lines:
        """Cartesian lines of one view: bool ``(frames, lines)``."""
        return sampled_lines(self.density, self.matrix, self.n_frames, self.acceleration, rng)

    @property
    def readout_positions(self) -> NDArray[np.float64]:
        """Nominal k along a readout in cycles per field of view."""
        return (np.arange(self.n_samples) - self.n_samples // 2) / self.readout_oversampling

    def spoke_angles_rad(self) -> NDArray[np.float64]:
        """Angle of every spoke of one view: ``(frames, spokes)``."""
        n = self.readouts_per_frame
        return np.asarray(np.mod(np.arange(self.n_frames * n) * GOLDEN_ANGLE_RAD, 2 * np.pi).reshape(-1, n))

    def spokes_xy(self) -> Float:
        """Trajectory of one view: float32 ``(frames, spokes, samples, xy)`` in cycles per field of view."""
        angle, k = self.spoke_angles_rad()[..., None], self.readout_positions
        return np.stack([k * np.cos(angle), k * np.sin(angle)], axis=-1).astype(np.float32)

    def schedule(self, heart_rate_bpm: float) -> Schedule:
        """When each readout of a view is excited."""
        n, beat_s = self.readouts_per_frame, 60.0 / heart_rate_bpm
        tr_s = self.tr_ms * 1e-3
        if self.order == "frames":
            frame, within = (a.reshape(-1) for a in np.indices((self.n_frames, n)))
            beats = max(int(np.ceil(n * tr_s / beat_s)), 1)  # from frame to frame, so that they do not overlap
            around = (within - (n - 1) / 2) * tr_s
            time = frame * (beats + 1 / self.n_frames) * beat_s + around
            since_r = np.mod(frame * beat_s / self.n_frames + around, beat_s)
            return Schedule(frame, within, time - time[0], np.asarray(since_r, np.float64))
        per_segment = max(int(beat_s / self.n_frames / tr_s), 1)
        n_beats = -(-n // per_segment)
        beat, frame, place = (a.reshape(-1) for a in np.indices((n_beats, self.n_frames, per_segment)))
        within = beat + place * n_beats  # neighbours in k-space come from different beats
        keep = within < n
        beat, frame, place, within = beat[keep], frame[keep], place[keep], within[keep]
        since_r = frame * beat_s / self.n_frames + place * tr_s
        return Schedule(frame, within, beat * beat_s + since_r, since_r)

    def scan(self, heart_rate_bpm: float) -> Scan:
        """What the MRD header says, without the XML itself."""
        n, os, fov = self.matrix, self.readout_oversampling, self.field_of_view_mm
        is_radial = self.trajectory == "radial"
        limits = {
            "kspace_encode_step_1": EncodingLimit(
                0, (self.readouts_per_frame if is_radial else n) - 1, 0 if is_radial else n // 2
            ),
            "slice": EncodingLimit(0, len(self.views) - 1, 0),
            "phase": EncodingLimit(0, self.n_frames - 1, 0),
        }
        user: dict[str, int | float | str] = {
            "readouts_per_frame": self.readouts_per_frame,
            "heart_rate_bpm": float(heart_rate_bpm),
            "views": " ".join(self.views),
        }
        if is_radial:
            user |= {"trajectory_units": "cycles_per_fov", "golden_angle_deg": float(np.rad2deg(GOLDEN_ANGLE_RAD))}
        return Scan(
            encoded_matrix=(n * os, n * os if is_radial else n, 1),
            recon_matrix=(n, n, 1),
            encoded_fov_mm=(fov * os, fov * os if is_radial else fov, self.thickness_mm),
            recon_fov_mm=(fov, fov, self.thickness_mm),
            trajectory="goldenangle" if is_radial else "cartesian",
            limits=limits,
            n_coils=self.n_coils,
            h1_frequency_hz=round(_FIELD_STRENGTH_T * _GAMMA_HZ_PER_T),
            field_strength_t=_FIELD_STRENGTH_T,
            tr_ms=self.tr_ms,
            te_ms=self.tr_ms / 2,
            flip_angle_deg=self.flip_angle_deg,
            protocol_name=f"cine_bssfp_{self.trajectory}",
            user_parameters=user,
        )


@dataclass(frozen=True)
class Schedule:
    """Readouts of one view in the order of acquisition: frame, number within the frame, and times in seconds since
    the view began and since the last heartbeat."""

    frame: NDArray[np.intp]
    within: NDArray[np.intp]
    time_s: NDArray[np.float64]
    since_r_s: NDArray[np.float64]


def _require(condition: bool, what: str, hint: str = "") -> None:
    if not condition:
        raise ConfigError(what, where="cine protocol", hint=hint)
