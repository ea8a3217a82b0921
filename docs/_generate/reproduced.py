"""Which networks of which publication are in the code, which of them come trained, and what was measured on those."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kstream.models.bundle import Bundle, shipped
from kstream.models.registry import ARCHITECTURES

from .markdown import code, table


def page() -> str:
    bundles = {name: Bundle.load(name).info for name in shipped()}
    papers: dict[str, list[str]] = {}
    for entry in ARCHITECTURES.values():
        papers.setdefault(entry.paper, []).append(entry.name)
    rows = []
    for paper, networks in papers.items():
        trained = [name for name, info in bundles.items() if info.architecture in networks]
        rows.append((paper, ", ".join(map(code, networks)), ", ".join(map(code, trained)) or "none"))
    text = table(("publication", "networks in the code", "trained bundles that come with kstream"), rows)
    for name, info in bundles.items():
        source = info.training.get("data", "")
        text += f"\n**{name}**, trained on {source}, measured on exams that it never saw:\n\n" + _measured(info.metrics)
    return text


def _measured(metrics: Mapping[str, Any]) -> str:
    """One row for each cohort, one column for each number."""
    cohorts = {name: numbers for name, numbers in metrics.items() if isinstance(numbers, Mapping)}
    if not cohorts:
        return table(("number", "value"), [(key, _shown(value)) for key, value in metrics.items()])
    keys = list(dict.fromkeys(key for numbers in cohorts.values() for key in numbers))
    rows = [(name, *(_shown(numbers.get(key)) for key in keys)) for name, numbers in cohorts.items()]
    return table(("cohort", *(key.replace("_", " ") for key in keys)), rows)


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
