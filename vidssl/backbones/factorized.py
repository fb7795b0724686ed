"""VIMPAC's transformer: reads token ids, attends along one axis of the clip at a time."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidssl.errors import UsageError
from vidssl.interfaces import Backbone, Features, HasBlocks, Translated
from vidssl.interfaces.grids import GridSize
from vidssl.layers.transformer import Dropout, Mlp, attend, check_depth, check_heads
from vidssl.weights.published_keys import from_published, is_published, resize_table, with_resized_tables

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
        # the axes of lines stay apart until the class token is put before them: one copy, not two
        self.to_lines = f"b (t h w) c -> b {rest or '1'} ({line}) c"
        self.to_cells = f"b ({rest}) ({line}) c -> b (t h w) c"

    def forward(self, tokens: Tensor, grid: GridSize, seen: Tensor | None) -> Tensor:
        """Outputs [B, 1 + N, out_dim] of tokens [B, 1 + N, D], the class token first.

        Args:
            seen: bool [B, N], False for cells that nobody may look at; None if there are none. They are
                computed all the same, and a line that has no others still counts in the class token's mean.
        """
        t, h, w = grid
        # split and unbound, so that the gradients come together in one copy each
        cls, cells = self.qkv(tokens).split((1, t * h * w), dim=1)
        lines = rearrange(cells, self.to_lines, t=t, h=h, w=w)
        copies = cls.view(len(cls), *[1] * (lines.dim() - 2), -1).expand(*lines.shape[:-2], 1, -1)
        lines = torch.cat((copies, lines), dim=-2).flatten(0, -3)
        q, k, v = (x.transpose(1, 2) for x in lines.unflatten(-1, (3, self.num_heads, -1)).unbind(2))
        key_mask = None
        if seen is not None:
            keys = rearrange(seen.unsqueeze(-1), self.to_lines, t=t, h=h, w=w).flatten(1, -3)
            key_mask = F.pad(rearrange(keys, "b l n 1 -> (b l) 1 1 n"), (1, 0), value=True)
        attended = attend(q, k, v, key_mask, self.dropout if self.training else 0.0)
        attended = rearrange(attended, "(b l) m n d -> b l n (m d)", b=tokens.shape[0])
        cls, cells = attended.split((1, attended.shape[2] - 1), dim=2)
        return torch.cat((cls.mean(dim=1), rearrange(cells, self.to_cells, t=t, h=h, w=w)), dim=1)


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
        self.dropout = Dropout(dropout)

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
            # the released pre-norm continues from the normalised input, a textbook's from the input itself
            kept = normed if self.norm == "pre_published" else tokens
            tokens = kept + self.dropout(attention(normed, grid, seen))
        if self.norm == "post":
            return self.mlp_norm(tokens + self.dropout(self.mlp(tokens)))
        return tokens + self.dropout(self.mlp(tokens, before=self.mlp_norm))


STD = 0.02  # of a cell's whole position code at the start; published code


def _table(rows: int, dim: int, shared_by: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(rows, dim).normal_(std=STD * shared_by**-0.5))


class TokenPositions(nn.Module, ABC):
    """Position codes of the cells of a grid and of the class token.

    Args:
        tables: (t, h, w), the size that the tables are made for.
        dim: width of a code.
    """

    def __init__(self, tables: GridSize, dim: int) -> None:
        super().__init__()
        self.tables = tables

    def check(self, grid: GridSize) -> None:
        """Raises ValueError if there are no codes for a grid of this size; by default there always are."""

    @abstractmethod
    def forward(self, grid: GridSize) -> Tensor:
        """Codes [t, h, w, D] (or what broadcasts to it) of a grid's cells."""

    @abstractmethod
    def of_class_token(self) -> Tensor:
        """The class token's code, [D]."""


class FactorizedPositions(TokenPositions):
    """A table of each axis; a cell's code is their sum (VIMPAC, App. A)."""

    def __init__(self, tables: GridSize, dim: int) -> None:
        super().__init__(tables, dim)
        self.cls = _table(1, dim, 1)
        self.time, self.height, self.width = (_table(rows, dim, 3) for rows in tables)

    def forward(self, grid: GridSize) -> Tensor:
        t, h, w = grid
        time = resize_table(self.time, t)[:, None, None]
        return time + resize_table(self.height, h)[:, None] + resize_table(self.width, w)

    def of_class_token(self) -> Tensor:
        return self.cls[0]


class TemporalPositions(TokenPositions):
    """A table of time and one of all cells of the plane ("temporal separation" in the published code)."""

    def __init__(self, tables: GridSize, dim: int) -> None:
        super().__init__(tables, dim)
        self.cls = _table(1, dim, 1)
        self.time = _table(tables[0], dim, 2)
        self.plane = _table(tables[1] * tables[2], dim, 2)

    def check(self, grid: GridSize) -> None:
        if grid[1:] != self.tables[1:]:
            raise ValueError(
                f"the joint table of the plane is made for {self.tables[1:]} ids, got {grid[1:]}: set height "
                "and width, or use positions 'factorized', which fit any size"
            )

    def forward(self, grid: GridSize) -> Tensor:
        return resize_table(self.time, grid[0])[:, None, None] + self.plane.unflatten(0, grid[1:])

    def of_class_token(self) -> Tensor:
        return self.cls[0]


class JointPositions(TokenPositions):
    """One table of the class token and all cells, row by row ("default" in the published code)."""

    def __init__(self, tables: GridSize, dim: int) -> None:
        super().__init__(tables, dim)
        t, h, w = tables
        self.joint = _table(1 + t * h * w, dim, 1)

    def check(self, grid: GridSize) -> None:
        if grid != self.tables:
            raise ValueError(
                f"the joint table of positions is made for {self.tables} ids, got {grid}: set num_frames, "
                "height and width, or use positions 'factorized', which fit any size"
            )

    def forward(self, grid: GridSize) -> Tensor:
        return self.joint[1:].unflatten(0, grid)

    def of_class_token(self) -> Tensor:
        return self.joint[0]


POSITIONS: dict[str, type[TokenPositions]] = {
    "factorized": FactorizedPositions,
    "temporal": TemporalPositions,
    "joint": JointPositions,
}


SPECIAL_IDS = 5  # rows of the embedding beyond the vocabulary; published code
LAYER_NORM_EPS = 1e-12  # of every norm, as in BERT; published code


@dataclass(frozen=True)
class Size:
    """A model's size; ``attention_dim`` is the width of queries, keys and values over all heads."""

    embed_dim: int
    depth: int
    num_heads: int
    attention_dim: int
    mlp_ratio: float


# VIMPAC, Table 3; in "large_half" attention and MLP are half as wide as usual
VARIANTS = {
    "small": Size(512, 6, 8, 512, 4.0),
    "base": Size(768, 12, 12, 768, 4.0),
    "large_half": Size(1024, 24, 16, 512, 2.0),
}


class Factorized(Backbone, HasBlocks):
    """Transformer over token ids with attention factorised into axes (VIMPAC, App. A).

    A layer attends along the axes of ``layout`` one after another, then applies its MLP. In an attention
    along an axis each line of cells has a copy of the class token in front; the copies' outputs are averaged
    before the output projection (published code; Eq. 15 reads as if whole blocks were averaged).

    Ids are those of a tokenizer, and two of five special ones behind them: ``pad_id`` (V + 1) fills a clip
    that is too short and is never attended to; ``mask_id`` (V + 4) takes the place of what ``mask`` hides,
    which PAD never is. The other three are never used.

    Position tables of time, height and width are resized linearly for inputs of another size than their own
    (half-pixel centres, as published for loading into a model of another shape), so that one model
    takes any size; joint tables hold for their own size only.

    Args:
        vocab_size: V, of the tokenizer.
        num_frames: rows of the time table: frames of a training clip's ids.
        height: rows of the height table.
        width: rows of the width table.
        variant: a size of Table 3, which sets the five keys below it.
        embed_dim: width D.
        depth: number of layers.
        num_heads: heads of an attention block; branches side by side share them out.
        attention_dim: width of queries, keys and values over all heads; D if not given.
        mlp_ratio: hidden width of a layer's MLP over D; 4 if not given.
        layout: attention blocks one after another, separated by ``,``; branches side by side within a block
            by ``|``; axes that are attended to jointly by ``x``. Table 13: "T,H|W" (the default), "T,H,W",
            "T,HxW", "TxHxW".
        positions: "factorized" (time + height + width), "temporal" (time + a joint table of the plane) or
            "joint" (one table of all cells).
        norm: "post", "pre" as textbooks have it, or "pre_published": Table 13's pre-norm as released, where
            the residual of an attention block adds to the normalised input.
        dropout: after the embedding, on attention weights, and after each branch.
        init_std: standard deviation of the linear layers' initial weights.

    Raises:
        ValueError: if sizes, layout or heads do not fit each other.
    """

    toy: ClassVar = {
        "vocab_size": 16,
        "num_frames": 4,
        "height": 4,
        "width": 4,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
    }

    input_kind = "tokens"
    vocab_size: int
    positions: TokenPositions

    def __init__(
        self,
        *,
        vocab_size: int,
        num_frames: int,
        height: int,
        width: int,
        variant: Literal["small", "base", "large_half"] | None = None,
        embed_dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        attention_dim: int | None = None,
        mlp_ratio: float | None = None,
        layout: str = "T,H|W",
        positions: Literal["factorized", "temporal", "joint"] = "factorized",
        norm: NormOrder = "post",
        dropout: float = 0.1,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        size = _size(variant, embed_dim, depth, num_heads, attention_dim, mlp_ratio)
        _check(vocab_size, (num_frames, height, width), size.depth, dropout, init_std)
        self.vocab_size = vocab_size
        self.embed_dim = dim = size.embed_dim
        self.gives_cls = True
        self.strides = (1, 1, 1)
        self.norm = norm
        self.embedding = nn.Embedding(vocab_size + SPECIAL_IDS, dim)
        self.class_token = nn.Parameter(torch.empty(dim))
        self.positions = POSITIONS[positions]((num_frames, height, width), dim)
        self.embed_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS) if norm == "post" else None
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            Layer(
                dim,
                blocks=parse_layout(layout),
                num_heads=size.num_heads,
                attention_dim=size.attention_dim,
                mlp_dim=int(dim * size.mlp_ratio),
                norm=norm,
                eps=LAYER_NORM_EPS,
                dropout=dropout,
            )
            for _ in range(size.depth)
        )
        self.last_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS) if norm != "post" else None
        self._init_weights(init_std)

    @property
    def pad_id(self) -> int:
        """The id of a place where the clip has nothing."""
        return self.vocab_size + 1

    @property
    def mask_id(self) -> int:
        """The id of a hidden place."""
        return self.vocab_size + 4

    def _init_weights(self, std: float) -> None:
        """Weights normal, biases 0 (published code); in pre-norm what a branch adds starts smaller."""
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.class_token, std=0.02)
        branches = sum(layer.num_branches() for layer in self.layers)  # type: ignore[operator]
        for name, module in self.layers.named_modules():
            if isinstance(module, nn.Linear):
                adds = name.endswith(("proj", "fc2")) and self.norm != "post"
                nn.init.normal_(module.weight, std=std * branches**-0.5 if adds else std)
                nn.init.zeros_(module.bias)

    def grid(self, num_frames: int, height: int, width: int) -> GridSize:
        """The ids themselves: one cell each.

        Raises:
            ValueError: if joint position tables are of another size.
        """
        self.positions.check((num_frames, height, width))
        return super().grid(num_frames, height, width)

    def token_embedding(self) -> Tensor:
        return self.embedding.weight

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        if x.dim() != 4 or x.is_floating_point():
            raise ValueError(
                f"Factorized reads token ids, int64 [B, t, h, w], got {x.dtype} {tuple(x.shape)}"
            )
        grid = self.grid(*x.shape[1:])
        padding = x == self.pad_id
        if mask is not None:
            if mask.shape != x.shape:
                raise ValueError(f"mask must be {tuple(x.shape)} to match the ids, got {tuple(mask.shape)}")
            x = torch.where(mask & ~padding, self.mask_id, x)
        # without padding attention needs no mask, and is faster; whether there is any, no trace can know
        seen = ~padding.flatten(1) if torch.compiler.is_compiling() or bool(padding.any()) else None

        cells = (self.embedding(x) + self.positions(grid)).flatten(1, 3)
        cls = (self.class_token + self.positions.of_class_token()).expand(x.shape[0], 1, -1)
        tokens = torch.cat((cls, cells), dim=1)
        if self.embed_norm is not None:
            tokens = self.embed_norm(tokens)
        tokens = self.dropout(tokens)
        for layer in self.layers:
            tokens = layer(tokens, grid, seen)
        if self.last_norm is not None:
            tokens = self.last_norm(tokens)
        return Features(patches=tokens[:, 1:].unflatten(1, grid), cls=tokens[:, 0])

    def blocks_in_order(self) -> tuple[nn.Module, ...]:
        return tuple(self.layers)

    def block_norm(self) -> nn.Module:
        return nn.Identity() if self.last_norm is None else self.last_norm

    def layer_names(self) -> tuple[tuple[str, ...], ...]:
        inner: list[tuple[str, ...]] = [(f"layers.{i}",) for i in range(len(self.layers))]
        inner[-1] += ("last_norm",)
        return (("embedding", "class_token", "positions", "embed_norm"), *inner)

    def translate(self, state: Mapping[str, Tensor]) -> Translated | None:
        """Weights of a released VIMPAC checkpoint, or of this class with position tables of other lengths.

        Tables of an axis are resized linearly, as published; joint ones are handed on as they are, for
        whoever loads them to refuse.

        Raises:
            UsageError: if the checkpoint's norms stand elsewhere than this network's.
        """
        own = self.state_dict()
        if is_published(state):
            if self.norm == "pre":
                raise UsageError("this VIMPAC checkpoint needs a backbone with norm: post or pre_published")
            return from_published(state, own, post_norm=self.norm == "post")
        return with_resized_tables(state, own) if own.keys() <= state.keys() else None


def _size(
    variant: str | None,
    embed_dim: int | None,
    depth: int | None,
    num_heads: int | None,
    attention_dim: int | None,
    mlp_ratio: float | None,
) -> Size:
    given = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
    if variant is not None:
        own = given | {"attention_dim": attention_dim, "mlp_ratio": mlp_ratio}
        if any(value is not None for value in own.values()):
            raise ValueError(f"variant '{variant}' already sets {', '.join(own)}: give it or them, not both")
        return VARIANTS[variant]
    if embed_dim is None or depth is None or num_heads is None:
        raise ValueError(f"give a variant ({', '.join(VARIANTS)}) or all of {', '.join(given)}")
    ratio = 4.0 if mlp_ratio is None else mlp_ratio
    return Size(embed_dim, depth, num_heads, embed_dim if attention_dim is None else attention_dim, ratio)


def _check(vocab_size: int, tables: GridSize, depth: int, dropout: float, init_std: float) -> None:
    if min(vocab_size, depth, *tables) < 1:
        raise ValueError(
            f"vocab_size, depth, num_frames, height and width must be positive, got {vocab_size}, {depth} "
            f"and {tables}"
        )
    check_depth(depth)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
    if init_std <= 0:
        raise ValueError(f"init_std must be above 0, got {init_std}")
