"""The vocabulary that flows through the house: what a step takes and what it gives.

Axis order is always ``(coils, z, y, x)``; vector components are last and spelled ``xyz``; a trajectory is in
cycles per field of view; patient axes are LPS. The conventions are written out in ``docs/conventions.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntFlag
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Vector = tuple[float, float, float]
Complex = NDArray[np.complex64]
Float = NDArray[np.float32]


GOLDEN_ANGLE_RAD = np.pi * (np.sqrt(5) - 1) / 2
"""111.246 degrees: pi over the golden ratio (Winkelmann et al., IEEE TMI 2007)."""


class AcquisitionFlag(IntFlag):
    """Flags of an MRD acquisition; MRD numbers them from 1, so flag n is bit n - 1."""

    FIRST_IN_ENCODE_STEP1 = 1 << 0
    LAST_IN_ENCODE_STEP1 = 1 << 1
    FIRST_IN_ENCODE_STEP2 = 1 << 2
    LAST_IN_ENCODE_STEP2 = 1 << 3
    FIRST_IN_AVERAGE = 1 << 4
    LAST_IN_AVERAGE = 1 << 5
    FIRST_IN_SLICE = 1 << 6
    LAST_IN_SLICE = 1 << 7
    FIRST_IN_CONTRAST = 1 << 8
    LAST_IN_CONTRAST = 1 << 9
    FIRST_IN_PHASE = 1 << 10
    LAST_IN_PHASE = 1 << 11
    FIRST_IN_REPETITION = 1 << 12
    LAST_IN_REPETITION = 1 << 13
    FIRST_IN_SET = 1 << 14
    LAST_IN_SET = 1 << 15
    FIRST_IN_SEGMENT = 1 << 16
    LAST_IN_SEGMENT = 1 << 17
    IS_NOISE_MEASUREMENT = 1 << 18
    IS_PARALLEL_CALIBRATION = 1 << 19
    IS_PARALLEL_CALIBRATION_AND_IMAGING = 1 << 20
    IS_REVERSE = 1 << 21
    IS_NAVIGATION_DATA = 1 << 22
    IS_PHASECORR_DATA = 1 << 23
    LAST_IN_MEASUREMENT = 1 << 24
    IS_HPFEEDBACK_DATA = 1 << 25
    IS_DUMMYSCAN_DATA = 1 << 26
    IS_RTFEEDBACK_DATA = 1 << 27
    IS_SURFACECOILCORRECTIONSCAN_DATA = 1 << 28
    IS_PHASE_STABILIZATION_REFERENCE = 1 << 29
    IS_PHASE_STABILIZATION = 1 << 30
    COMPRESSION1 = 1 << 52
    COMPRESSION2 = 1 << 53
    COMPRESSION3 = 1 << 54
    COMPRESSION4 = 1 << 55


@dataclass(slots=True)
class Acquisition:
    """One ADC event as the wire carries it.

    Parameters
    ----------
    header : structured scalar of dtype ``kstream.mrd.messages.ACQUISITION_HEADER`` (340 bytes).
    data : complex64 ``(coils, samples)``.
    trajectory : float32 ``(samples, dims)`` in the sender's units; ``dims`` may be 0.
    received_ns : monotonic time at which its last sample arrived; 0 if it never crossed a socket.
    """

    header: Any
    data: Complex
    trajectory: Float
    received_ns: int = 0

    @property
    def flags(self) -> int:
        return int(self.header["flags"])

    def has(self, flag: AcquisitionFlag) -> bool:
        """True if any bit of `flag` is set."""
        return bool(self.flags & flag)

    def counter(self, name: str) -> int:
        """An encoding counter by its MRD name, such as ``kspace_encode_step_1``."""
        return int(self.header["idx"][name])

    @property
    def place(self) -> str:
        """Where this acquisition sits, for an error message."""
        idx = self.header["idx"]
        return (
            f"scan_counter {int(self.header['scan_counter'])}, repetition {int(idx['repetition'])}, "
            f"slice {int(idx['slice'])}, kspace_encode_step_1 = {int(idx['kspace_encode_step_1'])}, "
            f"kspace_encode_step_2 = {int(idx['kspace_encode_step_2'])}"
        )


@dataclass(frozen=True)
class Origin:
    """What the scanner wrote into the header of the readout that a frame's geometry was read from.

    Images hand it back, so that the host can sort them into the measurement that they came from.

    Parameters
    ----------
    acquisition_time_stamp, physiology_time_stamp : ticks of the sender's clocks.
    patient_table_position_mm : LPS.
    """

    measurement_uid: int = 0
    acquisition_time_stamp: int = 0
    physiology_time_stamp: tuple[int, int, int] = (0, 0, 0)
    patient_table_position_mm: Vector = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Geometry:
    """Where a reconstructed grid lies in the patient.

    Parameters
    ----------
    matrix : voxels along x, y, z.
    field_of_view_mm : extent along x, y, z.
    position_mm : centre of the volume, LPS, relative to the isocentre.
    read_dir, phase_dir, slice_dir : unit vectors (LPS) of x, y and z.
    origin : the readout that said so; no part of a comparison, for every frame has another.
    """

    matrix: tuple[int, int, int]
    field_of_view_mm: Vector
    position_mm: Vector = (0.0, 0.0, 0.0)
    read_dir: Vector = (1.0, 0.0, 0.0)
    phase_dir: Vector = (0.0, 1.0, 0.0)
    slice_dir: Vector = (0.0, 0.0, 1.0)
    origin: Origin = field(default=Origin(), compare=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Array shape ``(z, y, x)``."""
        return self.matrix[2], self.matrix[1], self.matrix[0]

    @property
    def voxel_size_mm(self) -> Vector:
        """Voxel size along x, y, z."""
        fx, fy, fz = self.field_of_view_mm
        nx, ny, nz = self.matrix
        return fx / nx, fy / ny, fz / nz

    def slice_position_mm(self, z: int) -> Vector:
        """Centre of slice `z` of this volume, LPS."""
        offset = (z - (self.matrix[2] - 1) / 2) * self.voxel_size_mm[2]
        px, py, pz = (p + offset * d for p, d in zip(self.position_mm, self.slice_dir, strict=True))
        return px, py, pz

    @cached_property
    def affine_lps(self) -> NDArray[np.float64]:
        """4x4 matrix from voxel index ``(x, y, z, 1)`` (voxel centres) to LPS millimetres."""
        axes = np.stack([self.read_dir, self.phase_dir, self.slice_dir], axis=1) * np.array(self.voxel_size_mm)
        affine = np.eye(4)
        affine[:3, :3] = axes
        affine[:3, 3] = np.array(self.position_mm) - axes @ ((np.array(self.matrix) - 1) / 2)
        return affine


@dataclass(frozen=True)
class EncodingLimit:
    """Range of one encoding counter as the header promises it."""

    minimum: int = 0
    maximum: int = 0
    center: int = 0

    @property
    def size(self) -> int:
        return self.maximum - self.minimum + 1


@dataclass(frozen=True)
class Scan:
    """What the MRD XML header says about a measurement, in our words.

    Parameters
    ----------
    encoded_matrix, recon_matrix : along x, y, z.
    encoded_fov_mm, recon_fov_mm : along x, y, z.
    trajectory : ``cartesian | epi | radial | goldenangle | spiral | other``.
    limits : encoding limits by counter name (``kspace_encode_step_1``, ``repetition``, ...).
    n_coils : receiver channels, 0 if the header does not say.
    user_parameters : user parameters of the header by name (long, double and string alike).
    xml : the header itself.
    """

    encoded_matrix: tuple[int, int, int]
    recon_matrix: tuple[int, int, int]
    encoded_fov_mm: Vector
    recon_fov_mm: Vector
    trajectory: str
    limits: Mapping[str, EncodingLimit] = field(default_factory=dict)
    n_coils: int = 0
    h1_frequency_hz: int = 0
    field_strength_t: float = 0.0
    tr_ms: float = 0.0
    te_ms: float = 0.0
    flip_angle_deg: float = 0.0
    protocol_name: str = ""
    user_parameters: Mapping[str, int | float | str] = field(default_factory=dict)
    xml: bytes = b""

    def limit(self, counter: str) -> EncodingLimit:
        """Range of an encoding counter; a counter that the header leaves out has the single value 0."""
        return self.limits.get(counter, EncodingLimit())


@dataclass(frozen=True)
class LabelTable:
    """Names and display colours of the classes of a label map; class 0 is background.

    Parameters
    ----------
    names : one per class, background first.
    colours : RGB in 0..255, one per class.
    """

    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]


@dataclass(slots=True)
class NoiseCovariance:
    """Receiver noise covariance ``(coils, coils)`` complex128 for one complex sample of unit dwell."""

    matrix: NDArray[np.complex128]
    n_samples: int


@dataclass(slots=True)
class Readout:
    """An acquisition that knows where it belongs: a spoke of a frame, or a Cartesian line.

    Parameters
    ----------
    data : complex64 ``(coils, samples)``, prewhitened if the scan had noise.
    trajectory : float32 ``(samples, xyz)`` in cycles per field of view of the recon space, in ``[-n/2, n/2)``.
    frame, slice, partition : indices from 0.
    key : ``(number of the spoke or line in its frame, partition)``: what makes it unique within frame and slice.
    geometry : of its frame, as its header has it.
    """

    data: Complex
    trajectory: Float
    frame: int
    slice: int
    partition: int
    key: tuple[int, int]
    received_ns: int
    geometry: Geometry | None = None


@dataclass(slots=True)
class MissingReadout:
    """A readout of this place came and cannot be used: nobody should wait for it."""

    frame: int
    slice: int
    key: tuple[int, int]


@dataclass(slots=True)
class FrameEnd:
    """The last readout of a frame has passed (or the scan ended before it came)."""

    frame: int
    slice: int
    n_readouts: int
    n_expected: int
    received_ns: int
    geometry: Geometry

    @property
    def is_complete(self) -> bool:
        return self.n_readouts >= self.n_expected


@dataclass(slots=True)
class FrameProgress:
    """A frame that is not over has reached a number of readouts at which someone wants to look at it."""

    so_far: FrameEnd

    @property
    def frame(self) -> int:
        return self.so_far.frame

    @property
    def slice(self) -> int:
        return self.so_far.slice


@dataclass(slots=True)
class CoilImages:
    """Regridded images of every coil for one frame: complex64 ``(coils, z, y, x)``."""

    data: Complex
    frame: int
    slice: int
    received_ns: int
    geometry: Geometry


@dataclass(slots=True)
class KSpace:
    """Coil-combined Cartesian k-space of one frame.

    Parameters
    ----------
    data : complex64 ``(z, y, x)``; y and x are Fourier axes (centred, orthonormal), z is already a slice axis. With
        several sets of coil maps, that of the first one, which is what a single set gives where nothing folds.
    further : complex64 ``(sets - 1, z, y, x)``, the same through the other sets of maps; None with one set.
    """

    data: Complex
    frame: int
    slice: int
    received_ns: int
    geometry: Geometry
    further: Complex | None = None

    @classmethod
    def of_sets(cls, sets: Sequence[Complex], frame: int, slice_: int, received_ns: int, geometry: Geometry) -> KSpace:
        """From the k-space through every set of maps."""
        return cls(sets[0], frame, slice_, received_ns, geometry, np.stack(sets[1:]) if len(sets) > 1 else None)

    @property
    def sets(self) -> tuple[Complex, ...]:
        """K-space through every set of maps, the first one first."""
        return self.data, *(self.further if self.further is not None else ())

    def changed(self, change: Callable[[Complex], Complex]) -> KSpace:
        """The same frame with something done to the k-space of every set."""
        data, *rest = (change(kspace) for kspace in self.sets)
        return replace(self, data=data, further=np.stack(rest) if rest else None)


@dataclass(slots=True)
class FrameImage:
    """Coil-combined complex image of one frame: complex64 ``(z, y, x)``."""

    data: Complex
    frame: int
    slice: int
    received_ns: int
    geometry: Geometry


@dataclass(slots=True)
class Difference:
    """Post-contrast minus pre-contrast k-space over the RMS of the pre-contrast k-space (paper 000, S1).

    Parameters
    ----------
    data : complex64 ``(z, y, x)``; y and x are Fourier axes, z is a slice axis; dimensionless.
    scale : the RMS that was divided by.
    frame, pre_frame : which frames were subtracted.
    early : ``(readouts that have come, readouts that will)`` of a frame that is not full yet; None at its end.
    """

    data: Complex
    scale: float
    frame: int
    pre_frame: int
    slice: int
    received_ns: int
    geometry: Geometry
    early: tuple[int, int] | None = None


@dataclass(slots=True)
class EarlyKSpace:
    """K-space of a frame that is not full yet; Cartesian lines that have not come are exactly 0.

    Parameters
    ----------
    kspace : of the readouts that have come, with the density that they have without the others.
    n_readouts, n_expected : readouts that have come, of those that will.
    """

    kspace: KSpace
    n_readouts: int
    n_expected: int


@dataclass(slots=True)
class ScaledKSpace:
    """K-space of one frame in units that a network knows (`recon.scaling`).

    Parameters
    ----------
    data : complex64 ``(z, y, x)``; y and x are Fourier axes, z is a slice axis; samples that were not measured are
        exactly 0; dimensionless.
    scale : what was divided by; its phase is that of the centre of k-space.
    early : ``(readouts that have come, readouts that will)`` of a frame that is not full yet; None at its end.
    """

    data: Complex
    scale: complex
    frame: int
    slice: int
    received_ns: int
    geometry: Geometry
    early: tuple[int, int] | None = None


@dataclass(slots=True)
class LabelMap:
    """Segmentation of one frame: uint8 class indices ``(z, y, x)``.

    ``provenance`` says what made it: model name, weights hash, engine, precision. ``is_final`` is False for labels from
    a part of the samples, which later ones replace.
    """

    labels: NDArray[np.uint8]
    table: LabelTable
    frame: int
    slice: int
    received_ns: int
    geometry: Geometry
    provenance: Mapping[str, str] = field(default_factory=dict)
    is_final: bool = True


@dataclass(slots=True)
class Findings:
    """Numbers about a whole measurement, such as phenotypes and class probabilities; they leave as JSON in a TEXT.

    ``values`` holds what JSON can hold; numbers that are not known are None.
    """

    values: Mapping[str, Any]
    received_ns: int


@dataclass(slots=True)
class Delivered:
    """All images of one frame and kind have been handed over; closes the latency that `received_ns` began."""

    kind: Literal["magnitude", "labels", "overlay"]
    frame: int
    slice: int
    received_ns: int


@dataclass(slots=True)
class Notice:
    """Something the user at the scanner should read; it travels down the stream and leaves as TEXT.

    Parameters
    ----------
    kind : what is wrong with the data, one word under which a server counts it; empty for everything else.
    amount : how many readouts, coils or frames are meant, for that count.
    """

    level: Literal["info", "warning", "error"]
    text: str
    kind: str = ""
    amount: int = 1
