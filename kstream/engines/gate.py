"""The gate: no engine serves a frame before it has reproduced the float64 reference, at every size it may be asked for.

Libraries give wrong numbers without a word: OpenVINO for the discrete Fourier transform of ONNX, AOTInductor for frozen
weights under a batch that varies (right at one batch size, wrong at the next), int8 wherever k-space has its dynamic
range. So each engine runs the bundle's example, and variants of it that fill a batch, and is held to

- the relative rms of its logits against the eager network in double precision (`LIMITS`), of the worst patch,
- the Dice of the example's labels against those of that network: at least ``1 - DICE_LOSS`` at every batch size;
  ``1 - VARIANT_LOSS`` for the variants and for the example in another size, which no network was trained for.

An example without a voxel of a foreground class says nothing about labels: then only ``fp32`` may pass, and labels must
stay empty.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import KstreamError, ModelError
from ..models.bundle import Bundle
from .engine import Batch, Engine
from .profile import Space, times

LIMITS = {"fp32": 1e-3, "bf16": 2e-2, "fp16": 2e-2, "int8": 2e-2}
"""Relative rms that a precision may differ by."""

DICE_LOSS = 0.002

VARIANT_LOSS = 0.02
"""One voxel of the hundred that a small example labels is a loss of 0.005: this finds wrong patches, not borders."""

DOUBLE_S = 3.0
"""Seconds that double precision may take where a frame waits for it (`Reference.one`)."""

N_VARIANTS = 3
"""Different patches in a batch: no divisor of the usual sizes, so that neighbours differ wherever one begins."""

Logits = NDArray[np.float64]


@dataclass(frozen=True)
class Finding:
    """How an engine did with a batch of a shape.

    Parameters
    ----------
    rms : relative, of the worst patch.
    dice : of the patches that are the example itself, in its own size, the worst; None: there was nothing to label.
    variant_dice : of the other patches, likewise.
    """

    batch: int
    shape: Space
    rms: float
    dice: float | None
    variant_dice: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What the gate found, for every batch and shape."""

    precision: str
    findings: tuple[Finding, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for each batch and shape that did not pass."""
        return tuple(text for finding in self.findings for text in _failure(finding, self.precision))

    @property
    def has_passed(self) -> bool:
        return bool(self.findings) and not self.failures

    @property
    def rms(self) -> float:
        """The worst."""
        return max((finding.rms for finding in self.findings), default=float("nan"))

    @property
    def dice(self) -> float | None:
        """The worst; None where no finding has one."""
        scores = (finding.variant_dice if finding.dice is None else finding.dice for finding in self.findings)
        return min((score for score in scores if score is not None), default=None)

    def demand(self, name: str) -> None:
        """Raise `ModelError` unless everything passed."""
        if not self.has_passed:
            raise self.refusal(name)

    def refusal(self, name: str) -> ModelError:
        """The error of an engine that did not pass."""
        failures = self.failures
        return ModelError(
            f"engine {name} does not reproduce the reference of its model: {failures[0]}",
            where=f"{len(failures)} of {len(self.findings)} sizes of a batch" if len(failures) > 1 else "the gate",
            likely="a defect of this library or machine, or weights of another model",
            hint="another --engine, or --precision fp32",
            code="gate",
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Verdict:
        """The inverse of `to_json`.

        Raises
        ------
        ModelError : something else, or a verdict on nothing.
        """
        try:
            findings = tuple(_read_finding(finding) for finding in plain["findings"])
            precision = plain["precision"]
            if precision not in LIMITS or not findings:
                raise ValueError(f"{len(findings)} findings in {precision!r}")
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"a verdict of the gate cannot be read: {error!r}"[:300],
                likely="a file that was edited, or cut short",
                hint="kstream compile builds and proves an engine again",
            ) from error
        return cls(precision, findings)


def _read_finding(plain: dict[str, Any]) -> Finding:
    """One finding from its JSON; `ValueError` for values that no gate gives."""
    batch, shape, rms = plain["batch"], plain["shape"], plain["rms"]
    scores = plain["dice"], plain["variant_dice"]
    are_counts = all(type(n) is int and n > 0 for n in (batch, *shape))
    are_shares = all(score is None or (type(score) in (int, float) and 0 <= score <= 1) for score in scores)
    if not (shape and are_counts and are_shares and type(rms) in (int, float) and rms >= 0):
        raise ValueError(plain)
    return Finding(batch, tuple(shape), float(rms), *scores)


class Reference:
    """The bundle's network in double precision, and its example as a batch of any size and shape.

    Parameters
    ----------
    bundle : its example is input ``(1, channels, z, y, x)``.

    Raises
    ------
    ModelError : the example cannot be read.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.example, self.stored = bundle.example()
        self._bundle, self._name = bundle, bundle.info.name
        self._network = bundle.build().double()
        self._variants: dict[Space, tuple[Batch, Logits]] = {}

    def check_stored(self) -> None:
        """Hold the logits that came with the bundle to what its network gives in double precision.

        Raises
        ------
        ModelError : they differ: the example is that of other weights.
        """
        rms = relative_rms(self.stored, self.batch(1, self.shape)[1])
        if not rms < LIMITS["fp32"]:
            raise not_reproduced(self._name, rms, "fp32", "the float64 reference")

    @property
    def shape(self) -> Space:
        """Of the example, without batch and channels."""
        return self.example.shape[2:]

    def batch(self, n_patches: int, shape: Space) -> tuple[Batch, Logits]:
        """Patches ``(n_patches, channels, *shape)`` and the reference's logits of them."""
        if shape not in self._variants:
            self._variants[shape] = self._make(shape)
        inputs, logits = self._variants[shape]
        indices = np.arange(n_patches) % N_VARIANTS
        return inputs[indices], logits[indices]

    def _make(self, shape: Space) -> tuple[Batch, Logits]:
        inputs = np.concatenate([_variant(fit(self.example, shape), i) for i in range(N_VARIANTS)])
        return inputs, np.concatenate([self._double(patch[None]) for patch in inputs])

    def _double(self, patches: Batch) -> Logits:
        import torch

        with torch.inference_mode():
            logits: Logits = self._network(torch.from_numpy(patches).double()).numpy()
        return logits

    def one(self, shape: Space, within_s: float = DOUBLE_S) -> tuple[Batch, Logits, str]:
        """The example in a size, its logits, and what they were computed in: ``float64``, or ``float32``.

        Parameters
        ----------
        within_s : seconds that double precision may take, judged by the example's own size; beyond, eager float32
            stands in for it.
        """
        import torch

        begin = time.perf_counter()
        self._double(self.example)
        expected_s = (time.perf_counter() - begin) * math.prod(shape) / math.prod(self.shape)
        patch = fit(self.example, shape)
        if expected_s <= within_s:
            return patch, self._double(patch), "float64"
        with torch.inference_mode():
            return patch, self._bundle.build()(torch.from_numpy(patch)).double().numpy(), "float32"


class ProvenEngine:
    """An engine that has passed the gate, with one input and its logits by which it can be proved again.

    Parameters
    ----------
    engine : runs the network.
    inputs, logits : ``(1, channels, z, y, x)`` and what the reference gives for it.

    Raises
    ------
    ModelError : it does not give that.
    """

    def __init__(self, engine: Engine, inputs: Batch, logits: NDArray[np.floating[Any]]) -> None:
        self._engine, self.inputs, self._logits = engine, inputs, logits
        self.prove()

    @property
    def name(self) -> str:
        return self._engine.name

    @property
    def precision(self) -> str:
        return self._engine.precision

    def run(self, batch: Batch) -> Batch:
        """See `Engine.run`."""
        return self._engine.run(batch)

    def describe(self) -> dict[str, str]:
        return self._engine.describe()

    def prove(self) -> None:
        """Run the proof: at the start, where it also warms up, and after a failure that may have spoilt a device.

        Raises
        ------
        ModelError : the engine no longer gives what its model gives.
        """
        finding = _find(self._engine, 1, self.inputs.shape[2:], self.inputs, self._logits.astype(np.float64))
        if not finding.rms < LIMITS[self.precision]:
            raise not_reproduced(self.describe().get("model", "the model"), finding.rms, self.precision, self.name)


def not_reproduced(model: str, rms: float, precision: str, where: str) -> ModelError:
    """The error of a model whose example does not come out."""
    return ModelError(
        f"{model} does not reproduce its example: relative error {rms:.2g}, allowed {LIMITS[precision]:g}",
        where=where,
        likely="weights or engine of another model, or a defect of this machine's libraries",
        hint="kstream doctor",
        code="gate",
    )


def fit(example: Batch, shape: Space) -> Batch:
    """An example in another size: in the plane cut or zero-filled about the centre of k-space, along z repeated.

    Parameters
    ----------
    example : ``(1, channels, *space)``; the last two axes are the plane.
    """
    *depth, height, width = shape
    for axis, n in enumerate(depth, start=2):
        example = example.take(np.arange(n) % example.shape[axis], axis=axis)
    fitted = np.zeros((*example.shape[:-2], height, width), np.float32)
    inner = [min(a, b) for a, b in zip(example.shape[-2:], (height, width), strict=True)]
    fitted[_centre(fitted, inner)] = example[_centre(example, inner)]
    return fitted


def _centre(array: Batch, inner: list[int]) -> tuple[Any, ...]:
    """About ``n // 2``, where k-space has its centre."""
    starts = [n // 2 - size // 2 for n, size in zip(array.shape[-2:], inner, strict=True)]
    return (..., *(slice(start, start + size) for start, size in zip(starts, inner, strict=True)))


def _variant(patch: Batch, index: int) -> Batch:
    """Another patch that is as likely: slices moved round, and the sign of k-space changed."""
    moved = np.roll(patch, index, axis=2) if patch.ndim == 5 else patch
    return np.ascontiguousarray(moved * np.float32((-1) ** index * (1 + 0.1 * index)))


def examine(engine: Engine, reference: Reference, batches: Iterable[int], shapes: Iterable[Space] = ()) -> Verdict:
    """Run an engine on every batch of every shape; no shape is the example's own.

    Raises
    ------
    ShapeError : the engine refuses a size that it was said to take.
    ModelError : it cannot run.
    """
    findings = [
        _find(engine, n_patches, shape, *reference.batch(n_patches, shape), is_example=shape == reference.shape)
        for shape in (tuple(shapes) or (reference.shape,))
        for n_patches in batches
    ]
    return Verdict(engine.precision, tuple(findings))


def examine_one(engine: Engine, reference: Reference, shape: Space) -> tuple[Verdict, str]:
    """Run an engine on one patch of a shape, in a bounded time; also says what it was compared with.

    Raises
    ------
    ShapeError, ModelError : as `examine`.
    """
    patch, logits, against = reference.one(shape)
    finding = _find(engine, 1, shape, patch, logits, is_example=shape == reference.shape)
    return Verdict(engine.precision, (finding,)), against


def _find(
    engine: Engine, n_patches: int, shape: Space, inputs: Batch, expected: Logits, is_example: bool = True
) -> Finding:
    try:
        logits = engine.run(inputs)
    except KstreamError:
        raise
    except (RuntimeError, MemoryError, ValueError, TypeError) as error:  # memory, device, a defect
        raise ModelError(
            f"engine {engine.name} cannot run the example of its model: {error}"[:500],
            where=f"a batch of {n_patches} patches of {times(shape)}",
            likely="no memory on its device, a device that failed, or an example of another model",
            hint="kstream doctor",
        ) from error
    if logits.shape != expected.shape:
        return Finding(n_patches, shape, float("inf"), 0.0)
    patches = list(zip(logits, expected, strict=True))  # one by one: a wrong patch must not drown in a batch
    rms = max(relative_rms(*patch) for patch in patches)
    examples = patches[::N_VARIANTS] if is_example else []
    variants = [patch for i, patch in enumerate(patches) if i % N_VARIANTS or not is_example]
    return Finding(n_patches, shape, rms, _worst_dice(examples), _worst_dice(variants))


def _worst_dice(patches: list[tuple[Batch, Logits]]) -> float | None:
    return min((score for patch in patches if (score := dice(*patch)) is not None), default=None)


def relative_rms(values: NDArray[np.floating[Any]], expected: NDArray[np.floating[Any]]) -> float:
    """Root of the mean squared difference over that of `expected`; infinite for values that are not finite."""
    power = float(np.mean(np.square(expected, dtype=np.float64)))
    error = float(np.mean(np.square(values - expected, dtype=np.float64)))
    if not np.isfinite(error):
        return float("inf")
    return float(np.sqrt(error / power)) if power else float(np.sqrt(error))


def dice(logits: Batch, expected: Logits) -> float | None:
    """Of the foreground classes of one patch ``(classes, ...)``, the worst; None where neither has any."""
    found, truth = logits.argmax(axis=0), expected.argmax(axis=0)
    scores = []
    for label in range(1, expected.shape[0]):
        a, b = found == label, truth == label
        if n := int(a.sum()) + int(b.sum()):
            scores.append(2 * int((a & b).sum()) / n)
    return min(scores, default=None)


def _failure(finding: Finding, precision: str) -> list[str]:
    where = f"with {finding.batch} patches of {times(finding.shape)}"
    failures = []
    if not finding.rms < LIMITS[precision]:
        failures.append(f"relative error {finding.rms:.2g} {where}, allowed {LIMITS[precision]:g} in {precision}")
    if finding.dice is not None and finding.dice < 1 - DICE_LOSS:
        failures.append(f"labels differ, Dice {finding.dice:.4f} {where}, allowed {1 - DICE_LOSS:g}")
    if finding.variant_dice is not None and finding.variant_dice < 1 - VARIANT_LOSS:
        failures.append(
            f"labels of a variant differ, Dice {finding.variant_dice:.4f} {where}, allowed {1 - VARIANT_LOSS:g}"
        )
    if finding.dice is None and finding.variant_dice is None and precision != "fp32":
        failures.append(f"the example has no foreground {where}, which cannot prove labels in {precision}")
    return failures
