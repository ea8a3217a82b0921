"""From the last readout to coil-combined k-space, and coil maps: ours beside SigPy, FINUFFT and ducc0 in one process.

    python benchmarks/recon_peers.py --full --json recon.json

All get the same white samples, weights and maps. Peers start at the last readout: kz -> z transform of the samples,
adjoint of every coil and slice, combination, and the transform to k-space. They are timed on a few slices and scaled to
all, their kz -> z transform is timed whole. Ours has added 95 angles before; its last angle and its transform are timed
on the whole volume. Maps have no empty voxels, which ours would skip.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ducc0
import finufft
import numpy as np
import scipy.fft
import sigpy
import sigpy.mri

from kstream.recon import kernels
from kstream.recon.density import polar_weights
from kstream.recon.espirit import CoilMaps, coil_maps
from kstream.recon.fourier import dft_matrix, to_kspace
from kstream.recon.zero_wait import SpokeSum
from kstream.stream.runners import ThreadCrew
from kstream.types import GOLDEN_ANGLE_RAD


@dataclass(frozen=True)
class Size:
    """Of the scan; `full` is that of the papers, the default has fewer slices."""

    matrix: int = 320
    n_slices: int = 24
    n_partitions: int = 11
    n_coils: int = 16
    n_spokes: int = 96
    timed_slices: int = 2


FULL = Size(n_slices=192, n_partitions=83, timed_slices=4)


def spent(work: Callable[[], Any], repeats: int = 1) -> tuple[float, float]:
    """Median of wall time and of processor time, in seconds; on a busy machine only the second can be compared."""
    times = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall_s, cpu_s = np.median(times, axis=0)
    return float(wall_s), float(cpu_s)


def smooth_maps(size: Size) -> CoilMaps:
    """Birdcage maps at 64 nodes, the same in all slices but for a phase; unit norm everywhere."""
    nodes = sigpy.mri.birdcage_maps((size.n_coils, 64, 64)).astype(np.complex64)
    turn = np.exp(1j * np.linspace(0, 1, size.n_slices)).astype(np.complex64)
    field = np.ascontiguousarray((nodes[:, None] * turn[:, None, None]).transpose(1, 2, 3, 0))
    vectors = np.zeros((1, size.n_slices, 64, 64, 2, kernels.padded(size.n_coils)), np.float32)
    vectors[0, ..., 0, : size.n_coils], vectors[0, ..., 1, : size.n_coils] = field.real, field.imag
    maps = CoilMaps(vectors, np.ones((1, size.n_slices, size.matrix, size.matrix), np.float32), size.n_coils)
    length = np.empty((size.matrix, size.matrix), np.float32)
    kernels.interpolate(vectors[0, 0], np.zeros((64, 64), np.float32), *maps.nodes, length, np.empty_like(length))
    maps.scale[:] = 1 / length
    return maps


class Frame:
    """Samples ``(spokes, partitions, coils, samples)`` and where they lie."""

    def __init__(self, size: Size) -> None:
        rng = np.random.default_rng(0)
        n = size.matrix
        radius = (np.arange(2 * n) - n) / 2
        angles = np.arange(size.n_spokes) * GOLDEN_ANGLE_RAD
        self.k = [np.stack([radius * np.cos(a), radius * np.sin(a), 0 * radius], 1).astype(np.float32) for a in angles]
        self.weights = [polar_weights(k, np.pi / size.n_spokes) for k in self.k]
        one = rng.standard_normal((size.n_partitions, size.n_coils, 2 * n, 2), np.float32).view(np.complex64)[..., 0]
        # Every angle gets its own rotation of the same white samples: 0.65 GB would otherwise be random numbers.
        turns = np.exp(2j * np.pi * rng.random((size.n_spokes, 1, 1, 2 * n))).astype(np.complex64)
        self.samples = [one * turn for turn in turns]
        self.to_z = dft_matrix(np.arange(size.n_partitions) - size.n_partitions // 2, size.n_slices)


def in_slices(frame: Frame, size: Size) -> np.ndarray:
    """kz -> z of all weighted samples: complex64 ``(z, coils, spokes * samples)``; slice z lies at ``z - n // 2``."""
    n, n_kz = size.n_slices, size.n_partitions
    weighted = np.stack([y * w for y, w in zip(frame.samples, frame.weights, strict=True)], axis=2)
    full = np.zeros((n, *weighted.shape[1:]), np.complex64)
    full[np.arange(n_kz) - n_kz // 2] = weighted
    lines = scipy.fft.ifft(full, axis=0, norm="ortho", workers=2, overwrite_x=True)
    return np.asarray(lines.reshape(n, size.n_coils, -1))


def peers(frame: Frame, size: Size) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Adjoint of one slice ``(coils, samples)`` to ``(coils, y, x)`` by each of them, two threads."""
    n = size.matrix
    k = np.concatenate(frame.k)[:, 1::-1]
    radians = np.ascontiguousarray(k * np.float32(2 * np.pi / n))
    plan = finufft.Plan(1, (n, n), size.n_coils, eps=1e-3, isign=1, dtype="complex64", nthreads=2)
    y, x = (np.ascontiguousarray(radians[:, axis]) for axis in (0, 1))
    plan.setpts(y, x)

    def by_ducc(data: np.ndarray) -> np.ndarray:
        return np.stack(
            [
                ducc0.nufft.nu2u(
                    points=c, coord=radians, forward=False, epsilon=1e-3, nthreads=2, out=np.empty((n, n), np.complex64)
                )
                for c in data
            ]
        ) / np.float32(n)

    return {
        "sigpy": lambda data: sigpy.nufft_adjoint(data, k, oshape=(size.n_coils, n, n)),
        "finufft 1e-3": lambda data: plan.execute(data) / np.float32(n),
        "ducc0 1e-3": by_ducc,
    }


def compare_adjoint(size: Size) -> dict[str, Any]:
    """Latency and error of everyone."""
    frame, maps, crew = Frame(size), smooth_maps(size), ThreadCrew(2)
    kernels.warm_up()
    total = SpokeSum(maps, frame.to_z, crew)
    angles = list(zip(frame.samples, frame.k, frame.weights, strict=True))
    add = [spent(lambda a=angle: total.add(*a)) for angle in angles[:-1]]
    last = angles[-1]
    total.add(*last)
    kspace = total.kspace()
    ours = spent(lambda: (total.add(*last), total.kspace()), 7)
    crew.close()
    slices = in_slices(frame, size)
    along_z = spent(lambda: in_slices(frame, size))
    middle = size.n_slices // 2
    k = np.concatenate(frame.k).T.astype(np.float64, order="C") * (2 * np.pi / size.matrix)
    exact_coils = finufft.nufft2d1(k[1], k[0], slices[0].astype(np.complex128), (size.matrix,) * 2, eps=1e-9, isign=1)
    conjugate = [np.ascontiguousarray(maps_of(maps, z).conj()) for z in range(middle, middle + size.timed_slices)]
    exact = to_kspace((conjugate[0] * exact_coils / size.matrix).sum(0))
    results: dict[str, Any] = {
        "ours": {
            "latency_s": ours[0],
            "cpu_s": ours[1],
            "error": _error(kspace[middle], exact),
            "add_s": float(np.median([wall for wall, _ in add])),
            "add_cpu_s": float(np.median([cpu for _, cpu in add])),
        }
    }
    share = size.n_slices / size.timed_slices
    for name, adjoint in peers(frame, size).items():
        found = to_kspace((conjugate[0] * adjoint(slices[0])).sum(0))

        def some_slices(adjoint: Callable[[np.ndarray], np.ndarray] = adjoint) -> None:
            for z in range(size.timed_slices):
                to_kspace((conjugate[z] * adjoint(slices[z])).sum(0))

        wall_s, cpu_s = (along + share * part for along, part in zip(along_z, spent(some_slices), strict=True))
        results[name] = {
            "latency_s": wall_s,
            "cpu_s": cpu_s,
            "error": _error(found, exact),
            "ratio": wall_s / ours[0],
            "cpu_ratio": cpu_s / ours[1],
        }
    return {"size": asdict(size), "along_z_s": along_z, "load": os.getloadavg()[0], "results": results}


def maps_of(maps: CoilMaps, z: int) -> np.ndarray:
    """Maps of one slice on every voxel: complex64 ``(coils, y, x)``."""
    return CoilMaps(maps.vectors[:, z : z + 1], maps.scale[:, z : z + 1], maps.n_coils).full()[:, 0]


def _error(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def compare_espirit(matrix: int = 320, n_coils: int = 16, n_slices: int = 4, calibration: int = 32) -> dict[str, Any]:
    """Maps of a head phantom: processor time per slice, agreement with the truth and with SigPy."""
    rng = np.random.default_rng(0)
    true = sigpy.mri.birdcage_maps((n_coils, matrix, matrix)).astype(np.complex64)
    true /= np.sqrt((np.abs(true) ** 2).sum(0))
    phantom = np.abs(sigpy.shepp_logan((matrix, matrix))).astype(np.complex64)
    images = (
        true * phantom + 0.02 * rng.standard_normal((n_coils, matrix, matrix, 2), np.float32).view(np.complex64)[..., 0]
    )
    kspace = to_kspace(images.astype(np.complex64))
    low = matrix // 2 - calibration // 2
    centre = kspace[:, None, low : low + calibration, low : low + calibration].repeat(n_slices, axis=1)
    coil_maps(centre[:, :1], (matrix, matrix), crop=0.8)
    ours_s = spent(lambda: coil_maps(centre, (matrix, matrix), crop=0.8), 3)[1] / n_slices
    ours = coil_maps(centre[:, :1], (matrix, matrix), crop=0.8).full()[:, 0]
    made: list[np.ndarray] = []

    def by_sigpy() -> None:
        app = sigpy.mri.app.EspiritCalib(kspace, calib_width=calibration, kernel_width=6, crop=0.8, show_pbar=False)
        made.append(app.run())

    sigpy_s = spent(by_sigpy)[1]
    (theirs,) = made
    inside = (np.abs(phantom) > 0) & (np.abs(ours).sum(0) > 0) & (np.abs(theirs).sum(0) > 0)

    def disagreement(a: np.ndarray, b: np.ndarray) -> float:
        return float(1 - np.abs((a.conj() * b).sum(0))[inside].mean(dtype=np.float64))

    def residual(maps: np.ndarray) -> float:
        left = images - maps * (maps.conj() * images).sum(0)
        return float(np.linalg.norm(left[:, inside]) / np.linalg.norm(images[:, inside]))

    return {
        "ours_s": ours_s,
        "sigpy_s": sigpy_s,
        "ratio": sigpy_s / ours_s,
        "ours_from_truth": disagreement(ours, true),
        "sigpy_from_truth": disagreement(theirs, true),
        "ours_from_sigpy": disagreement(ours, theirs),
        "residual": {"truth": residual(true), "ours": residual(ours), "sigpy": residual(theirs)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="192 slices, 3 GB")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {"espirit": compare_espirit(), "adjoint": compare_adjoint(FULL if arguments.full else Size())}
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
