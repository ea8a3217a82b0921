"""The numbers of paper 004 (Huang et al., SERANet): Dice at 10 % and 20 % noise, by method, as its tables print them.

The two tables disagree: the larger of the two tissues is grey matter in table 1 and white matter in table 2, by about
the same amount. One of them has its column heads exchanged; which one, the paper does not tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ...models.registry import architecture
from .experiment import BrainExperiment


class Dice(NamedTuple):
    """One row of a table, at one level of noise."""

    csf: float
    grey_matter: float
    white_matter: float
    dice: float
    """The mean of the three."""


Published = Mapping[str, Mapping[str, Dice]]
"""By scenario and name."""

TABLE_1: Published = {
    "noise-10": {
        "last+image": Dice(0.8048, 0.8841, 0.8518, 0.8469),
        "all": Dice(0.8513, 0.9082, 0.8796, 0.8797),
        "last": Dice(0.8482, 0.9102, 0.8814, 0.8799),
    },
    "noise-20": {
        "last+image": Dice(0.7995, 0.8751, 0.8092, 0.8279),
        "all": Dice(0.8041, 0.8733, 0.8283, 0.8352),
        "last": Dice(0.8083, 0.8762, 0.8415, 0.8423),
    },
}
"""Losses; the paper does not say how many blocks this SERANet has."""

TABLE_2: Published = {
    "noise-10": {
        "One-step": Dice(0.7677, 0.7900, 0.8334, 0.7970),
        "LI-Net": Dice(0.6849, 0.7558, 0.7576, 0.7328),
        "Syn-Net": Dice(0.7558, 0.7961, 0.8256, 0.7925),
        "SegNetMRI": Dice(0.8210, 0.8575, 0.8905, 0.8563),
        "SERANet-2": Dice(0.8344, 0.8669, 0.8977, 0.8663),
        "SERANet-7": Dice(0.8548, 0.8905, 0.9175, 0.8876),
    },
    "noise-20": {
        "One-step": Dice(0.7600, 0.7911, 0.8324, 0.7945),
        "LI-Net": Dice(0.6686, 0.7282, 0.7276, 0.7081),
        "Syn-Net": Dice(0.7307, 0.7808, 0.8095, 0.7737),
        "SegNetMRI": Dice(0.7817, 0.7728, 0.8472, 0.8006),
        "SERANet-2": Dice(0.8053, 0.8373, 0.8706, 0.8377),
        "SERANet-7": Dice(0.8122, 0.8457, 0.8798, 0.8459),
    },
}
"""Methods; columns as the paper heads them (it prints white before grey matter here)."""

LOSSES = {
    "last+image": "cross entropy of the last + l2 of the image",
    "all": "cross entropy of all",
    "last": "cross entropy of the last",
}

_NAMES = {
    "brain-one-step": "One-step",
    "brain-li-net": "LI-Net",
    "brain-syn-net": "Syn-Net",
    "brain-segnetmri": "SegNetMRI",
    "brain-two-step": "Two-step",
    "brain-joint": "Joint",
}
WITHOUT_ATTENTION = ("Joint", "Two-step")
BLOCKED = ("SERANet", *WITHOUT_ATTENTION)
"""Methods whose number of blocks figure 2 varies."""


def family_of(experiment: BrainExperiment) -> str:
    """The paper's name of a method, without its number of blocks."""
    return _NAMES.get(experiment.network.architecture, "SERANet")


def blocks_of(experiment: BrainExperiment) -> int:
    """Number of reconstruction blocks, 0 for a network without any."""
    network = experiment.network
    return int({**architecture(network.architecture).arguments, **network.arguments}.get("n_blocks", 0))


def block_type(experiment: BrainExperiment) -> str:
    """``A`` or ``B``, empty for networks that have one form of block only."""
    network = experiment.network
    return str({**architecture(network.architecture).arguments, **network.arguments}.get("block", ""))


def method_of(experiment: BrainExperiment) -> str:
    """The paper's name of a method, such as SERANet-7; blocks of type B are said."""
    family = family_of(experiment)
    if family not in BLOCKED:
        return family
    return f"{family}-{blocks_of(experiment)}" + ("" if block_type(experiment) == "A" else f" {block_type(experiment)}")
