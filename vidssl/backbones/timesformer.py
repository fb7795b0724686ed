"""TimeSformer: attention divided between time and space, with positions for any length and size."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import isqrt
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidssl.backbones.blocks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalise,
    PositionResize,
    first_token_attention,
    hide,
    resize_positions,
)
from vidssl.errors import UsageError
from vidssl.interfaces import Backbone, ClassAttention, Features, HasBlocks, Translated
from vidssl.interfaces.backbone import EncodesVisible, VisibleFeatures, check_clip, check_keep
from vidssl.interfaces.grids import GridSize
from vidssl.layers.transformer import Attention, Block, DropPath, Mlp, drop_path_rates, init_linear, rows_at
from vidssl.weights.vit_keys import to_timesformer

# Tokens of a clip, [B, 1 + h*w*t, D]: the class token, then the patches, row by row, time fastest. So the
# frames of one place lie side by side, and attention along time needs no copy.


def to_frames(tokens: Tensor, num_frames: int) -> Tensor:
    """Tokens of clips [B, 1 + P*T, D] as those of single frames, [B*T, 1 + P, D], the class token in each."""
    cls, patches = tokens[:, :1], tokens[:, 1:]
    patches = rearrange(patches, "b (p t) d -> b t p d", t=num_frames)
    frames = torch.cat((cls.unsqueeze(1).expand(-1, num_frames, -1, -1), patches), dim=2)
    return frames.flatten(0, 1)


def from_frames(frames: Tensor, num_frames: int) -> Tensor:
    """The inverse of ``to_frames``; the class token becomes the mean over those of the frames."""
    frames = frames.unflatten(0, (-1, num_frames))
    patches = rearrange(frames[:, :, 1:], "b t p d -> b (p t) d")
    return torch.cat((frames[:, :, 0].mean(dim=1, keepdim=True), patches), dim=1)


class DividedBlock(nn.Module):
    """A transformer block with attention along time, then within each frame, then an MLP.

    Parameters carry the published names. ``temporal_fc`` is to start at zero: such a block does to every
    frame what the block of an image ViT does, and its temporal attention learns from the second step on.
    """

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.temporal_norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.temporal_attn = Attention(dim, num_heads)
        self.temporal_fc = nn.Linear(dim, dim)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, num_frames: int) -> Tensor:
        """[B, 1 + P*T, D] to the same shape."""
        tokens = self.along_time(tokens, num_frames)
        # stochastic depth drops single frames, as published
        within = self.drop_path(self.attn(tokens, before=lambda x: self.norm1(to_frames(x, num_frames))))
        tokens = tokens + from_frames(within, num_frames)
        return tokens + self.drop_path(self.mlp(tokens, before=self.norm2))

    def along_time(self, tokens: Tensor, num_frames: int) -> Tensor:
        """Tokens after attention among the T patches of each place; the class token takes no part."""
        cls, patches = tokens[:, :1], tokens[:, 1:]
        places = patches.unflatten(1, (-1, num_frames)).flatten(0, 1)
        # stochastic depth drops single places, and before the last layer, whose bias stays: as published
        mixed = self.temporal_fc(self.drop_path(self.temporal_attn(places, before=self.temporal_norm1)))
        return torch.cat((cls, patches + mixed.view_as(patches)), dim=1)

    def class_attention(self, tokens: Tensor, num_frames: int) -> Tensor:
        """Weights of the class token over the P patches of each frame, [B*T, heads, P]."""
        frames = to_frames(self.along_time(tokens, num_frames), num_frames)
        return first_token_attention(self.attn, self.norm1(frames))


class TimeSformer(Backbone, HasBlocks, ClassAttention, EncodesVisible):
    """Transformer with attention divided between time and space (TimeSformer; SVT, Sec. 3.1).

    One class token a clip. Positions are two learned tables, one of places in a frame and one of frames;
    both are resized in each call to what the input has, so one network takes clips of any length and any
    whole number of patches, also such as are not square. (The published code resizes a plane only where its
    number of patches is another than the table's, and uses a 4x4 table as it lies for 2x8 patches.)

    The defaults are ViT-B/16 as SVT trains it, 121 M parameters; ViT-S has embed_dim 384 and num_heads 6.
    Parameters carry the published names and shapes, with a mask token besides, which only an objective that
    hides patches trains.

    Args:
        embed_dim: width.
        depth: number of blocks.
        num_heads: heads of each block.
        mlp_ratio: hidden width of a block's MLP over its own.
        patch_size: rows and columns of pixels of a patch; a patch lies within one frame.
        num_frames: entries of the table of frames. SVT keeps 8 for clips of 2 to 64 frames; attention
            "space" has no such table.
        size: side in pixels that the table of places is made for.
        attention: "divided" between time and space; "joint" over all patches of the clip; "space", within
            each frame alone, whose class tokens are averaged before the last norm (TimeSformer, Sec. 3).
        position_resize: rule by which the tables are resized, "nearest" as published.
        temporal_init: what ``init`` from an image model or any other without temporal attention does to
            it: "copy" that of space, as SVT's code does, or leave it "random", as SVT's text says (Sec. 4.1).
        drop_path: rate of the last block; it rises linearly from 0.
        init_std: standard deviation of the linear layers' initial weights, see ``ViT``.
        mean: of the training pixels, taken off each channel.
        std: of the training pixels, by which each channel is divided.
    """

    toy: ClassVar = {
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "patch_size": 8,
        "num_frames": 4,
        "size": 32,
        "drop_path": 0.0,
    }

    visible_needs = "attention: joint"

    def __init__(
        self,
        *,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        patch_size: int = 16,
        num_frames: int = 8,
        size: int = 224,
        attention: Literal["divided", "joint", "space"] = "divided",
        position_resize: PositionResize = "nearest",
        temporal_init: Literal["copy", "random"] = "copy",
        drop_path: float = 0.1,
        init_std: float = 0.02,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if min(patch_size, depth, num_frames) < 1:
            raise ValueError(
                f"patch_size, depth and num_frames must be positive, got {patch_size}, {depth}, {num_frames}"
            )
        if size < patch_size or size % patch_size:
            raise ValueError(f"size must be a whole number of patches of {patch_size} pixels, got {size}")
        if temporal_init == "random" and attention != "divided":
            raise ValueError(f"attention '{attention}' has no temporal attention: leave out temporal_init")
        self.embed_dim = embed_dim
        self.gives_cls = True
        self.strides = (1, patch_size, patch_size)
        self.attention = attention
        self.encodes_visible = attention == "joint"
        self.position_resize = position_resize
        self.temporal_init = temporal_init
        self.side = size // patch_size
        self.num_frames = num_frames

        self.normalise = Normalise(mean, std)
        self.patch_embed = FrameEmbed(patch_size, embed_dim)
        self.mask_token = nn.Parameter(torch.empty(embed_dim))
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.side**2, embed_dim))  # the class token's first
        self.time_embed = (
            None if attention == "space" else nn.Parameter(torch.zeros(1, num_frames, embed_dim))
        )
        block = DividedBlock if attention == "divided" else Block
        self.blocks = nn.ModuleList(
            block(embed_dim, num_heads, mlp_ratio=mlp_ratio, drop_path=rate)
            for rate in drop_path_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self._init_weights(init_std)

    def _init_weights(self, std: float) -> None:
        init_linear(self, std)
        for parameter in (self.mask_token, self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        for block in self.blocks:
            if isinstance(block, DividedBlock):
                # in every block: the published loop that spares the first one never reaches it
                nn.init.zeros_(block.temporal_fc.weight)

    def final_norm(self) -> nn.Module:
        return self.norm

    def blocks_in_order(self) -> tuple[nn.Module, ...]:
        return tuple(self.blocks)

    def block_cells(self, output: object, grid: GridSize) -> tuple[Tensor, Tensor | None]:
        tokens, (t, h, w) = cast(Tensor, output), grid
        tokens = from_frames(tokens, t) if self.attention == "space" else tokens
        return rearrange(tokens[:, 1:], "b (h w t) d -> b t h w d", h=h, w=w), tokens[:, :1]

    def block_norm(self) -> nn.Module:
        return self.norm

    def layer_names(self) -> tuple[tuple[str, ...], ...]:
        inner: list[tuple[str, ...]] = [(f"blocks.{i}",) for i in range(len(self.blocks))]
        inner[-1] += ("norm",)
        return (("patch_embed", "mask_token", "cls_token", "pos_embed", "time_embed"), *inner)

    def translate(self, state: Mapping[str, Tensor]) -> Translated | None:
        """Weights of SVT, of a TimeSformer or of an image ViT (DINO, DeiT, MAE, timm), with any prefix.

        Tables of positions are resized by the network's own rule, places in both directions: a clip then
        meets the positions that the source's tables would have given it. (The published loader resizes the
        places as one long line, which scrambles them.)

        Raises:
            UsageError: if they are of another architecture: more blocks, layer scale, registers, or no
                table of a square of places with a class token.
        """
        own = self.state_dict()
        found = to_timesformer(state, own, self.temporal_init)
        if found is None:
            return None
        tables = {"pos_embed": self._fit_places, "time_embed": self._fit_times}
        resized = {
            key: fit(found.state[key])
            for key, fit in tables.items()
            if key in found.state and found.state[key].shape[1] != own[key].shape[1]
        }
        return replace(found, state={**found.state, **resized}, reshaped=(*found.reshaped, *resized))

    def _fit_places(self, table: Tensor) -> Tensor:
        count = table.shape[1] - 1
        side = isqrt(count)
        if side**2 != count:
            raise UsageError(
                f"pos_embed has {count + 1} positions, not a class token's and those of a square"
            )
        places = table[0, 1:].unflatten(0, (side, side))
        places = resize_positions(places, (self.side, self.side), self.position_resize)
        return torch.cat((table[:, :1], places.flatten(0, 1).unsqueeze(0)), dim=1)

    def _fit_times(self, table: Tensor) -> Tensor:
        times = resize_positions(table.transpose(0, 1), (self.num_frames, 1), self.position_resize)
        return times.transpose(0, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        t, h, w = self.grid(*x.shape[2:])
        tokens = self._run(self._embed(x, mask), t, self.blocks)
        if self.attention == "space":
            tokens = from_frames(tokens, t)
        tokens = self.norm(tokens)
        patches = rearrange(tokens[:, 1:], "b (h w t) d -> b t h w d", h=h, w=w)
        return Features(patches=patches, cls=tokens[:, 0])

    def forward_visible(self, x: Tensor, keep: Tensor) -> VisibleFeatures:
        check_clip(x, self)
        check_keep(x, keep, self)
        grid = self.grid(*x.shape[2:])
        pixels = rows_at(self.patch_embed.pixels(self.normalise(x)).flatten(1, 3), keep)
        positions = rearrange(self._positions(*grid), "p t d -> (t p) d")
        tokens = self._with_class_token(self.patch_embed.embed(pixels) + positions[keep])
        tokens = self.norm(self._run(tokens, grid[0], self.blocks))
        return VisibleFeatures(tokens[:, 1:], keep, grid, tokens[:, 0])

    def class_attention(self, x: Tensor) -> Tensor:
        """How much of each patch the class token takes in the last block, [B, heads, T, h, w].

        Softmax weights of its spatial attention, those over its own value left out: with divided attention
        the weights of each frame sum to less than 1, with joint attention those of the whole clip.

        Args:
            x: [B, 3, T, H, W] in [0, 1].
        """
        t, h, w = self.grid(*x.shape[2:])
        tokens = self._run(self._embed(x, None), t, self.blocks[:-1])
        last = cast(DividedBlock | Block, self.blocks[-1])
        if isinstance(last, DividedBlock):
            weights = last.class_attention(tokens, t)
        else:
            weights = first_token_attention(last.attn, last.norm1(tokens))
        if self.attention == "joint":
            return rearrange(weights, "b m (h w t) -> b m t h w", h=h, w=w)
        return rearrange(weights, "(b t) m (h w) -> b m t h w", t=t, h=h)

    def _embed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens with their positions: of clips, [B, 1 + h*w*t, D], of single frames where all is space."""
        t, h, w = self.grid(*x.shape[2:])
        patches = hide(self.patch_embed(self.normalise(x)), mask, self.mask_token)
        patches = rearrange(patches, "b t h w d -> b (h w) t d")
        tokens = self._with_class_token((patches + self._positions(t, h, w)).flatten(1, 2))
        return to_frames(tokens, t) if self.attention == "space" else tokens

    def _positions(self, t: int, h: int, w: int) -> Tensor:
        """[h*w, t, D], of single frames [h*w, 1, D] where all is space."""
        positions = self._places(h, w).flatten(0, 1).unsqueeze(1)
        if self.time_embed is None:
            return positions
        times = self.time_embed.transpose(0, 1)
        return positions + resize_positions(times, (t, 1), self.position_resize).squeeze(1)

    def _with_class_token(self, tokens: Tensor) -> Tensor:
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(tokens.shape[0], -1, -1)
        return torch.cat((cls, tokens), dim=1)

    def _places(self, h: int, w: int) -> Tensor:
        """Positions of the patches of a frame, [h, w, D]."""
        table = self.pos_embed[0, 1:].unflatten(0, (self.side, self.side))
        return resize_positions(table, (h, w), self.position_resize)

    def _run(self, tokens: Tensor, num_frames: int, blocks: Iterable[nn.Module]) -> Tensor:
        for block in blocks:
            tokens = block(tokens, num_frames) if self.attention == "divided" else block(tokens)
        return tokens


class FrameEmbed(nn.Module):
    """One vector a patch of each frame, [B, t, h, w, D]: a convolution whose kernel is its stride."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        # the convolution holds the weights in their usual shape; ``forward`` applies them as one matmul
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.patch_size = patch_size

    def forward(self, clip: Tensor) -> Tensor:
        return self.embed(self.pixels(clip))

    def pixels(self, clip: Tensor) -> Tensor:
        """The numbers of every patch, [B, t, h, w, 3 * pixels of a patch]."""
        p = self.patch_size
        return rearrange(clip, "b c t (h q) (w r) -> b t h w (c q r)", q=p, r=p)

    def embed(self, pixels: Tensor) -> Tensor:
        """[..., D] of such numbers."""
        return F.linear(pixels, self.proj.weight.flatten(1), self.proj.bias)
