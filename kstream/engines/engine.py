"""The one interface behind which a model runs, whatever library runs it."""

from __future__ import annotations

import functools
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from ..models.bundle import Bundle

Batch = NDArray[np.float32]
PRECISIONS = ("fp32", "bf16")


class Engine(Protocol):
    """Runs a trained network; safe to share between threads."""

    @property
    def name(self) -> str:
        """Library and device, such as ``torch-cpu``."""

    @property
    def precision(self) -> str:
        """``fp32`` or ``bf16``: the arithmetic of the convolutions."""

    def run(self, batch: Batch) -> Batch:
        """Logits ``(batch, classes, z, y, x)`` of k-space ``(batch, 2, z, y, x)``, float32 both."""

    def describe(self) -> dict[str, str]:
        """What an image's provenance should say: engine, precision, versions, model and its hash."""


def load_engine(bundle: Bundle, device: str = "cpu", precision: str = "fp32") -> Engine:
    """An engine with the bundle's weights on a device.

    Parameters
    ----------
    device : ``cpu`` or a CUDA device in torch's words; several, separated by commas, are tried in this order
        (``cuda,cpu``), also when one fails while it runs.
    precision : ``fp32`` or ``bf16`` (autocast; the Fourier bridge stays float32).

    Raises
    ------
    ModelError : if the precision or the device cannot be had, or the weights do not fit.
    """
    from .fallback import FallbackEngine
    from .torch_engine import TorchEngine

    if precision not in PRECISIONS:
        raise ModelError(f"unknown precision {precision!r}", hint="known: " + ", ".join(PRECISIONS))
    provenance = {"model": bundle.info.name, "sha256": bundle.info.sha256}
    makers = [
        functools.partial(lambda name: TorchEngine(bundle.build(), provenance, name, precision), name.strip())
        for name in device.split(",")
    ]
    return makers[0]() if len(makers) == 1 else FallbackEngine(makers)
