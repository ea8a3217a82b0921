"""The zero-wait volume and ESPIRiT in torch, for CUDA; the same code runs on torch's CPU device in tests.

torch is imported here and nowhere else in this room, and this module only when a configuration asks for it.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from ..errors import ConfigError
from ..stream.crew import Crew
from ..types import Complex, Float
from . import kernels
from .calibration import FindMaps
from .espirit import CoilMaps, Weighting, add_displacements, check_calibration, empty_maps, node_waves, set_scale
from .zero_wait import Line, LinePlan, ProfileFilter

TINY = 1e-30
CHUNK_BYTES = 2**29
"""Interpolated profiles, or operators, that are held at a time."""


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have.

    Raises
    ------
    ConfigError : if so.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "there is no CUDA device for the reconstruction",
            where="gridding.device",
            likely="no GPU, no driver, or the CPU build of torch",
            hint="--set gridding.device=cpu",
        )


class TorchSums:
    """Makes volumes on a device; maps are brought there once per set of maps.

    Parameters
    ----------
    device : ``cuda``, or ``cpu`` for tests.

    Raises
    ------
    ConfigError : if this machine has no such device.
    """

    def __init__(self, device: str) -> None:
        check_device(device)
        self._device = torch.device(device)
        self._last: tuple[CoilMaps, torch.Tensor] | None = None

    def __call__(self, maps: CoilMaps, partition_to_z: Complex, crew: Crew | None = None) -> TorchSpokeSum:
        if self._last is None or self._last[0] is not maps:
            self._last = (maps, self._on_device(maps))
        return TorchSpokeSum(self._last[1], torch.from_numpy(partition_to_z).to(self._device))

    def _on_device(self, maps: CoilMaps) -> torch.Tensor:
        """Conjugate maps ``(sets, z, coils, y, x)``; the host never holds more than those of a slice."""
        n_sets, (nz, ny, nx) = len(maps.scale), maps.shape
        out = torch.empty((n_sets, nz, maps.n_coils, ny, nx), dtype=torch.complex64, device=self._device)
        for number in range(n_sets):
            for z in range(nz):
                out[number, z] = torch.from_numpy(maps.full(number, slice(z, z + 1))[:, 0].conj()).to(self._device)
        return out


class TorchSpokeSum:
    """The running coil-combined image of one frame on a device; the steps are those of `zero_wait.SpokeSum`.

    Parameters
    ----------
    maps : complex64 ``(sets, z, coils, y, x)``, conjugate.
    partition_to_z : complex64 ``(z, partitions)``.
    """

    def __init__(self, maps: torch.Tensor, partition_to_z: torch.Tensor) -> None:
        self._maps, self._to_z = maps, partition_to_z
        self.n_sets, nz, self._n_coils, ny, nx = maps.shape
        self._volume = torch.zeros((self.n_sets, nz, ny, nx), dtype=torch.complex64, device=maps.device)
        self._chunk = max(1, CHUNK_BYTES // (8 * self._n_coils * ny * nx))

    def add(self, samples: Complex, trajectory: Float, weights: Float) -> None:
        """Add one angle; arguments as in `SpokeSum.add`."""
        device, (ny, nx) = self._volume.device, (self._volume.shape[2], self._volume.shape[3])
        plan, correction = LinePlan(Line.of(trajectory), (ny, nx)), ProfileFilter(len(weights))
        scaled = torch.from_numpy(weights * correction.correction / np.float32(np.sqrt(ny * nx))).to(device)
        lines = torch.from_numpy(samples).to(device) * scaled
        middle = samples.shape[-1] // 2
        wrapped = torch.zeros((*samples.shape[:2], plan.n_points), dtype=torch.complex64, device=device)
        wrapped[..., : samples.shape[-1] - middle] = lines[..., middle:]
        wrapped[..., plan.n_points - middle :] = lines[..., :middle]
        points = torch.from_numpy(plan.points % plan.n_points).to(device)
        profiles = torch.fft.ifft(wrapped, norm="forward")[..., points]
        taps = torch.from_numpy(correction.taps).to(device).to(torch.complex64)
        places = (
            torch.from_numpy(plan.places[1]).to(device)[:, None] + torch.from_numpy(plan.places[0]).to(device)
        ).ravel()
        below = places.long()
        part = (places - below).to(torch.complex64)
        for first in range(0, len(self._to_z), self._chunk):
            z = slice(first, first + self._chunk)
            in_z = torch.tensordot(self._to_z[z], profiles, dims=1)
            fine = (in_z.unfold(-1, kernels.WIDTH, 1) @ taps.T).flatten(-2)
            low = fine[..., below]
            low += part * (fine[..., below + 1] - low)
            for number in range(self.n_sets):
                total = torch.einsum("zcv,zcv->zv", low, self._maps[number, z].flatten(-2)).reshape(-1, ny, nx)
                if plan.phases is not None:
                    x, y = (torch.view_as_complex(torch.from_numpy(p)).to(device) for p in plan.phases)
                    total = total * (y[:, None] * x)
                self._volume[number, z] += total

    def kspace(self, number: int = 0) -> Complex:
        """Centred k-space in plane of the image so far, combined with one set of maps: complex64 ``(z, y, x)``."""
        image = torch.fft.ifftshift(self._volume[number], dim=(-2, -1))
        kspace = torch.fft.fftshift(torch.fft.fft2(image, norm="ortho"), dim=(-2, -1))
        return np.asarray(kspace.cpu().numpy(), np.complex64)


def torch_coil_maps(
    calibration: Complex,
    shape: tuple[int, int],
    *,
    kernel: int = 6,
    threshold: float = 0.02,
    crop: float = 0.95,
    map_size: int = 64,
    iterations: int = 100,
    n_sets: int = 1,
    weighting: Weighting = "hard",
    crew: Crew | None = None,
    device: str = "cuda",
) -> CoilMaps:
    """`espirit.coil_maps` on a device, many slices at a time; the crew then has nothing to do.

    The mathematics is the same; what differs is how it is cut: all slices at a time with a dense eigensolver here,
    slice by slice with only the eigenvectors that are wanted, and squares of matrices in compiled loops, there.
    """
    check_calibration(calibration, kernel)
    n_coils, nz = calibration.shape[:2]
    maps = empty_maps(nz, n_coils, shape, map_size, n_sets)
    gy, gx = maps.vectors.shape[2:4]
    n_slices = max(1, CHUNK_BYTES // (8 * gy * gx * n_coils**2))
    for first in range(0, nz, n_slices):
        part = slice(first, first + n_slices)
        centre = torch.from_numpy(np.ascontiguousarray(calibration[:, part].transpose(1, 0, 2, 3))).to(device)
        coefficients = _coefficients(centre, kernel, threshold, weighting)
        wave_y, wave_x = (torch.from_numpy(w).to(device) for w in node_waves(2 * kernel - 1, shape, (gy, gx)))
        operators = torch.einsum("yp,zpqcd,xq->zyxcd", wave_y, coefficients, wave_x)
        values = np.empty((n_sets, len(operators), gy, gx), np.float32)
        for number in range(n_sets):
            vectors, value = _dominant(operators, iterations, number)
            found = torch.view_as_real(_turned(vectors)).transpose(-1, -2)
            maps.vectors[number, part, ..., :n_coils] = found.cpu().numpy()
            values[number] = value.cpu().numpy()
            if number + 1 < n_sets:
                operators -= value[..., None, None] * vectors[..., :, None] * vectors[..., None, :].conj()
        for i, z in enumerate(range(nz)[part]):
            set_scale(maps, z, values[:, i], crop, weighting)
    return maps


def _coefficients(centre: torch.Tensor, kernel: int, threshold: float, weighting: Weighting) -> torch.Tensor:
    """Fourier coefficients of the operators of some slices: complex64 ``(z, 2k-1, 2k-1, coils, coils)``."""
    nz, n_coils = centre.shape[:2]
    windows = centre.unfold(2, kernel, 1).unfold(3, kernel, 1).permute(0, 2, 3, 1, 4, 5)
    windows = windows.reshape(nz, -1, n_coils * kernel**2)
    windows = windows / windows.abs().amax((1, 2), keepdim=True).clamp_min(TINY)
    values, vectors = torch.linalg.eigh(windows.mH @ windows)
    lowest = threshold**2 * values[:, -1:]
    weight = (values > lowest).to(values.dtype)
    if weighting == "soft":
        weight = weight * (1 - lowest / values.clamp_min(TINY))
    projector = (vectors.conj() * weight[:, None]) @ vectors.mT
    blocks = projector.reshape(nz, n_coils, kernel, kernel, n_coils, kernel, kernel).permute(0, 2, 3, 5, 6, 1, 4)
    out = torch.zeros((nz, 2 * kernel - 1, 2 * kernel - 1, n_coils, n_coils), dtype=centre.dtype, device=centre.device)
    add_displacements(out, blocks, kernel)
    return out / kernel**2


def _dominant(operators: torch.Tensor, iterations: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Dominant eigenvectors ``(..., coils)`` and values, by powers of the operator; see `kernels.power`."""
    n_coils = operators.shape[-1]
    angle = torch.arange(n_coils, device=operators.device) * (2 * np.pi * number / kernels.padded(n_coils))
    start = torch.polar(torch.ones_like(angle), angle).to(operators.dtype)
    vector = start.expand(operators.shape[:-1])[..., None]
    power, left = operators, iterations
    while left:
        trace = power.diagonal(dim1=-2, dim2=-1).real.sum(-1)[..., None, None]
        power = torch.where(trace < float(kernels.NOTHING), 0, power / trace)
        if left & 1:
            vector = power @ vector
            vector = vector / vector.norm(dim=-2, keepdim=True).clamp_min(TINY)
        left >>= 1
        if left:
            power = power @ power
    return vector[..., 0], (operators @ vector).norm(dim=(-2, -1))


def _turned(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors ``(..., coils)`` with the first coil made real."""
    first = vectors[..., :1]
    return vectors * torch.where(first.abs() > 0, first.conj() / first.abs().clamp_min(TINY), 1)


def on_device(device: str) -> FindMaps:
    """`torch_coil_maps` on a device.

    Raises
    ------
    ConfigError : if this machine has no such device.
    """
    check_device(device)
    return partial(torch_coil_maps, device=device)
