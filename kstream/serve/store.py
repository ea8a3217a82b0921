"""Models outlive measurements: loaded and warmed up once, kept by the process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..config import SegmentConfig
from ..errors import ModelError
from ..segment import LocalSegmenter, MissingModel, Segment, Segmenter

if TYPE_CHECKING:
    from ..engines import Engine
    from ..models.bundle import Bundle


TOLERANCE = 1e-3
"""Relative rms by which an engine in single precision may differ from the example of its bundle."""


class SegmentSource(Protocol):
    """Where a session gets its network step from: models in this process, or workers."""

    def segment_stage(self, config: SegmentConfig) -> Segment | None:
        """The network step for one measurement; None when the configuration names no model.

        A model that cannot be had is found out here, before k-space is accepted.

        Raises
        ------
        ModelError : the model cannot be had, and ``config.on_failure`` is ``stop``.
        """


def make_stage(config: SegmentConfig, segmenter: Callable[[str], Segmenter]) -> Segment | None:
    """`SegmentSource.segment_stage` for whoever can give a segmenter by model name.

    Under the policy ``images``, a model that cannot be had gives a stage whose `failure` says so at once, and which
    says so again in place of every label map.
    """
    if not config.model:
        return None
    found: Segmenter
    try:
        found = segmenter(config.model)
    except ModelError as error:
        if config.on_failure == "stop":
            raise
        found = MissingModel(config.model, error)
    return Segment(found, config.frames, config.on_failure)


class ModelStore:
    """Models of this process by bundle name; each bundle is read, verified and warmed up at its first use.

    torch is imported here and not before, so that a server listens at once and a reconstruction needs none of it.

    Parameters
    ----------
    device : where networks run, in torch's words.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._lock = threading.Lock()
        self._loaded: dict[str, tuple[LocalSegmenter, Engine, Bundle]] = {}

    def segment_stage(self, config: SegmentConfig) -> Segment | None:
        """See `SegmentSource`."""
        return make_stage(config, self.segmenter)

    def segmenter(self, model: str) -> LocalSegmenter:
        """The model in the bundle of a name or folder.

        Raises
        ------
        ModelError : the bundle is missing or damaged, or does not give what it once gave.
        """
        from ..engines import load_engine
        from ..models.bundle import Bundle

        with self._lock:
            if model not in self._loaded:
                bundle = Bundle.load(model)
                engine = load_engine(bundle, device=self._device)
                _prove(engine, bundle)
                self._loaded[model] = (LocalSegmenter(engine, bundle.info), engine, bundle)
            return self._loaded[model][0]

    def prove(self, model: str) -> None:
        """Run a loaded model's example again: after a failure that may have spoilt its device for good.

        Raises
        ------
        ModelError : it no longer gives what it once gave.
        """
        _, engine, bundle = self._loaded[model]
        _prove(engine, bundle)


def _prove(engine: Engine, bundle: Bundle) -> None:
    """Run the bundle's example once: the engine is warm afterwards, and must give what the network once gave."""
    kspace, expected = bundle.example()
    try:
        error = float(np.sqrt(np.mean((engine.run(kspace) - expected) ** 2) / np.mean(expected**2)))
    except (RuntimeError, ValueError) as failure:  # of torch: memory, device; of numpy: another shape
        raise ModelError(
            f"{bundle.info.name} cannot run its example: {failure}"[:500],
            where=str(bundle.folder),
            likely="no memory on its device, a device that failed, or an example of another model",
            hint="kstream doctor",
        ) from failure
    if not error < TOLERANCE:
        raise ModelError(
            f"{bundle.info.name} does not reproduce its example: relative error {error:.2g}, allowed {TOLERANCE:g}",
            where=str(bundle.folder),
            likely="weights or engine of another model, or a defect of this machine's libraries",
            hint="kstream doctor",
        )
