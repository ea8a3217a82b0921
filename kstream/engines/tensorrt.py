"""torch-tensorrt 2.11 to 2.14 on an NVIDIA GPU: one engine for each stage and shape, any batch up to the largest.

NEVER RUN: TensorRT's libraries are not on public indices, and no machine of this project had them. What is checked is
that every operator of every network has a converter, and that this code fails as it should where the libraries are
missing. ``docs/engines.md`` says what was run and how to get the libraries.

TensorRT 11 has strong typing only, so precision is in the model: convolutions in half precision, normalisation in
float32 (`stages.lower`), and the product form of the transform scaled before it is cast. With the transform ``fft``,
cuFFT runs between two engines; either way one CUDA graph holds all of it.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from . import graphs
from .profile import Forward, Plan, Space, times
from .stages import lower, split
from .torch_engine import find_device

PRECISIONS = ("fp32", "bf16", "fp16")
DEVICES = ("cuda",)
TRANSFORMS = ("fft", "gemm")
FREEZING = (True,)
COMPILES_AT_LOAD = False

_MARK = "kstream-probe "
_PROBE = f"""
import json
try:
    import tensorrt, torch_tensorrt
    said = {{"torch_tensorrt": torch_tensorrt.__version__, "tensorrt": tensorrt.__version__}}
except Exception as error:
    said = {{"error": f"{{type(error).__name__}}: {{error}}"[:300]}}
print({_MARK!r} + json.dumps(said))
"""
PROBE_S = 120.0


@cache
def probe() -> dict[str, str]:
    """Versions of torch-tensorrt and TensorRT, or why they cannot be had (``error``).

    In a process of its own: without its libraries, the package prints to standard output and raises a bare `Exception`
    half-way through its import.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=PROBE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"importing torch_tensorrt took more than {PROBE_S:g} s"}
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            said: dict[str, str] = json.loads(line.removeprefix(_MARK))
            return said
    return {"error": f"importing torch_tensorrt ended its process with code {done.returncode}"}


def versions() -> dict[str, str]:
    """Versions that an engine depends on.

    Raises
    ------
    ModelError : torch-tensorrt, or the libraries under it, cannot be had.
    """
    said = probe()
    if "error" in said:
        raise ModelError(
            f"engine tensorrt cannot be had: {said['error']}",
            likely="torch-tensorrt is not installed, or TensorRT's libraries or a GPU are missing",
            hint="docs/engines.md says how to get them; or --engine aot",
        )
    return {"torch": torch.__version__, **said}


def build(network: nn.Module, plan: Plan, folder: Path) -> None:
    """Write one engine for each learnt stage and shape, with a batch from 1 to the profile's largest.

    Raises
    ------
    ModelError : TensorRT refuses a stage.
    """
    versions()
    import torch_tensorrt

    largest = plan.profile.batches[-1]
    for shape in plan.profile.shapes:
        patches = torch.zeros((max(largest, 2), plan.profile.n_channels, *shape), device=find_device(plan.device))
        for name, stage in _stages(network, plan, shape).named_children():
            if name != "transform":
                exported = export(stage, patches, largest)
                try:
                    engine = torch_tensorrt.dynamo.compile(
                        exported, arg_inputs=[_input(patches, largest)], **_settings(torch_tensorrt.dynamo.compile)
                    )
                    torch_tensorrt.save(
                        engine,
                        str(folder / _file(name, shape)),
                        output_format="exported_program",
                        arg_inputs=[patches],
                        dynamic_shapes=({0: _batch(largest)},),
                    )
                except (RuntimeError, ValueError, TypeError) as error:
                    raise ModelError(
                        f"TensorRT refuses the stage {name}: {error}"[:500],
                        hint="--transform fft, --precision fp32, or --engine aot",
                    ) from error
            with torch.no_grad():
                patches = stage(patches)


def open_engine(network: nn.Module, plan: Plan, folder: Path) -> Forward:
    """Load the engines, and capture them with the transform between them as one CUDA graph for each batch and shape."""
    versions()
    import torch_tensorrt

    device = find_device(plan.device)
    ready: dict[Space, list[Any]] = {}
    for shape in plan.profile.shapes:
        ready[shape] = [
            stage if name == "transform" else torch_tensorrt.load(str(folder / _file(name, shape))).module()
            for name, stage in _stages(network, plan, shape).named_children()
        ]

    def run(patches: Tensor) -> Tensor:
        for stage in ready[tuple(patches.shape[2:])]:
            patches = stage(patches)
        return patches

    return graphs.captured(run, plan.profile, device)


def export(stage: nn.Module, patches: Tensor, largest: int) -> torch.export.ExportedProgram:
    """A stage with a batch that may vary, in core ATen operators, as TensorRT takes it.

    Type assertions that casts leave behind are taken out: they have no converter, and would cut the graph in two.
    """
    with torch.no_grad():
        traced = torch.export.export(stage, (patches,), dynamic_shapes=({0: _batch(largest)},))
        exported: torch.export.ExportedProgram = traced.run_decompositions()
    graph = exported.graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)
    exported.graph_module.recompile()
    return exported


def lowered(network: nn.Module, plan: Plan, shape: Space) -> nn.Sequential:
    """The stages as they are given to TensorRT: types in the model, channels first (TensorRT chooses its own order)."""
    if plan.transform == "fft":
        return lower(split(network), plan.precision, "plain", channels_last=False)
    bridge = torch.float16 if plan.precision == "fp16" else torch.float32
    whole = lower(split(network, (shape[-2], shape[-1]), bridge), plan.precision, "plain", channels_last=False)
    return nn.Sequential(OrderedDict(network=whole))


def _stages(network: nn.Module, plan: Plan, shape: Space) -> nn.Sequential:
    return lowered(network, plan, shape).to(find_device(plan.device))


def _settings(compile_function: Any) -> dict[str, Any]:
    """What all versions take; up to 2.12 explicit typing is a choice, later there is nothing else."""
    settings: dict[str, Any] = {"use_fp32_acc": True, "min_block_size": 1, "require_full_compilation": True}
    if "use_explicit_typing" in inspect.signature(compile_function).parameters:
        settings["use_explicit_typing"] = True
    return settings


def _input(patches: Tensor, largest: int) -> Any:
    import torch_tensorrt

    rest = tuple(patches.shape[1:])
    return torch_tensorrt.Input(
        min_shape=(1, *rest), opt_shape=(largest, *rest), max_shape=(largest, *rest), dtype=torch.float32
    )


def _batch(largest: int) -> Any:
    return torch.export.Dim("batch", min=1, max=max(largest, 2))


def _file(stage: str, shape: Space) -> str:
    return f"{stage}-{times(shape)}.ep"
