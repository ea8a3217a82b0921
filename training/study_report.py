"""The report of any study: means with intervals, families of paired tests, and a curve where scenarios have levels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

from .curves import Curve, draw_curves
from .report import Page, Table, by_scenario, comparison_row, family_title, interval, origin, run_table
from .scores import Arranged, arrange, stuck_runs, unequal_seeds
from .statistics import Comparison, bootstrap, compare, holm_family
from .study import FamilyConfig, Study, all_rows

Rows = Sequence[Mapping[str, str]]


def write_report(study: Study) -> Path:
    """Make tables (CSV, Markdown), figures (PNG) and ``report.html`` in the study's folder.

    Raises
    ------
    ConfigError : if nothing has been evaluated.
    """
    mpl.use("Agg")
    rows = all_rows(study)
    folder = study.folder / "report"
    page = Page(study.file.name, study_facts(study, rows))
    page.tables = {**mean_tables(study, rows), **family_tables(study, rows), "Runs": run_table(study)}
    page.figures = level_figures(study, rows, folder)
    return page.write(folder)


def study_facts(study: Study, rows: Rows) -> list[str]:
    """What the study is, how it was made, and what its numbers mean."""
    n_subjects = len({row["subject"] for row in rows})
    scored = {int(row["fold"]) for row in rows}
    seeds = ", ".join(str(seed) for seed in study.file.seeds if seed in scored)
    missing = ", ".join(str(seed) for seed in study.file.seeds if seed not in scored)
    return [
        study.file.description,
        f"{n_subjects} test subjects; seeds {seeds}{f' (not run: {missing})' if missing else ''}.",
        origin(study),
        "Intervals and tests are over subjects, each averaged over seeds. Research use only.",
        *unequal_seeds(rows),
        *stuck_runs(rows, study.recipe_class.metrics[0]),
    ]


def mean_tables(study: Study, rows: Rows) -> dict[str, Table]:
    """One table for each metric of the task that was measured."""
    tables = {}
    for metric in study.recipe_class.metrics:
        found = arrange(rows, metric)
        if found:
            cells = {key: interval(bootstrap(values)) for key, values in found.items()}
            arms = [arm for arm in study.arms if any(arm == known for known, _ in found)]
            tables[f"Mean {metric} [95 % bootstrap interval]"] = by_scenario(cells, arms, _measured(study, found))
    return tables


def _measured(study: Study, found: Arranged) -> list[str]:
    return [scenario for scenario in study.evaluation.scenarios if any(scenario == known for _, known in found)]


def compare_family(found: Arranged, family: FamilyConfig) -> dict[tuple[str, str], Comparison]:
    """One family by the other arm and scenario, corrected within it; scenarios without scores are left out."""
    comparisons = {}
    for other in family.others:
        for scenario, others in family.pairs:
            a, b = (family.a, scenario), (other, others)
            if a in found and b in found:
                comparisons[other, scenario] = compare(found[a], found[b])
    return holm_family(comparisons)


def family_tables(study: Study, rows: Rows) -> dict[str, Table]:
    """One table for each family, of the task's first metric."""
    metric = study.recipe_class.metrics[0]
    found = arrange(rows, metric)
    return {
        family_title(name, family): [
            comparison_row(comparison, family, other, scenario, metric, "subjects")
            for (other, scenario), comparison in compare_family(found, family).items()
        ]
        for name, family in study.file.families.items()
    }


def level_figures(study: Study, rows: Rows, folder: Path) -> list[Path]:
    """The first metric over the levels of each kind of scenario that has at least two, such as ``lines-4, lines-8``."""
    metric = study.recipe_class.metrics[0]
    found = arrange(rows, metric)
    kinds: dict[str, dict[float, str]] = {}
    for scenario in _measured(study, found):
        if match := re.fullmatch(r"(.+?)-(-?\d+(?:\.\d+)?)", scenario):
            kinds.setdefault(match[1], {})[float(match[2])] = scenario
    figures = []
    for kind, names in kinds.items():
        if len(names) > 1:
            curves = [curve(arm, names, found) for arm in study.arms]
            path = folder / f"{metric}-{kind}.png"
            figures.append(draw_curves([c for c in curves if c.levels], path, kind, metric, y_limits=None))
    return figures


def curve(arm: str, names: Mapping[float, str], found: Arranged) -> Curve:
    """An arm over levels, where it was measured; `names` are scenarios by level."""
    levels = tuple(level for level, name in names.items() if (arm, name) in found)
    return Curve(arm, levels, tuple(bootstrap(found[arm, names[level]]) for level in levels))
