"""Who segments a volume: an engine in this process, or something else that keeps the same promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..engines import Engine
from ..errors import ModelError
from ..models.bundle import BundleInfo
from ..stream.crew import Crew
from ..types import Complex, LabelTable
from .batching import Batching
from .volume import Spent, segment_volume


@dataclass(frozen=True)
class ModelInfo:
    """What a stage needs to know of a model.

    Parameters
    ----------
    name : of the bundle.
    labels : names and colours of the classes.
    patch_depth, patch_stride : slices of a patch, and between the starts of neighbouring patches.
    sha256 : of the weights.
    """

    name: str
    labels: LabelTable
    patch_depth: int
    patch_stride: int
    sha256: str = ""

    @classmethod
    def of(cls, info: BundleInfo) -> ModelInfo:
        """The part of a bundle's description that a stage needs."""
        return cls(info.name, info.labels, info.patch_depth, info.patch_stride, info.sha256)


@dataclass(frozen=True)
class Segmentation:
    """One segmented volume.

    Parameters
    ----------
    labels : uint8 class indices ``(z, y, x)``.
    provenance : what made them: model, weights hash, engine, precision.
    warnings : what the user should know about how they were made.
    seconds : where the time went, by step; steps may have run beside each other.
    """

    labels: NDArray[np.uint8]
    provenance: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


class Segmenter(Protocol):
    """A model that is ready to segment; safe to share between threads."""

    @property
    def info(self) -> ModelInfo:
        """Name, labels and patch geometry of the model."""

    def segment(self, difference: Complex) -> Segmentation:
        """Segment one scaled difference, complex64 ``(z, y, x)``.

        Raises
        ------
        ScanError : the difference cannot be segmented (axes, values that are not finite).
        ModelError : the model failed.
        """


class LocalSegmenter:
    """Runs an engine in this process (see `segment_volume`).

    Parameters
    ----------
    hire : gives a crew for one volume, which cuts patches and counts votes while the engine runs.
    """

    def __init__(
        self, engine: Engine, info: BundleInfo, hire: Callable[[], AbstractContextManager[Crew | None]] = nullcontext
    ) -> None:
        self._engine, self._info, self._hire = engine, ModelInfo.of(info), hire
        self._batching = Batching(engine)

    @property
    def info(self) -> ModelInfo:
        return self._info

    def segment(self, difference: Complex) -> Segmentation:
        depth, stride, spent = self._info.patch_depth, self._info.patch_stride, Spent()
        with self._hire() as crew:
            labels = segment_volume(difference, self._engine, depth, stride, crew, self._batching, spent)
        provenance = self._engine.describe()
        fallback = provenance.get("fallback")
        warnings = (f"segmented on {provenance.get('engine')}, because {fallback}",) if fallback else ()
        return Segmentation(labels, provenance, warnings, spent.seconds)


class MissingModel:
    """Stands where a model should be: every volume meets the error that kept the model away."""

    def __init__(self, name: str, error: ModelError) -> None:
        self._info, self.error = ModelInfo(name, LabelTable((), ()), 1, 1), error

    @property
    def info(self) -> ModelInfo:
        return self._info

    def segment(self, difference: Complex) -> Segmentation:
        told = self.error  # a new one each time: whoever passes it on adds its own place
        raise ModelError(told.what, where=told.where, likely=told.likely, hint=told.hint, code=told.code)
