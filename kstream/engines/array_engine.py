"""Engines for networks with several inputs or outputs: arrays in, arrays out, and otherwise as `engine`."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError, ShapeError
from .engine import is_compiled
from .profile import OUTSIDE

if TYPE_CHECKING:
    from ..models.bundle import Bundle

Array = NDArray[np.float32]
ArrayForward = Callable[[Sequence[Array]], tuple[Array, ...]]


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


class ServedArrayEngine(ArrayEngine, Protocol):
    """An engine that has passed the gate."""

    @property
    def name(self) -> str:
        """Library and device, such as ``torch-cpu``."""

    @property
    def precision(self) -> str:
        """``fp32``, ``bf16`` or ``fp16``: the arithmetic of matrix products and convolutions."""

    def prove(self) -> None:
        """Raise `ModelError` if it no longer gives what its model gives, as when its device failed."""


class LibraryArrayEngine:
    """A network as some library runs it; one run at a time.

    Parameters
    ----------
    name, precision : see `ServedArrayEngine`.
    forward : outputs of inputs that the library takes.
    provenance : what `describe` adds.
    counted, most : an input whose axis 1 counts tokens, and how many the engine was built for; 0: any number.
    """

    def __init__(
        self,
        name: str,
        precision: str,
        forward: ArrayForward,
        provenance: Mapping[str, str],
        counted: int = 0,
        most: int = 0,
    ) -> None:
        self.name, self.precision = name, precision
        self._forward, self._provenance = forward, dict(provenance)
        self._counted, self._most = counted, most
        self._lock = threading.Lock()

    def run_arrays(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        """See `ArrayEngine.run_arrays`.

        Raises
        ------
        ShapeError : more tokens than the engine was built for.
        """
        self._check(inputs)
        try:
            with self._lock:
                outputs = self._forward([np.ascontiguousarray(x, np.float32) for x in inputs])
        except (RuntimeError, ValueError, TypeError, IndexError) as error:  # memory, device, shapes that it refuses
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

    def describe(self) -> dict[str, str]:
        return {**self._provenance, "engine": self.name, "precision": self.precision}

    def _check(self, inputs: Sequence[Array]) -> None:
        if not self._most or len(inputs) <= self._counted or inputs[self._counted].ndim < 2:
            return
        if (n_tokens := inputs[self._counted].shape[1]) > self._most:
            raise ShapeError(
                f"this engine takes at most {self._most} samples or lines at once, not {n_tokens}",
                likely="an engine that was compiled for shorter scans",
                hint=f"kstream compile --shape {n_tokens}",
                code=OUTSIDE,
            )


def torch_array_engine(bundle: Bundle, device: str = "cpu", precision: str = "fp32") -> LibraryArrayEngine:
    """Eager torch with a bundle's weights, as it comes: nothing has been proved yet.

    Raises
    ------
    ModelError : the device cannot be had, or the weights do not fit.
    """
    import torch

    from .array_stages import lower_layers
    from .torch_engine import find_device

    place = find_device(device)
    network = lower_layers(bundle.build(), precision).to(place)

    def forward(inputs: Sequence[Array]) -> tuple[Array, ...]:
        with torch.inference_mode():
            made = network(*(torch.from_numpy(x).to(place) for x in inputs))
            return tuple(part.float().cpu().numpy() for part in (made if isinstance(made, tuple) else (made,)))

    provenance = {"model": bundle.info.name, "sha256": bundle.info.sha256, "torch": torch.__version__}
    return LibraryArrayEngine(f"torch-{place.type}", precision, forward, provenance)


def load_array_engine(
    bundle: Bundle, device: str = "cpu", precision: str = "auto", engine: str = "auto"
) -> ServedArrayEngine:
    """An engine with the weights of a bundle whose network has several inputs, that has passed the gate, and is warm.

    Parameters and errors are those of `engine.load_engine`.
    """
    from .fallback import FallbackEngine

    makers = [
        functools.partial(_load_one, bundle, place.strip(), precision, name.strip())
        for place in device.split(",")
        for name in engine.split(",")
    ]
    return makers[0]() if len(makers) == 1 else FallbackEngine(makers)


def _load_one(bundle: Bundle, device: str, precision: str, engine: str) -> ServedArrayEngine:
    from . import artifact, calibrate

    if is_compiled(engine, precision):
        return artifact.load_arrays(bundle, engine, device, precision)
    return calibrate.load_torch_arrays(bundle, device, precision)
