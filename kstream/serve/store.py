"""Models outlive measurements: loaded and warmed up once, kept by the process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from ..config import CineConfig, SegmentConfig
from ..errors import ModelError
from ..segment import LocalSegmenter, MissingModel, Segment, Segmenter
from ..segment.cine import CINE_KINDS, CineModel
from ..stream.crew import Crew
from ..stream.runners import ThreadCrew

if TYPE_CHECKING:
    from ..engines.array_engine import ServedArrayEngine
    from ..engines.engine import ServedEngine


class SegmentSource(Protocol):
    """Where a session gets its network step from: models in this process, or workers."""

    def segment_stage(self, config: SegmentConfig) -> Segment | None:
        """The network step for one measurement; None when the configuration names no model.

        A model that cannot be had is found out here, before k-space is accepted.

        Raises
        ------
        ModelError : the model cannot be had, and ``config.on_failure`` is ``stop``.
        """

    def cine_model(self, config: CineConfig) -> CineModel:
        """The network that a configuration names for a cine scan.

        Raises
        ------
        ModelError : the model cannot be had.
        ConfigError : it is of another kind.
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
    device, engine, precision : where and how networks run (see `engines.load_engine`).
    """

    def __init__(self, device: str = "cpu", engine: str = "auto", precision: str = "auto") -> None:
        self._device, self._engine, self._precision = device, engine, precision
        self._lock = threading.Lock()
        self._loaded: dict[str, tuple[LocalSegmenter, ServedEngine]] = {}
        self._arrays: dict[str, ServedArrayEngine] = {}

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
                engine = load_engine(bundle, self._device, self._precision, self._engine)
                self._loaded[model] = (LocalSegmenter(engine, bundle.info, _hire), engine)
            return self._loaded[model][0]

    def cine_model(self, config: CineConfig) -> CineModel:
        """See `SegmentSource`."""
        from ..models.bundle import Bundle

        return CineModel.of(Bundle.load(config.model).info, self.array_engine(config.model))

    def array_engine(self, model: str) -> ServedArrayEngine:
        """The model in the bundle of a name or folder, with any inputs and outputs, proven like the others.

        Raises
        ------
        ModelError : the bundle is missing or damaged, or does not give what it once gave.
        """
        from ..engines.array_engine import load_array_engine
        from ..models.bundle import Bundle

        with self._lock:
            if model not in self._arrays:
                bundle = Bundle.load(model)
                self._arrays[model] = load_array_engine(bundle, self._device, self._precision, self._engine)
            return self._arrays[model]

    def takes_arrays(self, model: str) -> bool:
        """True for a model that `array_engine` gives, False for one that `segmenter` gives.

        Raises
        ------
        ModelError : the bundle is missing or damaged.
        """
        from ..models.bundle import Bundle

        return Bundle.load(model).info.architecture in CINE_KINDS

    def prove(self, model: str) -> None:
        """Run a loaded model's example again: after a failure that may have spoilt its device for good.

        Raises
        ------
        ModelError : it no longer gives what it once gave.
        """
        if model in self._loaded:
            self._loaded[model][1].prove()
        if model in self._arrays:
            self._arrays[model].prove()


@contextlib.contextmanager
def _hire() -> Iterator[Crew]:
    """One thread beside the network, for one volume: a store has no end at which it could be let go."""
    with contextlib.closing(ThreadCrew(1)) as crew:
        yield crew
