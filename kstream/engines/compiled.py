"""torch.compile with frozen weights; on a GPU with one CUDA graph around all stages.

Compilation happens in the process that runs, at its start: seconds to tens of seconds for each batch and shape. `aot`
does the same work once and keeps it in files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from . import graphs
from .array_engine import ArrayForward
from .array_stages import ArrayNetwork
from .engine import Batch
from .profile import Forward, Plan
from .stages import lower, split
from .torch_engine import find_device

PRECISIONS = ("fp32", "bf16", "fp16")
DEVICES = ("cpu", "cuda")
TRANSFORMS = ("fft",)
FREEZING = (True, False)
COMPILES_AT_LOAD = True


def versions() -> dict[str, str]:
    return {"torch": torch.__version__}


def build(network: nn.Module, plan: Plan, folder: Path) -> None:
    """Nothing is kept: see the head of this file."""


def open_engine(network: nn.Module, plan: Plan, folder: Path) -> Forward:
    """Stages that are compiled now, for every batch and shape of the profile."""
    device = find_device(plan.device)
    stages = lower(split(network), plan.precision, "sums").to(device)
    ready: dict[tuple[str, tuple[int, ...]], Callable[[Tensor], Tensor]] = {}

    def run(patches: Tensor) -> Tensor:
        for name, stage in stages.named_children():
            patches = (stage if name == "transform" else ready[name, tuple(patches.shape)])(patches)
        return patches

    for shape in plan.profile.shapes:
        for n_patches in plan.profile.batches:
            patches = torch.from_numpy(graphs.zeros(plan.profile, n_patches, shape)).to(device)
            for name, stage in stages.named_children():
                function = stage if name == "transform" else _compiled(stage, patches, plan.is_frozen)
                ready[name, tuple(patches.shape)] = function
                with torch.no_grad():
                    patches = function(patches)
    return graphs.captured(run, plan.profile, device) if device.type == "cuda" else on_cpu(run)


def build_arrays(network: ArrayNetwork, plan: Plan, folder: Path) -> None:
    """Nothing is kept, as in `build`."""


def open_arrays(network: ArrayNetwork, plan: Plan, folder: Path) -> ArrayForward:
    """Stages that are compiled now, for any number of tokens.

    They are packages of `aot` that nobody keeps: torch.compile would compile again in mid-scan for one token, or
    another layout, and what it made then no gate would have seen.
    """
    from . import aot

    with tempfile.TemporaryDirectory() as made:
        aot.build_arrays(network, plan, Path(made))
        return aot.open_arrays(network, plan, Path(made))


def on_cpu(run: Callable[[Tensor], Tensor]) -> Forward:
    """A function of tensors as one of arrays."""

    def forward(batch: Batch) -> Batch:
        with torch.no_grad():  # freezing looks for this mode; inference mode it does not know
            logits: Batch = run(torch.from_numpy(batch)).numpy()
        return logits

    return forward


def _compiled(stage: nn.Module, patches: Tensor, is_frozen: bool) -> Callable[[Tensor], Tensor]:
    """A stage for one size.

    It is exported first: modules of one class share a limit of recompilations in torch, beyond which they quietly run
    eagerly (8; a profile of a few sizes exceeds it), and an exported module is a class of its own.
    """
    import torch._inductor.config as inductor

    with torch.no_grad(), inductor.patch(freezing=is_frozen):
        exported = torch.export.export(stage, (patches,)).module()
        function: Callable[[Tensor], Tensor] = torch.compile(exported, dynamic=False)
        function(patches)
    return function
