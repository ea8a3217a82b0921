"""Networks by name; looking one up does not import torch, building or counting one does."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import ModelError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, ...]
PAPER_PATCH: Shape = (1, 2, 24, 320, 320)


@dataclass(frozen=True)
class Architecture:
    """A network that a bundle or an experiment can name.

    Parameters
    ----------
    target : ``package.module:Class`` of the torch module.
    arguments : every argument of the class with its default; nothing else may be passed.
    inputs : shapes of the forward pass's float32 inputs, in order, as in the publication: costs are quoted for them.
    """

    name: str
    target: str
    description: str
    paper: str
    arguments: Mapping[str, Any]
    inputs: tuple[Shape, ...] = (PAPER_PATCH,)


@dataclass(frozen=True)
class Cost:
    """Size and work of a network: parameters, and multiply-accumulates of one forward pass of `inputs`."""

    parameters: int
    macs: int
    inputs: tuple[Shape, ...]


_PAPER = "paper 000: reconstruction-free segmentation of breast DCE MRI from k-space"
_CHANNELS = {"channels": (24, 48, 96, 192), "n_classes": 2}


def _breast(name: str, target: str, description: str, arguments: Mapping[str, Any]) -> Architecture:
    return Architecture(name, f"kstream.models.breast:{target}", description, _PAPER, MappingProxyType(dict(arguments)))


_HYBRID: dict[str, Any] = {
    "k_channels": (20, 40, 80),
    "n_features": 4,
    "image_channels": (20, 40, 80, 160),
    "n_classes": 2,
    "k_residual": False,
    "bridge_magnitude": False,
}

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        a.name: a
        for a in (
            _breast("breast-magnitude", "MagnitudeUNet", "U-Net on the magnitude of the difference image", _CHANNELS),
            _breast("breast-complex", "ComplexUNet", "U-Net on the complex difference image", _CHANNELS),
            _breast(
                "breast-native",
                "NativeUNet",
                "U-Net from k-space to the k-space of the foreground (published code)",
                {**_CHANNELS, "form": "fg_only"},
            ),
            _breast(
                "breast-native-per-class",
                "NativeUNet",
                "U-Net from k-space to one k-space per class, with a calibration head (text)",
                {**_CHANNELS, "form": "per_class"},
            ),
            _breast("breast-hybrid", "HybridUNet", "k-space U-Net, inverse transform, image U-Net", _HYBRID),
        )
    }
)


def architecture(name: str) -> Architecture:
    """Look a network up.

    Raises
    ------
    ModelError : if no network has this name.
    """
    if name not in ARCHITECTURES:
        raise ModelError(
            f"unknown architecture {name!r}",
            likely="a bundle or experiment of a newer kstream, or a typing error",
            hint=did_you_mean(name, tuple(ARCHITECTURES)),
        )
    return ARCHITECTURES[name]


def build(name: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """A freshly initialised network.

    Raises
    ------
    ModelError : for an unknown name, an unknown argument, or values that the network refuses.
    """
    entry = architecture(name)
    given = dict(arguments or {})
    if unknown := sorted(set(given) - set(entry.arguments)):
        raise ModelError(
            f"architecture {name} has no argument {', '.join(unknown)}",
            hint="its arguments: " + ", ".join(entry.arguments),
        )
    module, _, attribute = entry.target.partition(":")
    network_class: type[nn.Module] = getattr(importlib.import_module(module), attribute)
    try:
        return network_class(**{**entry.arguments, **given})
    except (TypeError, ValueError) as error:
        raise ModelError(f"architecture {name} refuses its arguments: {error}", where=str(given)) from error


def cost(name: str, arguments: Mapping[str, Any] | None = None, inputs: tuple[Shape, ...] = ()) -> Cost:
    """Count parameters and multiply-accumulates without allocating memory (meta device).

    Convolutions and matrix products are counted, normalisation, activation and Fourier transforms are not: half the
    total of torch's ``FlopCounterMode``. `inputs` are shapes as in `Architecture`; none: the publication's.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    shapes = inputs or architecture(name).inputs
    with torch.device("meta"), torch.inference_mode():
        network = build(name, arguments)
        with FlopCounterMode(display=False) as counter:
            network(*(torch.empty(shape) for shape in shapes))
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    return Cost(n_parameters, counter.get_total_flops() // 2, shapes)
