"""The fixed transform of a network in the forms that engines take: torch's FFT, or dense real matrix products.

Products need no complex type, so one engine can hold a whole network: `ToImageByGemm` between two learnt stages,
`GateByGemm` and `UnrollByGemm` for the networks that compare images with what was measured.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..models.fourier import as_complex, centring_signs, inverse_matrix, signed_to_image, to_image
from ..models.gate import ConsistentDenoiser, GateUNet, sampled
from ..models.reconstruct import ReconstructUNet, rms_of

Form = Literal["channels", "magnitude", "both"]


class ToImage(nn.Module):
    """The fixed transform of paper 000: k-space features to image features, both real ``(batch, 2 n, z, y, x)``.

    Parameters
    ----------
    form : interleaved real and imaginary parts, their magnitude ``(batch, n, ...)``, or both, in this order.
    """

    def __init__(self, form: Form = "channels") -> None:
        super().__init__()
        self.form = form

    def forward(self, features: Tensor) -> Tensor:
        return formed(self.transform(features), self.form)

    def transform(self, features: Tensor) -> Tensor:
        """Real ``(batch, n, z, y, x, 2)``, float32."""
        height, width = features.shape[-2:]
        if height % 2 or width % 2:
            return torch.view_as_real(to_image(as_complex(features)))
        y, x = (centring_signs(n).to(features.device) for n in (height, width))
        before, after = y[:, :, None] * x[:, None, :]
        return signed_to_image(features, before, after)


class ToImageByGemm(ToImage):
    """`ToImage` as real matrix products for one plane size: no complex type, so any engine can run it.

    In half precision k-space is scaled to its largest magnitude first: its centre exceeds 65504 otherwise.

    Parameters
    ----------
    plane : ``(y, x)``.
    dtype : of the products; never bfloat16, whose error here is as large as that of a whole network.
    """

    def __init__(self, plane: tuple[int, int], form: Form = "channels", dtype: torch.dtype = torch.float32) -> None:
        super().__init__(form)
        self.dtype = dtype
        for axis, n in zip("yx", plane, strict=True):
            matrix = self.matrix(n)
            self.register_buffer(f"{axis}_re", matrix.real.to(dtype).contiguous())
            self.register_buffer(f"{axis}_im", matrix.imag.to(dtype).contiguous())

    def matrix(self, n: int) -> Tensor:
        """Of the transform of length `n`: complex128, symmetric ``(n, n)``."""
        return inverse_matrix(n)

    def transform(self, features: Tensor) -> Tensor:
        batch, n_channels, *space = features.shape
        pairs = features.float().reshape(batch, n_channels // 2, 2, *space)
        if self.dtype == torch.float16:
            scale = pairs.abs().amax(dim=(1, 2, 3, 4, 5), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
            return self._products((pairs / scale).to(self.dtype)).float() * scale
        return self._products(pairs)

    def _products(self, pairs: Tensor) -> Tensor:
        """Complex ``(batch, n, 2, z, y, x)``, parts apart, to ``(batch, n, z, y, x, 2)``: M f M with symmetric M."""
        re, im = pairs.unbind(2)
        x_re, x_im, y_re, y_im = (self.get_buffer(name) for name in ("x_re", "x_im", "y_re", "y_im"))
        re, im = re @ x_re - im @ x_im, re @ x_im + im @ x_re
        re, im = y_re @ re - y_im @ im, y_re @ im + y_im @ re
        return torch.stack((re, im), dim=-1)


class ToKspaceByGemm(ToImageByGemm):
    """The way back; the matrix is unitary and symmetric, so its inverse is its conjugate."""

    def matrix(self, n: int) -> Tensor:
        return inverse_matrix(n).conj().resolve_conj()


class ConsistencyByGemm(nn.Module):
    """Both transforms of one plane size, and a `ConsistentDenoiser` between them; float32, as cues and samples want it.

    Parameters
    ----------
    plane : ``(y, x)``.
    """

    def __init__(self, plane: tuple[int, int]) -> None:
        super().__init__()
        self.to_image, self.to_kspace = ToImageByGemm(plane), ToKspaceByGemm(plane)

    def forward(self, denoiser: ConsistentDenoiser, image: Tensor, kspace: Tensor, mask: Tensor) -> Tensor:
        """What `ConsistentDenoiser` does, with an image of real ``(batch, 2, z, y, x)``."""
        seen: Tensor = self.to_kspace(image + denoiser.layers(image))
        better: Tensor = self.to_image(denoiser.consistency.agree(seen, kspace, mask))
        return better


class GateByGemm(nn.Module):
    """`GateUNet` up to its image stage, in real numbers, for one plane size."""

    def __init__(self, network: GateUNet, plane: tuple[int, int]) -> None:
        super().__init__()
        self.gate, self.denoiser, self.form = network.gate, network.denoiser, network.bridge_form
        self.consistent = ConsistencyByGemm(plane)

    def forward(self, kspace: Tensor) -> Tensor:
        gated = (self.gate.weights(kspace)[:, :, None] * kspace[:, None]).flatten(1, 2)
        image = self.consistent.to_image(torch.cat((kspace, gated), dim=1))
        if self.denoiser is not None:
            better = self.consistent(self.denoiser, image[:, -2:], kspace, sampled(kspace))
            image = torch.cat((image[:, :-2], better), dim=1)
        return formed(pairs_last(image), self.form)


class UnrollByGemm(nn.Module):
    """`ReconstructUNet` up to its U-Net, in real numbers, for one plane size."""

    def __init__(self, network: ReconstructUNet, plane: tuple[int, int]) -> None:
        super().__init__()
        self.blocks, self.consistent = network.blocks, ConsistencyByGemm(plane)

    def forward(self, kspace: Tensor) -> Tensor:
        scale = rms_of(kspace)
        mask, measured = sampled(kspace), kspace / scale
        image = self.consistent.to_image(measured)
        for block in self.blocks:
            image = self.consistent(block, image, measured, mask)
        return formed(pairs_last(image * scale), "magnitude")


def pairs_last(channels: Tensor) -> Tensor:
    """Real ``(batch, 2 n, z, y, x)`` as ``(batch, n, z, y, x, 2)``."""
    batch, n_channels, *space = channels.shape
    return channels.reshape(batch, n_channels // 2, 2, *space).movedim(2, -1)


def formed(image: Tensor, form: Form) -> Tensor:
    """Real ``(batch, n, z, y, x, 2)`` as the features that the next stage takes."""
    parts = []
    if form != "magnitude":
        parts.append(image.movedim(-1, 2).flatten(1, 2))
    if form != "channels":
        parts.append(image.square().sum(-1).sqrt())
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
