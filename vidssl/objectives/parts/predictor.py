"""From features of seen cells to features of others: V-JEPA's predictor, and what its loss is weighed by."""

import torch
from torch import Tensor, nn

from vidssl.interfaces import Backbone, Features, VisibleFeatures
from vidssl.interfaces.grids import GridSize
from vidssl.layers.rotary import rotary_positions
from vidssl.layers.transformer import Block, check_depth, init_linear, shrink_deep_layers


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
