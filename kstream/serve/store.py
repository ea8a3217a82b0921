"""Models outlive measurements: loaded and warmed up once, kept by the process."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ..config import SegmentConfig

if TYPE_CHECKING:
    from ..engines import Engine
    from ..models.bundle import Bundle
    from ..segment.stage import Segment


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
                self._loaded[config.model] = (load_engine(bundle, device=self._device), bundle)
            engine, bundle = self._loaded[config.model]
        return Segment(engine, bundle.info, config.frames)
