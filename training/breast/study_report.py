"""What a study found: tables, tests, figures, and one HTML page that holds them all.

Seeds are repetitions of training, exams are what is sampled from the world. So an exam's Dice is first averaged over
seeds, and every interval and test is over exams; an exam counts as failed if more than half of its seeds failed.
"""

from __future__ import annotations

import base64
import html
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray

from ...engines.torch_engine import TorchEngine
from ...errors import ModelError
from ...models.registry import architecture, cost
from ...recon.fourier import to_image
from ...segment.patches import cut_patch
from ..statistics import (
    Comparison,
    FailureComparison,
    Interval,
    bootstrap,
    compare,
    compare_failures,
    holm_failures,
    holm_family,
)
from .data import Exam, load_cohort
from .figures import Curve, draw_curves, draw_features, draw_overlays, features_of
from .pictures import fullest_slice
from .scenarios import Scenario, Score, mask_index, score, segment_under, write_published
from .study import FamilyConfig, Study, all_scores, is_trained, read_times
from .task import load_best

N_OVERLAYS = 2
OVERLAY_SCENARIOS = ("full", "cartesian-2", "cartesian-8")
PAPER_CURVES = {
    "cartesian": "acceleration (random Cartesian lines)",
    "noise": "signal-to-noise ratio of k-space (dB)",
    "radial": "acceleration (radial spokes dropped)",
}

Table = list[dict[str, str]]


@dataclass(frozen=True)
class Results:
    """Scores of a study, arranged by arm and scenario.

    Parameters
    ----------
    dice : ``(exams,)``, mean over seeds, of exams with a lesion.
    failed : ``(exams,)`` share of seeds that failed.
    """

    dice: Mapping[tuple[str, str], NDArray[np.float64]]
    failed: Mapping[tuple[str, str], NDArray[np.float64]]
    scores: Sequence[Score]

    @classmethod
    def of(cls, scores: Sequence[Score]) -> Results:
        """Arrange scores; exams come in the order of the cohort."""
        grouped: dict[tuple[str, str], dict[int, list[Score]]] = defaultdict(lambda: defaultdict(list))
        for row in scores:
            if row.has_lesion:
                grouped[row.model, row.scenario][row.patient_index].append(row)
        dice, failed = {}, {}
        for key, exams in grouped.items():
            ordered = [exams[index] for index in sorted(exams)]
            dice[key] = np.array([np.mean([row.dice for row in rows]) for rows in ordered])
            failed[key] = np.array([np.mean([row.is_failure for row in rows]) for rows in ordered])
        return cls(dice, failed, scores)

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(arm for arm, _ in self.dice))

    @property
    def scenarios(self) -> list[str]:
        return list(dict.fromkeys(scenario for _, scenario in self.dice))


def compare_family(
    results: Results, family: FamilyConfig
) -> tuple[dict[str, Comparison], dict[str, FailureComparison]]:
    """One family of comparisons, Dice and failures, each corrected for itself; scenarios without scores are left."""
    dice, failures = {}, {}
    for scenario, other in zip(family.scenarios, family.b_scenarios or family.scenarios, strict=True):
        a, b = (family.a, scenario), (family.b, other)
        if a in results.dice and b in results.dice:
            dice[scenario] = compare(results.dice[a], results.dice[b])
            failures[scenario] = compare_failures(results.failed[a] > 0.5, results.failed[b] > 0.5)
    return holm_family(dice), holm_failures(failures)


def write_report(study: Study, cache: Path) -> Path:
    """Make tables (CSV, Markdown), figures (PNG) and ``report.html`` in the study's folder.

    Raises
    ------
    ConfigError : if nothing has been evaluated.
    """
    mpl.use("Agg")
    folder = study.folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    scores = all_scores(study)
    results = Results.of(scores)
    exams = load_cohort(study.first, study.file.evaluation.cohort, cache)
    write_published(scores, folder, exams[0].labels.shape[-1])
    tables = {
        "Mean Dice of exams with a lesion [95 % bootstrap interval]": _dice_table(results),
        "Catastrophic failures (Dice 0), share of exams and seeds": _failure_table(results),
        "Lesions found, and false components per exam": _detection_table(results),
        **{f"Comparison: {name}": _family_table(results, family) for name, family in study.file.families.items()},
        "Runs": _run_table(study),
    }
    figures = [*_curves(study, results, folder), *_examples(study, exams, folder)]
    facts = [*_facts(study, exams), *unequal_seeds(scores)]
    text = _markdown(study, tables, facts)
    (folder / "tables.md").write_text(text, encoding="utf-8")
    path = folder / "report.html"
    path.write_text(_html(study, tables, figures, facts), encoding="utf-8")
    return path


def _interval(value: Interval) -> str:
    return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _p(value: float) -> str:
    return "<0.0001" if value < 1e-4 else f"{value:.4f}"


def _by_scenario(results: Results, cell: dict[tuple[str, str], str]) -> Table:
    return [
        {"scenario": scenario, **{arm: cell.get((arm, scenario), "-") for arm in results.arms}}
        for scenario in results.scenarios
    ]


def _dice_table(results: Results) -> Table:
    return _by_scenario(results, {key: _interval(bootstrap(values)) for key, values in results.dice.items()})


def _failure_table(results: Results) -> Table:
    return _by_scenario(results, {key: f"{values.mean():.2f}" for key, values in results.failed.items()})


def _detection_table(results: Results) -> Table:
    grouped: dict[tuple[str, str], list[Score]] = defaultdict(list)
    for row in results.scores:
        grouped[row.model, row.scenario].append(row)
    cells = {}
    for key, rows in grouped.items():
        n_lesions = sum(row.n_lesions for row in rows)
        found = sum(row.n_found for row in rows) / n_lesions if n_lesions else float("nan")
        cells[key] = f"{found:.2f}, {np.mean([row.n_false for row in rows]):.2f}"
    return _by_scenario(results, cells)


def _family_table(results: Results, family: FamilyConfig) -> Table:
    dice, failures = compare_family(results, family)
    return [
        {
            "scenario": scenario,
            "exams": str(comparison.n),
            f"Dice: {family.a} - {family.b}": _interval(comparison.difference),
            "median difference": _interval(comparison.median_difference),
            "Wilcoxon p": _p(comparison.p),
            "p (Pratt)": _p(comparison.p_pratt),
            "p (Holm)": _p(comparison.p_holm),
            "rank-biserial": f"{comparison.effect:.2f}",
            "wins/losses": f"{comparison.wins}/{comparison.losses}",
            f"only {family.a} fails": str(failures[scenario].only_a),
            f"only {family.b} fails": str(failures[scenario].only_b),
            "McNemar p": _p(failures[scenario].p),
            "McNemar p (Holm)": _p(failures[scenario].p_holm),
        }
        for scenario, comparison in dice.items()
    ]


def _run_table(study: Study) -> Table:
    rows = []
    for run in study.runs():
        network, schedule = run.experiment.network, run.experiment.schedule
        counted, times = cost(network.architecture, network.arguments), read_times(run)
        paper = cost(network.architecture)
        arguments = {**architecture(network.architecture).arguments, **network.arguments}
        rows.append(
            {
                "arm": run.arm,
                "seed": str(run.seed),
                "network": network.architecture,
                "parameters": f"{counted.parameters:,}",
                "GMACs of this width, 24x320x320": f"{counted.macs / 1e9:.2f}",
                "GMACs at full width": f"{paper.macs / 1e9:.1f}",
                "steps x patches": f"{schedule.steps} x {schedule.batch * schedule.batches_per_step}",
                "training (s)": f"{times.get('train_s', float('nan')):.0f}",
                "evaluation (s)": f"{times.get('evaluate_s', float('nan')):.0f}",
                "arguments": ", ".join(f"{key} {value}" for key, value in arguments.items()),
            }
        )
    return rows


def _curves(study: Study, results: Results, folder: Path) -> list[Path]:
    """Dice and failures over acceleration, SNR and spokes; asterisks are those of the first family that has them."""
    figures = []
    for kind, label in PAPER_CURVES.items():
        groups = _levels(results, kind)
        for group, names in groups.items():
            name = f"{kind}-{group}" if group else kind
            marks = _marks(study, results, names)
            dice = [_curve(arm, names, results.dice) for arm in results.arms]
            failed = [_curve(arm, names, results.failed) for arm in results.arms]
            where = f"{label}, {group}" if group else label
            figures += [
                draw_curves(dice, folder / f"dice-{name}.png", where, "Dice", marks),
                draw_curves(failed, folder / f"failures-{name}.png", where, "catastrophic failure rate"),
            ]
    return figures


def _levels(results: Results, kind: str) -> dict[str, dict[float, str]]:
    """Scenarios of a kind by level; radial ones by scheme. Full sampling is 1x of every acceleration."""
    groups: dict[str, dict[float, str]] = {}
    for name in results.scenarios:
        scenario = Scenario.of(name)
        if scenario.kind == kind:
            group = name.split("-")[1] if kind == "radial" else ""
            groups.setdefault(group, {})[scenario.level] = name
    if kind != "noise" and "full" in results.scenarios:
        for levels in groups.values():
            levels[1] = "full"
    return groups


def _curve(arm: str, names: Mapping[float, str], values: Mapping[tuple[str, str], NDArray[np.float64]]) -> Curve:
    levels = tuple(level for level, name in names.items() if (arm, name) in values)
    return Curve(arm, levels, tuple(bootstrap(values[arm, names[level]]) for level in levels))


def _marks(study: Study, results: Results, names: Mapping[float, str]) -> dict[float, float]:
    for family in study.file.families.values():
        dice, _ = compare_family(results, family)
        marks = {level: dice[name].p_holm for level, name in names.items() if name in dice}
        if marks:
            return marks
    return {}


def _examples(study: Study, exams: Sequence[Exam], folder: Path) -> list[Path]:
    """Overlays of every arm, and the features of those that have a k-space stage, with the study's first seed."""
    runs = [run for run in study.runs(seeds=study.file.seeds[:1]) if is_trained(run)]
    shown = [(mask_index(exam, n), exam) for n, exam in enumerate(exams) if exam.has_lesion][:N_OVERLAYS]
    scenarios = [s for s in study.scenarios if s.name in OVERLAY_SCENARIOS]
    rows = []
    networks = {run.arm: load_best(run.experiment, run.folder) for run in runs}
    for index, exam in shown:
        for scenario in scenarios:
            frame, z = study.first.data.frame, fullest_slice(exam.labels)
            predictions = {}
            for run in runs:
                patch = (run.experiment.network.patch_depth, run.experiment.network.patch_stride)
                engine = TorchEngine(networks[run.arm], {})
                made = segment_under(scenario, exam, index, engine, frame, patch)
                value = score(made, exam, run.arm, run.seed, scenario.name, index).dice
                predictions[run.arm] = (made[z], value)
            image = np.abs(to_image(scenario.apply(exam, exam.difference(frame), index)[z]))
            rows.append((f"{exam.patient} {scenario.name}", image, exam.labels[z], predictions))
    figures = [draw_overlays(rows, folder / "overlays.png")] if rows and runs else []
    if not shown:
        return figures
    _, exam = shown[0]
    for run in runs:
        depth = run.experiment.network.patch_depth
        start = min(max(fullest_slice(exam.labels) - depth // 2, 0), max(len(exam.labels) - depth, 0))
        kspace = cut_patch(exam.difference(run.experiment.data.frame), start, depth)
        try:
            features = features_of(networks[run.arm], kspace)
        except ModelError:
            continue  # an image-space network has none
        labels = cut_patch(exam.labels, start, depth)
        figures.append(draw_features(features, labels, folder / f"features-{run.arm}.png", run.arm))
    return figures


def _facts(study: Study, exams: Sequence[Exam]) -> list[str]:
    n_positive = sum(exam.has_lesion for exam in exams)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return [
        study.file.description,
        f"{len(exams)} test exams, {n_positive} with a lesion; seeds {', '.join(map(str, study.file.seeds))}; "
        f"masks and noise once per {study.file.evaluation.scope}.",
        f"Made by: kstream study {study.path.name}. Machine: {machine}.",
        "Intervals and tests are over exams, each averaged over seeds. Research use only.",
    ]


def unequal_seeds(scores: Sequence[Score]) -> list[str]:
    """A sentence if some arms were scored with other seeds than others; else nothing."""
    seeds: dict[str, set[int]] = defaultdict(set)
    for row in scores:
        seeds[row.model].add(row.fold)
    if len({frozenset(found) for found in seeds.values()}) <= 1:
        return []
    each = "; ".join(f"{arm} {', '.join(map(str, sorted(found)))}" for arm, found in seeds.items())
    return [f"Attention: the arms were scored with different seeds ({each}), so their means are not alike."]


def _markdown(study: Study, tables: Mapping[str, Table], facts: Sequence[str]) -> str:
    parts = [f"# {study.file.name}", *facts]
    for title, rows in tables.items():
        if not rows:
            continue
        head = list(rows[0])
        lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        lines += ["| " + " | ".join(row[column] for column in head) + " |" for row in rows]
        parts += [f"## {title}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;max-width:1200px;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;font-size:13px;display:block;overflow-x:auto}"
    "td,th{border:1px solid #ccc;padding:3px 7px;text-align:left;white-space:nowrap}img{max-width:100%}"
)


def _html(study: Study, tables: Mapping[str, Table], figures: Sequence[Path], facts: Sequence[str]) -> str:
    """One page that needs no other file."""
    name = html.escape(study.file.name)
    parts = [f"<h1>{name}</h1>", *(f"<p>{html.escape(fact)}</p>" for fact in facts)]
    for path in figures:
        data = base64.b64encode(path.read_bytes()).decode()
        parts.append(f'<h2>{html.escape(path.stem)}</h2><img alt="{path.stem}" src="data:image/png;base64,{data}">')
    for title, rows in tables.items():
        if not rows:
            continue
        head = "".join(f"<th>{html.escape(column)}</th>" for column in rows[0])
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row.values()) + "</tr>" for row in rows
        )
        parts.append(f"<h2>{html.escape(title)}</h2><table><tr>{head}</tr>{body}</table>")
    head = f'<meta charset="utf-8"><title>{name}</title><style>{STYLE}</style>'
    return f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>\n"
