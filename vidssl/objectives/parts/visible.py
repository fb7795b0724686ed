"""From features of visible cells to predictions of any cells: VideoMAE's decoder, and what it predicts."""

from math import prod
from typing import Literal

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from vidssl.interfaces import VisibleFeatures
from vidssl.interfaces.grids import GridSize
from vidssl.layers.transformer import Block, check_depth, init_linear, line_positions

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
