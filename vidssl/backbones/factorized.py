"""VIMPAC's transformer: reads token ids, attends along one axis of the clip at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vidssl.backbones.axis_attention import Layer, NormOrder, parse_layout
from vidssl.backbones.token_positions import POSITIONS, TokenPositions
from vidssl.errors import UsageError
from vidssl.interfaces import Backbone, Blockwise, Features, Translated
from vidssl.interfaces.grids import GridSize
from vidssl.weights.vimpac_keys import from_published, is_published, with_resized_tables

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


class Factorized(Backbone, Blockwise):
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
        init_std: deviation of the linear layers' first weights.

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
        self.dropout = nn.Dropout(dropout)
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
        # without padding attention needs no mask, and is faster
        seen = ~padding.flatten(1) if bool(padding.any()) else None

        cells = (self.embedding(x) + self.positions(grid)).flatten(1, 3)
        cls = (self.class_token + self.positions.of_class_token()).expand(len(x), 1, -1)
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
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
    if init_std <= 0:
        raise ValueError(f"init_std must be above 0, got {init_std}")
