"""What an experiment file says, frozen and checked before any hour is spent."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ..errors import ConfigError
from ..types import LabelTable


def parse_seeds(text: object) -> object:
    """``"1000-1003, 1007"`` as ``(1000, 1001, 1002, 1003, 1007)``; anything but text is returned as it is."""
    if not isinstance(text, str):
        return text
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return tuple(seeds)


class Section(BaseModel):
    """A frozen section that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CohortConfig(Section):
    """Exams of one purpose, by simulator seed; `protocol` overrides the experiment's."""

    seeds: Annotated[tuple[int, ...], BeforeValidator(parse_seeds)] = Field(min_length=1)
    protocol: dict[str, Any] = Field(default_factory=dict)


class DataConfig(Section):
    """Where exams come from and how the streaming pipeline turns them into differences."""

    preset: str = Field(default="breast-dce-recon", description="configuration of the pipeline")
    settings: tuple[str, ...] = Field(default=(), description="section.key=value, as for --set")
    protocol: dict[str, Any] = Field(default_factory=dict, description="fields of the simulator's BreastProtocol")
    frame: int = Field(default=2, ge=1, description="frame that is segmented in validation and test")


class NetworkConfig(Section):
    """Network of the registry, and the patches it sees."""

    architecture: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    patch_depth: int = Field(default=16, ge=1, description="slices")
    patch_stride: int = Field(default=8, ge=1, description="slices between neighbouring patches at inference")


class LossConfig(Section):
    """See `losses.SegmentationLoss`."""

    form: Literal["text", "code"] = Field(
        default="text", description="text: focal and Dice; code: as the published code ran, Dice only"
    )
    dice_over: Literal["positive", "batch"] = Field(
        default="positive", description="positive: patches with a lesion, one by one (paper); batch: all patches pooled"
    )
    focal_weight: float = Field(default=0.3, ge=0)
    dice_weight: float = Field(default=0.7, ge=0)
    gamma: float = Field(default=1.5, ge=0)
    class_weights: tuple[float, ...] = (0.05, 0.95)


class AugmentConfig(Section):
    """See `augment.augment`; probabilities are per patch."""

    flip_axes: tuple[Literal["z", "y", "x"], ...] = ("z", "y", "x")
    shift_voxels: int = Field(default=0, ge=0, description="largest circular shift along y and x")
    phase: bool = Field(default=True, description="random global phase")
    scale: float = Field(default=1.0, ge=1, description="magnitudes are multiplied by something in [1/scale, scale]")
    other_frame_probability: float = Field(
        default=0.0, ge=0, le=1, description="another post-contrast frame than the one segmented"
    )
    noise_probability: float = Field(default=0.0, ge=0, le=1)
    noise_snr_db: tuple[float, float] = Field(default=(-12.0, 20.0), description="range of signal-to-noise ratio")
    lines: Literal["none", "narrow", "wide"] = Field(
        default="none", description="random Cartesian lines: as the paper (2x, 4x), or 2x to 16x"
    )
    lines_probability: float = Field(default=0.3, ge=0, le=1)


class ScheduleConfig(Section):
    """Optimisation."""

    steps: int = Field(ge=1)
    batch: int = Field(default=2, ge=1, description="patches per step")
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    final_learning_rate: float = Field(default=1e-6, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    positive_probability: float = Field(
        default=0.5, ge=0, le=1, description="share of patches that hold a lesion voxel"
    )
    log_every: int = Field(default=20, ge=1)
    validate_every: int = Field(default=250, ge=1)


class LabelConfig(Section):
    """Classes of the output, background first."""

    names: tuple[str, ...] = ("background", "lesion")
    colours: tuple[tuple[int, int, int], ...] = ((0, 0, 0), (255, 64, 64))

    def table(self) -> LabelTable:
        return LabelTable(self.names, self.colours)


class Experiment(Section):
    """One training run; `cohorts` must hold ``train`` and ``validation``, any other is a test cohort."""

    name: str
    description: str
    seed: int = 0
    data: DataConfig = DataConfig()
    cohorts: dict[str, CohortConfig]
    network: NetworkConfig
    loss: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()
    schedule: ScheduleConfig
    labels: LabelConfig = LabelConfig()

    @property
    def test_cohorts(self) -> tuple[str, ...]:
        return tuple(name for name in self.cohorts if name not in ("train", "validation"))

    def protocol(self, cohort: str) -> Mapping[str, Any]:
        """Simulator settings of a cohort."""
        return {**self.data.protocol, **self.cohorts[cohort].protocol}


def load_experiment(path: Path) -> Experiment:
    """Read an experiment file.

    Raises
    ------
    ConfigError : if it cannot be read, holds unknown or impossible values, lacks a cohort, or lets a seed be in two.
    """
    try:
        experiment = Experiment.model_validate(tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        raise ConfigError(f"cannot read the experiment: {error.strerror}", where=str(path)) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the experiment is not TOML: {error}", where=str(path)) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{place}: {first['msg']}", where=str(path)) from error
    _check_cohorts(experiment, path)
    return experiment


def _check_cohorts(experiment: Experiment, path: Path) -> None:
    for needed in ("train", "validation"):
        if needed not in experiment.cohorts:
            raise ConfigError(f"cohorts.{needed} is missing", where=str(path))
    owner: dict[int, str] = {}
    for name, cohort in experiment.cohorts.items():
        for seed in cohort.seeds:
            if owner.setdefault(seed, name) != name:
                raise ConfigError(
                    f"seed {seed} is in cohorts {owner[seed]} and {name}",
                    where=str(path),
                    likely="test exams would have been seen in training or selection",
                )
