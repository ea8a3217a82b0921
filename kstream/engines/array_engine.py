"""An engine for networks with several inputs or outputs: arrays in, arrays out."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from ..models.bundle import Bundle

Array = NDArray[np.float32]
TOLERANCE = 1e-3
"""Relative rms by which an engine may differ from the example of its bundle."""


class ArrayEngine(Protocol):
    """Runs a trained network on any number of float32 arrays; safe to share between threads."""

    def run_arrays(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        """Outputs of the network, in the order of the bundle's ``outputs``.

        Raises
        ------
        ModelError : the network failed, or gave values that are not finite.
        """

    def describe(self) -> dict[str, str]:
        """What an image's provenance should say: engine, precision, versions, model and its hash."""


class TorchArrayEngine:
    """Eager PyTorch; one run at a time.

    Parameters
    ----------
    bundle : what to run.
    device : ``cpu`` or a CUDA device in torch's words.

    Raises
    ------
    ModelError : the device cannot be had, or the weights do not fit.
    """

    def __init__(self, bundle: Bundle, device: str = "cpu") -> None:
        from .torch_engine import TorchEngine

        provenance: Mapping[str, str] = {"model": bundle.info.name, "sha256": bundle.info.sha256}
        self._network = bundle.build()
        self._told = TorchEngine(self._network, provenance, device).describe()
        self._device = device
        self._inputs, self._outputs = bundle.tensors()
        self._where = str(bundle.folder)
        self._lock = threading.Lock()

    def run_arrays(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        import torch

        try:
            with self._lock, torch.inference_mode():
                made = self._network(*(torch.from_numpy(np.ascontiguousarray(x)).to(self._device) for x in inputs))
                parts = made if isinstance(made, tuple) else (made,)
                outputs = tuple(part.float().cpu().numpy() for part in parts)
        except (
            RuntimeError,
            ValueError,
            TypeError,
        ) as error:  # of torch: memory, device, shapes that the network refuses
            raise ModelError(
                f"the model failed: {type(error).__name__}: {error}"[:500],
                likely="no memory on its device, or a scan of another size than it was trained for",
                hint="kstream models show, for the sizes that it takes",
            ) from error
        if not all(np.isfinite(output).all() for output in outputs):
            raise ModelError(
                "the model gave values that are not finite",
                likely="damaged weights, or a scan of another scale than it was trained on",
                hint="kstream doctor",
            )
        return outputs

    def prove(self) -> None:
        """Run the example of the bundle: at the start, and after a failure that may have spoilt a device.

        Raises
        ------
        ModelError : the example fails, or comes out differently.
        """
        name = self._told.get("model", "the model")
        for made, expected in zip(self.run_arrays(self._inputs), self._outputs, strict=True):
            error = _relative_error(made, expected)
            if not error < TOLERANCE:
                raise ModelError(
                    f"{name} does not reproduce its example: relative error {error:.2g}, allowed {TOLERANCE:g}",
                    where=self._where,
                    likely="weights or engine of another model, or a defect of this machine's libraries",
                    hint="kstream doctor",
                )

    def describe(self) -> dict[str, str]:
        return dict(self._told)


def load_array_engine(bundle: Bundle, device: str = "cpu") -> TorchArrayEngine:
    """An engine with the bundle's weights on a device (the first of several separated by commas) that has given its
    example once.

    Raises
    ------
    ModelError : the device cannot be had, the weights do not fit, or the example comes out differently.
    """
    engine = TorchArrayEngine(bundle, device.split(",")[0].strip())
    engine.prove()
    return engine


def _relative_error(made: Array, expected: Array) -> float:
    """Relative rms difference; NaN for another shape."""
    if made.shape != expected.shape:
        return float("nan")
    scale = float(np.mean(expected.astype(np.float64) ** 2))
    return float(np.sqrt(np.mean((made.astype(np.float64) - expected) ** 2) / max(scale, 1e-30)))
