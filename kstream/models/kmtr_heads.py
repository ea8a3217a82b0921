"""What stands on k-MTR's encoder: numbers from its class token, images and label maps from all its tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .transformer import CrossAttention

Triple = tuple[int, int, int]
Grid = tuple[int, int, int, int]


def patch_grid(n_frames: int, plane: tuple[int, int], patch: Triple) -> Triple:
    """Patches along frames, y and x."""
    return n_frames // patch[0], plane[0] // patch[1], plane[1] // patch[2]


def fold_patches(images: Tensor, patch: Triple) -> Tensor:
    """Images ``(batch, c, slices, frames, y, x)`` to patches ``(batch, n, c * patch size)``; slices first, x last."""
    batch, _, n_slices, *size = images.shape
    nt, ny, nx = (n // p for n, p in zip(size, patch, strict=True))
    parts = images.reshape(batch, -1, n_slices, nt, patch[0], ny, patch[1], nx, patch[2])
    return parts.permute(0, 2, 3, 5, 7, 1, 4, 6, 8).reshape(batch, n_slices * nt * ny * nx, -1)


def unfold_patches(patches: Tensor, grid: Grid, patch: Triple) -> Tensor:
    """The inverse of `fold_patches`."""
    n_slices, nt, ny, nx = grid
    parts = patches.reshape(len(patches), n_slices, nt, ny, nx, -1, *patch)
    whole = parts.permute(0, 5, 1, 2, 6, 3, 7, 4, 8)
    return whole.reshape(len(patches), -1, n_slices, nt * patch[0], ny * patch[1], nx * patch[2])


class MlpHead(nn.Module):
    """Two layers on the class token."""

    def __init__(self, width: int, n_features: int, n_out: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, n_features), nn.GELU(), nn.Linear(n_features, n_out))

    def forward(self, cls: Tensor) -> Tensor:
        out: Tensor = self.net(cls)
        return out


class AreaHead(nn.Module):
    """Two layers on the class token and on the areas of all chambers, and a linear layer on the areas.

    Beyond paper 003: a volume is nearly a weighted sum of areas (Simpson's rule), which a few hundred subjects are
    enough to learn.

    Parameters
    ----------
    n_areas : areas of a subject.
    """

    def __init__(self, width: int, n_areas: int, n_features: int, n_out: int) -> None:
        super().__init__()
        self.both = MlpHead(width + n_areas, n_features, n_out)
        self.linear = nn.Linear(n_areas, n_out, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, cls: Tensor, areas: Tensor) -> Tensor:
        """Numbers ``(batch, n_out)`` from a class token ``(batch, width)`` and standardised areas ``(batch, n)``."""
        out: Tensor = self.both(torch.cat((cls, areas), dim=1)) + self.linear(areas)
        return out


def soft_areas(logits: Tensor) -> Tensor:
    """Area of every chamber as a share of the image, ``(batch, slices * chambers * frames)``, from class probabilities.

    Takes logits ``(batch, slices, classes, frames, y, x)``; the first class, the background, is no chamber.
    """
    return logits.softmax(dim=2)[:, :, 1:].mean(dim=(-2, -1)).flatten(1)


class ReconstructionHead(nn.Module):
    """The autoencoder's decoder, from scratch: a learned token at every image patch, among the tokens of the lines.

    Gives images ``(batch, 2, slices, frames, y, x)``; no Fourier transform takes part.

    Parameters
    ----------
    crosses : False for tokens that lie at image patches already; they stand where the learned ones would.
    """

    def __init__(
        self, grid: Grid, patch: Triple, width: int, blocks: Sequence[nn.Module], crosses: bool = True
    ) -> None:
        super().__init__()
        self.grid, self.patch = grid, patch
        self.embed = nn.Linear(width, width)
        if crosses:
            self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self._crosses = crosses
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 2 * patch[0] * patch[1] * patch[2])

    def forward(self, layers: Sequence[Tensor], code: Tensor) -> Tensor:
        seen = self.embed(layers[-1])
        if self._crosses:
            x = torch.cat(((self.mask_token + code).expand(len(seen), -1, -1), seen), dim=1)
        else:
            x = seen[:, 1:] + code
        for block in self.blocks:
            x = block(x)
        return unfold_patches(self.head(self.norm(x[:, : len(code)])), self.grid, self.patch)


class ConvUnit(nn.Module):
    """Two 3x3x3 convolutions with instance normalisation, and a skip around them (the residual block of UNETR)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(n_in, n_out, 3, padding=1, bias=False)
        self.conv2 = nn.Conv3d(n_out, n_out, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.InstanceNorm3d(n_out), nn.InstanceNorm3d(n_out)
        self.activation = nn.LeakyReLU(0.01)
        self.skip: nn.Module = nn.Identity()
        if n_in != n_out:
            self.skip = nn.Sequential(nn.Conv3d(n_in, n_out, 1, bias=False), nn.InstanceNorm3d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.activation(self.norm1(self.conv1(x)))))
        out: Tensor = self.activation(y + self.skip(x))
        return out


class SegmentationHead(nn.Module):
    """A U-Net decoder on tokens, after UNETR (Hatamizadeh et al., WACV 2022).

    1. Image patches look at the tokens of the lines (one cross-attention for all levels): a line covers a whole image,
       so its token has no place in it. Paper 003 does not say how it crosses over; this is our choice.
    2. Tokens of the second, the fourth and the last block (of six; in proportion for others) become feature maps of
       each slice, which are upsampled and joined from coarse to fine.

    UNETR's skip from the full-resolution image is left out: there is no image.

    Parameters
    ----------
    crosses : whether there is step 1; tokens that lie at image patches already need none.

    Gives logits ``(batch, slices, classes, frames, y, x)``.

    Raises
    ------
    ValueError : a patch whose y and x are not 8 (three steps of 2).
    """

    def __init__(
        self,
        grid: Grid,
        patch: Triple,
        width: int,
        per_slice: int,
        feature_size: int,
        n_classes: int,
        crosses: bool = True,
    ) -> None:
        super().__init__()
        if patch[1:] != (8, 8):
            raise ValueError(f"the segmentation head takes patches of 8 x 8, not {patch[1]} x {patch[2]}")
        f, last = feature_size, (patch[0], 2, 2)
        self.grid = grid
        n_heads = next(n for n in (5, 4, 3, 2, 1) if width % n == 0)
        if crosses:
            self.cross = CrossAttention(width, n_heads)
            self.query = nn.Parameter(torch.randn(width) * 0.02)
        self._crosses = crosses
        self.project = nn.ModuleList(nn.Linear(width, per_slice) for _ in range(3))
        self.early = nn.Sequential(
            _up(per_slice, 2 * f), ConvUnit(2 * f, 2 * f), _up(2 * f, 2 * f), ConvUnit(2 * f, 2 * f)
        )
        self.middle = nn.Sequential(_up(per_slice, 4 * f), ConvUnit(4 * f, 4 * f))
        self.up1, self.join1 = _up(per_slice, 4 * f), ConvUnit(8 * f, 4 * f)
        self.up2, self.join2 = _up(4 * f, 2 * f), ConvUnit(4 * f, 2 * f)
        self.up3, self.join3 = nn.ConvTranspose3d(2 * f, f, last, last, bias=False), ConvUnit(f, f)
        self.head = nn.Conv3d(f, n_classes, 1)

    def forward(self, layers: Sequence[Tensor], code: Tensor) -> Tensor:
        chosen = (layers[len(layers) // 3 - 1 if len(layers) > 2 else 0], layers[2 * len(layers) // 3 - 1], layers[-1])
        early, middle, bottom = (
            self._maps(tokens, project, code) for tokens, project in zip(chosen, self.project, strict=True)
        )
        x = self.join1(torch.cat((self.up1(bottom), self.middle(middle)), dim=1))
        x = self.join2(torch.cat((self.up2(x), self.early(early)), dim=1))
        logits: Tensor = self.head(self.join3(self.up3(x)))
        return logits.reshape(-1, self.grid[0], *logits.shape[1:])

    def _maps(self, tokens: Tensor, project: nn.Module, code: Tensor) -> Tensor:
        """Feature maps ``(batch * slices, per_slice, frames', y', x')`` of one level."""
        features: Tensor = project(self._on_patches(tokens, code))
        return features.reshape(len(tokens) * self.grid[0], *self.grid[1:], -1).movedim(-1, 1)

    def _on_patches(self, tokens: Tensor, code: Tensor) -> Tensor:
        """One token at each image patch."""
        if not self._crosses:
            return tokens[:, 1:]
        crossed: Tensor = self.cross((self.query + code).expand(len(tokens), -1, -1), tokens)
        return crossed


def _up(n_in: int, n_out: int) -> nn.Module:
    """Twice the size in the plane."""
    return nn.ConvTranspose3d(n_in, n_out, (1, 2, 2), (1, 2, 2), bias=False)
