"""From features of cells that are seen to those that are not: V-JEPA's predictor, VideoMAE's decoder."""

from math import prod
from typing import Literal

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from vidssl.interfaces import Backbone, Features, VisibleFeatures
from vidssl.interfaces.grids import GridSize
from vidssl.layers.transformer import (
    Block,
    check_depth,
    init_linear,
    line_positions,
    rotary_positions,
    shrink_deep_layers,
)


class Predictor(nn.Module):
    """A narrow transformer on seen cells and on a mask token for each cell that is asked for (V-JEPA 2).

    Positions are rotary, so that the order of tokens means nothing. Features of several depths come joined;
    a layer of the backbone's width then stands before its own (V-JEPA 2.1).

    Args:
        in_dim: width of the encoder's features at one depth.
        num_levels: depths.
        num_tokens: mask tokens, one for each group of masks; they start at zero.
        dim, depth, num_heads: of its blocks, whose MLPs are four times as wide.
        tiled, span: of its positions, see ``rotary_positions``.
        dense: whether seen cells are predicted too, by a layer of their own (V-JEPA 2.1).
        modality: whether clips and images each have a learned vector that is added (V-JEPA 2.1).
    """

    def __init__(
        self,
        in_dim: int,
        num_levels: int,
        *,
        num_tokens: int,
        dim: int,
        depth: int,
        num_heads: int,
        tiled: bool,
        span: int | None,
        dense: bool,
        modality: bool,
    ) -> None:
        super().__init__()
        check_depth(depth, "predictor_depth")
        self.head_dim, self.tiled, self.span = dim // num_heads, tiled, span
        wide = in_dim * num_levels
        self.enter = (
            nn.Linear(wide, dim)
            if num_levels == 1
            else nn.Sequential(nn.Linear(wide, in_dim), nn.GELU(), nn.Linear(in_dim, dim))
        )
        self.mask_tokens = nn.Parameter(torch.zeros(num_tokens, dim))
        self.clip_vector, self.image_vector = (
            nn.Parameter(1e-6 * torch.randn(dim)) if modality else None for _ in range(2)
        )
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_ratio=4.0, drop_path=0.0) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, wide)
        self.context_head = nn.Linear(dim, wide) if dense else None
        init_linear(self, 0.02)
        shrink_deep_layers(self.blocks)
        rotary_positions((1, 1, 1), self.head_dim, torch.device("cpu"), tiled=tiled)  # refuses odd heads

    def forward(
        self, features: Tensor, seen: VisibleFeatures, wanted: Tensor, group: int
    ) -> tuple[Tensor, Tensor | None]:
        """Features of the cells ``wanted``, and of the seen ones where they are predicted too.

        Args:
            features: [B, n, in_dim * num_levels], of ``seen``.
            wanted: int64 [B, m], on the flattened grid.
            group: whose mask token is taken.
        """
        entered = self.enter(features)
        asked = self.mask_tokens[group].to(entered.dtype).expand(*wanted.shape, -1)
        tokens = torch.cat((entered, asked), dim=1)
        vector = self.image_vector if seen.grid[0] == 1 else self.clip_vector
        if vector is not None:
            tokens = tokens + vector.to(tokens.dtype)
        turns = rotary_positions(
            seen.grid, self.head_dim, tokens.device, tiled=self.tiled, span=self.span
        ).at(torch.cat((seen.places, wanted), dim=1))
        for block in self.blocks:
            tokens = block(tokens, turns)
        context, found = self.norm(tokens).split([features.shape[1], wanted.shape[1]], dim=1)
        return self.head(found), None if self.context_head is None else self.context_head(context)


class Foresight(Backbone):
    """An encoder and what a predictor makes of its features for cells behind the clip's end (V-JEPA 2, 6).

    Args:
        ahead: steps in time that are left out between the clip's end and the predicted cells.
        num_slots: steps in time that are predicted.
    """

    takes_mask = False

    def __init__(self, encoder: Backbone, predictor: Predictor, *, ahead: int, num_slots: int) -> None:
        super().__init__()
        self.encoder, self.predictor = encoder, predictor
        self.embed_dim, self.strides = encoder.embed_dim, encoder.strides
        self.ahead, self.num_slots = ahead, num_slots

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        found = self.encoder(x)
        batch, t, h, w, dim = found.patches.shape
        grid = (t + self.ahead + self.num_slots, h, w)

        def cells(first: int, steps: int) -> Tensor:
            numbers = torch.arange(first * h * w, (first + steps) * h * w, device=x.device)
            return numbers.expand(batch, -1)

        levels = tuple(level.flatten(1, 3) for level in found.levels)
        seen = VisibleFeatures(found.patches.flatten(1, 3), cells(0, t), grid, levels=levels)
        wanted = cells(t + self.ahead, self.num_slots)
        # of several depths the last; the mask token is the first group's, which a release's training has used
        foreseen = self.predictor(joined_levels(seen), seen, wanted, 0)[0][..., -dim:]
        return Features(torch.cat((found.patches, foreseen.unflatten(1, (self.num_slots, h, w))), dim=1))


def joined_levels(features: Features | VisibleFeatures) -> Tensor:
    """Features of all depths side by side, [..., levels * D]."""
    return torch.cat(features.levels, dim=-1) if features.levels else features.patches


def distance_weights(seen: Tensor, predicted: Tensor, grid: GridSize) -> Tensor:
    """One over the root of each seen cell's distance to the next predicted one, [B, n] (V-JEPA 2.1, Eq. 3).

    Distances are Euclidean, in cells of time, row and column alike.

    Args:
        seen, predicted: int64 [B, n] and [B, m], on the flattened grid.
    """
    _, h, w = grid

    def places(numbers: Tensor) -> Tensor:
        return torch.stack((numbers // (h * w), numbers // w % h, numbers % w), dim=-1).float()

    return torch.cdist(places(seen), places(predicted)).amin(dim=2).rsqrt()


TargetNorm = Literal["channel", "patch", "none"]


class VisibleDecoder(nn.Module):
    """A narrow transformer on visible cells and on a mask token for each cell that is asked for.

    Places are coded in its own width, ``line_positions``; the order of its tokens means nothing. As
    published: no bias on the way in, none of keys, a norm and a layer at the end.

    Args:
        in_dim: width of the encoder's features.
        out_dim: numbers that are predicted for a cell.
        dim, depth, num_heads: of the decoder's blocks, whose MLPs are four times as wide.
    """

    def __init__(self, in_dim: int, out_dim: int, *, dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        check_depth(depth, "decoder_depth")
        self.dim = dim
        self.enter = nn.Linear(in_dim, dim, bias=False)
        self.mask_token = nn.Parameter(torch.empty(dim))
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, mlp_ratio=4.0, drop_path=0.0, key_bias=False) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, out_dim)
        init_linear(self, None)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        line_positions(1, dim, torch.device("cpu"))  # refuses a width it cannot code

    def forward(self, visible: VisibleFeatures, wanted: Tensor) -> Tensor:
        """Predictions [B, m, out_dim] for the cells ``wanted``, int64 [B, m], on the flattened grid."""
        entered = self.enter(visible.patches)
        codes = line_positions(prod(visible.grid), self.dim, entered.device).to(entered.dtype)
        asked = self.mask_token.to(entered.dtype) + codes[wanted]
        tokens = torch.cat((entered + codes[visible.places], asked), dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens[:, -wanted.shape[1] :]))


def cut_tubelets(clips: Tensor, grid: GridSize) -> Tensor:
    """Pixels by cell, [B, cells, pixels of a cell, 3], from clips [B, 3, T, H, W]; colours lie innermost."""
    t, h, w = grid
    return rearrange(clips, "b c (t p) (h q) (w r) -> b (t h w) (p q r) c", t=t, h=h, w=w)


def join_tubelets(tubelets: Tensor, grid: GridSize, size: GridSize) -> Tensor:
    """Clips [B, 3, T, H, W] of such pixels, the inverse of ``cut_tubelets``."""
    t, h = grid[:2]
    p, q = size[0] // t, size[1] // h
    return rearrange(tubelets, "b (t h w) (p q r) c -> b c (t p) (h q) (w r)", t=t, h=h, p=p, q=q)


def scale_of(tubelets: Tensor, norm: TargetNorm) -> tuple[Tensor, Tensor]:
    """What is taken off pixels [B, n, P, 3], and what they are then divided by, to make targets of them.

    - "channel": each colour of a cell by its own mean and standard deviation (VideoMAE, published code).
    - "patch": all numbers of a cell together, epsilon under the root (MAE, MAE-ST).
    - "none": pixels as they are.
    """
    if norm == "none":
        return torch.zeros_like(tubelets[..., :1, :1]), torch.ones_like(tubelets[..., :1, :1])
    if norm == "channel":
        mean, var = reduce(tubelets, "b n p c -> b n 1 c", "mean"), tubelets.var(dim=2, keepdim=True)
        return mean, var.sqrt() + 1e-6
    mean, var = tubelets.mean(dim=(2, 3), keepdim=True), tubelets.var(dim=(2, 3), keepdim=True)
    return mean, (var + 1e-6).sqrt()
