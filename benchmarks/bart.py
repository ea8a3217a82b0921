"""BART beside us: its own program in a process of its own, fed through its own files (https://mrirecon.github.io/bart)."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

PROGRAM = shutil.which("bart")


def write(path: Path, data: np.ndarray) -> None:
    """An array as BART's pair of files: sizes as text, complex64 with the first axis fastest.

    Axes are given in our order, the last one fastest, so ``(coils, z, y, x)`` becomes BART's ``x, y, z, coils``.
    """
    sizes = " ".join(str(n) for n in data.shape[::-1])
    path.with_suffix(".hdr").write_text(f"# Dimensions\n{sizes}\n")
    np.ascontiguousarray(data, np.complex64).tofile(path.with_suffix(".cfl"))


def read(path: Path) -> np.ndarray:
    """What BART wrote, axes of length 1 left out, the last one fastest."""
    sizes = path.with_suffix(".hdr").read_text().splitlines()[1].split()
    data = np.fromfile(path.with_suffix(".cfl"), np.complex64).reshape([int(n) for n in sizes][::-1])
    return data.squeeze()


def run(command: str, inputs: Mapping[str, np.ndarray], n_threads: int = 1) -> tuple[np.ndarray, float, float]:
    """Result of a command with arrays for its words in braces, and wall and processor seconds without those of a start.

    ``run("nufft -a {trajectory} {samples}", {...})``; the name of the output is added at the end.

    Raises
    ------
    RuntimeError : BART is not installed, or failed.
    """
    if PROGRAM is None:
        raise RuntimeError("bart is not installed")
    environment = {**os.environ, "OMP_NUM_THREADS": str(n_threads), "OPENBLAS_NUM_THREADS": str(n_threads)}
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / name for name in (*inputs, "out")}
        for name, data in inputs.items():
            write(paths[name], data)
        words = [*command.format(**paths).split(), str(paths["out"])]
        start_wall_s, start_cpu_s = _spent([PROGRAM, "version"], environment)
        wall_s, cpu_s = _spent([PROGRAM, *words], environment)
        return read(paths["out"]), wall_s - start_wall_s, cpu_s - start_cpu_s


def _spent(words: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall and processor seconds of one process."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    wall_s, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"bart {words[1]} failed: {done.stderr[-500:]}")
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
