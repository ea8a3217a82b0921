"""Scans of any size without a simulation: a few Gaussian blobs, whose samples are known in closed form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kstream.mrd.codec import encode
from kstream.mrd.header import build_header
from kstream.mrd.messages import new_acquisition
from kstream.types import GOLDEN_ANGLE_RAD, Acquisition, EncodingLimit, Scan

PLACES = np.array([[0.1, -0.2, 0.05], [-0.22, 0.1, -0.1], [0.02, 0.03, 0.0], [0.3, 0.25, 0.2]])
WIDTHS = np.array([0.03, 0.05, 0.2, 0.02])
ENHANCED = 0
"""The blob that takes up contrast agent: brighter in every frame after the first."""

REFERENCE = (16, 640)
"""Coils and samples of an acquisition in the papers: 87 382 bytes on the wire, with its 2-D trajectory."""


@dataclass(frozen=True)
class Size:
    """Sizes of a golden-angle stack of stars; the defaults are those of the papers, and voxels are always 1 mm."""

    matrix: int = 320
    n_slices: int = 192
    n_partitions: int = 83
    n_coils: int = 16
    n_spokes: int = 96
    n_frames: int = 2

    @property
    def n_readouts(self) -> int:
        return self.n_spokes * self.n_frames * self.n_partitions


def scan_of(size: Size) -> Scan:
    """The header's content; ``build_header`` makes its XML."""
    n, total = size.matrix, size.n_spokes * size.n_frames
    return Scan(
        encoded_matrix=(2 * n, 2 * n, size.n_slices),
        recon_matrix=(n, n, size.n_slices),
        encoded_fov_mm=(2.0 * n, 2.0 * n, float(size.n_slices)),
        recon_fov_mm=(float(n), float(n), float(size.n_slices)),
        trajectory="goldenangle",
        limits={
            "kspace_encode_step_1": EncodingLimit(0, total - 1, 0),
            "kspace_encode_step_2": EncodingLimit(0, size.n_partitions - 1, size.n_partitions // 2),
        },
        n_coils=size.n_coils,
        h1_frequency_hz=123_000_000,
        user_parameters={"n_frames": size.n_frames, "trajectory_units": "cycles_per_fov"},
    )


def header_of(size: Size) -> bytes:
    return build_header(scan_of(size))


def messages(size: Size) -> Iterator[bytes]:
    """Encoded readouts of the whole scan, angle by angle."""
    for spoke in range(size.n_spokes * size.n_frames):
        yield from angle_messages(size, spoke)


def angle_messages(size: Size, spoke: int) -> list[bytes]:
    """Encoded readouts of all partitions of one spoke."""
    rng = np.random.default_rng(0)
    shape = (size.n_coils, len(WIDTHS))
    coils = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    coils[:, ENHANCED] *= 1.0 if spoke < size.n_spokes else 1.5
    radius = (np.arange(2 * size.matrix) - size.matrix) / 2
    angle = spoke * GOLDEN_ANGLE_RAD
    trajectory = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).astype(np.float32)
    kz = np.arange(size.n_partitions) - size.n_partitions // 2
    in_plane = np.exp(-2j * np.pi * trajectory @ PLACES[:, :2].T - (np.pi * radius[:, None] * WIDTHS) ** 2)
    along_z = np.exp(-2j * np.pi * np.outer(kz, PLACES[:, 2]) - (np.pi * kz[:, None] * WIDTHS) ** 2)
    data = np.einsum("cb,pb,sb->pcs", coils, along_z, in_plane, optimize=True).astype(np.complex64)
    return [
        encode(
            new_acquisition(
                data[p],
                trajectory,
                counters={"kspace_encode_step_1": spoke, "kspace_encode_step_2": p},
                read_dir=(1, 0, 0),
                phase_dir=(0, 1, 0),
                slice_dir=(0, 0, 1),
            )
        )
        for p in range(size.n_partitions)
    ]


def random_acquisition(
    n_coils: int = REFERENCE[0], n_samples: int = REFERENCE[1], flags: int = 0, acquisition_time_stamp: int = 0
) -> Acquisition:
    """One acquisition of noise with a 2-D trajectory."""
    rng = np.random.default_rng(0)
    data = rng.standard_normal((n_coils, n_samples, 2)).astype(np.float32).view(np.complex64)[..., 0]
    trajectory = rng.standard_normal((n_samples, 2)).astype(np.float32)
    return new_acquisition(data, trajectory, flags=flags, acquisition_time_stamp=acquisition_time_stamp)
