"""What this machine and its libraries are, as far as a compiled engine or a calibration depends on it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from .torch_engine import find_device

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")
"""Of ``/proc/cpuinfo``: those by which oneDNN and compilers choose their code."""


def capability(device: str) -> str:
    """What compiled code is good for: the CPU's instruction sets, or the GPU's name and compute capability.

    Raises
    ------
    ModelError : there is no such device here.
    """
    find_device(device)
    if device.startswith("cuda"):
        major, minor = torch.cuda.get_device_capability(device)
        return f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
    return " ".join((platform.machine(), torch.backends.cpu.get_cpu_capability(), *cpu_flags()))


def cpu_flags() -> tuple[str, ...]:
    """Those of `FLAGS` that this CPU has; none where the system does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ()
    lines = [line for line in text.splitlines() if line.startswith(("flags", "Features"))]
    found = set(lines[0].partition(":")[2].split()) if lines else set()
    return tuple(flag for flag in FLAGS if flag in found)


def has_fast_bf16(device: str) -> bool:
    """True where bfloat16 is worth a trial."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(cpu_flags()))


@contextlib.contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it is not there: what is in it changes for one at a time.

    Raises
    ------
    OSError : the folder cannot be made or opened; or, without `wait`, somebody else holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def cache_folder() -> Path:
    """Where compiled engines and calibrations are kept: ``KSTREAM_CACHE``, or ``kstream`` in the user's cache.

    A service without a home has ``/var/cache/kstream``, never a folder that others can write: engines are code.
    """
    if own := os.environ.get("KSTREAM_CACHE"):
        return Path(own)
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "kstream"
    try:
        return Path.home() / ".cache" / "kstream"
    except RuntimeError:
        return Path("/var/cache/kstream")
