"""A task that trains in a second, and a program that trains it: ``python toy.py FOLDER STEPS [BATCHES_PER_STEP]``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kstream.training.distributed import joined
from kstream.training.fit import Task, Validation, fit
from kstream.training.schedule import Schedule

WEIGHTS = torch.tensor([1.0, -2.0, 0.5])


class Line(Task[dict[str, Tensor]]):
    """Three weights from noisy sums; dropout, so that a step has a random choice of its own."""

    name = "line"

    def __init__(self, seed: int = 3) -> None:
        self.seed = seed
        torch.manual_seed(seed)
        self.network = nn.Sequential(nn.Dropout(0.2), nn.Linear(3, 1))

    def identity(self) -> str:
        return f"line {self.seed}"

    def batch(self, number: int) -> dict[str, Tensor]:
        x = torch.from_numpy(np.random.default_rng([self.seed, number]).standard_normal((4, 3), np.float32))
        return {"x": x, "y": x @ WEIGHTS}

    def loss(self, network: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        error = network(batch["x"])[:, 0] - batch["y"]
        return {"square": error.square().mean(), "size": 1e-3 * next(network.parameters()).abs().sum()}

    def validate(self, network: nn.Module) -> Validation:
        batch = self.batch(10**6)
        return Validation(-float((network(batch["x"])[:, 0] - batch["y"]).square().mean()))

    def pictures(self, network: nn.Module) -> dict[str, Any]:
        return {"grey": np.full((3, 5, 3), 100, np.uint8)}


def schedule(**changes: Any) -> Schedule:
    values = {"steps": 40, "learning_rate": 0.05, "validate_every": 10, "log_every": 1, **changes}
    return Schedule.model_validate(values)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, steps, batches = Path(sys.argv[1]), int(sys.argv[2]), int((sys.argv[3:] or ["1"])[0])
    with joined("cpu") as world:
        task = Line()
        if not world.is_first:
            nn.init.zeros_(task.network[1].weight)  # the weights of the first process must win
        settings = schedule(steps=steps, batches_per_step=batches)
        fit(task, settings, folder, lambda record: print(record["step"], flush=True), world=world)
        torch.save(task.network.state_dict(), folder / f"rank-{world.rank}.pt")
    threads = sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
    (folder / f"rank-{world.rank}.threads").write_text("\n".join(threads))
