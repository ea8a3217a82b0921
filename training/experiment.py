"""What an experiment file says, frozen and checked before any hour is spent."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ..errors import ConfigError
from ..types import LabelTable
from .breast.variants import parse
from .schedule import Schedule


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
    variants: tuple[str, ...] = Field(
        default=(), description="the last frame from fewer spokes too, such as radial-uniform-4 (see `variants`)"
    )


class FoldConfig(Section):
    """Patients of a cache of files (made by `readers`) instead of simulated cohorts; see `folds.split_patients`."""

    n_folds: int = Field(default=5, ge=2)
    fold: int = Field(default=1, ge=1, description="which fold is the test part")
    seed: int = 123
    published: bool = Field(default=False, description="validate on the test part, as the published code does")


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
    kspace_weight: float = Field(default=0.5, ge=0, description="of the native network's error in k-space")


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
    variant_probability: float = Field(
        default=0.0, ge=0, le=1, description="one of data.variants (fewer spokes) in place of the whole scan"
    )
    variant_kind: Literal["radial", "cg-sense"] = Field(default="radial", description="which of them")


class ScheduleConfig(Schedule):
    """Optimisation (see `schedule.Schedule`), and the patches of a batch."""

    batch: int = Field(default=2, ge=1, description="patches in a batch")
    positive_probability: float = Field(
        default=0.5, ge=0, le=1, description="share of patches that hold a lesion voxel"
    )
    positive_exams: int = Field(
        default=1, ge=1, description="how often exams with a lesion count against others for patches without one"
    )


class ReconstructionConfig(Section):
    """A first stage for networks that reconstruct: least squares to the clean image; segmentation freezes it."""

    steps: int = Field(ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)


class DistillConfig(Section):
    """A trained network whose answer to the whole scan guides this one, which sees fewer lines or more noise.

    Paths are relative to the folder in which the command runs; ``{seed}`` in them is the experiment's seed.
    """

    experiment: str = Field(description="experiment file of the teacher")
    weights: str = Field(description="its best weights, RUN/best.safetensors")
    weight: float = Field(default=1.0, gt=0, description="of the distillation loss, beside focal and Dice")
    temperature: float = Field(default=2.0, gt=0, description="logits of both are divided by it")


class LabelConfig(Section):
    """Classes of the output, background first."""

    names: tuple[str, ...] = ("background", "lesion")
    colours: tuple[tuple[int, int, int], ...] = ((0, 0, 0), (255, 64, 64))

    def table(self) -> LabelTable:
        return LabelTable(self.names, self.colours)


class Experiment(Section):
    """One training run on simulated `cohorts` (``train``, ``validation``, any other is a test cohort) or on `folds`."""

    task: Literal["breast"] = "breast"
    name: str
    description: str
    seed: int = 0
    data: DataConfig = DataConfig()
    cohorts: dict[str, CohortConfig] = Field(default_factory=dict)
    folds: FoldConfig | None = None
    network: NetworkConfig
    loss: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()
    schedule: ScheduleConfig
    labels: LabelConfig = LabelConfig()
    reconstruction: ReconstructionConfig | None = None
    distill: DistillConfig | None = None

    @property
    def test_cohorts(self) -> tuple[str, ...]:
        return tuple(name for name in self.cohort_names if name not in ("train", "validation"))

    @property
    def cohort_names(self) -> tuple[str, ...]:
        """All cohorts, of seeds or of a fold."""
        return ("train", "validation", "test") if self.folds else tuple(self.cohorts)

    def protocol(self, cohort: str) -> Mapping[str, Any]:
        """Simulator settings of a cohort."""
        return {**self.data.protocol, **self.cohorts[cohort].protocol}


Model = TypeVar("Model", bound=BaseModel)


def read_experiment(path: Path) -> dict[str, Any]:
    """The content of an experiment file of any task.

    Raises
    ------
    ConfigError : if it cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the experiment: {error.strerror}", where=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the experiment is not TOML: {error}", where=str(path)) from error


def validated(model: type[Model], values: Mapping[str, Any], path: Path) -> Model:
    """The content of an experiment file as its model.

    Raises
    ------
    ConfigError : for the first value that is unknown or impossible.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{place}: {first['msg']}", where=str(path)) from error


def load_experiment(path: Path) -> Experiment:
    """Read an experiment file of the breast task.

    Raises
    ------
    ConfigError : if it cannot be read, holds unknown or impossible values, lacks a cohort, or lets a seed be in two.
    """
    experiment = validated(Experiment, read_experiment(path), path)
    check_cohorts(experiment, path)
    return experiment


def check_cohorts(experiment: Experiment, path: Path) -> None:
    """Refuse missing cohorts, exams in two of them, and unknown variants.

    Raises
    ------
    ConfigError : for the first of them.
    """
    for variant in experiment.data.variants:
        parse(variant)
    if experiment.folds:
        if experiment.cohorts:
            raise ConfigError("cohorts and folds exclude each other", where=str(path))
        if experiment.data.variants:
            raise ConfigError(
                "exams from files have no variants",
                where=str(path),
                likely="data.variants beside [folds]; the simulator makes them",
            )
        return
    check_seeds(experiment.cohorts, path, "exams")


def check_seeds(cohorts: Mapping[str, CohortConfig], path: Path, subjects: str) -> None:
    """Refuse a missing cohort, and a seed in two of them; `subjects` is what a seed makes.

    Raises
    ------
    ConfigError : for the first of them.
    """
    for needed in ("train", "validation"):
        if needed not in cohorts:
            raise ConfigError(f"cohorts.{needed} is missing", where=str(path))
    owner: dict[int, str] = {}
    for name, cohort in cohorts.items():
        for seed in cohort.seeds:
            if owner.setdefault(seed, name) != name:
                raise ConfigError(
                    f"seed {seed} is in cohorts {owner[seed]} and {name}",
                    where=str(path),
                    likely=f"test {subjects} would have been seen in training or selection",
                )


def write_experiment(experiment: Any, path: Path) -> None:
    """An experiment of any task as a file that `recipes.load_recipe` reads; what has its default is left out."""
    content = {"task": experiment.task, **experiment.model_dump(mode="json", exclude_defaults=True)}
    path.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in content.items()), encoding="utf-8")


def _toml(value: Any) -> str:
    """A value in TOML; JSON's strings, numbers and lists are TOML's too."""
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items() if item is not None)
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value)
