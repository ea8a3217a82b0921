"""What a study found: tables, tests, figures, and one HTML page that holds them all.

Seeds are repetitions of training, exams are what is sampled from the world. So an exam's Dice is first averaged over
seeds, and every interval and test is over exams; an exam counts as failed if more than half of its seeds failed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from ...engines.torch_engine import TorchEngine
from ...errors import ModelError
from ...recon.fourier import to_image
from ...segment.patches import cut_patch
from ..curves import Curve, draw_curves
from ..experiment import Experiment
from ..report import Page, Table, by_scenario, comparison_row, family_title, interval, origin, p_value, run_table
from ..scores import stuck_runs, unequal_seeds
from ..statistics import (
    Comparison,
    FailureComparison,
    bootstrap,
    compare,
    compare_failures,
    holm_failures,
    holm_family,
)
from ..study import FamilyConfig, Study, is_trained, scored_runs
from .data import Exam, load_cohort
from .figures import draw_features, draw_overlays, features_of
from .pictures import fullest_slice
from .scenarios import Scenario, Score, mask_index, read_scores, score, segment_under, write_published
from .task import load_best

N_OVERLAYS = 2
OVERLAY_SCENARIOS = ("full", "cartesian-2", "cartesian-8")
PAPER_CURVES = {
    "cartesian": "acceleration (random Cartesian lines)",
    "noise": "signal-to-noise ratio of k-space (dB)",
    "radial": "acceleration (radial spokes dropped)",
}


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
) -> tuple[dict[tuple[str, str], Comparison], dict[tuple[str, str], FailureComparison]]:
    """One family of comparisons by the other arm and scenario, Dice and failures, each corrected for itself.

    Scenarios without scores are left out.
    """
    dice, failures = {}, {}
    for other in family.others:
        for scenario, others in family.pairs:
            a, b = (family.a, scenario), (other, others)
            if a in results.dice and b in results.dice:
                dice[other, scenario] = compare(results.dice[a], results.dice[b])
                failures[other, scenario] = compare_failures(results.failed[a] > 0.5, results.failed[b] > 0.5)
    return holm_family(dice), holm_failures(failures)


def all_scores(study: Study) -> list[Score]:
    """Scores of all runs that have been evaluated, as `study.scored_runs`."""
    return [score for run in scored_runs(study) for score in read_scores(run.scores)]


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
    exams = load_cohort(study.first.experiment, study.evaluation.cohort, cache)
    write_published(scores, folder, exams[0].labels.shape[-1])
    rows = [vars(score) for score in scores]
    page = Page(study.file.name, [*_facts(study, exams), *unequal_seeds(rows), *stuck_runs(rows, "dice")])
    page.tables = {
        "Mean Dice of exams with a lesion [95 % bootstrap interval]": _dice_table(results),
        "Catastrophic failures (Dice 0), share of exams and seeds [95 % bootstrap interval]": _failure_table(results),
        "Lesions found, and false components per exam": _detection_table(results),
        **{family_title(name, family): _family_table(results, family) for name, family in study.file.families.items()},
        "Runs": run_table(study),
    }
    page.figures = [*_curves(study, results, folder), *_examples(study, exams, folder)]
    return page.write(folder)


def _table(results: Results, cells: dict[tuple[str, str], str]) -> Table:
    return by_scenario(cells, results.arms, results.scenarios)


def _dice_table(results: Results) -> Table:
    return _table(results, {key: interval(bootstrap(values)) for key, values in results.dice.items()})


def _failure_table(results: Results) -> Table:
    return _table(results, {key: interval(bootstrap(values)) for key, values in results.failed.items()})


def _detection_table(results: Results) -> Table:
    grouped: dict[tuple[str, str], list[Score]] = defaultdict(list)
    for row in results.scores:
        grouped[row.model, row.scenario].append(row)
    cells = {}
    for key, rows in grouped.items():
        n_lesions = sum(row.n_lesions for row in rows)
        found = sum(row.n_found for row in rows) / n_lesions if n_lesions else float("nan")
        cells[key] = f"{found:.2f}, {np.mean([row.n_false for row in rows]):.2f}"
    return _table(results, cells)


def _family_table(results: Results, family: FamilyConfig) -> Table:
    dice, failures = compare_family(results, family)
    return [
        {
            **comparison_row(comparison, family, other, scenario, "Dice", "exams"),
            f"only {family.a} fails": str(failures[other, scenario].only_a),
            f"only {other} fails" if len(family.others) == 1 else "only the other fails": str(
                failures[other, scenario].only_b
            ),
            "McNemar p": p_value(failures[other, scenario].p),
            "McNemar p (Holm)": p_value(failures[other, scenario].p_holm),
        }
        for (other, scenario), comparison in dice.items()
    ]


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
                draw_curves(dice, folder / f"dice-{name}.png", where, "Dice", marks, is_falling=kind == "noise"),
                draw_curves(
                    failed,
                    folder / f"failures-{name}.png",
                    where,
                    "catastrophic failure rate",
                    is_falling=kind == "noise",
                ),
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
        first = family.others[0]
        marks = {level: dice[first, name].p_holm for level, name in names.items() if (first, name) in dice}
        if marks:
            return marks
    return {}


def _examples(study: Study, exams: Sequence[Exam], folder: Path) -> list[Path]:
    """Overlays of every arm, and the features of those that have a k-space stage, with the study's first seed."""
    runs = [run for run in study.runs(seeds=study.file.seeds[:1]) if is_trained(run)]
    shown = [(mask_index(exam, n), exam) for n, exam in enumerate(exams) if exam.has_lesion][:N_OVERLAYS]
    scenarios = [Scenario.of(name) for name in study.evaluation.scenarios if name in OVERLAY_SCENARIOS]
    rows = []
    networks = {run.arm: load_best(run.experiment, run.folder) for run in runs}
    for index, exam in shown:
        for scenario in scenarios:
            frame, z = study.first.experiment.data.frame, fullest_slice(exam.labels)
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
    scope = study.evaluation.model_dump()["scope"]
    return [
        study.file.description,
        f"{len(exams)} test exams, {n_positive} with a lesion; seeds {', '.join(map(str, study.file.seeds))}; "
        f"masks and noise once per {scope}.",
        origin(study),
        "Intervals and tests are over exams, each averaged over seeds. Research use only.",
        *_caveats(study),
    ]


def _caveats(study: Study) -> list[str]:
    """What a reader must know to compare failures: the published native network cannot leave a patch empty."""
    native = [run.arm for run in study.runs(seeds=study.file.seeds[:1]) if _is_native(run.experiment)]
    if not native:
        return []
    return [
        f"Failures of {', '.join(native)} cannot be compared with those of the others: this form of the native network "
        "divides by the maximum of the patch, so that it marks at least one voxel in every patch."
    ]


def _is_native(experiment: Experiment) -> bool:
    network = experiment.network
    return network.architecture == "breast-native" and network.arguments.get("form", "fg_only") == "fg_only"
