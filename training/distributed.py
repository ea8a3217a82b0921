"""Several processes that train one network: what ``torchrun --nproc-per-node N -m kstream train ...`` starts.

Gradients are averaged after the backward pass, in one message. That is all a data-parallel run needs, it works for any
forward method, for parameters that a batch does not reach, and for several networks in one task.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import ConfigError

Value = TypeVar("Value")

PATIENCE = timedelta(days=7)
"""How long processes wait for the first one, which prepares data and validates alone; torch's 10 to 30 minutes end
such runs. A process that dies ends them all at once anyway: torchrun sees to that."""


@dataclass(frozen=True)
class World:
    """This process among its peers; alone by default."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """True for the one process that validates and writes files."""
        return self.rank == 0

    def share(self, n_batches: int) -> range:
        """Which of the batches of a step this process takes.

        Raises
        ------
        ConfigError : if they cannot be shared out evenly.
        """
        if n_batches % self.size:
            raise ConfigError(
                f"{n_batches} batches per step cannot be shared out evenly among {self.size} processes",
                where="schedule.batches_per_step",
                hint=f"a multiple of {self.size}; a run takes the same batches on any number of processes",
            )
        return range(self.rank, n_batches, self.size)

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace gradients by their mean over the processes; a parameter that no batch reached keeps none."""
        if self.size == 1:
            return
        reached = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32)
        reached = reached.to(parameters[0].device)
        dist.all_reduce(reached, dist.ReduceOp.MAX)
        chosen = [p for p, is_reached in zip(parameters, reached.tolist(), strict=True) if is_reached]
        if not chosen:
            return
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in chosen])
        dist.all_reduce(flat)
        flat /= self.size
        for parameter, mean in zip(chosen, flat.split([p.numel() for p in chosen]), strict=True):
            parameter.grad = mean.reshape(parameter.shape).clone(memory_format=torch.preserve_format)

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Means over the processes that have a value of that name."""
        if self.size == 1:
            return values
        all_values: list[dict[str, float]] = [{} for _ in range(self.size)]
        dist.all_gather_object(all_values, values)
        names = dict.fromkeys(name for each in all_values for name in each)
        found = {name: [each[name] for each in all_values if name in each] for name in names}
        return {name: sum(some) / len(some) for name, some in found.items()}

    def from_first(self, value: Value | None) -> Value:
        """The value of the first process, in every process."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        given = box[0]
        if given is None:
            raise RuntimeError("the first process gave nothing")
        return given

    def same_weights(self, network: nn.Module) -> None:
        """Give every process the weights and buffers of the first."""
        if self.size == 1:
            return
        for tensor in network.state_dict().values():
            same: Tensor = tensor.contiguous()
            dist.broadcast(same, src=0)
            tensor.copy_(same)


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The world that torchrun's environment describes; this process alone if it was not started by torchrun."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    uses_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if uses_gpu:
        torch.cuda.set_device(local_rank)
    # Its functions have the world's group as a default value. Imported after the group is made, as optimisers do, it
    # would keep the group's threads alive until the interpreter ends, where they abort the process now and then.
    import_module("torch.distributed.nn.functional")
    dist.init_process_group("nccl" if uses_gpu else "gloo", timeout=PATIENCE)
    try:
        yield World(dist.get_rank(), size, local_rank)
    finally:
        dist.destroy_process_group()
