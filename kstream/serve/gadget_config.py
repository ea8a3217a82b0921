"""What Gadgetron's ``<configuration>`` says, and the models that it asks for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..config import SHOW, did_you_mean, setting_names
from ..errors import ConfigError
from ..mrd.properties import properties_from_xml
from .store import ModelStore, SegmentSource

Target = Literal["segment", "reconstruct", "segment_images"]
"""What a gadget does: readouts to images and labels; readouts to images; complex image arrays to labels."""

PRESETS: Mapping[Target, str] = {
    "segment": "breast-dce",
    "reconstruct": "recon-radial",
    "segment_images": "breast-dce",
}
"""Presets of configurations that name none."""

STOP_S = 0.5
"""For workers to be told that a session is over."""


@dataclass(frozen=True)
class GadgetConfig:
    """The properties of ``<configuration>``.

    Parameters
    ----------
    preset : empty takes the target's own.
    target : what to do, for whoever is not told by the name that Gadgetron launches.
    device : where networks run that no worker runs.
    worker : addresses of model workers, separated by spaces.
    worker_absent : no worker answers: ``fail`` the scan, or segment here (``local``).
    worker_s : seconds for a worker to segment one volume.
    worker_key, worker_public : certificates for workers on tcp.
    buffer_gib : largest bucket, buffer or image array that is taken.
    settings : every other property, by ``section.key``.
    """

    preset: str = ""
    target: str = ""
    device: str = "cpu"
    worker: str = ""
    worker_absent: Literal["fail", "local"] = "fail"
    worker_s: float = 120.0
    worker_key: str = ""
    worker_public: str = ""
    buffer_gib: float = 1.0
    settings: Mapping[str, str] = field(default_factory=dict)


HOUSE = ("device", "worker", "worker_absent", "worker_s", "worker_key", "worker_public", "buffer_gib")
"""Properties that say how this process is equipped: they are not for whoever connects to a server."""

_OWN = ("preset", "target", *HOUSE)


def parse_config(text: str) -> GadgetConfig:
    """Read the configuration that Gadgetron sends.

    Raises
    ------
    ConfigError : a property that has no meaning here, or a value out of its range.
    ProtocolError : the text is not XML.
    """
    own: dict[str, Any] = {}
    settings: dict[str, str] = {}
    known = setting_names()
    for name, value in properties_from_xml(text).items():
        if name in _OWN:
            own[name] = value
        elif name in known:
            settings[name] = value
        else:
            raise ConfigError(
                f"the property {name[:80]!r} has no meaning here",
                where="<configuration> of the gadget",
                hint=did_you_mean(name, (*_OWN, *known), SHOW),
            )
    for name in ("worker_s", "buffer_gib"):
        if name in own:
            own[name] = _positive(name, own[name])
    if own.get("worker_absent", "fail") not in ("fail", "local"):
        raise ConfigError("worker_absent is neither fail nor local", where="<configuration> of the gadget")
    if own.get("target", "segment") not in PRESETS:
        raise ConfigError(
            f"there is no target {own['target'][:80]!r}",
            where="<configuration> of the gadget",
            hint=did_you_mean(own["target"], tuple(PRESETS)),
        )
    return GadgetConfig(**own, settings=settings)


def _positive(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"{name} is {text[:80]!r}, expected a number above 0", where="<configuration> of the gadget")
    return value


def target_of(config: GadgetConfig) -> Target:
    """What the configuration names, or to segment."""
    return next((target for target in PRESETS if target == config.target), "segment")


Equip = Callable[[GadgetConfig], contextlib.AbstractContextManager[SegmentSource]]
"""Gives the models for a session."""


@contextlib.contextmanager
def own_models(config: GadgetConfig) -> Iterator[SegmentSource]:
    """Models of a process of its own: from the workers that the configuration names, or loaded here."""
    if not config.worker:
        yield ModelStore(config.device)
        return
    from .worker_link import Keys  # pyzmq only where it is used: the process starts for every scan
    from .workers import ModelWorkers, WorkerSettings

    keys = Keys(Path(config.worker_key), Path(config.worker_public)) if config.worker_key else None
    workers = ModelWorkers(
        WorkerSettings(
            addresses=tuple(config.worker.replace(",", " ").split()),
            device=config.device,
            timeout_s=config.worker_s,
            keys=keys,
            when_absent=config.worker_absent,
        )
    )
    workers.start()
    try:
        yield workers
    finally:
        workers.stop(STOP_S)
