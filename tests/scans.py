"""Small scans for tests: an object of a few points, seen by known coils, on golden-angle spokes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kstream.mrd.header import build_header
from kstream.mrd.messages import ACQUISITION_HEADER
from kstream.readouts.trajectory import GOLDEN_ANGLE_RAD
from kstream.types import Acquisition, AcquisitionFlag, Complex, EncodingLimit, Float, Scan


@dataclass(frozen=True)
class StackOfStars:
    """A tiny stack of stars; sizes are odd and different, so that swapped axes fail."""

    nx: int = 19
    ny: int = 19
    nz: int = 5
    n_partitions: int = 4
    n_coils: int = 3
    spokes_per_frame: int = 13
    n_frames: int = 3

    @property
    def n_samples(self) -> int:
        return 2 * self.nx

    def scan(self) -> Scan:
        scan = Scan(
            encoded_matrix=(self.n_samples, self.n_samples, self.nz),
            recon_matrix=(self.nx, self.ny, self.nz),
            encoded_fov_mm=(400.0, 400.0, 50.0),
            recon_fov_mm=(200.0, 200.0, 50.0),
            trajectory="goldenangle",
            limits={
                "kspace_encode_step_1": EncodingLimit(0, self.spokes_per_frame * self.n_frames - 1, 0),
                "kspace_encode_step_2": EncodingLimit(0, self.n_partitions - 1, self.nz // 2),
                "slice": EncodingLimit(0, 0, 0),
                "repetition": EncodingLimit(0, 0, 0),
            },
            n_coils=self.n_coils,
            h1_frequency_hz=63_870_000,
            user_parameters={"n_frames": self.n_frames, "trajectory_units": "cycles_per_fov"},
        )
        return replace(scan, xml=build_header(scan))

    def spoke(self, number: int) -> Float:
        radius = (np.arange(self.n_samples) - self.n_samples // 2) / 2
        angle = number * GOLDEN_ANGLE_RAD
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype(np.float32)

    def acquisitions(self, rng: np.random.Generator, noise: int = 0) -> list[Acquisition]:
        """Random samples on the right trajectory: linear algebra does not care what they show."""
        out = [self._noise(rng) for _ in range(noise)]
        for spoke in range(self.spokes_per_frame * self.n_frames):
            for partition in range(self.n_partitions):
                shape = (self.n_coils, self.n_samples)
                data = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
                out.append(self.acquisition(data.astype(np.complex64), self.spoke(spoke), spoke, partition))
        return out

    def acquisition(self, data: Complex, trajectory: Float, spoke: int, partition: int) -> Acquisition:
        header = np.zeros(1, ACQUISITION_HEADER)[0]
        header["version"] = 1
        header["number_of_samples"] = data.shape[1]
        header["available_channels"] = header["active_channels"] = data.shape[0]
        header["center_sample"] = data.shape[1] // 2
        header["trajectory_dimensions"] = trajectory.shape[1]
        header["read_dir"], header["phase_dir"], header["slice_dir"] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
        header["idx"]["kspace_encode_step_1"], header["idx"]["kspace_encode_step_2"] = spoke, partition
        return Acquisition(header, data, trajectory)

    def _noise(self, rng: np.random.Generator) -> Acquisition:
        mix = np.array([[1, 0.4, 0], [0, 1, 0.3j], [0, 0, 2]])[: self.n_coils, : self.n_coils]
        white = rng.standard_normal((self.n_coils, 64)) + 1j * rng.standard_normal((self.n_coils, 64))
        acquisition = self.acquisition((mix @ white).astype(np.complex64), np.zeros((64, 0), np.float32), 0, 0)
        acquisition.header["flags"] = np.uint64(AcquisitionFlag.IS_NOISE_MEASUREMENT)
        return acquisition


def exact_adjoint(data: Complex, trajectory: Float, weights: Float, shape: tuple[int, int]) -> Complex:
    """Slow weighted adjoint DFT of one readout ``(coils, samples)``: complex ``(coils, y, x)``."""
    ny, nx = shape
    y, x = np.mgrid[:ny, :nx]
    phase = trajectory[:, 0, None, None] * (x - nx // 2) / nx + trajectory[:, 1, None, None] * (y - ny // 2) / ny
    return np.einsum("cs,s,syx->cyx", data, weights, np.exp(2j * np.pi * phase)) / np.sqrt(nx * ny)
