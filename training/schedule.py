"""How a run optimises: settings that are the same for every task, and the learning rate that follows from them."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Schedule(BaseModel):
    """Optimisation; the ``[schedule]`` of an experiment file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=1)
    batches_per_step: int = Field(default=1, ge=1, description="gradients summed in one step; shared among processes")
    optimiser: Literal["adamw", "adam"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup_steps: int = Field(default=0, ge=0, description="linear rise of the learning rate")
    decay: Literal["cosine", "step", "constant"] = Field(default="cosine", description="what follows the warm-up")
    final_learning_rate: float = Field(default=1e-6, ge=0, description="where the cosine ends")
    decay_every: int = Field(default=1, ge=1, description="steps between two falls of `step`")
    decay_factor: float = Field(default=0.5, gt=0, le=1, description="of each fall of `step`")
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float = Field(default=1.0, gt=0, description="largest norm of the gradient")
    precision: Literal["fp32", "bf16", "auto"] = Field(
        default="fp32", description="auto: bf16 on a GPU that has it, else fp32"
    )
    patience: int = Field(default=0, ge=0, description="validations without a better one that end the run; 0: never")
    log_every: int = Field(default=20, ge=1)
    validate_every: int = Field(default=250, ge=1)
    save_every: int = Field(default=0, ge=0, description="steps between savings besides those of validations; 0: none")


def learning_rate(step: int, schedule: Schedule) -> float:
    """Linear warm-up, then half a cosine down to the final rate, falls by a factor, or nothing."""
    if step < schedule.warmup_steps:
        return schedule.learning_rate * (step + 1) / schedule.warmup_steps
    after = step - schedule.warmup_steps
    if schedule.decay == "constant":
        return schedule.learning_rate
    if schedule.decay == "step":
        return schedule.learning_rate * schedule.decay_factor ** (after // schedule.decay_every)
    progress = after / max(schedule.steps - schedule.warmup_steps, 1)
    span = schedule.learning_rate - schedule.final_learning_rate
    return schedule.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * progress))
