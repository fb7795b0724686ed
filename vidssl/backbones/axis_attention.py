"""Attention along the axes of a clip: VIMPAC's layers and the little language that lays them out."""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidssl.interfaces.grids import GridSize
from vidssl.layers.transformer import Mlp, check_heads

NormOrder = Literal["post", "pre", "pre_published"]
Axes = tuple[str, ...]  # attended to jointly: ("T",), or ("H", "W") for HxW


def parse_layout(layout: str) -> tuple[tuple[Axes, ...], ...]:
    """Attention blocks, each a tuple of branches, each a tuple of axes: "T,H|W" is (T), then (H) and (W).

    Raises:
        ValueError: if an axis is not T, H or W, or comes twice in a branch.
    """
    blocks = tuple(
        tuple(tuple(branch.split("x")) for branch in block.split("|"))
        for block in layout.replace(" ", "").split(",")
    )
    for branch in (branch for block in blocks for branch in block):
        if not set(branch) <= {"T", "H", "W"} or len(set(branch)) < len(branch):
            raise ValueError(
                f"layout '{layout}': '{'x'.join(branch)}' is none of the axes T, H, W or some of them "
                "joined by x. Blocks are separated by ',', branches by '|', as in 'T,H|W'"
            )
    return blocks


class Branch(nn.Module):
    """Multi-head attention along some axes: each line of cells with a copy of the class token.

    Args:
        dim: width of the input.
        out_dim: width of queries, keys and values, and of the output.
        axes: attended to jointly; cells that differ in another axis do not see each other.
        dropout: on the attention weights.
    """

    def __init__(self, dim: int, out_dim: int, *, num_heads: int, axes: Axes, dropout: float) -> None:
        super().__init__()
        check_heads(out_dim, num_heads)
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(dim, 3 * out_dim)
        line = " ".join(axis.lower() for axis in ("T", "H", "W") if axis in axes)
        rest = " ".join(axis.lower() for axis in ("T", "H", "W") if axis not in axes)
        self.to_lines = f"b (t h w) c -> b ({rest}) ({line}) c"
        self.to_cells = f"b ({rest}) ({line}) c -> b (t h w) c"

    def forward(self, tokens: Tensor, grid: GridSize, seen: Tensor | None) -> Tensor:
        """Outputs [B, 1 + N, out_dim] of tokens [B, 1 + N, D], the class token first.

        Args:
            seen: bool [B, N], False for cells that nobody may look at; None if there are none. They are
                computed all the same, and a line that has no others still counts in the class token's mean.
        """
        t, h, w = grid
        qkv = self.qkv(tokens)
        lines = rearrange(qkv[:, 1:], self.to_lines, t=t, h=h, w=w)
        copies = qkv[:, None, :1].expand(-1, lines.shape[1], -1, -1)
        lines = torch.cat((copies, lines), dim=2)
        q, k, v = rearrange(lines, "b l n (three m d) -> three (b l) m n d", three=3, m=self.num_heads)
        key_mask = None
        if seen is not None:
            keys = rearrange(seen.unsqueeze(-1), self.to_lines, t=t, h=h, w=w)
            key_mask = F.pad(rearrange(keys, "b l n 1 -> (b l) 1 1 n"), (1, 0), value=True)
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=key_mask, dropout_p=self.dropout if self.training else 0.0
        )
        attended = rearrange(attended, "(b l) m n d -> b l n (m d)", b=len(tokens))
        cells = rearrange(attended[:, :, 1:], self.to_cells, t=t, h=h, w=w)
        return torch.cat((attended[:, :, 0].mean(dim=1, keepdim=True), cells), dim=1)


class AxisAttention(nn.Module):
    """Branches side by side, which share out width and heads, then one projection (VIMPAC, Eq. 12 to 15)."""

    def __init__(
        self, dim: int, attention_dim: int, *, num_heads: int, branches: tuple[Axes, ...], dropout: float
    ) -> None:
        super().__init__()
        if attention_dim % len(branches) or num_heads % len(branches):
            raise ValueError(
                f"{len(branches)} branches side by side cannot share out {attention_dim} channels and "
                f"{num_heads} heads evenly"
            )
        self.branches = nn.ModuleList(
            Branch(
                dim,
                attention_dim // len(branches),
                num_heads=num_heads // len(branches),
                axes=axes,
                dropout=dropout,
            )
            for axes in branches
        )
        self.proj = nn.Linear(attention_dim, dim)

    def forward(self, tokens: Tensor, grid: GridSize, seen: Tensor | None) -> Tensor:
        """[B, 1 + N, D] to the same shape."""
        outputs = [branch(tokens, grid, seen) for branch in self.branches]
        return self.proj(torch.cat(outputs, dim=-1))


class Layer(nn.Module):
    """Attention blocks one after another, then an MLP, each with its residual and norm (VIMPAC, App. A)."""

    def __init__(
        self,
        dim: int,
        *,
        blocks: tuple[tuple[Axes, ...], ...],
        num_heads: int,
        attention_dim: int,
        mlp_dim: int,
        norm: NormOrder,
        eps: float,
        dropout: float,
    ) -> None:
        super().__init__()
        if norm not in ("post", "pre", "pre_published"):
            raise ValueError(f"norm must be 'post', 'pre' or 'pre_published', got '{norm}'")
        self.norm = norm
        self.attentions = nn.ModuleList(
            AxisAttention(dim, attention_dim, num_heads=num_heads, branches=branches, dropout=dropout)
            for branches in blocks
        )
        self.attention_norms = nn.ModuleList(nn.LayerNorm(dim, eps=eps) for _ in blocks)
        self.mlp = Mlp(dim, mlp_dim)
        self.mlp_norm = nn.LayerNorm(dim, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def num_branches(self) -> int:
        """How many times something is added to the residual stream."""
        return len(self.attentions) + 1

    def forward(self, tokens: Tensor, grid: GridSize, seen: Tensor | None) -> Tensor:
        """[B, 1 + N, D] to the same shape; ``seen`` as in ``Branch``."""
        for attention, norm in zip(self.attentions, self.attention_norms, strict=True):
            if self.norm == "post":
                tokens = norm(tokens + self.dropout(attention(tokens, grid, seen)))
                continue
            normed = norm(tokens)
            # the released pre-norm goes on from the normalised input, a textbook's from the input itself
            kept = normed if self.norm == "pre_published" else tokens
            tokens = kept + self.dropout(attention(normed, grid, seen))
        if self.norm == "post":
            return self.mlp_norm(tokens + self.dropout(self.mlp(tokens)))
        return tokens + self.dropout(self.mlp(self.mlp_norm(tokens)))
