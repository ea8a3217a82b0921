"""k-GIN: undersampled k-space of a cine slice filled up by a masked transformer (Pan et al., MICCAI 2023).

The baseline of paper 003 for reconstruction. Sizes follow the authors' configuration: 12 encoder and 8 decoder blocks
of 512 features and 16 heads, then three refining stacks of 8 blocks. The refining stacks here look at whole lines of
the filled k-space, each adding a correction.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .companding import companded
from .transformer import Block, sine_positions


class KGIN(nn.Module):
    """All lines of a slice from the sampled ones.

    Takes float32 values ``(batch, n, 2 nx)`` (real parts, then imaginary parts) and places ``(batch, n, 2)`` (frame,
    ky); gives the stages of the filled k-space, ``(batch, 1 + n_refinements, frames * y, 2 nx)``: the last is the
    result, the others are what the loss holds too (`decay` in training).

    Parameters
    ----------
    plane : ``(y, x)``.
    n_encoder, n_decoder, n_refine : blocks of the parts; n_refinements : refining stacks.
    compand : as in `companding.companded`.
    """

    def __init__(
        self,
        n_frames: int = 50,
        plane: Sequence[int] = (128, 128),
        width: int = 512,
        n_heads: int = 16,
        n_encoder: int = 12,
        n_decoder: int = 8,
        n_refine: int = 8,
        n_refinements: int = 3,
        compand: float = 0.0,
    ) -> None:
        super().__init__()
        self.n_lines, self.compand, self.width = plane[0], compand, width
        n_values = 2 * plane[1]
        self.tokenize = nn.Linear(n_values, width)
        self.encoder = _stack(n_encoder, width, n_heads)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.decoder = _stack(n_decoder, width, n_heads)
        self.head = nn.Linear(width, n_values)
        self.embed = nn.ModuleList(nn.Linear(n_values, width) for _ in range(n_refinements))
        self.refine = nn.ModuleList(_stack(n_refine, width, n_heads) for _ in range(n_refinements))
        self.correct = nn.ModuleList(nn.Linear(width, n_values) for _ in range(n_refinements))
        places = torch.cartesian_prod(torch.arange(n_frames), torch.arange(plane[0])).float()
        self.register_buffer("code", sine_positions(places, width), persistent=False)

    def scaled(self, values: Tensor) -> Tensor:
        """Values as the tokens hold them."""
        pairs = values.reshape(*values.shape[:-1], 2, -1).transpose(-1, -2)
        return companded(pairs, self.compand).transpose(-1, -2).flatten(-2)

    def forward(self, values: Tensor, places: Tensor) -> Tensor:
        code = self.get_buffer("code")
        seen = self.encoder(self.tokenize(self.scaled(values)) + sine_positions(places, self.width))
        frames, lines = (part.long() for part in places.unbind(-1))
        index = (frames * self.n_lines + lines)[..., None].expand(-1, -1, self.width)
        whole = self.mask_token.expand(len(values), len(code), -1).clone().scatter(1, index, seen.to(torch.float32))
        filled = self.head(self.decoder(whole + code))
        stages = [filled]
        for embed, refine, correct in zip(self.embed, self.refine, self.correct, strict=True):
            filled = filled + correct(refine(embed(filled) + code))
            stages.append(filled)
        return torch.stack(stages, dim=1)


def _stack(n_blocks: int, width: int, n_heads: int) -> nn.Sequential:
    return nn.Sequential(*(Block(width, n_heads) for _ in range(n_blocks)))
