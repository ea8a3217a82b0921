"""Takes a head and a protocol, gives the noise-free k-space of every slice and what lies in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol as Interface

import numpy as np
from numpy.typing import NDArray

from ...types import Complex, Float, Geometry, LabelTable
from ..coils import Loop, loop_field, receive_sensitivity
from ..fields import SlowField, Texture
from ..raster import fine_positions_mm
from .head import Head, Tissue
from .lines import Imperfections, LineReadout
from .protocol import BrainProtocol
from .spin_echo import Relaxation, relaxation, tissue_lookup

Progress = Callable[[str, float], None]
Labels = NDArray[np.uint8]

LABELS = LabelTable(
    ("background", "csf", "grey_matter", "white_matter"), ((0, 0, 0), (148, 63, 189), (242, 140, 40), (245, 245, 245))
)
"""The four classes of paper 004, in the colours of its figure 3."""

_CLASS_OF = np.zeros(len(Tissue), np.uint8)
_CLASS_OF[[Tissue.CSF, Tissue.GREY, Tissue.WHITE]] = 1, 2, 3
_BOX_MM = (130.0, 130.0, 130.0)


class Anatomy(Interface):
    """What can be scanned: a simulated `Head`, or a `brainweb.BrainWebHead`."""

    def labels(self, geometry: Geometry, factor: tuple[int, int, int] = (1, 1, 1)) -> Labels:
        """Tissues (`Tissue`) on a grid, uint8 ``(z, y, x)``; sample j of a fine axis sits at index ``j / factor``."""


@dataclass(frozen=True)
class ScannedHead:
    """All lines of all slices, without noise.

    Parameters
    ----------
    samples : complex64 ``(slices, coils, y, x * readout_oversampling)``, orthonormal units.
    tissues : uint8 ``(slices, y, x)``, `Tissue` at the centre of every voxel.
    te_ms, tr_ms : of this scan.
    white : signal of white matter, the reference of the noise.
    """

    samples: Complex
    tissues: Labels
    te_ms: float
    tr_ms: float
    white: float

    @property
    def labels(self) -> Labels:
        """The oracle: uint8 ``(slices, y, x)``, indices of `LABELS`."""
        return fold_tissues(self.tissues)


def fold_tissues(tissues: Labels) -> Labels:
    """Twelve tissues to background, CSF, grey and white matter."""
    return np.asarray(_CLASS_OF[tissues])


def scan_head(
    protocol: BrainProtocol, seed: int, anatomy: Anatomy | None = None, progress: Progress | None = None
) -> ScannedHead:
    """Scan one head fully.

    Parameters
    ----------
    protocol : `fraction` and `noise` are not used here.
    seed : head, tissue values, times, phase and fields follow from it.
    anatomy : what is scanned; by default the `Head` of the seed.
    progress : called with the name of the step and the part of it that is done.
    """
    rng = np.random.default_rng([seed, 5])
    te_ms, tr_ms = protocol.drawn_times_ms(rng)
    tissues = relaxation(protocol.relaxation, rng)
    setting = _Setting.random(protocol, rng)
    anatomy = anatomy or Head(seed)
    planes, labels = [], []
    for number in range(protocol.n_slices):
        if progress is not None:
            progress("scanning the head", number / protocol.n_slices)
        geometry = protocol.slice_geometry(number)
        planes.append(_sample_slice(protocol, geometry, anatomy, tissues, setting, (te_ms, tr_ms)))
        labels.append(anatomy.labels(geometry)[0])
    if progress is not None:
        progress("scanning the head", 1.0)
    white = float(tissues.signal(te_ms, tr_ms)[Tissue.WHITE])
    return ScannedHead(np.stack(planes), np.stack(labels), te_ms, tr_ms, white)


@dataclass(frozen=True)
class _Setting:
    """Everything about a scan that varies slowly over the head."""

    texture: Texture
    phase: SlowField
    shading: SlowField
    off_resonance: SlowField
    loops: list[Loop]

    @classmethod
    def random(cls, protocol: BrainProtocol, rng: np.random.Generator) -> _Setting:
        texture = Texture.random(rng, _BOX_MM, 12.0)
        phase = SlowField.random(rng, float(rng.uniform(-np.pi, np.pi)), 0.8)
        shading = SlowField.random(rng, 1.0, protocol.coil_shading)
        off_resonance = SlowField.random(rng, 0.0, protocol.b0_hz)
        return cls(texture, phase, shading, off_resonance, head_array(protocol.n_coils))

    def sensitivities(self, position: tuple[Float, Float, Float]) -> Complex:
        """Receive sensitivity with the object's phase: complex64 ``(coils, y, x)`` of a plane.

        One coil is a volume coil. Those of an array are scaled so that their root sum of squares is 1 in the middle.
        """
        x, y, z = position
        phase = np.exp(1j * self.phase.at(x, y, z))
        if len(self.loops) == 1:
            return np.asarray(np.maximum(self.shading.at(x, y, z), 0.2) * phase, np.complex64)[None]
        points = np.stack(position, axis=-1)
        fields = np.stack([receive_sensitivity(loop_field(loop, points)) for loop in self.loops])
        middle = np.stack([receive_sensitivity(loop_field(loop, np.zeros(3))) for loop in self.loops])
        return np.asarray(fields * phase / np.linalg.norm(middle), np.complex64)

    def off_resonance_hz(self, position: tuple[Float, Float, Float], b0_hz: float) -> Float:
        """A slow field, and the rise above the air of the frontal sinus."""
        x, y, z = position
        sinus = np.exp(-((x / 25) ** 2) - ((y + 75) / 25) ** 2 - ((z + 20) / 22) ** 2)
        return np.asarray(self.off_resonance.at(x, y, z) + 2 * b0_hz * sinus, np.float32)


def head_array(n_coils: int) -> list[Loop]:
    """Loops on rings around the head, normals inwards; a single one stands for a volume coil."""
    semi_axes = np.array([105.0, 125.0, 95.0])
    radius_mm = float(np.clip(220.0 / np.sqrt(n_coils), 35.0, 100.0))
    loops = []
    for index in range(n_coils):
        height = 0.8 * (2 * (index + 0.5) / n_coils - 1)
        angle = 2 * np.pi * index * 0.6180339887498949
        ring = np.sqrt(1 - height**2)
        on_sphere = np.array([ring * np.cos(angle), ring * np.sin(angle), height])
        inwards = -on_sphere / semi_axes
        loops.append(Loop(semi_axes * on_sphere + [0, 0, 15.0], inwards / np.linalg.norm(inwards), radius_mm))
    return loops


def _sample_slice(
    protocol: BrainProtocol,
    geometry: Geometry,
    anatomy: Anatomy,
    tissues: Relaxation,
    setting: _Setting,
    times_ms: tuple[float, float],
) -> Complex:
    """Samples ``(coils, y, x * readout_oversampling)`` of one slice, averaged over the samples through it."""
    factor = (protocol.oversampling, protocol.oversampling)
    readout = LineReadout(protocol.matrix, factor, protocol.readout_oversampling, protocol.dwell_us)
    signal = tissues.signal(*times_ms)
    n = protocol.through_samples
    total: Complex | None = None
    for number in range(n):
        offset_mm = ((number + 0.5) / n - 0.5) * geometry.voxel_size_mm[2]
        x0, y0, z0 = geometry.position_mm
        plane_geometry = replace(geometry, position_mm=(x0, y0, z0 + offset_mm))
        labels = anatomy.labels(plane_geometry, (*factor, 1))[0]
        position = tuple(p[0] for p in fine_positions_mm(plane_geometry, (*factor, 1)))
        x, y, z = (np.ascontiguousarray(np.broadcast_to(p, labels.shape)) for p in position)
        magnetisation = tissue_lookup(signal, labels)
        if protocol.texture:
            magnetisation = magnetisation * (1 + np.float32(protocol.texture) * setting.texture.at(x, y, z))
        imperfections = _imperfections(protocol, tissues, labels, setting.off_resonance_hz((x, y, z), protocol.b0_hz))
        samples = np.stack(
            [
                readout.sample(np.asarray(magnetisation * coil, np.complex64), imperfections)
                for coil in setting.sensitivities((x, y, z))
            ]
        )
        total = samples if total is None else total + samples
    return np.asarray(total, np.complex64) / np.float32(n)


def _imperfections(
    protocol: BrainProtocol, tissues: Relaxation, labels: Labels, off_resonance_hz: Float
) -> Imperfections | None:
    if not protocol.b0_hz and not protocol.t2_star:
        return None
    decay = 1 / tissues.t2_ms if protocol.t2_star else np.zeros(len(Tissue))
    dephasing = 1 / tissues.t2_star_ms - 1 / tissues.t2_ms if protocol.t2_star else decay
    return Imperfections(off_resonance_hz, tissue_lookup(decay, labels), tissue_lookup(dephasing, labels))
