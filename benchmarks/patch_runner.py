"""One engine in a process of its own, as a worker has it: ``python -m kstream.benchmarks.patch_runner MODEL ENGINE``.

``eager`` is float32 as PyTorch ships it, without kstream's engines and memory settings. Prints what the engine says of
itself, then for every line ``Z Y X`` of its input runs one patch of that shape and prints the seconds; for ``peak``,
its peak memory in bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kstream.benchmarks.client import peak_bytes

Run = Callable[[NDArray[np.float32]], Any]


def eager(model: str) -> tuple[Run, dict[str, str]]:
    import torch

    from kstream.models.bundle import Bundle

    network = Bundle.load(model).build()

    def run(patch: NDArray[np.float32]) -> None:
        with torch.inference_mode():
            network(torch.from_numpy(patch))

    return run, {"engine": "torch, eager", "precision": "fp32", "threads": str(torch.get_num_threads())}


def default(model: str) -> tuple[Run, dict[str, str]]:
    import torch

    from kstream.engines import load_engine
    from kstream.models.bundle import Bundle

    engine = load_engine(Bundle.load(model))
    return engine.run, {**engine.describe(), "threads": str(torch.get_num_threads())}


@dataclass
class PatchProcess:
    """The process behind one engine; `facts` is what it says of itself."""

    process: subprocess.Popen[str]
    facts: dict[str, str]

    def seconds(self, shape: tuple[int, int, int]) -> float:
        """Run one patch ``(z, y, x)``."""
        return float(self._ask(" ".join(map(str, shape))))

    def peak_bytes(self) -> int:
        return int(self._ask("peak"))

    def _ask(self, what: str) -> str:
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the process has no pipes")
        print(what, file=self.process.stdin, flush=True)
        return self.process.stdout.readline()


@contextlib.contextmanager
def patches_on(model: str, engine: str) -> Iterator[PatchProcess]:
    """An engine that is loaded."""
    command = [sys.executable, "-P", "-m", "kstream.benchmarks.patch_runner", model, engine]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline() if process.stdout is not None else ""
        if not line:
            raise RuntimeError(f"the engine {engine} cannot be loaded: exit code {process.wait()}")
        try:
            yield PatchProcess(process, json.loads(line))
        finally:
            process.terminate()


def main(model: str, engine: str) -> None:
    if engine != "eager":
        from kstream.engines.memory import keep_large_blocks

        keep_large_blocks()  # before there are threads
    run, facts = (eager if engine == "eager" else default)(model)
    print(json.dumps(facts), flush=True)
    patches: dict[str, NDArray[np.float32]] = {}
    for line in map(str.strip, sys.stdin):
        if line == "peak":
            print(peak_bytes(os.getpid()), flush=True)
            continue
        if line not in patches:
            shape = (1, 2, *map(int, line.split()))
            patches[line] = np.random.default_rng(0).standard_normal(shape, np.float32)
            run(patches[line])  # the gate looks at every new size, once for a machine
        begin = time.perf_counter()
        run(patches[line])
        print(time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
