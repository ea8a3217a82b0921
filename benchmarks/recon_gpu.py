"""The torch path of the reconstruction on a GPU: latency per frame, and how much of the memory bandwidth it uses.

    python -m kstream.benchmarks.recon_gpu --device cuda --full --json gpu.json
    python -m kstream.benchmarks.recon_gpu  # small, on the processor: that it runs and is right

What one angle must move at least is every coil map once, and the volume twice (read and written). That, over the time
of one angle, beside the bandwidth of a copy on the same device, is the fraction reached; temporary arrays are not
counted. The result is compared with the compiled loops of the processor, and ESPIRiT is timed on both.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kstream.benchmarks.recon_peers import FULL, Frame, Size, smooth_maps
from kstream.recon.espirit import CoilMaps, coil_maps
from kstream.recon.fourier import to_kspace
from kstream.recon.gpu import TorchSums, torch_coil_maps
from kstream.recon.zero_wait import SpokeSum

SMOKE = Size(matrix=72, n_slices=6, n_partitions=5, n_coils=8, n_spokes=12)


def median_s(work: Callable[[], Any], device: str, repeats: int = 7) -> float:
    """Wall time of work that has reached its end on the device."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def copy_bandwidth(device: str, n_bytes: int = 2**28) -> float:
    """Bytes per second, read and written, of a copy within the device's memory."""
    source = torch.zeros(n_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * n_bytes / median_s(lambda: target.copy_(source), device)


def adjoint(size: Size, device: str) -> dict[str, Any]:
    """Spokes to combined k-space of one frame."""
    frame, maps = Frame(size), smooth_maps(size)
    make = TorchSums(device)
    total, reference = make(maps, frame.to_z), SpokeSum(maps, frame.to_z)
    for angle in zip(frame.samples, frame.k, frame.weights, strict=True):
        total.add(*angle)
        reference.add(*angle)
    error = float(np.linalg.norm(total.kspace() - reference.kspace()) / np.linalg.norm(reference.kspace()))
    last = frame.samples[-1], frame.k[-1], frame.weights[-1]
    add_s, kspace_s = median_s(lambda: total.add(*last), device), median_s(total.kspace, device)
    voxels = size.n_slices * size.matrix**2
    least_bytes = 8 * voxels * (size.n_coils + 2)
    bandwidth = copy_bandwidth(device)
    return {
        "add_angle_s": add_s,
        "kspace_s": kspace_s,
        "last_readout_to_kspace_s": add_s + kspace_s,
        "whole_frame_s": size.n_spokes * add_s + kspace_s,
        "least_bytes_per_angle": least_bytes,
        "copy_bytes_per_s": bandwidth,
        "fraction_of_bandwidth": least_bytes / add_s / bandwidth,
        "difference_from_compiled": error,
    }


def espirit(size: Size, device: str, calibration: int = 24) -> dict[str, float]:
    """Coil maps of all slices on the device and on one processor."""
    rng = np.random.default_rng(0)
    smooth = smooth_maps(size).full()
    y, x = np.mgrid[: size.matrix, : size.matrix] - size.matrix // 2
    images = smooth * (np.hypot(y, x) < 0.4 * size.matrix)
    kspace = to_kspace(images.astype(np.complex64))
    low = size.matrix // 2 - calibration // 2
    centre = kspace[..., low : low + calibration, low : low + calibration]
    noise = rng.standard_normal((*centre.shape, 2), np.float32).view(np.complex64)[..., 0]
    centre = (centre + 0.02 * noise).astype(np.complex64)
    shape, found = (size.matrix, size.matrix), {}

    def make(find: Callable[..., CoilMaps], name: str) -> None:
        found[name] = find(centre, shape, crop=0.8).full()

    on_device = median_s(partial(make, partial(torch_coil_maps, device=device), "torch"), device, 2)
    compiled = median_s(partial(make, coil_maps, "compiled"), "cpu", 2)
    agreement = np.abs((found["torch"].conj() * found["compiled"]).sum(0))
    inside = (np.abs(found["torch"]).sum(0) > 0) & (np.abs(found["compiled"]).sum(0) > 0)
    return {
        "torch_s_per_slice": on_device / size.n_slices,
        "compiled_s_per_slice": compiled / size.n_slices,
        "disagreement": float(1 - agreement[inside].mean(dtype=np.float64)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--full", action="store_true", help="the size of the papers: 192 slices, 4 GB on the device")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    size = FULL if arguments.full else SMOKE
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "processor"
    found = {"device": name, "size": asdict(size), "adjoint": adjoint(size, arguments.device)}
    found["espirit"] = espirit(size, arguments.device)
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
