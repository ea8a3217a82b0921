"""The libraries that compile a network: one module each, imported when it is asked for."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from ..errors import ModelError
from .array_engine import ArrayForward
from .profile import Forward, Plan, Space

if TYPE_CHECKING:
    from torch import nn

    from .array_stages import ArrayNetwork

_MODULES = {
    "compiled": "compiled",
    "aot": "aot",
    "onnxruntime": "onnxruntime_engine",
    "openvino": "openvino_engine",
    "tensorrt": "tensorrt",
}


def names() -> tuple[str, ...]:
    """Engines that are compiled."""
    return tuple(_MODULES)


class Backend(Protocol):
    """What a module that compiles networks offers."""

    PRECISIONS: tuple[str, ...]
    DEVICES: tuple[str, ...]
    TRANSFORMS: tuple[str, ...]
    FREEZING: tuple[bool, ...]
    """Whether weights may be constants, or variable sizes; one that has no choice ignores it."""
    COMPILES_AT_LOAD: bool
    """Machine code is made by `open_engine`, so what the gate found when the engine was built was other code."""

    def versions(self) -> dict[str, str]:
        """Versions that an engine depends on; raises `ModelError` if the library cannot be had."""

    def build(self, network: nn.Module, plan: Plan, folder: Path) -> None:
        """Write what `open_engine` needs to a folder."""

    def open_engine(self, network: nn.Module, plan: Plan, folder: Path) -> Forward:
        """Logits of a batch in the plan's profile."""


def backend(engine: str) -> Backend:
    """The module behind one of the names in `engine.ENGINES`, without ``torch``, which compiles nothing."""
    return cast(Backend, importlib.import_module(f".{_MODULES[engine]}", __package__))


class ArrayBackend(Backend, Protocol):
    """A module that also holds networks with several inputs, of which the number of tokens varies."""

    def build_arrays(self, network: ArrayNetwork, plan: Plan, folder: Path) -> None:
        """Write what `open_arrays` needs to a folder."""

    def open_arrays(self, network: ArrayNetwork, plan: Plan, folder: Path) -> ArrayForward:
        """Outputs of any number of tokens up to the one in the plan's profile."""


NO_ARRAYS = {
    "openvino": "it is opened here for fixed sizes only, since its code for sizes that vary was never examined",
    "tensorrt": "its profiles are made for patches of fixed sizes, and it was never run with others",
}
"""Engines that do not hold networks with several inputs, and why."""


def demand_arrays(engine: str, model: str) -> None:
    """Raise `ModelError` if an engine does not hold networks with several inputs, whose sizes vary."""
    if engine in NO_ARRAYS:
        raise ModelError(
            f"engine {engine} does not run {model}, whose inputs vary in number: {NO_ARRAYS[engine]}",
            hint="--engine " + ", ".join(name for name in ("torch", *_MODULES) if name not in NO_ARRAYS),
        )


NO_FFT = {
    "onnxruntime": "its files are ONNX, whose DFT not every library computes rightly, so none is ever written there",
    "openvino": "it computes the DFT of ONNX wrongly without a word",
    "tensorrt": "TensorRT has no converter for it",
}
"""Engines that do not hold the FFT, and why."""


def demand_no_fft(plan: Plan, model: str, network: nn.Module, shape: Space) -> None:
    """Raise `ModelError` if a plan's library would have to hold the FFT, and cannot.

    With the transform ``fft`` it runs in torch, between the learnt stages; a network that is one stage
    holds it inside. With ``gemm`` everything is the library's, and `split` has no products for such a network either.

    Parameters
    ----------
    shape : of a patch that the network takes, such as the example's.
    """
    if plan.engine not in NO_FFT:
        return
    from .stages import holds_fft, split

    is_gemm = plan.transform == "gemm"
    stages = split(network, (shape[-2], shape[-1]) if is_gemm else None)
    if holds_fft(stages, (1, plan.profile.n_channels, *shape), is_gemm):
        others = ", ".join(name for name in ("torch", *_MODULES) if name not in NO_FFT)
        raise ModelError(
            f"engine {plan.engine} does not run {model}, which has Fourier transforms inside and no form in matrix "
            f"products: {NO_FFT[plan.engine]}",
            likely="a network of another family than the breast's, which is compiled as one piece",
            hint=f"--engine {others}",
        )


def array_backend(engine: str) -> ArrayBackend:
    """`backend` for a name that `demand_arrays` lets pass."""
    return cast(ArrayBackend, backend(engine))


def check(plan: Plan) -> None:
    """Raise `ModelError` if a plan's library does not have its precision, device, transform or way with weights."""
    library = backend(plan.engine)
    for what, value, known in (
        ("precision", plan.precision, library.PRECISIONS),
        ("device", plan.device.partition(":")[0], library.DEVICES),
        ("transform", plan.transform, library.TRANSFORMS),
    ):
        if value not in known:
            raise ModelError(f"engine {plan.engine} has no {what} {value!r}", hint="it has " + ", ".join(known))
    if plan.is_frozen not in library.FREEZING:
        raise ModelError(
            f"engine {plan.engine} has no choice between frozen weights and others",
            hint="leave --no-freeze away; aot has it",
        )
