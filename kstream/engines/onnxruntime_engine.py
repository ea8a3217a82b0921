"""ONNX Runtime on the CPU, in float32: the most portable of the compiled engines."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .array_engine import Array, ArrayForward
from .array_stages import ArrayNetwork, ArrayStage
from .engine import Batch
from .onnx_export import export_arrays, export_stages, file_name, need, stages_of
from .profile import Forward, Plan

PRECISIONS = ("fp32",)
DEVICES = ("cpu",)
TRANSFORMS = ("fft", "gemm")
FREEZING = (True,)
COMPILES_AT_LOAD = False


def versions() -> dict[str, str]:
    """Raises `ModelError` if the extra is not installed."""
    need("onnxruntime", extra="onnx")
    return {"torch": torch.__version__, "onnxruntime": version("onnxruntime")}


def build(network: nn.Module, plan: Plan, folder: Path) -> None:
    """See `onnx_export.export_stages`."""
    export_stages(network, plan, folder)


def open_engine(network: nn.Module, plan: Plan, folder: Path) -> Forward:
    """A session for each file; the transform between them is torch's."""
    sessions = _sessions(folder)
    stages = {shape: stages_of(network, plan, shape) for shape in plan.profile.shapes}

    def forward(batch: Batch) -> Batch:
        shape = batch.shape[2:]
        for name, stage in stages[shape].named_children():
            if name == "transform":
                batch = fixed(stage, batch)
            else:
                (batch,) = sessions[file_name(name, shape)].run(None, {"patches": batch})
        return batch

    return forward


def build_arrays(network: ArrayNetwork, plan: Plan, folder: Path) -> None:
    """See `onnx_export.export_arrays`."""
    export_arrays(network, plan, folder)


def open_arrays(network: ArrayNetwork, plan: Plan, folder: Path) -> ArrayForward:
    """A session for each stage, for any number of tokens."""
    sessions = _sessions(folder)

    def run(stage: ArrayStage, inputs: list[Array]) -> list[Array]:
        made: list[Array] = sessions[f"{stage.name}.onnx"].run(None, dict(zip(stage.takes, inputs, strict=True)))
        return made

    def forward(inputs: Sequence[Array]) -> tuple[Array, ...]:
        return network.forward(run, inputs, lambda parts: np.concatenate(parts, axis=-1))

    return forward


def _sessions(folder: Path) -> dict[str, Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the server's threads want the cores too
    return {
        path.name: onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for path in sorted(folder.glob("*.onnx"))
    }


def fixed(transform: nn.Module, batch: Batch) -> Batch:
    """Run a stage without weights in torch, from and to numpy."""
    with torch.inference_mode():
        image: Batch = np.ascontiguousarray(transform(torch.from_numpy(batch)).numpy())
    return image
