"""AOTInductor: the learnt stages as compiled packages (``.pt2``), one for each batch and shape.

Frozen weights are packed for one size of the input. With a batch that may vary, torch 2.13 then gives wrong numbers
without an error (found: off by several standard deviations at one batch size, right at another), so a package with
frozen weights holds exactly one batch and one shape; without freezing, one package holds every batch of a shape.
A C++ compiler is needed to build, not to run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from . import graphs
from .array_engine import Array, ArrayForward
from .array_stages import ArrayNetwork, ArrayStage
from .compiled import on_cpu
from .profile import Forward, Plan, Space, times
from .stages import lower, split
from .torch_engine import find_device

PRECISIONS = ("fp32", "bf16", "fp16")
DEVICES = ("cpu", "cuda")
TRANSFORMS = ("fft",)
FREEZING = (True, False)
COMPILES_AT_LOAD = False


def versions() -> dict[str, str]:
    return {"torch": torch.__version__}


def build(network: nn.Module, plan: Plan, folder: Path) -> None:
    """Write one package for each learnt stage, shape and (frozen) batch.

    Raises
    ------
    ModelError : there is no C++ compiler, or a stage cannot be exported.
    """
    _need_compiler()
    stages = lower(split(network), plan.precision, "sums").to(find_device(plan.device))
    for name, inputs, path in _packages(stages, plan, folder):
        package(stages.get_submodule(name), inputs, path, plan.is_frozen, is_dynamic=not plan.is_frozen)


def _need_compiler() -> None:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ModelError(
            f"engine aot needs a C++ compiler to build, and there is no {compiler}",
            likely="a machine without build tools",
            hint="install g++ (apt-get install g++), or compile --engine openvino or onnxruntime",
        )


def package(stage: nn.Module, inputs: Tensor, path: Path, is_frozen: bool, is_dynamic: bool) -> None:
    """Compile one stage; `build` never asks for both frozen weights and a dynamic batch (see the head of this file)."""
    import torch._inductor as inductor
    from torch._inductor import config

    batch: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=64)} if is_dynamic else {}
    with torch.no_grad(), config.patch(freezing=is_frozen):
        exported = torch.export.export(stage, (inputs,), dynamic_shapes=(batch,))
        inductor.aoti_compile_and_package(exported, package_path=str(path))


def open_engine(network: nn.Module, plan: Plan, folder: Path) -> Forward:
    """Load the packages; the network's weights are in them, only the transform between is taken from `network`."""
    import torch._inductor as inductor

    device = find_device(plan.device)
    stages = split(network).to(device)
    loaded = {path: inductor.aoti_load_package(str(path)) for path in sorted(folder.glob("*.pt2"))}

    def run(patches: Tensor) -> Tensor:
        n_patches, shape = patches.shape[0], tuple(patches.shape[2:])
        for name, stage in stages.named_children():
            patches = (stage if name == "transform" else loaded[_path(folder, name, n_patches, shape, plan)])(patches)
        return patches

    return on_cpu(run) if device.type == "cpu" else graphs.captured(run, plan.profile, device)


def build_arrays(network: ArrayNetwork, plan: Plan, folder: Path) -> None:
    """Write one package for each stage, for any number of tokens: never with frozen weights (see the head)."""
    import torch._inductor as inductor

    _need_compiler()
    device = find_device(plan.device)
    for stage, inputs, sizes in network.exports(plan.profile.shapes[0][0], device):
        with torch.no_grad():
            exported = torch.export.export(stage.module.to(device), inputs, dynamic_shapes=(sizes,))
            inductor.aoti_compile_and_package(exported, package_path=str(folder / f"{stage.name}.pt2"))


def open_arrays(network: ArrayNetwork, plan: Plan, folder: Path) -> ArrayForward:
    """Load the packages; the network's weights are in them."""
    import torch._inductor as inductor

    device = find_device(plan.device)
    loaded = {stage.name: inductor.aoti_load_package(str(folder / f"{stage.name}.pt2")) for stage in network.stages}

    def run(stage: ArrayStage, inputs: list[Tensor]) -> Sequence[Tensor]:
        made = loaded[stage.name](*inputs)
        return made if isinstance(made, tuple | list) else (made,)

    def forward(inputs: Sequence[Array]) -> tuple[Array, ...]:
        with torch.no_grad():
            tensors = [torch.from_numpy(x).to(device) for x in inputs]
            made = network.forward(run, tensors, lambda parts: torch.cat(parts, dim=-1))
            return tuple(part.cpu().numpy() for part in made)

    return forward


def _packages(stages: nn.Sequential, plan: Plan, folder: Path) -> Iterator[tuple[str, Tensor, Path]]:
    """Name, example input and file of every package; the input of a stage is the output of the one before."""
    device = find_device(plan.device)
    batches = plan.profile.batches if plan.is_frozen else plan.profile.batches[-1:]
    for shape in plan.profile.shapes:
        for n_patches in batches:
            # a batch of 1 would be taken for a constant where it may vary
            patches = torch.zeros((max(n_patches, 1 if plan.is_frozen else 2), plan.profile.n_channels, *shape)).to(
                device
            )
            for name, stage in stages.named_children():
                if name != "transform":
                    yield name, patches, _path(folder, name, n_patches, shape, plan)
                with torch.no_grad():
                    patches = stage(patches)


def _path(folder: Path, stage: str, n_patches: int, shape: Space, plan: Plan) -> Path:
    batch = str(n_patches) if plan.is_frozen else "any"
    return folder / f"{stage}-{batch}x{times(shape)}.pt2"
