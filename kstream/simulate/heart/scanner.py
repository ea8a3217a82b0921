"""Takes a scene and a protocol, gives noise-free k-space samples of every readout of every view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...types import Complex, Float, Geometry, Vector
from ..breast.scanner import excitation_profile
from ..coils import CoilArray, Loop, loop_field, noise_covariance, receive_sensitivity, spline_matrix
from ..encoding import SpokeTransform, partition_transform
from ..phase_map import gaussian_phase_rad
from .images import HeartScene
from .lines import Lines
from .protocol import CineProtocol, Schedule
from .tissue import BLOOD, steady_state
from .views import View

Progress = Callable[[str, float], None]

_COARSE_MM = 16.0
_BREATH_DIRECTION: Vector = (0.0, -0.25, 1.0)
"""The heart moves mostly along the body when the diaphragm does, and a little towards the front."""


def cardiac_array(n_coils: int) -> list[Loop]:
    """Loops in front of and behind the chest, in rows of two to four."""
    n_front = (n_coils + 1) // 2
    radius_mm = float(np.clip(230.0 / np.sqrt(n_coils), 45.0, 120.0))
    loops = []
    for count, y, normal in ((n_front, -150.0, 1.0), (n_coils - n_front, 190.0, -1.0)):
        columns = max(int(np.ceil(np.sqrt(count))), 1)
        for index in range(count):
            row, column = divmod(index, columns)
            rows = -(-count // columns)
            x = (column - (columns - 1) / 2) * 1.6 * radius_mm + 25.0
            z = (row - (rows - 1) / 2) * 1.6 * radius_mm - 10.0
            turn = 0.004 * (x - 25.0)
            direction = np.array([-np.sin(turn), normal * np.cos(turn), 0.0])
            loops.append(Loop(np.array([x, y, z]), direction, radius_mm))
    return loops


@dataclass(frozen=True)
class Receiver:
    """The coil array of one examination: loops and noise covariance (unit mean diagonal)."""

    loops: list[Loop]
    covariance: NDArray[np.complex128]

    @classmethod
    def of(cls, protocol: CineProtocol, rng: np.random.Generator) -> Receiver:
        """The array of a protocol; one coil is the body coil, which sees everything alike."""
        if protocol.n_coils == 1:
            return cls([], np.ones((1, 1), np.complex128))
        loops = cardiac_array(protocol.n_coils)
        points = np.stack(np.meshgrid(*(np.linspace(-90, 90, 7),) * 3, indexing="ij"), axis=-1)
        fields = np.stack([receive_sensitivity(loop_field(loop, points)) for loop in loops])
        return cls(loops, noise_covariance(fields, rng))

    def on(self, geometry: Geometry, factor: int) -> Complex:
        """Sensitivities on the fine grid of a view: complex64 ``(coils, fine y, fine x)``."""
        if not self.loops:
            return np.ones((1, geometry.matrix[1] * factor, geometry.matrix[0] * factor), np.complex64)
        knots, matrices = [], []
        for n, extent in zip(geometry.matrix[:2], geometry.field_of_view_mm[:2], strict=True):
            coarse = np.linspace(0, n - 1 / factor, max(4, round(extent / _COARSE_MM)))
            knots.append(coarse)
            matrices.append(spline_matrix(coarse, np.arange(n * factor) / factor))
        ky, kx = np.meshgrid(knots[1], knots[0], indexing="ij")
        index = np.stack([kx, ky, np.zeros_like(kx)], axis=-1)
        points = index @ geometry.affine_lps[:3, :3].T + geometry.affine_lps[:3, 3]
        coarse_maps = np.stack([receive_sensitivity(loop_field(loop, points)) for loop in self.loops])
        through = np.ones((1, 1), np.float32)
        array = CoilArray(
            coarse_maps[:, None].astype(np.complex64), (through, matrices[1], matrices[0]), self.covariance
        )
        return np.stack([array.sensitivity(coil)[0] for coil in range(array.n_coils)])

    def noise_level(self, protocol: CineProtocol, heart_mm: NDArray[np.float64]) -> float:
        """Standard deviation of one complex sample that gives the protocol's SNR for blood in the heart.

        The adjoint of a fully sampled frame weights samples by ``1 / oversampling``, and optimal combination of
        ``R = sum |s|^2`` divides the variance by R.
        """
        if protocol.snr == 0:
            return 0.0
        fields = [receive_sensitivity(loop_field(loop, heart_mm[None])) for loop in self.loops]
        sensitivity = float(np.sqrt(np.sum(np.abs(fields) ** 2))) if fields else 1.0
        signal = steady_state(BLOOD, protocol.flip_angle_deg) * sensitivity
        return signal / protocol.snr * float(np.sqrt(protocol.readout_oversampling))


def breath_shift_mm(protocol: CineProtocol, state: float) -> Vector:
    """Shift of heart and liver in a state of a breath; state 0 is the end of breathing out."""
    if protocol.n_breath_states == 1:
        return (0.0, 0.0, 0.0)
    depth = -protocol.breath_mm * state / (protocol.n_breath_states - 1)
    x, y, z = (depth * part for part in _BREATH_DIRECTION)
    return x, y, z


def breath_states(protocol: CineProtocol, time_s: NDArray[np.float64], offset_s: float) -> NDArray[np.intp]:
    """State of the breath at each time; a breath is ``sin^4``, so it rests at the end of breathing out."""
    if not protocol.breath_mm:
        return np.zeros(time_s.shape, np.intp)
    depth = np.sin(np.pi * (time_s + offset_s) / protocol.breath_period_s) ** 4
    return np.asarray(np.rint(depth * (protocol.n_breath_states - 1)), np.intp)


def field_window(protocol: CineProtocol) -> Float:
    """Saturation bands along the borders of the field of view, on the fine grid: float32 ``(fine y, fine x)``."""
    n, f = protocol.matrix, protocol.oversampling
    position = (np.arange(n * f) / f - (n - 1) / 2) / n
    edge = excitation_profile(position, 0.97, 0.02)
    return np.asarray(edge[:, None] * edge)


def sample_view(
    protocol: CineProtocol,
    scene: HeartScene,
    view: View,
    receiver: Receiver,
    schedule: Schedule,
    lines: Lines | None,
    states: NDArray[np.intp],
    rng: np.random.Generator,
) -> Complex:
    """Noise-free samples of one view in the order of its schedule: complex64 ``(readouts, coils, samples)``.

    Parameters
    ----------
    lines : bool ``(frames, lines)`` of a Cartesian scan; None for spokes.
    states : state of the breath at each readout.
    rng : draws the phase of the view's field.
    """
    factor = protocol.oversampling
    phase = gaussian_phase_rad((protocol.matrix * factor,) * 2, rng)
    weights = receiver.on(view.geometry, factor) * (field_window(protocol) * np.exp(1j * phase))
    samples = np.empty((schedule.frame.size, protocol.n_coils, protocol.n_samples), np.complex64)
    for state in np.unique(states):
        shift = breath_shift_mm(protocol, int(state))
        slab = scene.still(view.geometry, (factor, factor), protocol.through_samples, shift)
        for frame in np.unique(schedule.frame[states == state]):
            chosen = np.flatnonzero((states == state) & (schedule.frame == frame))
            image = slab.image(int(frame) / protocol.n_frames)
            images = np.asarray(weights * image, np.complex64)
            within = schedule.within[chosen]
            if lines is None:
                samples[chosen] = _spokes(protocol, images, int(frame), within)
            else:
                samples[chosen] = _cartesian(protocol, images, np.flatnonzero(lines[frame])[within])
    return samples


def _cartesian(protocol: CineProtocol, images: Complex, lines: NDArray[np.intp]) -> Complex:
    """Lines ``(readouts, coils, samples)`` of coil images on the fine grid."""
    n, factor = protocol.matrix, protocol.oversampling
    along_y = partition_transform(lines.astype(np.float64) - n // 2, n, factor)
    along_x = partition_transform(protocol.readout_positions, n, factor)
    return np.asarray((along_y @ images @ along_x.T).transpose(1, 0, 2), np.complex64)


def _spokes(protocol: CineProtocol, images: Complex, frame: int, within: NDArray[np.intp]) -> Complex:
    """Spokes ``(readouts, coils, samples)`` of coil images on the fine grid."""
    angle, k = protocol.spoke_angles_rad()[frame, within][:, None], protocol.readout_positions
    plane, factor = (protocol.matrix,) * 2, (protocol.oversampling,) * 2
    transform = SpokeTransform(k * np.cos(angle), k * np.sin(angle), plane, factor, protocol.n_coils)
    return np.asarray(transform(images).transpose(1, 0, 2), np.complex64)
