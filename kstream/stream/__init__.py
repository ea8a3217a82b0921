"""Takes stages, gives one pipeline that runs them depth first. Knows no MRI."""

from .stage import Each, Pipeline, Stage, StageError

__all__ = ["Each", "Pipeline", "Stage", "StageError"]
