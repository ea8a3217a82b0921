"""DiSK: segmentation of a cine slice straight from k-space samples, in any order and number (paper 001).

The sizes, and what the paper leaves open, follow the authors' published code (read, not copied): post-norm Perceiver
blocks of one head, sine features zero-padded to the token's width and added.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .companding import companded
from .located import LocatedLatents
from .sines import padded, sine_features
from .transformer import split_heads

SPACE_TIME, REAL_IMAGINARY = 3, 2


class AttentionBlock(nn.Module):
    """``y = LN(x + attention(x, context)); LN(y + FF(y))``, as DiSK has it.

    Parameters
    ----------
    width : of tokens; the feed-forward layer has the same.
    n_heads : of the attention.
    """

    def __init__(self, width: int, n_heads: int = 1) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Tokens ``(batch, n, width)`` that looked at a context ``(batch, m, width)``."""
        query, key, value = (
            split_heads(layer(tokens), self.n_heads)
            for layer, tokens in ((self.query, x), (self.key, context), (self.value, context))
        )
        seen = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2)
        y = self.norm_attention(x + self.output(seen))
        z: Tensor = self.norm_feed(y + self.feed(y))
        return z


class DiSK(nn.Module):
    """K-space samples as tokens, a bottleneck of latent vectors, and class scores at any point of image and time.

    ``encode`` turns samples into latent vectors: each of `n_layers` layers lets the latents look at all samples, then
    at each other. ``decode`` lets queried coordinates look at the latents of layer 1, 2, ... in turn. `forward` does
    both.

    Parameters
    ----------
    width : of tokens and latent vectors.
    n_latents : latent vectors (the bottleneck M of the paper).
    n_layers : of encoder and of decoder (L).
    n_classes : with the background.
    n_frequencies : of the sine features, per coordinate and per part of a value.
    compand : power of the magnitudes before their features, after division by the largest of them; 0 leaves values as
        they are (the paper, whose images lie in 0..sqrt 2). K-space falls off so steeply that only a power well below
        1 spreads it over the range of the features, and division makes the gain of a receiver irrelevant.
    query_chunk : queries that are decoded at once in inference; results do not depend on it.
    located : empty: the latents of the paper, which look at samples by attention. ``(frames, y, x)`` of a grid: latents
        with places, which read samples by their phases (`located.LocatedLatents`), linearly, in place of `n_latents`
        and of the attention to samples.
    plane : y and x of the images' matrix; only located latents need it.
    n_filters : of located latents.
    n_heads : of every attention; the paper's has one.
    """

    def __init__(
        self,
        width: int = 128,
        n_latents: int = 128,
        n_layers: int = 4,
        n_classes: int = 4,
        n_frequencies: int = 4,
        compand: float = 0.0,
        query_chunk: int = 32768,
        located: Sequence[int] = (),
        plane: Sequence[int] = (80, 80),
        n_filters: int = 16,
        n_heads: int = 1,
    ) -> None:
        super().__init__()
        needed = SPACE_TIME * (1 + 2 * n_frequencies)
        if width < needed:
            raise ValueError(f"a width of {width} does not hold the {needed} features of a coordinate")
        self.width, self.n_frequencies, self.compand, self.query_chunk = width, n_frequencies, compand, query_chunk
        if located:
            self.reader = LocatedLatents(width, located, plane, n_filters, n_frequencies=n_frequencies)
        else:
            self.latents = nn.Parameter(torch.randn(n_latents, width))
            self.cross = nn.ModuleList(AttentionBlock(width, n_heads) for _ in range(n_layers))
        self._is_located = bool(located)
        self.own = nn.ModuleList(AttentionBlock(width, n_heads) for _ in range(n_layers))
        self.decoder = nn.ModuleList(AttentionBlock(width, n_heads) for _ in range(n_layers))
        self.head = nn.Linear(width, n_classes)

    def tokens(self, coordinates: Tensor, values: Tensor) -> Tensor:
        """One token per sample: features of its place plus features of its value, ``(batch, n, width)``."""
        place = padded(sine_features(coordinates, self.n_frequencies), self.width)
        return place + padded(sine_features(companded(values, self.compand), self.n_frequencies), self.width)

    def encode(self, coordinates: Tensor, values: Tensor) -> list[Tensor]:
        """Latents ``(batch, n_latents, width)`` after each layer.

        Parameters
        ----------
        coordinates : ``(batch, n, yxt)``, index over size, in ``[0, 1)``.
        values : ``(batch, n, 2)``, real and imaginary part.
        """
        if self._is_located:
            return self._settled(self.reader(coordinates, values))
        samples = self.tokens(coordinates, values)
        x = self.latents.expand(len(samples), -1, -1)
        layers = []
        for cross, own in zip(self.cross, self.own, strict=True):
            x = x + cross(x, samples)
            x = x + own(x, x)
            layers.append(x)
        return layers

    def _settled(self, x: Tensor) -> list[Tensor]:
        """Latents that look at each other, after each layer."""
        layers = []
        for own in self.own:
            x = x + own(x, x)
            layers.append(x)
        return layers

    def decode(self, layers: Sequence[Tensor], queries: Tensor) -> Tensor:
        """Logits ``(batch, n_classes, n)`` at coordinates ``(batch, n, yxt)`` of image and time, in ``[0, 1)``."""
        if torch.is_grad_enabled():
            return self.decode_part(layers, queries)
        return torch.cat(
            [self.decode_part(layers, part) for part in torch.split(queries, self.query_chunk, dim=1)], dim=2
        )

    def decode_part(self, layers: Sequence[Tensor], queries: Tensor) -> Tensor:
        """`decode` of few queries, all at once."""
        x = padded(sine_features(queries, self.n_frequencies), self.width)
        for block, latents in zip(self.decoder, layers, strict=True):
            x = x + block(x, latents)
        logits: Tensor = self.head(x)
        return logits.transpose(1, 2)

    def forward(self, coordinates: Tensor, values: Tensor, queries: Tensor) -> Tensor:
        return self.decode(self.encode(coordinates, values), queries)
