"""The report of a study of the heart: our numbers beside those of papers 001 and 003, curves, and the latent space.

Means and families are those of every study (`training.study_report`); here are the tables that only hearts have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray

from ...output.phenotypes import DISEASES, PHENOTYPES, SLICE_MEASURES
from ..curves import draw_curves, save_figure
from ..report import Page, Table, interval, run_table
from ..scores import arrange
from ..statistics import bootstrap, compare, holm
from ..study import Study, all_rows, is_trained
from ..study_report import curve, family_tables, mean_tables, study_facts
from .judge import Scores, disease_scores, measure_errors
from .plan import task_subjects, trained
from .published import DISEASES_003, DISK_001, PHENOTYPES_003, PSNR_003
from .tsne import tsne

Rows = Sequence[Mapping[str, str]]
KINDS = {"lines": "acceleration", "moved": "acceleration, hearts shifted and turned"}
COLOURED_BY = ("LVEDV_mL", "LVM_g", "LVEF_percent", "RVEDV_mL")
"""Phenotypes that the latent space is coloured by; the first two are those of paper 003, figure 4."""


def write_report(study: Study, cache: Path) -> Path:
    """Make tables (CSV, Markdown), figures (PNG) and ``report.html`` in the study's folder.

    Raises
    ------
    ConfigError : if nothing has been evaluated.
    """
    mpl.use("Agg")
    rows, folder = all_rows(study), study.folder / "report"
    page = Page(study.file.name, study_facts(study, rows))
    tables, figures = report(rows, folder)
    page.tables = {**mean_tables(study, rows), **tables, **family_tables(study, rows), "Runs": run_table(study)}
    page.figures = [*figures, *_latent_figures(study, cache, folder)]
    return page.write(folder)


def report(rows: Rows, folder: Path) -> tuple[dict[str, Table], list[Path]]:
    """Tables by title, and curves drawn into a folder, of scores as `scenarios.score_run` gives them.

    Parameters
    ----------
    rows : with columns ``model`` (the arm), ``fold`` (the seed), ``subject``, ``scenario``; others by `judge.case_row`.
    """
    tables = {
        "Dice and Hausdorff distance beside paper 001": disk_table(rows),
        "Dice by class": class_table(rows, "dice_{}"),
        "Hausdorff distance by class (pixels)": class_table(rows, "hausdorff_{}_px"),
        "Mean absolute error of phenotypes (spread)": phenotype_table(rows),
        "Phenotypes: error over that of the mean [95 % bootstrap interval]": error_table(rows),
        "Areas of the slice: mean absolute error (r with the truth)": area_table(rows),
        "Phenotypes: absolute errors compared": phenotype_tests(rows),
        "Diseases (AUC, average precision, F1)": disease_table(rows),
        "Peak signal-to-noise ratio (dB)": psnr_table(rows),
    }
    return {title: table for title, table in tables.items() if table}, curves(rows, folder)


def _arms(rows: Rows, metric: str) -> list[str]:
    """Arms that were scored by a metric."""
    return list(dict.fromkeys(row["model"] for row in rows if row.get(metric)))


def _scenarios(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["scenario"] for row in rows))


def disk_table(rows: Rows) -> Table:
    """Dice and Hausdorff distance (mean, spread over subjects) at every acceleration, and table 1 of paper 001.

    Empty for a study of one acceleration, which is not that paper's.
    """
    if sum(scenario.startswith("lines-") for scenario in _scenarios(rows)) < 2:
        return []
    dice, far = arrange(rows, "dice"), arrange(rows, "hausdorff_px")
    table = []
    for scenario in _scenarios(rows):
        kind, _, level = scenario.partition("-")
        if kind not in (*KINDS, "swapped"):
            continue
        row = {"scenario": scenario}
        for arm in _arms(rows, "dice"):
            if (arm, scenario) in dice:
                row[arm] = f"{_spread(dice[arm, scenario])}; {_spread(far[arm, scenario], 2)}"
        if kind == "lines" and float(level) in DISK_001:
            row |= {f"paper: {arm}": told for arm, told in DISK_001[float(level)].items()}
        table.append(row)
    columns = list(dict.fromkeys(key for row in table for key in row))
    return [{key: row.get(key, "-") for key in columns} for row in table]


def class_table(rows: Rows, column: str) -> Table:
    """Mean and spread of one metric of every class, by arm and scenario."""
    before, after = column.split("{}")
    names = [
        key[len(before) : len(key) - len(after)]
        for key in dict.fromkeys(key for row in rows for key in row)
        if key.startswith(before) and key.endswith(after) and key not in ("hausdorff_px",)
    ]
    found = {name: arrange(rows, column.format(name)) for name in names}
    keys = list(dict.fromkeys(key for values in found.values() for key in values))
    return [
        {"arm": arm, "scenario": scenario}
        | {name: _spread(found[name][arm, scenario]) if (arm, scenario) in found[name] else "-" for name in names}
        for arm, scenario in keys
    ]


def phenotype_table(rows: Rows) -> Table:
    """Mean absolute error of every phenotype, subjects as they are, beside table 1 and table 3 of paper 003."""
    arms = _arms(rows, f"found_{PHENOTYPES[0]}")
    errors = {arm: _errors(rows, arm, _scenarios(rows)[0]) for arm in arms}
    if not errors:
        return []
    guess = _mean_guess(rows, arms[0])
    return [
        {"phenotype": name}
        | {arm: f"{e[name]['mae']:.2f} ({e[name]['mae_sd']:.2f})" if name in e else "-" for arm, e in errors.items()}
        | {"mean of the test subjects": f"{guess[name]:.2f}"}
        | {f"paper: {arm}": told for arm, told in PHENOTYPES_003[name].items()}
        for name in PHENOTYPES
    ]


def error_table(rows: Rows) -> Table:
    """Absolute errors over that of the test subjects' own mean, mean over phenotypes: 1 is what a constant reaches."""
    arms = _arms(rows, f"found_{PHENOTYPES[0]}")
    table = []
    for scenario in _scenarios(rows):
        row = {"scenario": scenario}
        for arm in arms:
            guess, errors = _mean_guess(rows, arm), _absolute_errors(rows, arm, scenario)
            each = np.stack([errors[name] / guess[name] for name in PHENOTYPES])
            row[arm] = interval(bootstrap(np.nanmean(each, axis=0)))
        table.append(row)
    return table if arms else []


def area_table(rows: Rows) -> Table:
    """Mean absolute error of every area of a single short-axis slice, and its correlation with the truth."""
    table = []
    for arm in _arms(rows, f"found_{SLICE_MEASURES[0]}"):
        for scenario in _scenarios(rows):
            if errors := _errors(rows, arm, scenario, SLICE_MEASURES):
                told = {name: f"{e['mae']:.2f} ({e['r']:.2f})" for name, e in errors.items()}
                table.append(
                    {"arm": arm, "scenario": scenario} | {name: told.get(name, "-") for name in SLICE_MEASURES}
                )
    return table


def phenotype_tests(rows: Rows, reference: str = "kmtr") -> Table:
    """Absolute errors of one arm against every other, phenotype by phenotype; Holm's correction within each pair."""
    arms = _arms(rows, f"found_{PHENOTYPES[0]}")
    if reference not in arms:
        return []
    scenario = _scenarios(rows)[0]
    errors = {arm: _absolute_errors(rows, arm, scenario) for arm in arms}
    table = []
    for other in arms:
        if other == reference or len(errors[other][PHENOTYPES[0]]) != len(errors[reference][PHENOTYPES[0]]):
            continue
        found = {name: compare(errors[reference][name], errors[other][name]) for name in PHENOTYPES}
        corrected = holm([one.p for one in found.values()])
        table += [
            {"against": other, "phenotype": name, f"error: {reference} - other": interval(one.difference),
             "Wilcoxon p": f"{one.p:.4f}", "p (Holm)": f"{p:.4f}", "wins/losses": f"{one.losses}/{one.wins}"}
            for (name, one), p in zip(found.items(), corrected, strict=True)
        ]  # fmt: skip
    return table


def disease_table(rows: Rows) -> Table:
    """AUC, average precision and F1 of every disease, subjects as they are, beside table 2 of paper 003."""
    table: list[dict[str, str]] = []
    columns = (
        ("AUC", "auc"),
        ("AP", "average_precision"),
        ("F1", "f1"),
        ("recall", "recall"),
        ("precision", "precision"),
    )
    for arm in _arms(rows, f"chance_{DISEASES[0]}"):
        of_seeds = [disease_scores(numbers) for numbers in _of_seeds(rows, arm, _scenarios(rows)[0])]
        table += [
            {"disease": name, "arm": arm}
            | {title: f"{np.mean([getattr(scores[name], key) for scores in of_seeds]):.3f}" for title, key in columns}
            for name in DISEASES
        ]
    if not table:
        return []
    return [*sorted(table, key=lambda row: DISEASES.index(row["disease"])), *DISEASES_003]


def psnr_table(rows: Rows) -> Table:
    """Mean and spread over subjects, beside section 4.3 of paper 003."""
    found = arrange(rows, "psnr_db")
    table = [
        {"arm": arm, "scenario": scenario, "PSNR (dB)": _spread(values, 2)} for (arm, scenario), values in found.items()
    ]
    return [*table, *PSNR_003] if table else []


def curves(rows: Rows, folder: Path) -> list[Path]:
    """Dice and Hausdorff distance against acceleration, subjects as they are and moved; the paper's as crosses."""
    made = []
    for metric, label in (("dice", "Dice"), ("hausdorff_px", "Hausdorff distance (pixels)")):
        found = arrange(rows, metric)
        for kind, axis in KINDS.items():
            names = {float(s.partition("-")[2]): s for s in _scenarios(rows) if s.startswith(f"{kind}-")}
            if len(names) < 2:
                continue
            drawn = [one for arm in _arms(rows, metric) if (one := curve(arm, names, found)).levels]
            path = folder / f"{metric}-{kind}.png"
            limits = (0.0, 1.05) if metric == "dice" else None
            made.append(draw_curves(drawn, path, axis, label, y_limits=limits))
    return made


def draw_latent(places: NDArray[np.float64], phenotypes: NDArray[np.floating], path: Path, title: str) -> Path:
    """Places ``(n, 2)`` coloured by fifths of phenotypes ``(n, 18)`` (paper 003, figure 4)."""
    figure, axes = plt.subplots(1, len(COLOURED_BY), figsize=(3.2 * len(COLOURED_BY), 3.2))
    for each, name in zip(axes, COLOURED_BY, strict=True):
        values = phenotypes[:, PHENOTYPES.index(name)]
        fifths = np.searchsorted(np.nanquantile(values, (0.2, 0.4, 0.6, 0.8)), values)
        each.scatter(places[:, 0], places[:, 1], c=fifths, cmap="viridis", s=12)
        each.set_title(f"{title}: {name}, fifths", fontsize=8)
        each.set_xticks([])
        each.set_yticks([])
    return save_figure(figure, path)


def _latent_figures(study: Study, cache: Path, folder: Path) -> list[Path]:
    """t-SNE of the class tokens of test subjects, for arms with k-MTR's encoder, with the study's first seed."""
    figures = []
    for run in study.runs(seeds=study.file.seeds[:1]):
        if run.experiment.method not in ("kmtr", "mae") or not is_trained(run):
            continue
        train = task_subjects(run.experiment, "train", cache)
        subjects = task_subjects(run.experiment, study.evaluation.cohort, cache)
        task, network = trained(run.experiment, train, subjects, run.recipe.weights(run.folder))
        acceleration = run.experiment.data.accelerations[0]
        tokens = []
        with torch.inference_mode():
            for subject in subjects:
                batch = task.case(subject, acceleration)
                lines = network.get_submodule("lines")(batch["values"], batch["places"])
                tokens.append(lines[-1][0, 0].double().numpy())
        known = np.stack([subject.phenotypes for subject in subjects])
        figures.append(draw_latent(tsne(np.stack(tokens)), known, folder / f"latent-{run.arm}.png", run.arm))
    return figures


def _of_seeds(rows: Rows, arm: str, scenario: str) -> list[list[Scores]]:
    """Rows of an arm as numbers, in the same order of subjects for each seed.

    Each seed is judged by itself, and the measures are averaged: averaged predictions would be those of an ensemble.
    """
    grouped: dict[str, dict[str, Scores]] = {}
    texts = ("model", "fold", "subject", "scenario")
    for row in rows:
        if row["model"] == arm and row["scenario"] == scenario:
            numbers = {key: float(value) for key, value in row.items() if key not in texts}
            grouped.setdefault(row["fold"], {})[row["subject"]] = numbers
    return [[of_seed[subject] for subject in sorted(of_seed)] for of_seed in grouped.values()]


def _errors(rows: Rows, arm: str, scenario: str, names: Sequence[str] = PHENOTYPES) -> dict[str, dict[str, float]]:
    """`measure_errors`, mean over seeds."""
    of_seeds = [measure_errors(numbers, names) for numbers in _of_seeds(rows, arm, scenario)]
    known = [name for name in names if of_seeds and all(name in errors for errors in of_seeds)]
    return {
        name: {key: float(np.mean([errors[name][key] for errors in of_seeds])) for key in of_seeds[0][name]}
        for name in known
    }


def _absolute_errors(rows: Rows, arm: str, scenario: str) -> dict[str, NDArray[np.float64]]:
    """Of every subject, mean over seeds."""
    of_seeds = _of_seeds(rows, arm, scenario)
    return {
        name: np.mean([[abs(row[f"found_{name}"] - row[f"true_{name}"]) for row in rows] for rows in of_seeds], axis=0)
        for name in PHENOTYPES
    }


def _mean_guess(rows: Rows, arm: str) -> dict[str, float]:
    """Mean absolute error of the test subjects' own mean (paper 003, table 3)."""
    numbers = _of_seeds(rows, arm, _scenarios(rows)[0])[0]
    truth = {name: np.array([row[f"true_{name}"] for row in numbers]) for name in PHENOTYPES}
    return {name: float(np.nanmean(np.abs(values - np.nanmean(values)))) for name, values in truth.items()}


def _spread(values: NDArray[np.float64], digits: int = 3) -> str:
    """Mean and standard deviation over subjects."""
    finite = values[np.isfinite(values)]
    return f"{finite.mean():.{digits}f} ({finite.std():.{digits}f})" if finite.size else "-"
