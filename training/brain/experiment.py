"""What an experiment file of the brain task says (paper 004)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ...errors import ConfigError
from ...simulate.brain.protocol import BrainProtocol
from ..experiment import CohortConfig, Section, check_seeds, read_experiment, validated
from ..schedule import Schedule


class HeadsConfig(Section):
    """Heads that are scanned, and what is done to their k-space each time one of their slices is drawn."""

    protocol: dict[str, Any] = Field(default_factory=dict, description="fields of the simulator's BrainProtocol")
    noise: tuple[float, ...] = Field(
        default=(0.1,), min_length=1, description="levels over the signal of white matter, one of which is drawn"
    )
    fraction: float = Field(default=0.3, gt=0, le=1, description="of the lines that is kept")
    n_centre: int = Field(default=16, ge=1, description="lines of the centre that are always kept")
    n_patterns: int = Field(default=0, ge=0, description="patterns of lines to draw from in training; 0: always new")


class BrainNetwork(Section):
    """Network of the registry."""

    architecture: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class BrainLoss(Section):
    """What is minimised (paper 004, table 1); networks without recurrences or images use what they have."""

    form: Literal["last", "all", "last+image"] = Field(
        default="last",
        description="cross entropy of the last logits, or of those of every t, or with l2 of the image",
    )
    image_weight: float = Field(default=1.0, ge=0, description="of the image's (or code's) mean squared error")


class BrainSchedule(Schedule):
    """Optimisation (see `schedule.Schedule`), and the slices of a batch; the paper's are 12."""

    batch: int = Field(default=12, ge=1)


class BrainExperiment(Section):
    """One training run; `cohorts` must hold ``train`` and ``validation``, any other is a test cohort.

    Networks that are pre-trained use `pretraining` for every step before the last, or `schedule` without it.
    """

    task: Literal["brain"] = "brain"
    name: str
    description: str
    seed: int = 0
    data: HeadsConfig = HeadsConfig()
    cohorts: dict[str, CohortConfig]
    network: BrainNetwork
    loss: BrainLoss = BrainLoss()
    schedule: BrainSchedule
    pretraining: BrainSchedule | None = None

    @property
    def test_cohorts(self) -> tuple[str, ...]:
        return tuple(name for name in self.cohorts if name not in ("train", "validation"))

    def protocol(self, cohort: str) -> BrainProtocol:
        """The simulator's settings for a cohort, fully sampled: lines and noise are drawn later.

        Raises
        ------
        ConfigError : a setting that does not exist.
        """
        fixed = {"fraction": 1.0, "noise": 0.0, "readout_oversampling": 1, "n_coils": 1, "n_noise_readouts": 0}
        try:
            return BrainProtocol(**{**self.data.protocol, **self.cohorts[cohort].protocol, **fixed})
        except TypeError as error:
            raise ConfigError(f"the simulator refuses the protocol: {error}", where="data.protocol") from error


def load_brain_experiment(path: Path) -> BrainExperiment:
    """Read an experiment file of the brain task; raises as `brain_experiment`."""
    return brain_experiment(read_experiment(path), path)


def brain_experiment(content: Mapping[str, Any], path: Path) -> BrainExperiment:
    """The experiment that a file's content says.

    Raises
    ------
    ConfigError : if it holds unknown or impossible values, lacks a cohort, or lets a head be in two.
    """
    experiment = validated(BrainExperiment, content, path)
    check_seeds(experiment.cohorts, path, "heads")
    for name in experiment.cohorts:
        experiment.protocol(name)
    return experiment
