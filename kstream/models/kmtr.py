"""k-MTR: a cardiac examination straight from undersampled k-space, in three stages (paper 003).

I. Two masked autoencoders, of image patches (`ImageMAE`) and of phase-encode lines (`LineMAE`).
II. `Alignment`: both encoders, and projections of their class tokens that a contrastive loss brings together.
III. `KMTR`: the line encoder with heads for segmentation, phenotypes, diseases, reconstruction.

Where the paper is silent: one token per sampled phase-encode line (its whole readout), as in the authors' earlier
k-GIN; only sampled lines enter the encoder, so any number of them may. A token's position is the fixed sine code of
(slice, frame, y, x) on ``width - 1`` features (a line has y = ky and x = 0), and a last feature that is 0 for long-axis
and 1 for short-axis slices, each kind numbered by itself: 1024 + 1 = 1025 in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .companding import companded
from .kmtr_heads import (
    AreaHead,
    MlpHead,
    ReconstructionHead,
    SegmentationHead,
    fold_patches,
    patch_grid,
    soft_areas,
)
from .located import LocatedLines
from .transformer import Block, sine_positions

N_PHENOTYPES, N_DISEASES = 18, 3
HEADS = ("segmentation", "regression", "classification", "reconstruction")
MAPS = ("segmentation", "reconstruction")
"""Heads that read the tokens of all places."""
FARTHEST_AREA = 4.0
"""Spreads over the training subjects."""


@dataclass(frozen=True)
class CineShape:
    """Sizes of an examination: slices (long axes first), frames, and ``(y, x)``."""

    n_slices: int
    n_long_axis: int
    n_frames: int
    plane: tuple[int, int]
    patch: tuple[int, int, int]

    @property
    def grid(self) -> tuple[int, int, int, int]:
        """Image patches along slice, frame, y, x."""
        return (self.n_slices, *patch_grid(self.n_frames, self.plane, self.patch))

    def patch_positions(self) -> Tensor:
        """``(slices * frames' * y' * x', 4)`` in that order."""
        axes = [torch.arange(n) for n in self.grid]
        return torch.cartesian_prod(*axes).float()

    def line_positions(self) -> Tensor:
        """Slice, frame and ky of every line, sampled or not: ``(slices * frames * y, 3)``."""
        return torch.cartesian_prod(
            torch.arange(self.n_slices), torch.arange(self.n_frames), torch.arange(self.plane[0])
        ).float()


def position_code(positions: Tensor, n_long_axis: int, width: int) -> Tensor:
    """Code ``(..., width)`` of positions ``(..., 4)`` (slice, frame, y, x); the last feature tells short axes."""
    number = positions[..., :1]
    is_short = (number >= n_long_axis).to(positions.dtype)
    own = torch.cat((number - is_short * n_long_axis, positions[..., 1:]), dim=-1)
    return torch.cat((sine_positions(own, width - 1), is_short), dim=-1)


def line_code(places: Tensor, n_long_axis: int, width: int) -> Tensor:
    """Fixed code of lines at ``(..., 3)`` (slice, frame, ky)."""
    return position_code(torch.nn.functional.pad(places, (0, 1)), n_long_axis, width)


class Encoder(nn.Module):
    """Transformer over tokens that know their place, with a class token in front.

    Parameters
    ----------
    width, n_layers, n_heads : of the tokens and blocks.
    """

    def __init__(self, width: int, n_layers: int, n_heads: int) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, n_heads) for _ in range(n_layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Tokens ``(batch, 1 + n, width)`` after each block; the last ones are normalised."""
        x = torch.cat((self.cls.expand(len(tokens), 1, -1), tokens), dim=1)
        layers = []
        for block in self.blocks:
            x = block(x)
            layers.append(x)
        layers[-1] = self.norm(x)
        return layers


class Decoder(nn.Module):
    """What an autoencoder fills gaps with: a learned token at every missing place, two blocks, and a linear layer."""

    def __init__(self, width: int, n_layers: int, n_heads: int, n_out: int) -> None:
        super().__init__()
        self.embed = nn.Linear(width, width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, n_heads) for _ in range(n_layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, n_out)

    def forward(self, tokens: Tensor, index: Tensor, code: Tensor) -> Tensor:
        """Values ``(batch, n, n_out)`` at all n places.

        Parameters
        ----------
        tokens : ``(batch, 1 + m, width)`` of the encoder, class token first.
        index : int64 ``(batch, m)``, which of the n places each token is at.
        code : ``(n, width)`` of the places.
        """
        embedded = self.embed(tokens)
        whole = self.mask_token.expand(len(tokens), len(code), -1).clone()
        whole = whole.scatter(1, index[..., None].expand(-1, -1, whole.shape[-1]), embedded[:, 1:].to(whole.dtype))
        x = torch.cat((embedded[:, :1], whole + code), dim=1)
        for block in self.blocks:
            x = block(x)
        values: Tensor = self.head(self.norm(x))[:, 1:]
        return values


class ImageEncoder(nn.Module):
    """Image patches of all slices as tokens.

    Takes float32 ``(batch, 2, slices, frames, y, x)``: real and imaginary part.
    """

    def __init__(self, shape: CineShape, width: int, n_layers: int, n_heads: int) -> None:
        super().__init__()
        self.shape = shape
        self.tokenize = nn.Conv3d(2, width, shape.patch, shape.patch)
        self.encoder = Encoder(width, n_layers, n_heads)
        code = position_code(shape.patch_positions(), shape.n_long_axis, width)
        self.register_buffer("code", code, persistent=False)

    def forward(self, images: Tensor, kept: Tensor | None = None) -> list[Tensor]:
        """Tokens after each block; `kept` int64 ``(batch, m)`` names the patches that are seen (None: all)."""
        batch = len(images)
        patches = self.tokenize(images.transpose(1, 2).flatten(0, 1)).flatten(2).transpose(1, 2)
        tokens = patches.reshape(batch, -1, patches.shape[-1]) + self.get_buffer("code")
        if kept is not None:
            tokens = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
        layers: list[Tensor] = self.encoder(tokens)
        return layers


class LineEncoder(nn.Module):
    """Sampled phase-encode lines of all slices as tokens.

    Takes float32 values ``(batch, n, 2 nx)``, real parts then imaginary parts, and places ``(batch, n, 3)`` (slice,
    frame, ky); `compand` as in `companding.companded`. With `located`, the number of filters, there is a token at each
    image patch instead, which reads all lines of its slice by their phases (`located.LocatedLines`).
    """

    def __init__(
        self, shape: CineShape, width: int, n_layers: int, n_heads: int, compand: float, located: int = 0
    ) -> None:
        super().__init__()
        self.shape, self.width, self.compand = shape, width, compand
        if located:
            self.reader = LocatedLines(width, shape.grid, shape.n_frames, shape.plane, located)
            code = position_code(shape.patch_positions(), shape.n_long_axis, width)
            self.register_buffer("code", code, persistent=False)
        else:
            self.tokenize = nn.Linear(2 * shape.plane[1], width)
        self._is_located = bool(located)
        self.encoder = Encoder(width, n_layers, n_heads)

    def scaled(self, values: Tensor) -> Tensor:
        """Values as the tokens hold them."""
        pairs = values.reshape(*values.shape[:-1], 2, -1).transpose(-1, -2)
        return companded(pairs, self.compand).transpose(-1, -2).flatten(-2)

    def forward(self, values: Tensor, places: Tensor) -> list[Tensor]:
        if self._is_located:
            tokens = self.reader(values, places) + self.get_buffer("code")
        else:
            tokens = self.tokenize(self.scaled(values)) + line_code(places, self.shape.n_long_axis, self.width)
        layers: list[Tensor] = self.encoder(tokens)
        return layers

    def index(self, places: Tensor) -> Tensor:
        """Number of each line among all of `CineShape.line_positions`."""
        slices, frames, lines = (part.long() for part in places.unbind(-1))
        return (slices * self.shape.n_frames + frames) * self.shape.plane[0] + lines


class ImageMAE(nn.Module):
    """Stage I, images: patches back from the 30 % that are seen.

    Takes `images` and `kept` as `ImageEncoder`; gives all patches, ``(batch, patches, 2 * patch size)``.
    """

    def __init__(
        self,
        n_slices: int = 9,
        n_long_axis: int = 3,
        n_frames: int = 50,
        plane: Sequence[int] = (128, 128),
        patch: Sequence[int] = (5, 8, 8),
        width: int = 1025,
        n_layers: int = 6,
        n_decoder_layers: int = 2,
        n_heads: int = 5,
    ) -> None:
        super().__init__()
        shape = cine_shape(n_slices, n_long_axis, n_frames, plane, patch)
        self.image = ImageEncoder(shape, width, n_layers, n_heads)
        n_out = 2 * shape.patch[0] * shape.patch[1] * shape.patch[2]
        self.decoder = Decoder(width, n_decoder_layers, n_heads, n_out)

    def forward(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        n_patches = len(self.image.get_buffer("code"))
        seen = torch.arange(n_patches, device=images.device).expand(len(images), -1) if kept is None else kept
        tokens = self.image(images, kept)[-1]
        patches: Tensor = self.decoder(tokens, seen.long(), self.image.get_buffer("code"))
        return patches

    def targets(self, images: Tensor) -> Tensor:
        """Patches of images, in the order of the prediction."""
        return fold_patches(images, self.image.shape.patch)


class LineMAE(nn.Module):
    """Stage I, k-space: all lines back from the sampled ones.

    Takes `values` and `places` as `LineEncoder`; gives every line, ``(batch, slices * frames * y, 2 nx)``.
    """

    def __init__(
        self,
        n_slices: int = 9,
        n_long_axis: int = 3,
        n_frames: int = 50,
        plane: Sequence[int] = (128, 128),
        width: int = 1025,
        n_layers: int = 6,
        n_decoder_layers: int = 2,
        n_heads: int = 5,
        compand: float = 0.0,
    ) -> None:
        super().__init__()
        shape = cine_shape(n_slices, n_long_axis, n_frames, plane, (1, 1, 1))
        self.lines = LineEncoder(shape, width, n_layers, n_heads, compand)
        self.decoder = Decoder(width, n_decoder_layers, n_heads, 2 * shape.plane[1])
        code = line_code(shape.line_positions(), n_long_axis, width)
        self.register_buffer("code", code, persistent=False)

    def forward(self, values: Tensor, places: Tensor) -> Tensor:
        tokens = self.lines(values, places)[-1]
        lines: Tensor = self.decoder(tokens, self.lines.index(places), self.get_buffer("code"))
        return lines


class Projector(nn.Module):
    """Class token to the space in which subjects are compared: two layers, unit length."""

    def __init__(self, width: int, n_out: int = 128) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, n_out))

    def forward(self, cls: Tensor) -> Tensor:
        return nn.functional.normalize(self.net(cls), dim=-1)


class Alignment(nn.Module):
    """Stage II: fully sampled images and undersampled lines of the same subjects, projected side by side.

    Takes `images` (`ImageEncoder`), `values` and `places` (`LineEncoder`); gives both projections, ``(batch, 128)``.
    """

    def __init__(
        self,
        n_slices: int = 9,
        n_long_axis: int = 3,
        n_frames: int = 50,
        plane: Sequence[int] = (128, 128),
        patch: Sequence[int] = (5, 8, 8),
        width: int = 1025,
        n_layers: int = 6,
        n_heads: int = 5,
        compand: float = 0.0,
    ) -> None:
        super().__init__()
        shape = cine_shape(n_slices, n_long_axis, n_frames, plane, patch)
        self.image = ImageEncoder(shape, width, n_layers, n_heads)
        self.lines = LineEncoder(shape, width, n_layers, n_heads, compand)
        self.project_image, self.project_lines = Projector(width), Projector(width)

    def forward(self, images: Tensor, values: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        image = self.project_image(self.image(images)[-1][:, 0])
        return image, self.project_lines(self.lines(values, places)[-1][:, 0])


class KMTR(nn.Module):
    """Stage III: everything about a heart from sampled lines.

    Takes `values` and `places` as `LineEncoder`; gives the outputs of `heads` in their order, one tensor if there is
    one head:

    - ``segmentation``: logits ``(batch, slices, classes, frames, y, x)``
    - ``regression``: the eighteen phenotypes ``(batch, 18)`` in their units (buffers hold mean and spread)
    - ``classification``: logits of the three diseases ``(batch, 3)``
    - ``reconstruction``: images ``(batch, 2, slices, frames, y, x)``

    The paper fine-tunes an encoder for each task (one head); several heads share one, which is what a stream wants.

    Parameters
    ----------
    heads : any of the four.
    n_head_features : hidden features of the regression and classification heads.
    segmentation_width : features of all slices together in the segmentation head (576 in the paper, 64 for a slice).
    feature_size : of the segmentation head's convolutions at full resolution.
    located : filters of tokens at image patches, which read lines by their phases (beyond the paper); 0: its tokens.
    areas : phenotypes and diseases also from the areas that the segmentation finds (beyond the paper; `AreaHead`).
        Buffers hold mean and spread of the areas.

    Raises
    ------
    ValueError : unknown heads, areas without a segmentation, or patches that do not tile the examination.
    """

    def __init__(
        self,
        heads: Sequence[str] = ("segmentation",),
        n_slices: int = 9,
        n_long_axis: int = 3,
        n_frames: int = 50,
        plane: Sequence[int] = (128, 128),
        patch: Sequence[int] = (5, 8, 8),
        width: int = 1025,
        n_layers: int = 6,
        n_decoder_layers: int = 2,
        n_heads: int = 5,
        n_classes: int = 6,
        n_head_features: int = 256,
        segmentation_width: int = 576,
        feature_size: int = 16,
        compand: float = 0.0,
        located: int = 0,
        areas: bool = False,
    ) -> None:
        super().__init__()
        if not heads or len(set(heads)) != len(heads) or not set(heads) <= set(HEADS):
            raise ValueError(f"heads are some of {', '.join(HEADS)}, each once; got {tuple(heads)}")
        if areas and "segmentation" not in heads:
            raise ValueError(f"areas are those of the segmentation, which is none of the heads {tuple(heads)}")
        shape = cine_shape(n_slices, n_long_axis, n_frames, plane, patch)
        self.names = tuple(heads)
        self.lines = LineEncoder(shape, width, n_layers, n_heads, compand, located)
        code = position_code(shape.patch_positions(), n_long_axis, width)
        n_areas = n_slices * (n_classes - 1) * n_frames
        made: dict[str, nn.Module] = {}
        for name in heads:
            if name == "segmentation":
                per_slice = segmentation_width // n_slices
                made[name] = SegmentationHead(
                    shape.grid, shape.patch, width, per_slice, feature_size, n_classes, crosses=not located
                )
            elif name == "reconstruction":
                blocks = [Block(width, n_heads) for _ in range(n_decoder_layers)]
                made[name] = ReconstructionHead(shape.grid, shape.patch, width, blocks, crosses=not located)
            else:
                n_out = N_PHENOTYPES if name == "regression" else N_DISEASES
                made[name] = (
                    AreaHead(width, n_areas, n_head_features, n_out)
                    if areas
                    else MlpHead(width, n_head_features, n_out)
                )
        self.heads = nn.ModuleDict(made)
        self.register_buffer("code", code, persistent=False)
        self.register_buffer("phenotype_mean", torch.zeros(N_PHENOTYPES))
        self.register_buffer("phenotype_spread", torch.ones(N_PHENOTYPES))
        self.has_areas = areas
        if areas:
            self.register_buffer("area_mean", torch.zeros(n_areas))
            self.register_buffer("area_spread", torch.ones(n_areas))

    def forward(self, values: Tensor, places: Tensor) -> Tensor | tuple[Tensor, ...]:
        layers = self.lines(values, places)
        made = {name: self.heads[name](layers, self.get_buffer("code")) for name in self.names if name in MAPS}
        numbers = [layers[-1][:, 0]]
        if self.has_areas:
            numbers.append(self._standard_areas(made["segmentation"]))
        made |= {name: self.heads[name](*numbers) for name in self.names if name not in MAPS}
        if "regression" in made:
            spread, mean = self.get_buffer("phenotype_spread"), self.get_buffer("phenotype_mean")
            made["regression"] = made["regression"] * spread + mean
        outputs = tuple(made[name] for name in self.names)
        return outputs if len(outputs) > 1 else outputs[0]

    def standardised(self, phenotypes: Tensor) -> Tensor:
        """Phenotypes in units of their spread over the training subjects."""
        return (phenotypes - self.get_buffer("phenotype_mean")) / self.get_buffer("phenotype_spread")

    def _standard_areas(self, logits: Tensor) -> Tensor:
        """Areas in units of their spread; what is far off, as before training, counts as `FARTHEST_AREA`.

        The segmentation learns nothing from them: numbers that are wrong would pull at it.
        """
        apart = (soft_areas(logits.detach()) - self.get_buffer("area_mean")) / self.get_buffer("area_spread")
        return apart.clamp(-FARTHEST_AREA, FARTHEST_AREA)


def cine_shape(n_slices: int, n_long_axis: int, n_frames: int, plane: Sequence[int], patch: Sequence[int]) -> CineShape:
    """Sizes from plain arguments, checked.

    Raises
    ------
    ValueError : patches that do not tile the examination.
    """
    if len(plane) != 2 or len(patch) != 3:
        raise ValueError(f"a plane is (y, x) and a patch (frames, y, x), not {tuple(plane)} and {tuple(patch)}")
    size = n_frames, plane[0], plane[1]
    if any(n % p for n, p in zip(size, patch, strict=True)):
        raise ValueError(f"patches of {tuple(patch)} do not tile {size} (frames, y, x)")
    return CineShape(n_slices, n_long_axis, n_frames, (plane[0], plane[1]), (patch[0], patch[1], patch[2]))
