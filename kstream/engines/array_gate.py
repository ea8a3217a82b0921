"""The gate for networks with several inputs: the float64 reference, at several numbers of tokens.

These networks take any number of samples or lines, and every readout brings more, so not every number can be examined
beforehand: a compiled engine is held to its reference at the numbers of `sizes_up_to`, the largest among them, and
eager torch in reduced precision at every power of two that a scan reaches (`size_gate`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.bundle import Bundle
from .array_engine import Array, ArrayEngine, LibraryArrayEngine, ServedArrayEngine
from .array_stages import family, stretched
from .gate import LIMITS, Finding, Verdict, dice, not_reproduced, relative_rms
from .profile import Space

DOUBLE_TOKENS = 4096
"""Beyond, eager float32 stands in for float64: attention among tokens needs memory by their square."""

Outputs = tuple[NDArray[np.floating[Any]], ...]


class ArrayReference:
    """A bundle's network in double precision, and its example with any number of tokens.

    Raises
    ------
    ModelError : the example cannot be read, or the architecture is of no known family.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle, self.family = bundle, family(bundle)
        self.example, self.stored = bundle.tensors()
        self.outputs = tuple(spec.name for spec in bundle.info.outputs)

    @property
    def n_tokens(self) -> int:
        """Of the example."""
        return int(self.example[self.family.counted[0]].shape[1])

    def check_stored(self) -> None:
        """Hold the outputs that came with the bundle to what its network gives in double precision.

        Raises
        ------
        ModelError : they differ: the example is that of other weights.
        """
        for stored, expected in zip(self.stored, self.at(self.n_tokens)[1], strict=True):
            rms = _rms(stored, expected)
            if not rms < LIMITS["fp32"]:
                raise not_reproduced(self._bundle.info.name, rms, "fp32", "the float64 reference")

    def at(self, n_tokens: int) -> tuple[tuple[Array, ...], Outputs, str]:
        """Inputs with so many tokens, the outputs, and what these were computed in."""
        import torch

        inputs = stretched(self.example, self.family.counted, n_tokens)
        dtype = torch.float64 if n_tokens <= DOUBLE_TOKENS else torch.float32
        network = self._bundle.build().to(dtype)
        with torch.inference_mode():
            made = network(*(torch.from_numpy(x).to(dtype) for x in inputs))
        parts = made if isinstance(made, tuple) else (made,)
        return inputs, tuple(part.numpy() for part in parts), str(dtype).removeprefix("torch.")


def sizes_up_to(reference: ArrayReference, most: int) -> tuple[int, ...]:
    """Numbers of tokens at which an engine is examined: one, the example's, odd ones between, and the most."""
    return tuple(sorted({n for n in (1, 2, reference.n_tokens, 37, 257, 2049, 16_385) if n < most} | {most}))


def examine_arrays(engine: ArrayEngine, precision: str, reference: ArrayReference, sizes: Iterable[int]) -> Verdict:
    """Run an engine at every number of tokens.

    Raises
    ------
    ShapeError : the engine refuses a size that it was said to take.
    ModelError : it cannot run.
    """
    findings = []
    for n_tokens in sizes:
        inputs, expected, _ = reference.at(n_tokens)
        findings.append(_find(engine, reference, inputs, expected, n_tokens))
    return Verdict(precision, tuple(findings))


def examine_size(engine: ServedArrayEngine, bundle: Bundle, size: Space) -> tuple[Verdict, str]:
    """For `size_gate`: the verdict at one number of tokens, and what the engine was compared with."""
    reference = ArrayReference(bundle)
    inputs, expected, against = reference.at(size[0])
    return Verdict(engine.precision, (_find(engine, reference, inputs, expected, size[0]),)), against


def _find(
    engine: ArrayEngine, reference: ArrayReference, inputs: Sequence[Array], expected: Outputs, n_tokens: int
) -> Finding:
    made = engine.run_arrays(inputs)
    if [m.shape for m in made] != [e.shape for e in expected]:
        return Finding(1, (n_tokens,), float("inf"), 0.0)
    pairs = dict(zip(reference.outputs, zip(made, expected, strict=True), strict=True))
    scores = [_dice(*pairs[name], axis) for name, axis in reference.family.scores.items() if name in pairs]
    worst = min((score for score in scores if score is not None), default=None)
    is_example = n_tokens == reference.n_tokens
    rms = max(_rms(*pair) for pair in pairs.values())
    return Finding(1, (n_tokens,), rms, worst if is_example else None, None if is_example else worst)


def _rms(made: NDArray[np.floating[Any]], expected: NDArray[np.floating[Any]]) -> float:
    return relative_rms(made, expected) if made.shape == expected.shape else float("inf")


def _dice(made: Array, expected: NDArray[np.floating[Any]], axis: int) -> float | None:
    return dice(np.moveaxis(made, axis, 0), np.moveaxis(expected, axis, 0).astype(np.float64))


class ProvenArrayEngine:
    """An engine that has given the example of its bundle, and can be asked again.

    Parameters
    ----------
    engine : runs the network.
    inputs, outputs : an example, and what the reference gives for it.

    Raises
    ------
    ModelError : it does not give that.
    """

    def __init__(self, engine: LibraryArrayEngine, inputs: Sequence[Array], outputs: Outputs) -> None:
        self._engine, self._inputs, self._outputs = engine, inputs, outputs
        self.prove()

    @property
    def name(self) -> str:
        return self._engine.name

    @property
    def precision(self) -> str:
        return self._engine.precision

    def run_arrays(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        """See `ArrayEngine.run_arrays`."""
        return self._engine.run_arrays(inputs)

    def describe(self) -> dict[str, str]:
        return self._engine.describe()

    def prove(self) -> None:
        """Run the example: at the start, and after a failure that may have spoilt a device.

        Raises
        ------
        ModelError : the example fails, or comes out differently.
        """
        model = self.describe().get("model", "the model")
        for made, expected in zip(self.run_arrays(self._inputs), self._outputs, strict=True):
            rms = _rms(made, expected)
            if not rms < LIMITS[self.precision]:
                raise not_reproduced(model, rms, self.precision, self.name)
