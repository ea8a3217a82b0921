"""What a study of the brain task found, beside what paper 004 printed: its two tables, its figure 2, its claims."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from ...recon.fourier import to_image
from ...simulate.brain.scanner import LABELS
from ..curves import Curve, draw_curves, save_figure
from ..report import Page, Table, interval, p_value, run_table
from ..scores import Arranged, arrange
from ..statistics import bootstrap, compare, holm_family
from ..study import Run, Study, all_rows, is_trained
from ..study_report import family_tables, mean_tables, study_facts
from .heads import load_heads
from .published import (
    BLOCKED,
    LOSSES,
    TABLE_1,
    TABLE_2,
    WITHOUT_ATTENTION,
    Dice,
    Published,
    block_type,
    blocks_of,
    family_of,
    method_of,
)
from .scenarios import noise_of
from .task import best_weights, load_best, measured_head, predict

CLASSES = LABELS.names[1:]
COLUMNS = 6
"""Pictures in a row."""

Rows = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Arm:
    """One arm in the paper's words; `loss` is a key of `published.LOSSES`, `noise` the levels of its training."""

    name: str
    method: str
    family: str
    n_blocks: int
    block: str
    loss: str
    noise: tuple[float, ...]

    @classmethod
    def of(cls, run: Run) -> Arm:
        experiment = run.experiment
        return cls(
            run.arm,
            method_of(experiment),
            family_of(experiment),
            blocks_of(experiment),
            block_type(experiment),
            experiment.loss.form,
            experiment.data.noise,
        )


@dataclass(frozen=True)
class Claim:
    """The paper says that the first arm is better than the second; by how much, where it prints numbers."""

    where: str
    better: Arm
    worse: Arm
    published: Mapping[str, float]
    """Difference by scenario."""


def write_report(study: Study, cache: Path) -> Path:
    """Make tables (CSV, Markdown), figures (PNG) and ``report.html`` in the study's folder.

    Raises
    ------
    ConfigError : if nothing has been evaluated.
    """
    mpl.use("Agg")
    folder = study.folder / "report"
    everything = all_rows(study)
    rows = of_cohort(everything, study.evaluation.cohort)
    arms = [Arm.of(run) for run in study.runs(seeds=study.file.seeds[:1])]
    page = Page(study.file.name, [*study_facts(study, rows), *_facts(study, everything)])
    few = of_cohort(everything, _paper_cohort(study))
    page.tables = {
        "Table 1, losses of SERANet": _beside_losses(study, arms, rows, few),
        "Table 2, all methods": _beside_methods(study, arms, rows, few),
        "Claims of the paper, and what was found": claim_table(
            study, claims(arms), arrange(rows, "dice"), [arrange(own, "dice") for own in _of_each_seed(rows)]
        ),
        **mean_tables(study, rows),
        **family_tables(study, rows),
        "Runs": run_table(study),
    }
    page.figures = [*_block_figures(study, arms, rows, folder), *_pictures(study, cache, folder)]
    return page.write(folder)


def of_cohort(rows: Rows, cohort: str) -> Rows:
    """Rows of the heads of one cohort."""
    return [row for row in rows if row["cohort"] == cohort]


def _of_each_seed(rows: Rows) -> list[Rows]:
    """Rows apart by the seed of the training."""
    seeds = dict.fromkeys(row["fold"] for row in rows)
    return [[row for row in rows if row["fold"] == seed] for seed in seeds]


def _paper_cohort(study: Study) -> str:
    return str(study.evaluation.model_dump()["paper_cohort"])


def _facts(study: Study, rows: Rows) -> list[str]:
    few = len({row["subject"] for row in of_cohort(rows, _paper_cohort(study))})
    return [
        f"Intervals are of the test heads; 'few heads' is the mean over the {few} heads of cohort "
        f"{_paper_cohort(study)!r}, as many as the paper tested."
        if few
        else "The study has no cohort of the paper's size.",
        "The paper's two tables disagree on which of grey and white matter is segmented better: one of them has its "
        "column heads exchanged. Its numbers stand under the heads that it prints.",
    ]


def _beside_losses(study: Study, arms: Sequence[Arm], rows: Rows, few: Rows) -> Table:
    """The paper's table 1, for every SERANet of which other losses were tried."""
    tried = {arm.method for arm in arms if arm.loss != "last"}
    chosen = [arm for arm in arms if arm.family == "SERANet" and arm.method in tried]
    return [
        {"loss": LOSSES[arm.loss], "network": arm.method, "arm": arm.name, **cells}
        for arm in sorted(chosen, key=lambda arm: (arm.method, list(LOSSES).index(arm.loss)))
        for cells in _beside(study, arm, rows, few, _printed(TABLE_1, arm.loss))
    ]


def _beside_methods(study: Study, arms: Sequence[Arm], rows: Rows, few: Rows) -> Table:
    """The paper's table 2, with the methods of its figure 2."""
    return [
        {"method": arm.method, "arm": arm.name, **cells}
        for arm in arms
        if arm.loss == "last"
        for cells in _beside(study, arm, rows, few, _printed(TABLE_2, arm.method))
    ]


def _beside(study: Study, arm: Arm, rows: Rows, few: Rows, published: Mapping[str, Dice]) -> Iterator[dict[str, str]]:
    """A row for each scenario: our Dice of each class and their mean, and the paper's."""
    ours = {metric: arrange(rows, metric) for metric in (*CLASSES, "dice")}
    small = arrange(few, "dice")
    for scenario in study.evaluation.scenarios:
        key = (arm.name, scenario)
        if key not in ours["dice"]:
            continue
        paper = published[scenario]._asdict() if scenario in published else {}
        yield {
            "noise": f"{100 * noise_of(scenario):g} %",
            **{name: f"{bootstrap(ours[name][key]).mean:.3f}" for name in CLASSES},
            "mean": interval(bootstrap(ours["dice"][key])),
            "few heads": f"{bootstrap(small[key]).mean:.3f}" if key in small else "-",
            **{f"paper: {name}": f"{paper[name]:.3f}" if paper else "-" for name in CLASSES},
            "paper: mean": f"{paper['dice']:.3f}" if paper else "-",
        }


def _printed(table: Published, name: str) -> dict[str, Dice]:
    """What the paper has of a method or loss, by scenario."""
    return {scenario: rows[name] for scenario, rows in table.items() if name in rows}


def claims(arms: Sequence[Arm]) -> list[Claim]:
    """What the paper says of two arms of the study that were trained at the same noise.

    SERANet-2 and -7 are better than the other methods of table 2, SERANet-7 than SERANet-2; attention helps at every
    number of blocks (figure 2); the loss of the last logits is the best one (table 1).
    """
    found = []
    for a, b in itertools.permutations(arms, 2):
        if a.noise != b.noise or a.family != "SERANet" or a.loss != "last":
            continue
        is_alike = (a.n_blocks, a.block) == (b.n_blocks, b.block)
        if b.loss != "last" and is_alike and b.family == "SERANet":
            found.append(Claim("table 1", a, b, _differences(TABLE_1, a.loss, b.loss)))
        elif b.loss == "last" and is_alike and b.family in WITHOUT_ATTENTION:
            found.append(Claim("figure 2", a, b, {}))
        elif b.loss == "last" and min(_differences(TABLE_2, a.method, b.method).values(), default=0) > 0:
            found.append(Claim("table 2", a, b, _differences(TABLE_2, a.method, b.method)))
    return found


def _differences(table: Published, better: str, worse: str) -> dict[str, float]:
    """Difference of the mean Dice by scenario, where the paper has both."""
    a, b = _printed(table, better), _printed(table, worse)
    return {scenario: a[scenario].dice - b[scenario].dice for scenario in a if scenario in b}


def claim_table(study: Study, wanted: Sequence[Claim], dice: Arranged, by_seed: Sequence[Arranged]) -> Table:
    """Each claim at each level of noise that the paper has: its difference, ours with a test, and the verdict.

    Holm's correction is over the whole table. A claim is reproduced, or contradicted, if the interval of our
    difference lies on one side of 0, the corrected p is below 0.05, and every seed says the same: tests over heads know
    nothing of how much a training's luck decides. Else it is undecided.

    Parameters
    ----------
    dice : of subjects averaged over seeds.
    by_seed : the same of each seed.
    """
    pairs = {
        (number, scenario): (dice[claim.better.name, scenario], dice[claim.worse.name, scenario])
        for number, claim in enumerate(wanted)
        for scenario in study.evaluation.scenarios
        if scenario in TABLE_2 and (claim.better.name, scenario) in dice and (claim.worse.name, scenario) in dice
    }
    table = []
    for (number, scenario), found in holm_family({key: compare(*pair) for key, pair in pairs.items()}).items():
        claim, difference = wanted[number], found.difference
        apart = _differences_by_seed(by_seed, (claim.better.name, scenario), (claim.worse.name, scenario))
        agree = all(one * difference.mean > 0 for one in apart)
        is_sure = found.p_holm < 0.05 and difference.low * difference.high > 0 and agree
        worse = claim.worse.method if claim.worse.loss == "last" else LOSSES[claim.worse.loss]
        better = claim.better.method if claim.worse.loss == "last" else f"{claim.better.method}, {LOSSES['last']}"
        table.append(
            {
                "claim": f"{better} > {worse}",
                "of": claim.where,
                "noise": f"{100 * noise_of(scenario):g} %",
                "paper's difference": f"{claim.published[scenario]:+.3f}" if claim.published else "in a figure",
                "our difference": interval(difference),
                "by seed": " ".join(f"{one:+.3f}" for one in apart),
                "Wilcoxon p": p_value(found.p),
                "p (Holm)": p_value(found.p_holm),
                "wins/losses": f"{found.wins}/{found.losses}",
                "verdict": ("reproduced" if difference.mean > 0 else "contradicted") if is_sure else "undecided",
            }
        )
    return table


def _differences_by_seed(by_seed: Sequence[Arranged], better: tuple[str, str], worse: tuple[str, str]) -> list[float]:
    """Difference of two arms' means, for each seed that both have."""
    return [
        float(np.nanmean(dice[better]) - np.nanmean(dice[worse]))
        for dice in by_seed
        if better in dice and worse in dice
    ]


def _block_figures(study: Study, arms: Sequence[Arm], rows: Rows, folder: Path) -> list[Path]:
    """The paper's figure 2: Dice against the number of blocks, with attention (SERANet) and without."""
    dice = arrange(rows, "dice")
    figures = []
    for scenario in study.evaluation.scenarios:
        groups: dict[str, dict[float, str]] = {}
        for arm in arms:
            if arm.family in BLOCKED and arm.loss == "last" and (arm.name, scenario) in dice:
                attention = "without" if arm.family in WITHOUT_ATTENTION else "with attention"
                name = f"{arm.family} {arm.block}, {attention}"
                if len({each.noise for each in arms}) > 1:
                    name += ", trained at " + ", ".join(f"{100 * level:g} %" for level in arm.noise)
                groups.setdefault(name, {})[arm.n_blocks] = arm.name
        curves = [
            Curve(name, tuple(sorted(own)), tuple(bootstrap(dice[own[n], scenario]) for n in sorted(own)))
            for name, own in groups.items()
        ]
        if not curves:
            continue
        printed = TABLE_2.get(scenario, {})
        paper = {float(n): printed[f"SERANet-{n}"].dice for n in (2, 7) if f"SERANet-{n}" in printed}
        figures.append(
            draw_curves(
                curves,
                folder / f"blocks-{scenario}.png",
                f"reconstruction blocks ({100 * noise_of(scenario):g} % noise)",
                "mean Dice",
                published={"paper 004, SERANet A": paper} if paper else None,
                y_limits=None,
            )
        )
    return figures


def _pictures(study: Study, cache: Path, folder: Path) -> list[Path]:
    """The middle slice of the first test head under each scenario, as every arm segments it (its figures 3 and 4)."""
    runs = [run for run in study.runs(seeds=study.file.seeds[:1]) if is_trained(run)]
    runs = [run for run in runs if best_weights(run.experiment, run.folder).is_file()]
    if not runs:
        return []
    experiment = study.first.experiment
    head = load_heads(experiment, study.evaluation.cohort, cache)[0]
    colours = np.array(LABELS.colours, np.uint8)
    figures = []
    for scenario in study.evaluation.scenarios:
        middle = measured_head(head, experiment, noise_of(scenario))[len(head.samples) // 2]
        image = np.clip(np.abs(to_image(middle.under)), 0, 1)
        panels = [("zero-filled", np.repeat(image[..., None], 3, axis=-1)), ("truth", colours[middle.labels])]
        panels += [(run.arm, colours[predict(load_best(run.experiment, run.folder), [middle])[0]]) for run in runs]
        figures.append(_grid(panels, folder / f"example-{scenario}.png"))
    return figures


def _grid(panels: Sequence[tuple[str, np.ndarray]], path: Path) -> Path:
    n_rows = -(-len(panels) // COLUMNS)
    figure, grid = plt.subplots(n_rows, COLUMNS, figsize=(1.9 * COLUMNS, 2.4 * n_rows), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, (title, picture) in zip(grid.flat, panels, strict=False):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(title, fontsize=8)
    return save_figure(figure, path)
