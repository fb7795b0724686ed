"""ViT: one transformer over all space-time patches."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import ClassVar, Literal, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from vidssl.backbones.blocks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalise,
    PatchEmbed,
    first_token_attention,
    hide,
)
from vidssl.backbones.positions import sincos_positions
from vidssl.interfaces import Backbone, ClassAttention, Features, HasBlocks, Translated
from vidssl.interfaces.backbone import EncodesVisible, VisibleFeatures, check_clip, check_keep
from vidssl.interfaces.grids import GridSize
from vidssl.layers.transformer import Block, drop_path_rates, init_linear, line_positions, rows_at
from vidssl.weights.vit_keys import VIDEO_MAE, to_vit


class ViT(Backbone, HasBlocks, ClassAttention, EncodesVisible):
    """Plain transformer with joint attention over all space-time patches (ViT; ViViT Sec. 3.3, Model 1).

    Positions are fixed sine and cosine codes. They need no table, so a model takes clips of any length and
    size without interpolation, and nothing of them has to be learned, which short runs have no time for. An
    image (T = 1) has a patch embedding of its own and stands at time 0.

    VideoMAE's ViT: ``positions: line, key_bias: false, init_std: null``; sizes (embed_dim, depth, num_heads):
    small 384, 12, 6; base 768, 12, 12; large 1024, 24, 16; huge 1280, 32, 16; giant 1408, 40, 16 with
    patch_size [2, 14, 14] and mlp_ratio 4.3637 (48/11).

    Args:
        embed_dim: width; even, as the position codes come in pairs.
        depth: number of blocks.
        num_heads: heads of each block.
        patch_size: frames, rows and columns of pixels of a patch.
        mlp_ratio: hidden width of a block's MLP over its own.
        drop_path: rate of the last block; it rises linearly from 0.
        class_token: whether a learned token joins the patches; ``Features.pooled`` is then its output.
            An objective that trains only patches, as BEVT does, leaves it untrained: off by default.
        positions: "axes" codes time, row and column apart, a third of the channels each; "line" numbers the
            cells of the flattened grid, as VideoMAE does: a cell's code then depends on the grid's size.
        key_bias: whether keys have a bias, which softmax takes away again; false is VideoMAE's layout.
        norm: the last LayerNorm is of the "patches", or of their "mean", which is then what is pooled and the
            patches stay as the last block leaves them: ``fc_norm`` of MAE's and VideoMAE's fine-tuning.
        init_std: standard deviation of the linear layers' initial weights; null draws them uniformly, as
            Glorot and VideoMAE do. 0.02 is published, for widths of 96 and more; a network of width 32
            learns nothing for long with it, and at once with 0.1 (measured).
        mean: of the training pixels, taken off each channel.
        std: of the training pixels, by which each channel is divided.
    """

    toy: ClassVar = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": (2, 8, 8)}

    def __init__(
        self,
        *,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        patch_size: tuple[int, int, int] = (2, 16, 16),
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        class_token: bool = False,
        positions: Literal["axes", "line"] = "axes",
        key_bias: bool = True,
        norm: Literal["patches", "mean"] = "patches",
        init_std: float | None = 0.02,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if min(patch_size) < 1 or depth < 1:
            raise ValueError(f"patch_size and depth must be positive, got {patch_size} and {depth}")
        if positions not in ("axes", "line") or norm not in ("patches", "mean"):
            raise ValueError(f"positions is axes or line, norm patches or mean, got {positions} and {norm}")
        if norm == "mean" and class_token:
            raise ValueError("norm 'mean' pools patches, and class_token a token: set one of the two")
        self.embed_dim = embed_dim
        self.gives_cls = class_token
        self.strides = patch_size
        self.positions = positions
        self.normalise = Normalise(mean, std)
        self.embed_clip = PatchEmbed(patch_size, embed_dim, norm=False)
        self.embed_image = PatchEmbed((1, *patch_size[1:]), embed_dim, norm=False)
        self.mask_token = nn.Parameter(torch.empty(embed_dim))
        self.class_token = nn.Parameter(torch.empty(embed_dim)) if class_token else None
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio=mlp_ratio, drop_path=rate, key_bias=key_bias)
            for rate in drop_path_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6) if norm == "patches" else nn.Identity()
        self.fc_norm = nn.LayerNorm(embed_dim, eps=1e-6) if norm == "mean" else None
        init_linear(self, init_std)
        for token in (self.mask_token, self.class_token):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
        self._codes((1, 1, 1), torch.device("cpu"))  # refuses a width it cannot code

    def blocks_in_order(self) -> tuple[nn.Module, ...]:
        return tuple(self.blocks)

    def layer_names(self) -> tuple[tuple[str, ...], ...]:
        inner: list[tuple[str, ...]] = [(f"blocks.{i}",) for i in range(len(self.blocks))]
        inner[-1] += ("norm", "fc_norm")
        return (("embed_clip", "embed_image", "mask_token", "class_token"), *inner)

    def translate(self, state: Mapping[str, Tensor]) -> Translated | None:
        """Weights of an image ViT or of VideoMAE, with any prefix; its positions are dropped.

        Raises:
            UsageError: if they are of another architecture: more blocks, layer scale, registers, fc_norm.
        """
        found = to_vit(state, self.state_dict())
        if found is None or self.positions == "line" or not found.layout.startswith(VIDEO_MAE):
            return found
        return replace(found, layout=f"{found.layout}, without its positions (positions: line)")

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        t, h, w = self.grid(*x.shape[2:])
        cls, tokens = self._run(self._embed(x, mask))
        summary = None if self.fc_norm is None else self.fc_norm(tokens.mean(dim=1))
        patches = rearrange(tokens, "b (t h w) d -> b t h w d", t=t, h=h, w=w)
        return Features(patches=patches, cls=cls, summary=summary)

    def forward_visible(self, x: Tensor, keep: Tensor) -> VisibleFeatures:
        check_clip(x, self)
        check_keep(x, keep, self)
        grid = self.grid(*x.shape[2:])
        embed = self.embed_image if x.shape[2] == 1 else self.embed_clip
        tokens = embed.embed(rows_at(embed.pixels(self.normalise(x)).flatten(1, 3), keep))
        tokens = tokens + self._codes(grid, x.device).flatten(0, 2)[keep].to(tokens.dtype)
        cls, tokens = self._run(self._with_class_token(tokens))
        return VisibleFeatures(tokens, keep, grid, cls)

    def _run(self, tokens: Tensor) -> tuple[Tensor | None, Tensor]:
        """Class token [B, D], where there is one, and patches [B, n, D] behind the last norm."""
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        if self.class_token is None:
            return None, tokens
        return tokens[:, 0], tokens[:, 1:]

    def _codes(self, grid: GridSize, device: torch.device) -> Tensor:
        """Position codes, float32 [t, h, w, D]."""
        if self.positions == "axes":
            return sincos_positions(grid, self.embed_dim, device)
        return line_positions(prod(grid), self.embed_dim, device).unflatten(0, grid)

    def class_attention(self, x: Tensor) -> Tensor:
        if self.class_token is None:
            raise ValueError("this ViT was made without a class token (class_token: false)")
        t, h, _ = self.grid(*x.shape[2:])
        tokens = self._embed(x, None)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        last = cast(Block, self.blocks[-1])
        weights = first_token_attention(last.attn, last.norm1(tokens))
        return rearrange(weights, "b m (t h w) -> b m t h w", t=t, h=h)

    def _embed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens with their positions, [B, t*h*w, D], the class token before them where there is one."""
        grid = self.grid(*x.shape[2:])
        x = self.normalise(x)
        x = hide(self.embed_image(x) if x.shape[2] == 1 else self.embed_clip(x), mask, self.mask_token)
        x = x + self._codes(grid, x.device).to(x.dtype)
        return self._with_class_token(x.flatten(1, 3))

    def _with_class_token(self, tokens: Tensor) -> Tensor:
        if self.class_token is None:
            return tokens
        return torch.cat((self.class_token.expand(len(tokens), 1, -1).to(tokens.dtype), tokens), dim=1)
