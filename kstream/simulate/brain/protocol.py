"""Takes the settings of a spin-echo scan of the head, gives everything that follows from them: lines, times, header."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError
from ...types import EncodingLimit, Geometry, Scan, Vector
from .spin_echo import RelaxationTable

_FIELD_STRENGTH_T = 1.494
_GAMMA_HZ_PER_T = 42.577_478_92e6


@dataclass(frozen=True)
class BrainProtocol:
    """A multi-slice spin echo with Cartesian lines (paper 004, section 3; its values are the defaults).

    Parameters
    ----------
    matrix : recon voxels along x (left) and y (back); y is the phase-encoding axis.
    n_slices : axial slices without gaps.
    voxel_mm : along x, y, z.
    position_mm : centre of the stack (LPS), relative to `head.Head`'s origin.
    te_ms, tr_ms, variation : mean echo and repetition time, and the relative range within which both are drawn.
    fraction, n_centre : of the lines that is acquired, and fully sampled lines of the centre.
    noise : standard deviation of real and imaginary part each, in the fully sampled image, over the signal of white
        matter; 0 for none. The paper's 10 % and 20 % leave open what they are a part of.
    concatenations : groups of slices that are acquired one after the other; within a group, one line of every slice
        is acquired in each TR. As many as slices: slice after slice.
    n_coils : 1 is a volume coil, more are loops around the head.
    readout_oversampling, bandwidth_hz_per_pixel : of the readout; the bandwidth belongs to a recon voxel.
    relaxation : table of tissue values.
    texture : relative variation of the signal within a tissue.
    coil_shading : relative change of a volume coil's sensitivity at the edge of the head.
    b0_hz : off-resonance at the edge of the head; shifts signal along the readout. 0: none.
    t2_star : blur by T2 and T2* decay during the readout.
    n_noise_readouts : acquisitions of the noise scan.
    oversampling : fine samples per voxel along x and y of the simulated object; 1 has no partial volume.
    through_samples : samples through a slice.
    """

    matrix: tuple[int, int] = (180, 216)
    n_slices: int = 57
    voxel_mm: Vector = (1.0, 1.0, 1.0)
    position_mm: Vector = (0.0, 0.0, 16.0)
    te_ms: float = 80.0
    tr_ms: float = 3000.0
    variation: float = 0.05
    fraction: float = 0.3
    n_centre: int = 16
    noise: float = 0.1
    concatenations: int = 1
    n_coils: int = 1
    readout_oversampling: int = 2
    bandwidth_hz_per_pixel: float = 130.0
    relaxation: RelaxationTable = "brainweb-1"
    texture: float = 0.03
    coil_shading: float = 0.0
    b0_hz: float = 0.0
    t2_star: bool = False
    n_noise_readouts: int = 16
    oversampling: int = 2
    through_samples: int = 1

    def __post_init__(self) -> None:
        _require(min(self.matrix) >= 8 and self.n_slices >= 1, "matrix and n_slices are too small")
        _require(min(self.voxel_mm) > 0, "voxel_mm must be positive")
        _require(0 < self.te_ms < self.tr_ms, "te_ms must lie between 0 and tr_ms")
        _require(0 <= self.variation < 1, f"variation is {self.variation}", "0.05 for 5 %")
        _require(0 < self.fraction <= 1, f"fraction is {self.fraction}", "0.3 for 30 %, 1 for all lines")
        _require(1 <= self.n_centre <= self.matrix[1], f"n_centre is {self.n_centre}")
        _require(0 <= self.noise < np.inf, f"noise is {self.noise}", "0.1 for 10 %, 0 for none")
        _require(1 <= self.concatenations <= self.n_slices, f"concatenations is {self.concatenations}")
        _require(self.n_coils >= 1 and self.readout_oversampling >= 1, "n_coils and readout_oversampling start at 1")
        _require(self.relaxation in ("brainweb-1", "brainweb-20"), f"relaxation is {self.relaxation!r}")
        _require(self.oversampling >= 1 and self.through_samples >= 1, "oversampling starts at 1")
        readout_ms = 1e3 / self.bandwidth_hz_per_pixel
        _require(
            readout_ms < self.te_ms,
            f"a readout of {readout_ms:.1f} ms does not fit around TE {self.te_ms:g} ms",
            "raise bandwidth_hz_per_pixel",
        )

    @property
    def n_samples(self) -> int:
        """Samples of a line."""
        return self.matrix[0] * self.readout_oversampling

    @property
    def dwell_us(self) -> float:
        return 1e6 / (self.bandwidth_hz_per_pixel * self.n_samples)

    @property
    def n_lines(self) -> int:
        """Acquired lines of a slice."""
        return max(round(self.fraction * self.matrix[1]), min(self.n_centre, self.matrix[1]))

    @property
    def geometry(self) -> Geometry:
        """The stack of slices as one volume."""
        (nx, ny), (vx, vy, vz), n = self.matrix, self.voxel_mm, self.n_slices
        return Geometry((nx, ny, n), (nx * vx, ny * vy, n * vz), self.position_mm)

    def slice_geometry(self, number: int) -> Geometry:
        """One slice."""
        stack = self.geometry
        fx, fy, _ = stack.field_of_view_mm
        matrix = (self.matrix[0], self.matrix[1], 1)
        return Geometry(matrix, (fx, fy, self.voxel_mm[2]), stack.slice_position_mm(number))

    def drawn_times_ms(self, rng: np.random.Generator) -> tuple[float, float]:
        """Echo and repetition time of one scan, each within its variation of the mean (uniform)."""
        te, tr = (mean * (1 + self.variation * rng.uniform(-1, 1)) for mean in (self.te_ms, self.tr_ms))
        return float(te), float(tr)

    def order(self) -> NDArray[np.intp]:
        """``(readouts, 3)``: slice, number of the line within its slice, number of the TR; in the order of time."""
        groups = np.array_split(np.arange(self.n_slices), self.concatenations)
        rows = []
        for number, group in enumerate(groups):
            interleaved = np.concatenate((group[::2], group[1::2]))  # neighbours are not excited one after the other
            line, place = (a.reshape(-1) for a in np.indices((self.n_lines, len(group))))
            rows.append(np.stack([interleaved[place], line, number * self.n_lines + line], axis=1))
        return np.concatenate(rows)

    def scan(self, te_ms: float, tr_ms: float) -> Scan:
        """What the MRD header says, without the XML itself."""
        (nx, ny), os = self.matrix, self.readout_oversampling
        fx, fy, fz = self.slice_geometry(0).field_of_view_mm
        return Scan(
            encoded_matrix=(nx * os, ny, 1),
            recon_matrix=(nx, ny, 1),
            encoded_fov_mm=(fx * os, fy, fz),
            recon_fov_mm=(fx, fy, fz),
            trajectory="cartesian",
            limits={
                "kspace_encode_step_1": EncodingLimit(0, ny - 1, ny // 2),
                "slice": EncodingLimit(0, self.n_slices - 1, 0),
            },
            n_coils=self.n_coils,
            h1_frequency_hz=round(_FIELD_STRENGTH_T * _GAMMA_HZ_PER_T),
            field_strength_t=_FIELD_STRENGTH_T,
            tr_ms=tr_ms,
            te_ms=te_ms,
            flip_angle_deg=90.0,
            protocol_name="brain_spin_echo",
            user_parameters={"readouts_per_frame": self.n_lines},
        )


def _require(condition: bool, what: str, hint: str = "") -> None:
    if not condition:
        raise ConfigError(what, where="brain protocol", hint=hint)
