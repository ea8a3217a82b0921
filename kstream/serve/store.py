"""Models outlive measurements: loaded and warmed up once, kept by the process."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from ..config import SegmentConfig
from ..errors import ModelError

if TYPE_CHECKING:
    from ..engines import Engine
    from ..models.bundle import Bundle
    from ..segment.stage import Segment


TOLERANCE = 1e-3
"""Relative rms by which an engine in single precision may differ from the example of its bundle."""


class ModelStore:
    """Segmentation steps by bundle name; each bundle is read, verified and warmed up at its first use.

    torch is imported here and not before, so that a server listens at once and a reconstruction needs none of it.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._lock = threading.Lock()
        self._loaded: dict[str, tuple[Engine, Bundle]] = {}

    def segment(self, config: SegmentConfig) -> Segment | None:
        """The network step for one measurement; None when the configuration names no model.

        Raises
        ------
        ModelError : the bundle is missing or damaged.
        """
        if not config.model:
            return None
        from ..engines import load_engine
        from ..models.bundle import Bundle
        from ..segment.stage import Segment

        with self._lock:
            if config.model not in self._loaded:
                bundle = Bundle.load(config.model)
                engine = load_engine(bundle, device=self._device)
                _prove(engine, bundle)
                self._loaded[config.model] = (engine, bundle)
            engine, bundle = self._loaded[config.model]
        return Segment(engine, bundle.info, config.frames)


def _prove(engine: Engine, bundle: Bundle) -> None:
    """Run the bundle's example once: the engine is warm afterwards, and must give what the network once gave."""
    kspace, expected = bundle.example()
    error = float(np.sqrt(np.mean((engine.run(kspace) - expected) ** 2) / np.mean(expected**2)))
    if not error < TOLERANCE:
        raise ModelError(
            f"{bundle.info.name} does not reproduce its example: relative error {error:.2g}, allowed {TOLERANCE:g}",
            where=str(bundle.folder),
            likely="weights or engine of another model, or a defect of this machine's libraries",
            hint="kstream doctor",
        )
