"""From the last readout to coil-combined k-space, and coil maps: ours beside SigPy, FINUFFT, ducc0 and BART.

    python -m kstream.benchmarks.recon_peers --full --json recon.json

All get the same white samples, weights and maps. Peers start at the last readout: kz -> z transform of the samples,
adjoint of every coil and slice, combination, and the transform to k-space. They are timed on a few slices and scaled to
all, their kz -> z transform is timed whole. Ours has added 95 angles before; its last angle and its transform are timed
on the whole volume. Maps have no empty voxels, which ours would skip. BART, where it is installed, runs in a process of
its own, whose start is taken off. Errors are the larger of those at z = 0 and at a slice off the centre (BART: z = 0).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

# Threads inside BLAS only wait for each other on small matrices; must be said before numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import ducc0
import finufft
import numpy as np
import scipy.fft
import sigpy
import sigpy.mri

from kstream.benchmarks import bart
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
        self.to_z = dft_matrix(np.arange(size.n_partitions, dtype=float) - size.n_partitions // 2, size.n_slices)


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
    add = [spent(partial(total.add, *angle)) for angle in angles[:-1]]
    last = angles[-1]
    total.add(*last)
    kspace = total.kspace()

    def last_angle() -> None:
        total.add(*last)
        total.kspace()

    ours = spent(last_angle, 7)
    crew.close()
    slices = in_slices(frame, size)
    along_z = spent(lambda: in_slices(frame, size))
    middle = size.n_slices // 2
    k = np.concatenate(frame.k).T.astype(np.float64, order="C") * (2 * np.pi / size.matrix)
    # Errors are the larger of two slices: z = 0, and one off the centre, where the phase of every partition counts.
    judged = [0, max(size.n_slices // 3, 1)]
    conjugate = {z: np.ascontiguousarray(maps_of(maps, (middle + z) % size.n_slices).conj()) for z in judged}
    timed = [np.ascontiguousarray(maps_of(maps, middle + z).conj()) for z in range(size.timed_slices)]

    def exact_slice(z: int) -> np.ndarray:
        samples = slices[z].astype(np.complex128)
        coils = finufft.nufft2d1(k[1], k[0], samples, (size.matrix,) * 2, eps=1e-9, isign=1)
        return np.asarray(to_kspace((conjugate[z] * coils / size.matrix).sum(0)))

    exact = {z: exact_slice(z) for z in judged}
    results: dict[str, Any] = {
        "ours": {
            "latency_s": ours[0],
            "cpu_s": ours[1],
            "error": max(_error(kspace[(middle + z) % size.n_slices], exact[z]) for z in judged),
            "add_s": float(np.median([wall for wall, _ in add])),
            "add_cpu_s": float(np.median([cpu for _, cpu in add])),
        }
    }
    share = size.n_slices / size.timed_slices
    for name, adjoint in peers(frame, size).items():
        found = {z: to_kspace((conjugate[z] * adjoint(slices[z])).sum(0)) for z in judged}

        def some_slices(adjoint: Callable[[np.ndarray], np.ndarray] = adjoint) -> None:
            for z in range(size.timed_slices):
                to_kspace((timed[z] * adjoint(slices[z])).sum(0))

        wall_s, cpu_s = (along + share * part for along, part in zip(along_z, spent(some_slices), strict=True))
        results[name] = {
            "latency_s": wall_s,
            "cpu_s": cpu_s,
            "error": max(_error(found[z], exact[z]) for z in judged),
            "ratio": wall_s / ours[0],
            "cpu_ratio": cpu_s / ours[1],
        }
    if bart.PROGRAM:
        results["bart"] = _by_bart(frame, size, slices[0], conjugate[0], exact[0], along_z, ours)
    return {"size": asdict(size), "along_z_s": along_z, "load": os.getloadavg()[0], "results": results}


def _by_bart(
    frame: Frame,
    size: Size,
    samples: np.ndarray,
    conjugate: np.ndarray,
    exact: np.ndarray,
    along_z: tuple[float, float],
    ours: tuple[float, float],
) -> dict[str, float]:
    """Its adjoint of all coils of one slice, two threads; the scale of its transform is fitted."""
    k = np.stack([np.concatenate(frame.k).reshape(size.n_spokes, -1, 3)])
    inputs = {"trajectory": k, "samples": samples.reshape(size.n_coils, size.n_spokes, -1, 1)}
    n = size.matrix
    command = f"nufft -a -d {n}:{n}:1 {{trajectory}} {{samples}}"
    coils, wall_s, cpu_s = bart.run(command, inputs, n_threads=2)
    found = to_kspace((conjugate * coils).sum(0))
    found = found * (np.vdot(found, exact) / np.vdot(found, found))
    latency_s, total_cpu_s = along_z[0] + size.n_slices * wall_s, along_z[1] + size.n_slices * cpu_s
    return {
        "latency_s": latency_s,
        "cpu_s": total_cpu_s,
        "error": _error(found, exact),
        "ratio": latency_s / ours[0],
        "cpu_ratio": total_cpu_s / ours[1],
    }


def maps_of(maps: CoilMaps, z: int) -> np.ndarray:
    """Maps of one slice on every voxel: complex64 ``(coils, y, x)``."""
    return CoilMaps(maps.vectors[:, z : z + 1], maps.scale[:, z : z + 1], maps.n_coils).full()[:, 0]


def _error(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


THRESHOLD, CROP, KERNEL = 0.02, 0.8, 6
"""Of ESPIRiT, for everyone; BART's threshold is one of eigenvalues, so its square."""


def compare_espirit(matrix: int = 320, n_coils: int = 16, n_slices: int = 4, calibration: int = 32) -> dict[str, Any]:
    """Maps of a head phantom: processor time per slice on one thread, agreement with the truth and with the peers.

    All get the same centre of k-space, kernel, threshold and crop. SigPy and BART get one slice: neither does better
    with several. BART's time is that of its process without what one takes to start.
    """
    rng = np.random.default_rng(0)
    true = sigpy.mri.birdcage_maps((n_coils, matrix, matrix)).astype(np.complex64)
    true /= np.sqrt((np.abs(true) ** 2).sum(0))
    phantom = np.abs(sigpy.shepp_logan((matrix, matrix))).astype(np.complex64)
    noise = rng.standard_normal((n_coils, matrix, matrix, 2), np.float32).view(np.complex64)[..., 0]
    images = (true * phantom + 0.02 * noise).astype(np.complex64)
    kspace = to_kspace(images)
    low = matrix // 2 - calibration // 2
    centre = kspace[:, None, low : low + calibration, low : low + calibration].repeat(n_slices, axis=1)
    coil_maps(centre[:, :1], (matrix, matrix), kernel=KERNEL, threshold=THRESHOLD, crop=CROP)

    def ours() -> CoilMaps:
        return coil_maps(centre, (matrix, matrix), kernel=KERNEL, threshold=THRESHOLD, crop=CROP)

    seconds = {"ours": spent(ours, 3)[1] / n_slices}
    found = {"ours": ours().full()[:, 0]}

    def by_sigpy() -> None:
        app = sigpy.mri.app.EspiritCalib(
            kspace, calib_width=calibration, kernel_width=KERNEL, thresh=THRESHOLD, crop=CROP, show_pbar=False
        )
        found["sigpy"] = app.run()

    seconds["sigpy"] = spent(by_sigpy)[1]
    if bart.PROGRAM:
        command = f"ecalib -k {KERNEL} -r {calibration} -t {THRESHOLD**2:g} -c {CROP} -m 1 {{kspace}}"
        found["bart"], _, seconds["bart"] = bart.run(command, {"kspace": kspace[:, None]})
    inside = np.abs(phantom) > 0
    for maps in found.values():
        inside &= np.abs(maps).sum(0) > 0

    def disagreement(a: np.ndarray, b: np.ndarray) -> float:
        return float(1 - np.abs((a.conj() * b).sum(0))[inside].mean(dtype=np.float64))

    def residual(maps: np.ndarray) -> float:
        left = images - maps * (maps.conj() * images).sum(0)
        return float(np.linalg.norm(left[:, inside]) / np.linalg.norm(images[:, inside]))

    peers = [name for name in found if name != "ours"]
    return {
        **{f"{name}_s": value for name, value in seconds.items()},
        "ratio": seconds["sigpy"] / seconds["ours"],
        **{f"{name}_ratio": seconds[name] / seconds["ours"] for name in peers},
        **{f"{name}_from_truth": disagreement(maps, true) for name, maps in found.items()},
        **{f"ours_from_{name}": disagreement(found["ours"], found[name]) for name in peers},
        "residual": {"truth": residual(true), **{name: residual(maps) for name, maps in found.items()}},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="192 slices, 3 GB")
    parser.add_argument("--only", choices=("espirit", "adjoint"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    if arguments.only != "adjoint":
        found["espirit"] = compare_espirit()
    if arguments.only != "espirit":
        found["adjoint"] = compare_adjoint(FULL if arguments.full else Size())
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
