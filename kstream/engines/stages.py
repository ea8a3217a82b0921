"""A network as stages that an engine can run one by one: what was learnt, and the fixed transform between.

``split`` gives ``nn.Sequential(kspace=..., transform=..., image=...)`` for the hybrid and the like for the others, with
the transform either as FFT (centring folded into signs) or as dense real matrix products, which every engine has.
``lower`` writes a precision into the stages: convolutions in it, normalisation in float32.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from ..models.breast import ComplexUNet, HybridUNet, MagnitudeUNet, NativeUNet
from ..models.gate import GateUNet, bridge
from ..models.reconstruct import ReconstructUNet, unroll
from .phases import PhaseConvolution, is_worth_it
from .transform import Form, GateByGemm, ToImage, ToImageByGemm, UnrollByGemm

NormWay = Literal["eager", "sums", "plain"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

FEW_CHANNELS = 12
"""Below this, channels first is the faster order for a normalisation."""

FFTS = (torch.ops.aten._fft_c2c, torch.ops.aten._fft_r2c, torch.ops.aten._fft_c2r)

LEARNT = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


class KspaceStage(nn.Module):
    """`HybridUNet.k_stage` by itself."""

    def __init__(self, network: HybridUNet) -> None:
        super().__init__()
        self.unet, self.has_residual = network.k_unet, network.k_residual

    def forward(self, kspace: Tensor) -> Tensor:
        features: Tensor = self.unet(kspace)
        return torch.cat((features[:, :2] + kspace, features[:, 2:]), dim=1) if self.has_residual else features


class ReadImage(nn.Module):
    """Transform and `NativeUNet.read_image`: what makes a predicted k-space a label map."""

    def __init__(self, to_image: ToImage, network: NativeUNet) -> None:
        super().__init__()
        self.to_image, self.network = to_image, network

    def forward(self, predicted: Tensor) -> Tensor:
        return self.network.read_image(self.to_image(predicted))


class GateStage(nn.Module):
    """Gate, transform and data consistency of `GateUNet`: a tenth of its work, which wants float32."""

    def __init__(self, network: GateUNet) -> None:
        super().__init__()
        self.gate, self.denoiser, self.form = network.gate, network.denoiser, network.bridge_form

    def forward(self, kspace: Tensor) -> Tensor:
        return bridge(self.gate(kspace), kspace, self.denoiser, self.form)


class UnrollStage(nn.Module):
    """Magnitude of the image that `ReconstructUNet` reconstructs, in float32."""

    def __init__(self, network: ReconstructUNet) -> None:
        super().__init__()
        self.blocks = network.blocks

    def forward(self, kspace: Tensor) -> Tensor:
        return unroll(kspace, self.blocks).abs()


class NormaliseActivate(nn.Module):
    """Group normalisation and leaky ReLU; weights and statistics in float32, whatever the type of what comes in.

    Three ways to the same numbers:

    - ``eager``: torch's kernel, which takes both types; with few channels (the top of a U-Net) it wants them first:
      0.2 of the time of a whole network otherwise.
    - ``sums``: for a compiler that makes two passes of it: sums per channel, then everything else.
    - ``plain``: in float32 altogether, for libraries that know group normalisation by name.
    """

    def __init__(self, norm: nn.GroupNorm, slope: float, way: NormWay) -> None:
        super().__init__()
        self.norm, self.slope, self.way = norm.float(), slope, way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "sums" and x.shape[1] >= FEW_CHANNELS:
            return functional.leaky_relu(self._by_sums(x), self.slope).to(x.dtype)
        if self.way == "plain":
            return functional.leaky_relu(self._normalise(x.float()), self.slope).to(x.dtype)
        if x.shape[1] >= FEW_CHANNELS:
            return functional.leaky_relu_(self._normalise(x), self.slope)
        return functional.leaky_relu_(self._normalise(x.contiguous()), self.slope)

    def _normalise(self, x: Tensor) -> Tensor:
        norm = self.norm
        return functional.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)

    def _by_sums(self, x: Tensor) -> Tensor:
        norm, (batch, n_channels), space = self.norm, x.shape[:2], x.shape[2:]
        values, axes = x.float(), tuple(range(2, x.ndim))
        n_values = space.numel() * n_channels // norm.num_groups
        # two tensors to the end: with the sums in one, inductor needed 2.5 times as long for a whole network
        mean, square = (
            part.sum(axes).view(batch, norm.num_groups, -1).sum(-1) / n_values for part in (values, values * values)
        )
        scale = torch.rsqrt((square - mean * mean).clamp_min(0) + norm.eps)
        mean, scale = (each.repeat_interleave(n_channels // norm.num_groups, 1) for each in (mean, scale))
        factor = scale * norm.weight
        column = (batch, n_channels, *(1 for _ in space))
        return values * factor.view(column) + (norm.bias - mean * factor).view(column)


class Lowered(nn.Module):
    """A stage in another type; float32 goes in and comes out, as without it."""

    def __init__(self, stage: nn.Module, dtype: torch.dtype, channels_last: bool) -> None:
        super().__init__()
        self.stage, self.dtype, self.channels_last = stage, dtype, channels_last

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.channels_last:
            x = x.contiguous(memory_format=_channels_last(x.ndim))
        y: Tensor = self.stage(x)
        return y.float()


class InType(nn.Module):
    """A learnt layer in another type: what comes in is cast to it, so what is between such layers may keep float32."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.dtype = layer.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.to(self.dtype))
        return y


class Widened(nn.Module):
    """A stage that gives float32, whatever its last layer gives."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.stage(x)
        return y.float()


def split(
    network: nn.Module, plane: tuple[int, int] | None = None, dtype: torch.dtype = torch.float32
) -> nn.Sequential:
    """The stages of a network; those named ``transform`` stay in float32 whatever the precision.

    A network of another family is one stage, ``network``.

    Parameters
    ----------
    plane : ``(y, x)`` for which the transform is written as matrix products of type `dtype`; None: the FFT.
    """

    def transform(form: Form) -> ToImage:
        return ToImage(form) if plane is None else ToImageByGemm(plane, form, dtype)

    stages: dict[str, nn.Module]
    match network:
        case HybridUNet():
            form: Form = "both" if network.bridge_magnitude else "channels"
            stages = {"kspace": KspaceStage(network), "transform": transform(form), "image": network.img_unet}
        case MagnitudeUNet():
            stages = {"transform": transform("magnitude"), "image": network.net}
        case ComplexUNet():
            stages = {"transform": transform("channels"), "image": network.net}
        case NativeUNet():
            stages = {"kspace": network.net, "transform": ReadImage(transform("magnitude"), network)}
        case GateUNet():
            gate = GateStage(network) if plane is None else GateByGemm(network, plane)
            stages = {"transform": gate, "image": network.img_unet}
        case ReconstructUNet():
            unrolled = UnrollStage(network) if plane is None else UnrollByGemm(network, plane)
            stages = {"transform": unrolled, "image": network.net}
        case _:
            stages = {"network": network}
    return nn.Sequential(OrderedDict(stages))


def holds_fft(stages: nn.Sequential, shape: tuple[int, ...], with_transform: bool) -> bool:
    """True if a stage that an engine would hold calls the FFT, by running it without data (meta device).

    Parameters
    ----------
    shape : of an input.
    with_transform : the engine holds the stage ``transform`` too.
    """
    watched, patches = dict.fromkeys(FFTS, lambda *_, **__: 1), torch.empty(shape, device="meta")
    has_seen = False
    with torch.no_grad():
        for name, stage in copy.deepcopy(stages).to("meta").named_children():
            with FlopCounterMode(display=False, custom_mapping=watched) as counter:
                patches = stage(patches)
            if with_transform or name != "transform":
                has_seen |= any(operator in FFTS for operator in counter.get_flop_counts().get("Global", {}))
    return has_seen


def lower(stages: nn.Sequential, precision: str, way: NormWay = "eager", channels_last: bool = True) -> nn.Sequential:
    """A copy of the stages with a precision written into what was learnt; every stage takes and gives float32.

    Convolutions get the type, and with it most of the time; normalisation keeps float32 weights and statistics, and the
    transform is as `split` made it.
    """
    dtype = DTYPES[precision]
    lowered = OrderedDict[str, nn.Module]()
    for name, stage in stages.named_children():
        copied = copy.deepcopy(stage).eval().requires_grad_(False)
        if name == "network":  # its transforms are somewhere inside, and take float32 only
            _lower(copied, dtype, way)
            cast_inputs(copied, dtype)
            copied = Widened(copied)
        elif name != "transform":
            _lower(copied, dtype, way)
            copied = Lowered(copied, dtype, channels_last)
        lowered[name] = copied
    return nn.Sequential(lowered)


def cast_inputs(module: nn.Module, dtype: torch.dtype) -> None:
    """Put the learnt layers inside a module into a type, and casts before them."""
    for name, child in module.named_children():
        if isinstance(child, (*LEARNT, PhaseConvolution)):
            setattr(module, name, InType(child, dtype))
        else:
            cast_inputs(child, dtype)


def _lower(module: nn.Module, dtype: torch.dtype, way: NormWay) -> None:
    """Change what a module holds, in place."""
    for name, child in module.named_children():
        if _is_normalise_activate(child):
            norm, activation = child.children()
            setattr(module, name, NormaliseActivate(norm, activation.negative_slope, way))  # type: ignore[arg-type]
            continue
        if way != "plain" and is_worth_it(child):
            setattr(module, name, PhaseConvolution(child).to(dtype))  # type: ignore[arg-type]
            continue
        if isinstance(child, LEARNT):
            child.to(dtype)
        _lower(child, dtype, way)


def _is_normalise_activate(module: nn.Module) -> bool:
    kinds = [type(child) for child in module.children()]
    return isinstance(module, nn.Sequential) and kinds == [nn.GroupNorm, nn.LeakyReLU]


def _channels_last(n_axes: int) -> torch.memory_format:
    return torch.channels_last_3d if n_axes == 5 else torch.channels_last
