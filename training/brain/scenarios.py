"""Conditions under which a trained network is judged: ``noise-10`` is noise of 10 % of the signal of white matter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from pydantic import Field

from ...errors import ConfigError
from ...simulate.brain.scanner import LABELS
from ..recipes import Evaluation
from ..scores import Row
from .experiment import BrainExperiment
from .heads import load_heads
from .task import HeadScore, load_best, score_heads


class BrainEvaluation(Evaluation):
    """Every head has one pattern of lines and one draw of noise, which follow from its seed."""

    paper_cohort: str = Field(
        default="", description="another cohort, as many heads as the paper tested; statistics are over `cohort`"
    )

    @property
    def cohorts(self) -> tuple[str, ...]:
        return (self.cohort, self.paper_cohort) if self.paper_cohort else (self.cohort,)


def noise_of(scenario: str) -> float:
    """Level of noise of a scenario, over the signal of white matter.

    Raises
    ------
    ConfigError : for a name that is none.
    """
    kind, _, percent = scenario.partition("-")
    try:
        level = float(percent) / 100
    except ValueError:
        level = -1.0
    if kind != "noise" or not 0 <= level < 10:
        raise ConfigError(f"unknown scenario {scenario!r}", hint="noise-PERCENT, such as noise-10")
    return level


def score_run(
    experiment: BrainExperiment, run: Path, cache: Path, evaluation: Evaluation, device: str
) -> Iterator[list[Row]]:
    """Dice of every head under each scenario; one answer for each scenario."""
    network = load_best(experiment, run).to(torch.device(device))
    heads = {cohort: load_heads(experiment, cohort, cache) for cohort in evaluation.cohorts}
    for scenario in evaluation.scenarios:
        level = noise_of(scenario)
        yield [
            _row(score, cohort, scenario)
            for cohort, own in heads.items()
            for score in score_heads(experiment, own, network, noise=(level,))
        ]


def _row(score: HeadScore, cohort: str, scenario: str) -> Row:
    classes: Sequence[str] = LABELS.names[1:]
    return {
        "cohort": cohort,
        "scenario": scenario,
        "subject": f"head-{score.seed}",
        **dict(zip(classes, score.dice, strict=True)),
        "dice": score.mean,
    }
