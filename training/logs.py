"""Who listens to the records of a run besides ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .fit import Record, Report


class Reports:
    """Hands each record of `fit` to several listeners."""

    def __init__(self, listeners: Iterable[Report] = ()) -> None:
        self._listeners = list(listeners)

    def add(self, listener: Report) -> None:
        """One more."""
        self._listeners.append(listener)

    def __call__(self, record: Record) -> None:
        for listener in self._listeners:
            listener(record)


def scalars(record: Record) -> dict[str, float]:
    """The numbers of a record as flat names: ``loss``, ``validation/mean_dice``, ``stage/loss``."""
    prefix = f"{record['stage']}/" if record.get("stage") else ""
    values: dict[str, Any] = {key: value for key, value in record.items() if key not in ("step", "stage", "validation")}
    values |= {f"validation/{key}": value for key, value in record.get("validation", {}).items()}
    return {prefix + key: float(value) for key, value in values.items() if isinstance(value, int | float)}


def tensorboard_report(folder: Path) -> Report:
    """Curves for TensorBoard, in the run's folder.

    Raises
    ------
    ConfigError : if TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "TensorBoard is not installed",
            hint="pip install 'kstream[train]', or leave --tensorboard away: metrics.jsonl holds the same numbers",
        ) from error
    writer = SummaryWriter(str(folder))

    def report(record: Record) -> None:
        for name, value in scalars(record).items():
            writer.add_scalar(name, value, record["step"])
        writer.flush()

    return report
