"""The page of a study: facts, tables and figures as Markdown, as CSV and as one HTML file that needs no other."""

from __future__ import annotations

import base64
import csv
import html
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .statistics import Comparison, Interval
from .study import FamilyConfig, Study, read_times

Table = list[dict[str, str]]


@dataclass
class Page:
    """What a report says, in order; `tables` by title."""

    name: str
    facts: list[str] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)
    figures: list[Path] = field(default_factory=list)

    def write(self, folder: Path) -> Path:
        """Write ``tables.md``, a CSV of each table and ``report.html``; gives the last. Empty tables are left out."""
        folder.mkdir(parents=True, exist_ok=True)
        shown = {title: rows for title, rows in self.tables.items() if rows}
        (folder / "tables.md").write_text(self._markdown(shown), encoding="utf-8")
        for title, rows in shown.items():
            with (folder / f"{_slug(title)}.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        path = folder / "report.html"
        path.write_text(self._html(shown), encoding="utf-8")
        return path

    def _markdown(self, tables: Mapping[str, Table]) -> str:
        parts = [f"# {self.name}", *self.facts]
        for title, rows in tables.items():
            head = list(rows[0])
            lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
            lines += ["| " + " | ".join(row[column] for column in head) + " |" for row in rows]
            parts += [f"## {title}", "\n".join(lines)]
        return "\n\n".join(parts) + "\n"

    def _html(self, tables: Mapping[str, Table]) -> str:
        name = html.escape(self.name)
        parts = [f"<h1>{name}</h1>", *(f"<p>{html.escape(fact)}</p>" for fact in self.facts)]
        for path in self.figures:
            data, title = base64.b64encode(path.read_bytes()).decode(), html.escape(path.stem)
            parts.append(f'<h2>{title}</h2><img alt="{title}" src="data:image/png;base64,{data}">')
        for title, rows in tables.items():
            head = "".join(f"<th>{html.escape(column)}</th>" for column in rows[0])
            body = "".join(
                "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row.values()) + "</tr>" for row in rows
            )
            parts.append(f"<h2>{html.escape(title)}</h2><table><tr>{head}</tr>{body}</table>")
        head = f'<meta charset="utf-8"><title>{name}</title><style>{STYLE}</style>'
        return f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>\n"


STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;max-width:1200px;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;font-size:13px;display:block;overflow-x:auto}"
    "td,th{border:1px solid #ccc;padding:3px 7px;text-align:left;white-space:nowrap}img{max-width:100%}"
)


def _slug(title: str) -> str:
    """A title as the name of a file: its words up to the first bracket or comma."""
    return re.sub(r"[^a-z0-9]+", "-", re.split(r"[\[(,]", title.lower())[0]).strip("-")


def interval(value: Interval) -> str:
    """A mean with its bounds."""
    return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"


def p_value(value: float) -> str:
    """A p value with four digits."""
    return "<0.0001" if value < 1e-4 else f"{value:.4f}"


def by_scenario(cells: Mapping[tuple[str, str], str], arms: Sequence[str], scenarios: Sequence[str]) -> Table:
    """A row for each scenario, a column for each arm."""
    return [{"scenario": scenario, **{arm: cells.get((arm, scenario), "-") for arm in arms}} for scenario in scenarios]


def comparison_row(
    found: Comparison, family: FamilyConfig, b: str, scenario: str, metric: str, subjects: str
) -> dict[str, str]:
    """One comparison of a family as a row; `subjects` are what was paired."""
    is_pair = len(family.others) == 1
    return {
        **({} if is_pair else {"against": b}),
        "scenario": scenario,
        subjects: str(found.n),
        f"{metric}: {family.a} - {b}" if is_pair else f"{metric}: difference": interval(found.difference),
        "median difference": interval(found.median_difference),
        "Wilcoxon p": p_value(found.p),
        "p (Pratt)": p_value(found.p_pratt),
        "p (Holm)": p_value(found.p_holm),
        "rank-biserial": f"{found.effect:.2f}",
        "wins/losses": f"{found.wins}/{found.losses}",
    }


def run_table(study: Study) -> Table:
    """What every run was, and how long it took."""
    rows = []
    for run in study.runs():
        times = read_times(run)
        seconds = {
            f"{name} (s)": f"{times[key]:.0f}" if key in times else "-"
            for name, key in (("training", "train_s"), ("evaluation", "evaluate_s"))
        }
        rows.append({"arm": run.arm, "seed": str(run.seed), **run.recipe.facts(), **seconds})
    return rows


def family_title(name: str, family: FamilyConfig) -> str:
    """Heading of a family's table."""
    return f"Comparison: {name}" if len(family.others) == 1 else f"Comparison: {name} ({family.a} with the others)"


def origin(study: Study) -> str:
    """How a report was made, and where."""
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return f"Made by: kstream study {study.path.name}. Machine: {machine}."
