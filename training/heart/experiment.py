"""What an experiment file of the heart's task says (``task = "heart"``), frozen and checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ...errors import ConfigError
from ...simulate.heart.protocol import CineProtocol
from ..experiment import CohortConfig, LabelConfig, Section, read_experiment, validated
from ..schedule import Schedule

Method = Literal[
    "disk", "coordinates", "mean-shape", "syn-net", "li-net",
    "kmtr", "mae", "resnet50", "resnet50u", "resnet50k", "k-gin", "zero-filled", "nnunet", "nnunet-u",
]  # fmt: skip
"""``coordinates`` is DiSK that sees where samples lie but not their values; ``mean-shape`` the mean segmentation of the
training subjects; ``zero-filled`` the inverse transform of what was sampled; ``-u`` means undersampled."""

SLICE_METHODS = ("disk", "coordinates", "mean-shape", "syn-net", "li-net")
"""Methods of paper 001, which see the views that the data name; the others see all views of the protocol."""

ONE_VIEW_METHODS = ("disk", "coordinates")
"""Methods that take one view."""

Head = Literal["segmentation", "regression", "classification", "reconstruction"]


class HeartData(Section):
    """Simulated subjects, and how their k-space is sampled."""

    source: Literal["simulator", "uk-biobank-cine", "acdc"] = Field(
        "simulator", description="or public data that `python -m kstream.training read` put into the cache"
    )
    protocol: dict[str, Any] = Field(default_factory=dict, description="fields of the simulator's CineProtocol")
    views: tuple[str, ...] = Field(("sax2",), description="views that methods for slices see; DiSK takes one")
    accelerations: tuple[float, ...] = Field((4.0,), min_length=1, description="one is drawn for each training batch")
    density: Literal["disk", "normal", "vista", "uniform"] = Field("disk", description="how lines are drawn")
    shift_voxels: int = Field(0, ge=0, description="largest random shift of heart and labels together, along y and x")
    rotate_deg: float = Field(0.0, ge=0, le=180, description="largest random rotation")
    receiver: float = Field(0.0, ge=0, description="strength of a random smooth receive coil, in training batches")
    noise: float = Field(0.0, ge=0, description="complex noise over the rms of k-space, largest of a random level")
    queries: int = Field(8192, ge=1, description="DiSK: pixels of image and time that a training batch asks for")


class HeartNetwork(Section):
    """Arguments of the method's network; sizes of the scan are filled in."""

    arguments: dict[str, Any] = Field(default_factory=dict)
    heads: tuple[Head, ...] = Field(
        ("segmentation",), description="k-MTR, stage III: tasks of the last stage, in order"
    )


class HeartStages(Section):
    """What comes before the last stage: k-MTR's I and II, and the pre-training of LI-Net and Syn-Net."""

    image: Schedule | None = Field(None, description="stage I, images; the learning rate of the paper is 3e-4")
    lines: Schedule | None = Field(None, description="stage I, k-space; 1e-5 in the paper")
    alignment: Schedule | None = Field(None, description="stage II; left out for the baseline MAE")
    labels: Schedule | None = Field(None, description="LI-Net: its autoencoder of label maps")
    full: Schedule | None = Field(None, description="LI-Net, and Syn-Net's warm start: fully sampled k-space")
    code_weight: float = Field(1.0, ge=0, description="LI-Net: of the distance to the teacher's code")
    masking_ratio: float = Field(0.7, gt=0, lt=1, description="part of the image patches that stage I hides")
    temperature: float = Field(0.1, gt=0)
    form: Literal["standard", "decoupled"] = "standard"


class NnUNetConfig(Section):
    """How nnU-Net is run; the schedule of the experiment is not used."""

    trainer: str = Field("nnUNetTrainer", description="nnU-Net's class; nnUNetTrainer_5epochs ends after five")
    batch: int | None = Field(None, ge=1, description="frames in a batch; as nnU-Net plans it if there is none")
    mirrored: bool = Field(True, description="labels are the mean over mirrored images; takes four times as long")


class HeartSchedule(Schedule):
    """Optimisation (see `schedule.Schedule`), and the subjects of a batch."""

    batch: int = Field(default=1, ge=1, description="subjects in a batch")


class HeartExperiment(Section):
    """One training run; `cohorts` must hold ``train`` and ``validation``, any other is a test cohort."""

    task: Literal["heart"]
    name: str
    description: str
    seed: int = 0
    method: Method
    moved_probability: float = Field(
        1.0, ge=0, le=1, description="share of training batches that are shifted and turned, as far as data says"
    )
    data: HeartData = HeartData()  # type: ignore[call-arg]
    cohorts: dict[str, CohortConfig]
    network: HeartNetwork = HeartNetwork()  # type: ignore[call-arg]
    entropy_weight: float = Field(
        0.0, ge=0, description="k-MTR: of the cross-entropy of labels beside their Dice loss; 0 in the paper"
    )
    stages: HeartStages = HeartStages()  # type: ignore[call-arg]
    nnunet: NnUNetConfig = NnUNetConfig()  # type: ignore[call-arg]
    labels: LabelConfig = LabelConfig(
        names=("background", "LV cavity", "LV myocardium", "RV cavity"),
        colours=((0, 0, 0), (220, 50, 50), (60, 180, 75), (60, 110, 230)),
    )
    schedule: HeartSchedule

    @property
    def is_external(self) -> bool:
        """True for nnU-Net, which its own package trains."""
        return self.method.startswith("nnunet")

    @property
    def test_cohorts(self) -> tuple[str, ...]:
        return tuple(name for name in self.cohorts if name not in ("train", "validation"))

    def protocol(self, cohort: str) -> CineProtocol:
        """The simulator's settings for a cohort: one coil, no noise, no breathing; lines are drawn later.

        Raises
        ------
        ConfigError : a setting that does not exist or cannot be.
        """
        fixed = {"n_coils": 1, "snr": 0.0, "breath_mm": 0.0}
        try:
            return CineProtocol(**{**self.data.protocol, **self.cohorts[cohort].protocol, **fixed})
        except TypeError as error:
            raise ConfigError(f"the simulator refuses the protocol: {error}", where="data.protocol") from error


def load_heart_experiment(path: Path) -> HeartExperiment:
    """Read an experiment file of the heart's task; raises as `heart_experiment`."""
    return heart_experiment(read_experiment(path), path)


def heart_experiment(content: Mapping[str, Any], path: Path) -> HeartExperiment:
    """The experiment that a file's content says.

    Raises
    ------
    ConfigError : if it holds unknown or impossible values, lacks a cohort, or lets a subject be in two.
    """
    experiment = validated(HeartExperiment, content, path)
    owner: dict[int, str] = {}
    for needed in ("train", "validation"):
        if needed not in experiment.cohorts:
            raise ConfigError(f"cohorts.{needed} is missing", where=str(path))
    for name, cohort in experiment.cohorts.items():
        if unknown := set(experiment.data.views) - set(experiment.protocol(name).views):
            raise ConfigError(f"the protocol has no view {', '.join(sorted(unknown))}", where=str(path))
        for seed in cohort.seeds:
            if owner.setdefault(seed, name) != name:
                raise ConfigError(
                    f"seed {seed} is in cohorts {owner[seed]} and {name}",
                    where=str(path),
                    likely="test subjects would have been seen in training or selection",
                )
    return experiment
