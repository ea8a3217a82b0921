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

_GATE: dict[str, Any] = {
    "n_features": 4,
    "hidden": 16,
    "window": 9,
    "image_channels": (22, 44, 88, 176),
    "n_classes": 2,
    "bridge": "both",
    "consistency_width": 0,
}
_GATE_PAPER = "this project: the hybrid of paper 000 at the cost of its magnitude baseline"

_BRAIN_PAPER = "paper 004: SERANet, brain segmentation from undersampled k-space"
_BRAIN_SLICE: tuple[Shape, ...] = ((1, 2, 1, 216, 180),)  # lines of zeros say what was not measured
_CONSISTENCY: dict[str, Any] = {"consistency": "hard", "weight": 1.0}
_SEGMENTATION: dict[str, Any] = {"n_classes": 4, "channels": (64, 128, 256, 512)}
_UNROLLED: dict[str, Any] = {"n_blocks": 2, "block": "A", "width": 1.0, **_SEGMENTATION, **_CONSISTENCY}
_SERANET: dict[str, Any] = {
    **_UNROLLED,
    "n_recurrences": 2,
    "memory": "decoder",
    "attention": "first",
    "scaled_memory": False,
}
_LATENT: dict[str, Any] = {
    "shape": (216, 180),
    "n_classes": 4,
    "channels": (32, 64, 128, 256),
    "n_latent": 64,
    "image": "complex",
    "temporal": "none",
}


def _brain(name: str, target: str, description: str, arguments: Mapping[str, Any]) -> Architecture:
    plain = MappingProxyType(dict(arguments))
    return Architecture(name, f"kstream.models.{target}", description, _BRAIN_PAPER, plain, _BRAIN_SLICE)


_BRAIN = (
    *(
        _brain(
            f"brain-seranet-{n}",
            "seranet:SERANet",
            f"{n} reconstruction blocks, U-Net with memory, attention by class probabilities",
            {**_SERANET, "n_blocks": n},
        )
        for n in (2, 4, 7)
    ),
    _brain("brain-joint", "unrolled:ReconstructThenSegment", "reconstruction and U-Net, trained together", _UNROLLED),
    _brain("brain-two-step", "unrolled:ReconstructThenSegment", "reconstruction, then U-Net on its images", _UNROLLED),
    _brain(
        "brain-segnetmri",
        "segnetmri:SegNetMRI",
        "five reconstruction blocks whose encoders also segment (Sun et al., IPMI 2019)",
        {"n_blocks": 5, "n_classes": 4, "channels": (64, 128, 256), **_CONSISTENCY},
    ),
    _brain("brain-one-step", "synnet:SynNet", "U-Net on the zero-filled image", {**_SEGMENTATION, "image": "complex"}),
    _brain(
        "brain-syn-net",
        "synnet:SynNet",
        "U-Net on the zero-filled image after a warm start (Schlemper et al., MICCAI 2018)",
        {**_SEGMENTATION, "image": "complex"},
    ),
    _brain("brain-li-net", "linet:LINet", "latent code of label maps (Schlemper et al., MICCAI 2018)", _LATENT),
)

_DISK: dict[str, Any] = {
    "width": 128,
    "n_latents": 128,
    "n_layers": 4,
    "n_classes": 4,
    "n_frequencies": 4,
    "compand": 0.0,
    "query_chunk": 32768,
    "located": (),
    "plane": (80, 80),
    "n_filters": 16,
    "n_heads": 1,
}
_CINE: dict[str, Any] = {"n_slices": 9, "n_long_axis": 3, "n_frames": 50, "plane": (128, 128)}
_PATCH: dict[str, Any] = {"patch": (5, 8, 8)}
_TRANSFORMER: dict[str, Any] = {"width": 1025, "n_layers": 6, "n_heads": 5}
_KMTR: dict[str, Any] = {
    "heads": ("segmentation",),
    **_CINE,
    **_PATCH,
    **_TRANSFORMER,
    "n_decoder_layers": 2,
    "n_classes": 6,
    "n_head_features": 256,
    "segmentation_width": 576,
    "feature_size": 16,
    "compand": 0.0,
    "located": 0,
    "areas": False,
}
_KGIN: dict[str, Any] = {
    "n_frames": 50,
    "plane": (128, 128),
    "width": 512,
    "n_heads": 16,
    "n_encoder": 12,
    "n_decoder": 8,
    "n_refine": 8,
    "n_refinements": 3,
    "compand": 0.0,
}
_DISK_PAPER = "paper 001: reconstruction-free segmentation from undersampled k-space using transformers"
_KMTR_PAPER = "paper 003: end-to-end multi-task cardiac analysis from undersampled k-space"
_IMAGES: Shape = (1, 2, 9, 50, 128, 128)
_LINES: tuple[Shape, ...] = ((1, 14_400, 256), (1, 14_400, 3))
_SLICE: tuple[Shape, ...] = ((1, 2, 50, 80, 80),)


def _heart(
    name: str, target: str, description: str, paper: str, arguments: Mapping[str, Any], inputs: tuple[Shape, ...]
) -> Architecture:
    return Architecture(name, f"kstream.models.{target}", description, paper, MappingProxyType(dict(arguments)), inputs)


_HEART = (
    _heart(
        "disk",
        "disk:DiSK",
        "transformer from k-space samples in any order to labels of a cine slice",
        _DISK_PAPER,
        _DISK,
        ((1, 80_000, 3), (1, 80_000, 2), (1, 320_000, 3)),
    ),
    _heart(
        "heart-syn-net",
        "synnet:SynNet",
        "baseline: U-Net on zero-filled frames",
        _DISK_PAPER,
        {"n_classes": 4, "channels": (64, 128, 256, 512), "image": "magnitude"},
        _SLICE,
    ),
    _heart(
        "heart-li-net",
        "linet:LINet",
        "baseline: latent code of label maps, mended over time",
        _DISK_PAPER,
        {**_LATENT, "shape": (80, 80), "image": "magnitude", "temporal": "gru"},
        _SLICE,
    ),
    _heart(
        "kmtr-image-mae",
        "kmtr:ImageMAE",
        "stage I: masked autoencoder of image patches",
        _KMTR_PAPER,
        {**_CINE, **_PATCH, **_TRANSFORMER, "n_decoder_layers": 2},
        (_IMAGES,),
    ),
    _heart(
        "kmtr-line-mae",
        "kmtr:LineMAE",
        "stage I: masked autoencoder of phase-encode lines",
        _KMTR_PAPER,
        {**_CINE, **_TRANSFORMER, "n_decoder_layers": 2, "compand": 0.0},
        _LINES,
    ),
    _heart(
        "kmtr-alignment",
        "kmtr:Alignment",
        "stage II: both encoders and their projections",
        _KMTR_PAPER,
        {**_CINE, **_PATCH, **_TRANSFORMER, "compand": 0.0},
        (_IMAGES, *_LINES),
    ),
    _heart(
        "kmtr", "kmtr:KMTR", "stage III: labels, phenotypes, diseases, images from lines", _KMTR_PAPER, _KMTR, _LINES
    ),
    _heart(
        "heart-resnet50",
        "resnet:CineResNet",
        "baseline: ResNet-50 on all frames of all views",
        _KMTR_PAPER,
        {"n_images": 450, "n_outputs": 18, "form": "magnitude", "width": 64},
        ((1, 2, 450, 128, 128),),
    ),
    _heart(
        "heart-resnet50-kspace",
        "resnet:CineResNet",
        "baseline: ResNet-50 on zero-filled k-space",
        _KMTR_PAPER,
        {"n_images": 450, "n_outputs": 18, "form": "kspace", "width": 64},
        ((1, 2, 450, 128, 128),),
    ),
    _heart(
        "kgin",
        "kgin:KGIN",
        "baseline: masked transformer that fills k-space of a slice (Pan et al., MICCAI 2023)",
        _KMTR_PAPER,
        _KGIN,
        ((1, 1_600, 256), (1, 1_600, 2)),
    ),
)

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
            Architecture(
                "breast-gate",
                "kstream.models.gate:GateUNet",
                "k-space gate that knows the sampling, inverse transform, image U-Net",
                _GATE_PAPER,
                MappingProxyType(_GATE),
            ),
            Architecture(
                "breast-reconstruct",
                "kstream.models.reconstruct:ReconstructUNet",
                "unrolled reconstruction with data consistency, then the magnitude U-Net",
                "Morshuis, Hein, Baumgartner 2025: two stages with data consistency",
                MappingProxyType({"n_blocks": 3, "width": 16, **_CHANNELS}),
            ),
            *_BRAIN,
            *_HEART,
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
