"""Networks with several inputs as stages that an engine can run, and what varies in number from run to run.

A cine scan brings more samples, or lines, with every readout, so these networks take any number of them: an engine is
built once, for at most so many. What can be asked for point by point is run in parts, so that memory stays bounded.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ModelError
from ..models.bundle import Bundle
from ..models.disk import DiSK
from ..models.registry import architecture
from .stages import DTYPES, cast_inputs

Array = NDArray[np.float32]
T = TypeVar("T")

PART = 32_768
"""Queried points that are decoded at once: 64 MiB for each of DiSK's activations in float32."""


@dataclass(frozen=True)
class Family:
    """What the engines must know of an architecture beside its module.

    Parameters
    ----------
    unit : what its tokens are.
    counted : inputs whose axis 1 counts tokens, and varies.
    most : tokens that an engine is built for if nobody says.
    scores : outputs that are class scores, with the axis of the classes.
    """

    unit: str
    counted: tuple[int, ...]
    most: int
    scores: Mapping[str, int] = field(default_factory=dict)


_LINES = Family("lines", (0, 1), 3_600, MappingProxyType({"segmentation": 2}))  # a quarter of those of the paper
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "disk": Family("samples", (0, 1), 80_000, MappingProxyType({"logits": 1})),
        "kmtr": _LINES,
        "kmtr-line-mae": _LINES,
        "kgin": _LINES,
        "kmtr-alignment": dataclasses.replace(_LINES, counted=(1, 2)),
    }
)


def takes_arrays(bundle: Bundle) -> bool:
    """True for a network with several inputs."""
    return len(architecture(bundle.info.architecture).inputs) > 1


def family(bundle: Bundle) -> Family:
    """What is known of a bundle's architecture.

    Raises
    ------
    ModelError : nothing is, so nobody knows which of its sizes vary.
    """
    name = bundle.info.architecture
    if name not in FAMILIES:
        raise ModelError(
            f"no engine but torch in fp32 runs {name}: it is not known which of its inputs vary in number",
            where=bundle.info.name,
            hint="--engine torch --precision fp32; those that are known: " + ", ".join(FAMILIES),
        )
    return FAMILIES[name]


@dataclass(frozen=True)
class ArrayStage:
    """A part of a network that is compiled by itself.

    Parameters
    ----------
    takes, gives : names of the values that go in and come out.
    varying : for each input, the name of the size of its axis 1; None where no size varies.
    in_parts : the last input is cut along axis 1 into `PART`, and the outputs are joined along their last axis.
    """

    name: str
    module: nn.Module
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    varying: tuple[str | None, ...]
    in_parts: bool = False


class Encode(nn.Module):
    """`DiSK.encode`, latents of all layers in one tensor ``(batch, layers, n_latents, width)``."""

    def __init__(self, network: DiSK) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        coordinates, values = inputs
        return (torch.stack(self.network.encode(coordinates, values), dim=1),)


class Decode(nn.Module):
    """`DiSK.decode` of a part of the queries."""

    def __init__(self, network: DiSK) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        latents, queries = inputs
        return (self.network.decode_part(latents.unbind(1), queries).float(),)


class Whole(nn.Module):
    """A network as it is; its outputs always as a tuple, in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        made = self.network(*inputs)
        return tuple(part.float() for part in (made if isinstance(made, tuple) else (made,)))


def lower_layers(network: nn.Module, precision: str) -> nn.Module:
    """A copy whose matrix products and convolutions have a precision; positions and residual sums keep float32."""
    lowered = copy.deepcopy(network).eval().requires_grad_(False)
    if precision != "fp32":
        cast_inputs(lowered, DTYPES[precision])
    return lowered


@dataclass(frozen=True)
class ArrayNetwork:
    """A network's stages, its inputs and outputs by name, and inputs to build with."""

    stages: tuple[ArrayStage, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    example: tuple[Array, ...]

    @classmethod
    def of(cls, bundle: Bundle, precision: str = "fp32") -> ArrayNetwork:
        """The stages of a bundle's network, with a precision written into them.

        Raises
        ------
        ModelError : the architecture is of no known `family`, or the bundle is damaged.
        """
        known, network = family(bundle), lower_layers(bundle.build(), precision)
        inputs, outputs = (tuple(spec.name for spec in specs) for specs in (bundle.info.inputs, bundle.info.outputs))
        varying = tuple("tokens" if i in known.counted else None for i in range(len(inputs)))
        stages: tuple[ArrayStage, ...]
        if isinstance(network, DiSK):
            stages = (
                ArrayStage("encode", Encode(network), inputs[:2], ("latents",), varying[:2]),
                ArrayStage("decode", Decode(network), ("latents", inputs[2]), outputs, (None, "parts"), in_parts=True),
            )
        else:
            stages = (ArrayStage("network", Whole(network), inputs, outputs, varying),)
        return cls(stages, inputs, outputs, stretched(bundle.tensors()[0], known.counted, 3))

    def forward(
        self, run: Callable[[ArrayStage, list[T]], Sequence[T]], inputs: Sequence[T], join: Callable[[list[T]], T]
    ) -> tuple[T, ...]:
        """Outputs of the network, in the order of `outputs`.

        Parameters
        ----------
        run : gives the outputs of a stage.
        join : puts parts together along their last axis.
        """
        values: dict[str, T] = dict(zip(self.inputs, inputs, strict=True))
        for stage in self.stages:
            taken = [values[name] for name in stage.takes]
            runs = [run(stage, part) for part in (_parts(taken) if stage.in_parts else [taken])]
            made = runs[0] if len(runs) == 1 else [join(list(parts)) for parts in zip(*runs, strict=True)]
            values.update(zip(stage.gives, made, strict=True))
        return tuple(values[name] for name in self.outputs)

    def exports(self, most: int, device: torch.device) -> Iterator[tuple[ArrayStage, tuple[Tensor, ...], Any]]:
        """Every stage with inputs, and which of their sizes vary, in the form of `torch.export`."""
        sizes = {
            "tokens": torch.export.Dim("tokens", min=1, max=max(most, 4)),
            "parts": torch.export.Dim("parts", min=1, max=PART),
        }
        values = dict(zip(self.inputs, (torch.from_numpy(x).to(device) for x in self.example), strict=True))
        for stage in self.stages:
            inputs = tuple(values[name] for name in stage.takes)
            yield stage, inputs, tuple({1: sizes[name]} if name else {} for name in stage.varying)
            with torch.no_grad():
                values.update(zip(stage.gives, stage.module(*inputs), strict=True))


def _parts(taken: list[Any]) -> Iterator[list[Any]]:
    """The same inputs, of the last a part at a time."""
    *whole, last = taken
    for begin in range(0, max(last.shape[1], 1), PART):
        yield [*whole, last[:, begin : begin + PART]]


def stretched(inputs: Sequence[Array], counted: Sequence[int], n_tokens: int) -> tuple[Array, ...]:
    """Example inputs with another number of tokens: repeated, and paired differently each time, so that all differ."""
    made = list(inputs)
    for place, index in enumerate(counted):
        n = inputs[index].shape[1]
        rounds, at = np.divmod(np.arange(n_tokens), n)
        chosen = (at + rounds * place) % n  # the first counted input stays, the next is shifted once a round
        made[index] = np.ascontiguousarray(inputs[index][:, chosen])
    return tuple(made)
