"""ViT: one transformer over all space-time patches."""

from collections.abc import Mapping
from typing import ClassVar, cast

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
from vidssl.layers.transformer import Block, drop_path_rates, init_linear
from vidssl.weights.vit_keys import to_vit


class ViT(Backbone, HasBlocks, ClassAttention):
    """Plain transformer with joint attention over all space-time patches (ViT; ViViT Sec. 3.3, Model 1).

    Positions are fixed sine and cosine codes, separate for time, row and column. They need no table, so a
    model takes clips of any length and size without interpolation, and nothing of them has to be learned,
    which short runs have no time for. An image (T = 1) has a patch embedding of its own and stands at time 0.

    Args:
        embed_dim: width; even, as the position codes come in pairs.
        depth: number of blocks.
        num_heads: heads of each block.
        patch_size: frames, rows and columns of pixels of a patch.
        mlp_ratio: hidden width of a block's MLP over its own.
        drop_path: rate of the last block; it rises linearly from 0.
        class_token: whether a learned token joins the patches; ``Features.pooled`` is then its output.
            An objective that trains only patches, as BEVT does, leaves it untrained: off by default.
        init_std: standard deviation of the linear layers' initial weights. 0.02 is published, for widths of
            96 and more; a network of width 32 learns nothing for long with it, at once with 0.1 (measured).
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
        init_std: float = 0.02,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if min(patch_size) < 1 or depth < 1:
            raise ValueError(f"patch_size and depth must be positive, got {patch_size} and {depth}")
        self.embed_dim = embed_dim
        self.gives_cls = class_token
        self.strides = patch_size
        self.normalise = Normalise(mean, std)
        self.embed_clip = PatchEmbed(patch_size, embed_dim, norm=False)
        self.embed_image = PatchEmbed((1, *patch_size[1:]), embed_dim, norm=False)
        self.mask_token = nn.Parameter(torch.empty(embed_dim))
        self.class_token = nn.Parameter(torch.empty(embed_dim)) if class_token else None
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio=mlp_ratio, drop_path=rate)
            for rate in drop_path_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        init_linear(self, init_std)
        for token in (self.mask_token, self.class_token):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
        sincos_positions((1, 1, 1), embed_dim, torch.device("cpu"))  # refuses a width it cannot code

    def blocks_in_order(self) -> tuple[nn.Module, ...]:
        return tuple(self.blocks)

    def layer_names(self) -> tuple[tuple[str, ...], ...]:
        inner: list[tuple[str, ...]] = [(f"blocks.{i}",) for i in range(len(self.blocks))]
        inner[-1] += ("norm",)
        return (("embed_clip", "embed_image", "mask_token", "class_token"), *inner)

    def translate(self, state: Mapping[str, Tensor]) -> Translated | None:
        """Weights of an image ViT (DINO, DeiT, MAE, timm), with any prefix; its positions are dropped.

        Raises:
            UsageError: if they are of another architecture: more blocks, layer scale, registers.
        """
        return to_vit(state, self.state_dict())

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        t, h, w = self.grid(*x.shape[2:])
        tokens = self._embed(x, mask)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        cls = None
        if self.class_token is not None:
            cls, tokens = tokens[:, 0], tokens[:, 1:]
        return Features(patches=rearrange(tokens, "b (t h w) d -> b t h w d", t=t, h=h, w=w), cls=cls)

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
        x = x + sincos_positions(grid, self.embed_dim, x.device).to(x.dtype)
        tokens = rearrange(x, "b t h w d -> b (t h w) d")
        if self.class_token is None:
            return tokens
        return torch.cat((self.class_token.expand(len(tokens), 1, -1).to(tokens.dtype), tokens), dim=1)
