"""From one contrast difference, or one frame, to its label map."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from ..errors import KstreamError, ModelError
from ..stream.telemetry import StageTimes
from ..types import Difference, LabelMap, Notice, ScaledKSpace
from .segmenter import MissingModel, Segmentation, Segmenter
from .volume import STEPS


class Segment:
    """Stage: label the contrast differences, or the scaled k-space, of some frames; those of other frames end here.

    Parameters
    ----------
    segmenter : runs the network, here or elsewhere.
    frames : which frames to segment, such as ``(2,)`` for the second post-contrast frame; empty: all.
    on_failure : ``stop`` raises what went wrong; ``images`` says it in a notice of level error, and the measurement
        goes on without labels of that frame.
    """

    takes: tuple[type, ...] = (Difference, ScaledKSpace)
    gives: tuple[type, ...] = (LabelMap, Notice)

    def __init__(
        self,
        segmenter: Segmenter,
        frames: tuple[int, ...] = (),
        on_failure: Literal["stop", "images"] = "stop",
    ) -> None:
        self._segmenter, self._frames, self._on_failure = segmenter, frames, on_failure
        self.parts = tuple(StageTimes(f"Segment: {step}") for step in STEPS)

    @property
    def failure(self) -> ModelError | None:
        """Why there will be no labels, if that is known before the first frame."""
        return self._segmenter.error if isinstance(self._segmenter, MissingModel) else None

    def push(self, item: Difference | ScaledKSpace) -> list[Any]:
        if self._frames and item.frame not in self._frames:
            return []
        early = item.early
        where = f"frame {item.frame}, slice {item.slice}"
        try:
            made = self._segmenter.segment(item.data)
            check_labels(made, item.data.shape, len(self._segmenter.info.labels.names))
            for step, part in zip(STEPS, self.parts, strict=True):
                part.add(int(1e9 * made.seconds.get(step, 0.0)))
        except KstreamError as error:
            if self._on_failure == "stop":
                raise error.at(where) from error.__cause__
            return [Notice("error", f"no labels for {where}: {_indented(error)}")]
        label_map = LabelMap(
            labels=made.labels,
            table=self._segmenter.info.labels,
            frame=item.frame,
            slice=item.slice,
            received_ns=item.received_ns,
            geometry=item.geometry,
            provenance={**made.provenance, **({"lines": f"{early[0]} of {early[1]}"} if early else {})},
            is_final=early is None,
        )
        return [*(Notice("warning", f"{where}: {text}") for text in made.warnings), label_map]

    def finish(self) -> list[Any]:
        return []


def check_labels(made: Segmentation, shape: tuple[int, ...], n_classes: int) -> None:
    """Hold a segmentation to its promises.

    Raises
    ------
    ModelError : labels of another shape or type than uint8 ``(z, y, x)``, or of a class without a name.
    """
    labels = made.labels
    if labels.shape != shape or labels.dtype != np.uint8:
        raise ModelError(
            f"the model gave labels {labels.dtype} {labels.shape}, expected uint8 {shape}",
            likely="a model of another kind, or a worker of another version",
        )
    if labels.size and int(labels.max()) >= n_classes:
        raise ModelError(
            f"the model gave class {int(labels.max())}, but names {n_classes} classes (0 to {n_classes - 1})",
            likely="model.json belongs to other weights",
        )


def _indented(error: KstreamError) -> str:
    """An error's text after a text of our own: its first line loses ``error:``."""
    return str(error).removeprefix("error: ")
