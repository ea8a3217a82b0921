"""The step of a cine scan, by the kind of its network."""

from __future__ import annotations

from ..config import CineConfig
from .cine import CineModel, CinePlan
from .lines import AnalyseLines
from .points import SegmentPoints


def cine_stage(model: CineModel, plan: CinePlan, config: CineConfig) -> SegmentPoints | AnalyseLines:
    """The stage for a model."""
    return AnalyseLines(model, plan, config) if model.kind == "lines" else SegmentPoints(model, plan, config)
