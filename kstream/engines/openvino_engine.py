"""OpenVINO on the CPU, in float32 or bfloat16: quick to build, and least memory.

It reads our ONNX files. It must never be given the DFT of ONNX, which it computes wrongly without a word (2026.4), so
the transform is torch's, or matrix products; and it runs bfloat16 unless it is told otherwise.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .engine import Batch
from .graphs import zeros
from .onnx_export import export_stages, file_name, need, stages_of
from .onnxruntime_engine import fixed
from .profile import Forward, Plan

PRECISIONS = ("fp32", "bf16")
DEVICES = ("cpu",)
TRANSFORMS = ("fft", "gemm")
FREEZING = (True,)
COMPILES_AT_LOAD = True

_LOCK = threading.Lock()
_HINTS = {"fp32": "f32", "bf16": "bf16"}


def versions() -> dict[str, str]:
    """Raises `ModelError` if the extra is not installed."""
    need("openvino", extra="openvino")
    return {"torch": torch.__version__, "openvino": version("openvino")}


def build(network: nn.Module, plan: Plan, folder: Path) -> None:
    """See `onnx_export.export_stages`; OpenVINO compiles when it loads, in tenths of a second."""
    export_stages(network, plan, folder)


def open_engine(network: nn.Module, plan: Plan, folder: Path) -> Forward:
    """Models for the sizes of the profile, all compiled now: what the gate then looks at is what runs."""

    @functools.cache
    def compiled(path: Path, size: tuple[int, ...]) -> Callable[[Batch], Batch]:
        return compile_file(path, size, plan.precision)

    stages = {shape: stages_of(network, plan, shape) for shape in plan.profile.shapes}

    def forward(batch: Batch) -> Batch:
        shape = batch.shape[2:]
        for name, stage in stages[shape].named_children():
            if name == "transform":
                batch = fixed(stage, batch)
            else:
                batch = compiled(folder / file_name(name, shape), batch.shape)(batch)
        return batch

    for shape in plan.profile.shapes:
        for n_patches in plan.profile.batches:
            forward(zeros(plan.profile, n_patches, shape))
    return forward


@functools.cache
def _core() -> Any:
    """The one core of this process, for as long as it lives.

    A core gives the thread that compiles first a signal stack of its own, and frees it with itself. Of two that are
    freed in the order of their making, the second puts the freed stack of the first back, and then the next signal that
    Python handles, such as SIGTERM, ends the process with a segmentation fault (2026.4).
    """
    import openvino

    return openvino.Core()


def compile_file(path: Path, size: tuple[int, ...], precision: str) -> Callable[[Batch], Batch]:
    """A model that OpenVINO can read, for one size of its input."""
    with _LOCK:
        core = _core()
    model = core.read_model(path)
    model.reshape(list(size))
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def run(batch: Batch) -> Batch:
        request.infer([batch], share_inputs=True)
        return np.array(request.get_output_tensor(0).data, np.float32)  # its memory is written again by the next run

    return run
