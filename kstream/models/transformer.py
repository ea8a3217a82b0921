"""Pre-norm transformer blocks and fixed positions, as vision transformers have them (Dosovitskiy et al., ICLR 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def split_heads(tokens: Tensor, n_heads: int) -> Tensor:
    """``(batch, n, width)`` to ``(batch, heads, n, width / heads)``."""
    return tokens.reshape(*tokens.shape[:-1], n_heads, -1).transpose(1, 2)


class Block(nn.Module):
    """``x + attention(LN(x))``, then ``x + MLP(LN(x))`` with GELU; the parameters of timm's ``Block``.

    Parameters
    ----------
    width, n_heads : of tokens; the width need not be even, but must divide by the heads.
    mlp_ratio : hidden features of the MLP over the width.
    """

    def __init__(self, width: int, n_heads: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        if width % n_heads:
            raise ValueError(f"a width of {width} does not divide by {n_heads} heads")
        self.n_heads = n_heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(batch, n, width)`` of the same shape."""
        query, key, value = (split_heads(part, self.n_heads) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        seen = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2)
        x = x + self.proj(seen)
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class CrossAttention(nn.Module):
    """``queries + attention(LN(queries), LN(context))``."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm_query, self.norm_context = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """``(batch, n, width)`` that looked at ``(batch, m, width)``."""
        key, value = self.key_value(self.norm_context(context)).chunk(2, dim=-1)
        query = self.query(self.norm_query(queries))
        query, key, value = (split_heads(part, self.n_heads) for part in (query, key, value))
        seen = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2)
        y: Tensor = queries + self.proj(seen)
        return y


def sine_positions(positions: Tensor, width: int) -> Tensor:
    """Sine-cosine code of whole numbers on several axes: ``(..., axes)`` becomes ``(..., width)``.

    Each axis gets ``width // (2 axes)`` frequencies ``10000^-(i/n)``; what does not divide is zero at the end (Vaswani
    et al., NeurIPS 2017, section 3.5, axis by axis as in MAE).
    """
    n_axes = positions.shape[-1]
    n = width // (2 * n_axes)
    frequencies = 10000.0 ** (-torch.arange(n, device=positions.device, dtype=torch.float32) / max(n, 1))
    angles = positions.float()[..., None] * frequencies
    code = torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(-2)
    return functional.pad(code, (0, width - code.shape[-1]))
