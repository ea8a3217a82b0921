"""The one interface behind which a model runs, whatever library runs it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError, did_you_mean

if TYPE_CHECKING:
    from ..models.bundle import Bundle

Batch = NDArray[np.float32]
PRECISIONS = ("fp32", "bf16", "fp16")
ENGINES = ("torch", "compiled", "aot", "onnxruntime", "openvino", "tensorrt")
MAX_BATCH = 8
"""Most patches of one run of a network: what a gate proves an engine for; `Engine.run` cuts larger batches."""


class Engine(Protocol):
    """Runs a trained network; safe to share between threads."""

    @property
    def name(self) -> str:
        """Library and device, such as ``torch-cpu``."""

    @property
    def precision(self) -> str:
        """``fp32``, ``bf16`` or ``fp16``: the arithmetic of the convolutions."""

    def run(self, batch: Batch) -> Batch:
        """Logits ``(batch, classes, z, y, x)`` of k-space ``(batch, 2, z, y, x)``, float32 both."""

    def describe(self) -> dict[str, str]:
        """What an image's provenance should say: engine, precision, versions, model and its hash."""


class ServedEngine(Engine, Protocol):
    """An engine that has passed the gate."""

    def prove(self) -> None:
        """Raise `ModelError` if it no longer gives what its model gives, as when its device failed."""


def load_engine(bundle: Bundle, device: str = "cpu", precision: str = "auto", engine: str = "auto") -> ServedEngine:
    """An engine with the bundle's weights that has passed the gate (see `gate`), and is warm.

    Parameters
    ----------
    device : ``cpu`` or a CUDA device in torch's words.
    precision : ``fp32``, ``bf16`` or ``fp16``; ``auto``: what a compiled engine has, or what is fastest within the gate
        on this machine (see `calibrate`).
    engine : one of `ENGINES`, or the folder of a compiled one (``kstream compile --output``); ``auto`` is torch, which
        needs no compilation.

    Several devices or engines, separated by commas, are tried in this order (``cuda,cpu``; ``aot,torch``), also when
    one fails while it runs: every engine on the first device, then on the next.

    Raises
    ------
    ModelError : if the precision, the engine or the device cannot be had, the weights do not fit, or no engine passes.
    """
    from .fallback import FallbackEngine

    makers = [
        functools.partial(_load_one, bundle, place.strip(), precision, name.strip())
        for place in device.split(",")
        for name in engine.split(",")
    ]
    return makers[0]() if len(makers) == 1 else FallbackEngine(makers)


def _load_one(bundle: Bundle, device: str, precision: str, engine: str) -> ServedEngine:
    from . import artifact, calibrate

    if is_compiled(engine, precision):
        return artifact.load(bundle, engine, device, precision)
    return calibrate.load_torch(bundle, device, precision)


def is_compiled(engine: str, precision: str) -> bool:
    """True for an engine that was compiled before, False for torch.

    Raises
    ------
    ModelError : there is no such engine or precision.
    """
    if precision not in ("auto", *PRECISIONS):
        raise ModelError(f"unknown precision {precision!r}", hint="known: auto, " + ", ".join(PRECISIONS))
    if engine not in ("auto", *ENGINES) and not Path(engine).is_dir():
        raise ModelError(
            f"there is no engine {engine[:200]!r}",
            likely="a misspelling, or a folder that does not exist",
            hint=did_you_mean(engine, ("auto", *ENGINES)),
        )
    return engine not in ("auto", "torch")
