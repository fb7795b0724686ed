"""Attention in shifted windows over a grid of space-time cells (Video Swin, Sec. 3.2)."""

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidssl.interfaces.grids import GridSize
from vidssl.layers.transformer import check_heads

BLOCKED = -100.0  # added to attention between cells that only the cyclic shift made neighbours; as published


@dataclass(frozen=True)
class WindowPlan:
    """How a grid is cut into windows.

    Attributes:
        grid: (t, h, w) of the feature map.
        padded: the same, filled up to whole windows.
        window: cells of a window, never more than the map has on an axis.
        shift: cells by which the map is rolled before it is cut; 0 on an axis that one window spans.
        index: int64 [N * N], the row of the bias table for each pair of cells of a window.
        blocked: float [num_windows, 1, N, N], 0 or ``BLOCKED``; None where nothing is shifted.
    """

    grid: GridSize
    padded: GridSize
    window: GridSize
    shift: GridSize
    index: Tensor
    blocked: Tensor | None


@lru_cache(maxsize=256)
def plan_windows(grid: GridSize, window: GridSize, shifted: bool, device: torch.device) -> WindowPlan:
    """The plan of a grid, made once for each grid, window and device.

    Where the map is no larger than the window, the window shrinks to it and its shift is cancelled.
    The shrunken window takes the leading corner of the index made for the full one, as the published
    models do: exact in time, so that an image uses the part of the table of temporal distance 0 (BEVT,
    Sec. 3, "Weight sharing"), but not in height and width, where other offsets are met than trained.
    """
    axes = tuple(zip(grid, window, strict=True))
    clamped = cast(GridSize, tuple(min(cells, win) for cells, win in axes))
    shift = cast(GridSize, tuple(win // 2 if shifted and cells > win else 0 for cells, win in axes))
    padded = cast(GridSize, tuple(-(-cells // min(cells, win)) * min(cells, win) for cells, win in axes))
    size = prod(clamped)
    # tensors made in inference mode could not serve a later training step
    with torch.inference_mode(False):
        index = relative_index(window)[:size, :size].flatten().to(device)
        blocked = blocked_pairs(padded, clamped, shift).to(device) if any(shift) else None
    return WindowPlan(grid, padded, clamped, shift, index, blocked)


def relative_index(window: GridSize) -> Tensor:
    """int64 [N, N]: the row of a table of (2t-1)(2h-1)(2w-1) offsets for each pair of a window's N cells."""
    axes = [torch.arange(size, device="cpu") for size in window]
    cells = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    offsets = cells[:, :, None] - cells[:, None, :]
    row = torch.zeros_like(offsets[0])
    for offset, size in zip(offsets, window, strict=True):
        row = row * (2 * size - 1) + offset + size - 1
    return row


def blocked_pairs(padded: GridSize, window: GridSize, shift: GridSize) -> Tensor:
    """float [num_windows, 1, N, N]: ``BLOCKED`` for pairs that only the cyclic shift brings together."""
    region = torch.zeros((), dtype=torch.int64, device="cpu")
    for axis, (size, win, by) in enumerate(zip(padded, window, shift, strict=True)):
        cell = torch.arange(size, device="cpu")
        # an axis falls into three: the windows left whole, and the two parts that share the last one
        part = (cell >= size - win).long() + (cell >= size - by).long() if by else torch.zeros_like(cell)
        region = region * 3 + part.view([-1 if i == axis else 1 for i in range(3)])
    windows = partition(region.expand(padded)[None, ..., None], window)[0, :, :, 0]
    differ = windows[:, None, :, None] != windows[:, None, None, :]
    return torch.where(differ, BLOCKED, 0.0)


def partition(x: Tensor, window: GridSize) -> Tensor:
    """[B, t, h, w, D] cut into windows, [B, num_windows, N, D]."""
    a, b, c = window
    return rearrange(x, "n (t a) (h b) (w c) d -> n (t h w) (a b c) d", a=a, b=b, c=c)


def merge(windows: Tensor, grid: GridSize, window: GridSize) -> Tensor:
    """The inverse of ``partition``: [B, num_windows, N, D] put back together to [B, t, h, w, D]."""
    t, h, w = (g // c for g, c in zip(grid, window, strict=True))
    a, b, c = window
    return rearrange(windows, "n (t h w) (a b c) d -> n (t a) (h b) (w c) d", t=t, h=h, w=w, a=a, b=b, c=c)


class WindowAttention(nn.Module):
    """Self-attention within each window, with a learned bias for each relative position."""

    def __init__(self, dim: int, num_heads: int, window: GridSize) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.bias_table = nn.Parameter(torch.empty(prod(2 * size - 1 for size in window), num_heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)

    def forward(self, x: Tensor, plan: WindowPlan) -> Tensor:
        """[B, t, h, w, D] to the same shape. Cells added to fill the last windows take part unmasked."""
        rolled = any(plan.shift)
        t, h, w = plan.grid
        if plan.padded != plan.grid:
            x = F.pad(x, (0, 0, 0, plan.padded[2] - w, 0, plan.padded[1] - h, 0, plan.padded[0] - t))
        if rolled:
            x = x.roll([-by for by in plan.shift], dims=(1, 2, 3))
        x = merge(self.attend(partition(x, plan.window), plan), plan.padded, plan.window)
        if rolled:
            x = x.roll(plan.shift, dims=(1, 2, 3))
        return x[:, :t, :h, :w]

    def attend(self, windows: Tensor, plan: WindowPlan) -> Tensor:
        """[B, num_windows, N, D] to the same shape."""
        bias = self.bias_table.t().index_select(1, plan.index).unflatten(1, windows.shape[2:3] * 2)
        qkv = rearrange(self.qkv(windows), "b w n (three m d) -> three b w m n d", three=3, m=self.num_heads)
        if plan.blocked is None:
            q, k, v = qkv.flatten(1, 2)
            attended = attend(q, k, v, bias.unsqueeze(0)).unflatten(0, windows.shape[:2])
        else:
            # windows go beside the heads, so that one set of biases and blocks serves the whole batch
            q, k, v = qkv.flatten(2, 3)
            bias = (bias + plan.blocked).flatten(0, 1).unsqueeze(0)
            attended = attend(q, k, v, bias).unflatten(1, (windows.shape[1], self.num_heads))
        return self.proj(rearrange(attended, "b w m n d -> b w n (m d)"))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention of [B, heads, N, d] with ``bias`` [1, heads, N, N] added to its scores."""
    bias = bias.to(q.dtype)
    if bias.requires_grad and q.device.type == "cpu":
        # PyTorch has no fused CPU kernel for a bias that learns, and its fallback takes half as long again
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return (scores + bias).softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
