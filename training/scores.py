"""Tables of scores, one line for each subject and condition, and what they are arranged to before they are compared.

Seeds are repetitions of training, subjects are what is sampled from the world: so a subject's score is first averaged
over seeds, and every interval and test is over subjects.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RecordingError, ScanError

Row = Mapping[str, str | float]
"""Scores of one subject under one condition: texts ``subject`` and ``scenario``, the others are numbers by name."""
Values = NDArray[np.float64]
Arranged = dict[tuple[str, str], Values]
"""By arm and scenario: ``(subjects,)``, mean over seeds; NaN where nobody scored."""


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Rows with the same columns; numbers with six digits. An interrupted write leaves nothing that looks finished.

    Raises
    ------
    ScanError : if there is no row.
    """
    if not rows:
        raise ScanError("nothing was scored", where=str(path), likely="an empty cohort")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows
        )
    unfinished.replace(path)


def read_rows(path: Path) -> list[dict[str, str]]:
    """What `write_rows` wrote, as texts.

    Raises
    ------
    RecordingError : if the file is missing or damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecordingError(f"cannot read the scores: {error}", where=str(path)) from error
    if not rows or any(None in row.values() for row in rows):
        raise RecordingError("the scores are empty or cut short", where=str(path))
    return rows


STUCK = 0.6
"""Share of the best seed's mean below which a training counts as stuck."""


def arrange(rows: Sequence[Mapping[str, str]], metric: str) -> Arranged:
    """One metric by arm and scenario, subjects in the order of their names; rows without it do not count.

    Raises
    ------
    RecordingError : for a cell that is no number.
    """
    grouped: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.get(metric):
            try:
                grouped[row["model"], row["scenario"]][row["subject"]].append(float(row[metric]))
            except (KeyError, ValueError) as error:
                raise RecordingError(f"not a row of scores: {error}", where=metric) from error
    subjects = sorted({name for found in grouped.values() for name in found}, key=lambda name: (len(name), name))
    return {key: np.array([_mean(found.get(subject, [])) for subject in subjects]) for key, found in grouped.items()}


def _mean(values: Sequence[float]) -> float:
    """Mean of a subject's seeds that have a number."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def unequal_seeds(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence if some arms were scored with other seeds than others; else nothing."""
    seeds: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        seeds[row["model"]].add(int(row["fold"]))
    if len({frozenset(found) for found in seeds.values()}) <= 1:
        return []
    each = "; ".join(f"{arm} {', '.join(map(str, sorted(found)))}" for arm, found in seeds.items())
    return [f"Attention: the arms were scored with different seeds ({each}), so their means are not alike."]


def stuck_runs(rows: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    """A sentence for each training that got far less than the same arm with another seed, in the first scenario.

    Far less is below `STUCK` of it: such a network learned something else than the others, and a mean with it in it
    says more about luck than about the arm.

    Parameters
    ----------
    metric : one that is better when it is larger.
    """
    scenario = next((row["scenario"] for row in rows if row.get(metric)), None)
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["scenario"] == scenario and row.get(metric) not in (None, ""):
            found[row["model"]][int(row["fold"])].append(float(row[metric]))
    told = []
    for arm, seeds in found.items():
        means = {seed: _mean(values) for seed, values in seeds.items()}
        best = max((value for value in means.values() if not math.isnan(value)), default=0.0)
        told += [
            f"Attention: {arm} with seed {seed} got stuck: its mean {metric} under {scenario} is {value:.3f}, and that "
            f"of another seed {best:.3f}."
            for seed, value in means.items()
            if value < STUCK * best
        ]
    return told
