"""Video Swin: attention in shifted space-time windows, one pyramid for clips and images."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vidssl.backbones.blocks import IMAGENET_MEAN, IMAGENET_STD, Normalise, PatchEmbed, hide
from vidssl.engine.speed import Lean
from vidssl.interfaces import Backbone, Features, HasBlocks, ResizesWindows, Translated
from vidssl.interfaces.grids import GridSize, kept
from vidssl.layers.transformer import DropPath, Mlp, check_heads, drop_path_rates, init_linear, unchanged
from vidssl.weights.swin import read_swin

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


@kept(256)
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


class WindowAttention(Lean):
    """Self-attention within each window, with a learned bias for each relative position."""

    def __init__(self, dim: int, num_heads: int, window: GridSize) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.bias_table = nn.Parameter(torch.empty(prod(2 * size - 1 for size in window), num_heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)

    def forward(self, x: Tensor, plan: WindowPlan, before: Callable[[Tensor], Tensor] = unchanged) -> Tensor:
        """[B, t, h, w, D] to the same shape, ``before`` applied first.

        Cells added to fill the last windows take part unmasked.
        """
        t, h, w = plan.grid
        qkv = self.kept_inputs(lambda x: self.qkv(self.windows(before(x), plan)), x)
        x = merge(self.proj(self.attend(qkv, plan)), plan.padded, plan.window)
        if any(plan.shift):
            x = x.roll(plan.shift, dims=(1, 2, 3))
        return x[:, :t, :h, :w]

    def windows(self, x: Tensor, plan: WindowPlan) -> Tensor:
        """[B, t, h, w, D], filled up and shifted, to [B, num_windows, N, D]."""
        t, h, w = plan.grid
        if plan.padded != plan.grid:
            x = F.pad(x, (0, 0, 0, plan.padded[2] - w, 0, plan.padded[1] - h, 0, plan.padded[0] - t))
        if any(plan.shift):
            x = x.roll([-by for by in plan.shift], dims=(1, 2, 3))
        return partition(x, plan.window)

    def attend(self, joined: Tensor, plan: WindowPlan) -> Tensor:
        """Queries, keys and values, [B, num_windows, N, 3D], to [B, num_windows, N, D]."""
        qkv = rearrange(joined, "b w n (three m d) -> three b w m n d", three=3, m=self.num_heads)
        if self.bias_table.requires_grad and torch.is_grad_enabled() and _gains_one_by_one(joined):
            attended = _OneByOne.apply(qkv, self.bias_table, plan.index, plan.blocked)
            return rearrange(attended, "b w m n d -> b w n (m d)")
        bias = self.bias_table.t().index_select(1, plan.index).unflatten(1, joined.shape[2:3] * 2)
        if plan.blocked is None:
            q, k, v = qkv.flatten(1, 2)
            attended = attend(q, k, v, bias.unsqueeze(0)).unflatten(0, joined.shape[:2])
        else:
            # windows go beside the heads, so that one set of biases and blocks serves the whole batch
            q, k, v = qkv.flatten(2, 3)
            bias = (bias + plan.blocked).flatten(0, 1).unsqueeze(0)
            attended = attend(q, k, v, bias).unflatten(1, (joined.shape[1], self.num_heads))
        return rearrange(attended, "b w m n d -> b w n (m d)")


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention of [B, heads, N, d] with ``bias`` [1, heads, N, N] added to its scores."""
    if q.is_cpu and q.dtype == torch.float16:  # scores may pass 65,504, and products take five times as long
        with torch.autocast("cpu", enabled=False):
            return attend(q.float(), k.float(), v.float(), bias.float()).half()
    bias = bias.to(q.dtype)
    if bias.requires_grad and q.device.type == "cpu":
        # PyTorch has no fused CPU kernel for a bias that learns, and its fallback takes half as long again
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return scores.add_(bias).softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _gains_one_by_one(joined: Tensor) -> bool:
    """On a CPU, with several large windows; in half precision the products are too quick for it."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False  # what they trace and transform are PyTorch's own operations
    several = joined.shape[0] * joined.shape[1] >= 4 and joined.shape[2] >= 256
    return several and joined.is_cpu and joined.dtype == torch.float32


class _OneByOne(torch.autograd.Function):
    """Attention, some heads of a window after the other, with a bias that learns.

    Its weights stay in the processor's cache. None are kept; the backward pass computes them again, which
    takes less time than to write and read them all.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, table: Tensor, index: Tensor, blocked: Tensor | None) -> Tensor:
        """[3, B, num_windows, heads, N, d], and the table and plan of its biases, to [B, ..., N, d]."""
        ctx.save_for_backward(qkv, table, index, blocked)
        attended = torch.empty_like(qkv[2])
        for place, weights in _weights(qkv, table, index, blocked):
            attended[place] = weights @ qkv[2][place]
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        qkv, table, index, blocked = ctx.saved_tensors
        of_qkv, of_table = torch.empty_like(qkv), torch.zeros_like(table)
        of_bias = table.new_zeros(table.shape[1], len(index))
        for place, weights in _weights(qkv, table, index, blocked):
            (q, k, v), above = (x[place] for x in qkv), grad[place]
            of_qkv[2][place] = weights.mT @ above
            scores = torch._softmax_backward_data(above @ v.mT, weights, -1, weights.dtype)
            of_bias[place[2]] += scores.flatten(1)
            of_qkv[0][place] = (scores @ k).mul_(q.shape[-1] ** -0.5)
            of_qkv[1][place] = (scores.mT @ q).mul_(q.shape[-1] ** -0.5)
        return of_qkv, of_table.t().index_add_(1, index, of_bias).t(), None, None


_CACHED = 2**19  # weights that are there at once


def _weights(
    qkv: Tensor, table: Tensor, index: Tensor, blocked: Tensor | None
) -> Iterator[tuple[tuple[int, int, slice], Tensor]]:
    """Places of some heads of a window, and their weights, which are gone with the next."""
    _, batch, windows, heads, n, width = qkv.shape
    room = qkv.new_empty(max(1, _CACHED // n**2), n, n)
    for first in range(0, heads, len(room)):
        some = slice(first, first + len(room))
        bias = table.t()[some].index_select(1, index).unflatten(1, (n, n))
        for b, w in product(range(batch), range(windows)):
            q, k, _ = qkv[:, b, w, some]
            scores = torch.baddbmm(bias, q, k.mT, alpha=width**-0.5, out=room[: len(q)])
            if blocked is not None:
                scores += blocked[w]
            yield (b, w, some), torch.softmax(scores, -1, out=scores)


# width of the first stage, blocks and heads of each stage: Video Swin, Sec. 3.3
VARIANTS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...]]] = {
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}


class SwinBlock(nn.Module):
    """A pre-norm block with attention in windows; every second one of a stage shifts them by half."""

    def __init__(
        self, dim: int, num_heads: int, window: GridSize, *, shifted: bool, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.window = window
        self.shifted = shifted
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def plan(self, x: Tensor) -> WindowPlan:
        """How the grid of [B, t, h, w, D] is cut into windows."""
        _, t, h, w, _ = x.shape
        return plan_windows((t, h, w), self.window, self.shifted, x.device)

    def forward(self, x: Tensor, plan: WindowPlan) -> Tensor:
        """[B, t, h, w, D] to the same shape, under the block's own plan."""
        x = x + self.drop_path(self.attn(x, plan, before=self.norm1))
        return x + self.drop_path(self.mlp(x, before=self.norm2))


class PatchMerging(nn.Module):
    """Every 2x2 patches of a frame become one of twice the width; an odd map is filled up with zeros."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, t, h, w, D] to [B, t, h/2, w/2, 2D]."""
        _, _, h, w, _ = x.shape
        if h % 2 or w % 2:
            x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2))
        # (row, column) offsets in the published order of channels, which is column after column
        quarters = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(quarters, dim=-1)))


class VideoSwin(Backbone, HasBlocks, ResizesWindows):
    """Pyramid transformer with attention in shifted space-time windows (Video Swin; BEVT Sec. 3).

    A clip and an image (T = 1) share all but the patch embedding, as in BEVT: with one frame the windows
    are one cell deep, and of the relative position bias the part of temporal distance 0 remains. A clip
    that is no whole number of patches, and a map that is no whole number of windows, is filled up with
    zeros at the end of each axis.

    Args:
        variant: a published size, which sets ``embed_dim``, ``depths`` and ``num_heads``.
        embed_dim: width of the first stage; each further stage doubles it.
        depths: blocks of each stage.
        num_heads: heads of each stage.
        patch_size: frames, rows and columns of pixels of a patch.
        window: cells of an attention window. BEVT: (8, 7, 7), for Something-Something (16, 7, 7).
        mlp_ratio: hidden width of a block's MLP over its own.
        drop_path: rate of the last block; it rises linearly from 0. BEVT: 0.3 in pre-training.
        init_std: standard deviation of the linear layers' initial weights. 0.02 is published, for widths of
            96 and more; a network of width 32 learns nothing for long with it, at once with 0.1 (measured).
        mean: of the training pixels, taken off each channel.
        std: of the training pixels, by which each channel is divided.
    """

    toy: ClassVar = {
        "embed_dim": 8,
        "depths": (2, 2),
        "num_heads": (1, 2),
        "window": (2, 3, 3),
        "drop_path": 0.0,
    }

    def __init__(
        self,
        *,
        variant: Literal["tiny", "small", "base", "large"] | None = None,
        embed_dim: int | None = None,
        depths: tuple[int, ...] | None = None,
        num_heads: tuple[int, ...] | None = None,
        patch_size: tuple[int, int, int] = (2, 4, 4),
        window: tuple[int, int, int] = (8, 7, 7),
        mlp_ratio: float = 4.0,
        drop_path: float = 0.1,
        init_std: float = 0.02,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        dim, depths, num_heads = _architecture(variant, embed_dim, depths, num_heads)
        if min(*patch_size, *window) < 1:
            raise ValueError(f"patch_size and window must be positive, got {patch_size} and {window}")
        num_stages = len(depths)
        self.stage_dims = tuple(dim * 2**i for i in range(num_stages))
        self.embed_dim = self.stage_dims[-1]
        self.strides = patch_size
        self.window = window
        p, q, r = patch_size
        self.stage_strides = tuple((p, q * 2**i, r * 2**i) for i in range(num_stages))

        self.normalise = Normalise(mean, std)
        self.embed_clip = PatchEmbed(patch_size, dim, norm=True)
        self.embed_image = PatchEmbed((1, q, r), dim, norm=True)
        self.mask_token = nn.Parameter(torch.empty(dim))
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        self.stages = nn.ModuleList(
            nn.ModuleList(
                SwinBlock(
                    width, heads, window, shifted=i % 2 == 1, mlp_ratio=mlp_ratio, drop_path=next(rates)
                )
                for i in range(depth)
            )
            for width, depth, heads in zip(self.stage_dims, depths, num_heads, strict=True)
        )
        self.merges = nn.ModuleList(PatchMerging(width) for width in self.stage_dims[:-1])
        self.norm = nn.LayerNorm(self.embed_dim)
        init_linear(self, init_std)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def grid(self, num_frames: int, height: int, width: int) -> GridSize:
        """Patches of a clip of this size, any size; the last ones of an axis may be part filling."""
        if min(num_frames, height, width) < 1:
            raise ValueError(f"a clip has at least one pixel, got {(num_frames, height, width)}")
        p, q, r = self.strides
        return -(-num_frames // p), -(-height // q), -(-width // r)

    def final_norm(self) -> nn.Module:
        return self.norm

    def blocks_in_order(self) -> tuple[nn.Module, ...]:
        return tuple(block for blocks in self.stages for block in blocks)  # type: ignore[attr-defined]

    def block_cells(self, output: object, grid: GridSize) -> tuple[Tensor, Tensor | None]:
        return cast(Tensor, output), None

    def block_norm(self) -> nn.Module:
        return self.norm

    def layer_names(self) -> tuple[tuple[str, ...], ...]:
        inner: list[tuple[str, ...]] = []
        for i, blocks in enumerate(self.stages):
            inner += [(f"merges.{i - 1}",)] if i else []  # a layer of its own, as in BEVT's finetuning
            inner += [(f"stages.{i}.{j}",) for j in range(len(blocks))]  # type: ignore[arg-type]
        inner[-1] += ("norm",)
        return (("embed_clip", "embed_image", "mask_token"), *inner)

    def translate(self, state: Mapping[str, Tensor]) -> Translated | None:
        """Released BEVT and Video Swin weights, torchvision's ``swin3d``, and image Swins, inflated."""
        return self.translate_windows(state, None)

    def translate_windows(self, state: Mapping[str, Tensor], window: GridSize | None) -> Translated | None:
        return read_swin(state, self.state_dict(), self.window, window)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        x = self.normalise(x)
        # the mask token takes the place of patches behind their norm, and is the same in both streams
        x = hide(self.embed_image(x) if x.shape[2] == 1 else self.embed_clip(x), mask, self.mask_token)
        outputs = []
        for i, blocks in enumerate(self.stages):
            x = self.merges[i - 1](x) if i else x
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, block.plan(x))  # outside of the block: what is kept is not compiled
            outputs.append(x)
        return Features(patches=self.norm(x), stages=tuple(outputs))


def _architecture(
    variant: str | None,
    embed_dim: int | None,
    depths: tuple[int, ...] | None,
    num_heads: tuple[int, ...] | None,
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    if variant is not None:
        if not (embed_dim is None and depths is None and num_heads is None):
            raise ValueError(
                f"variant '{variant}' already sets embed_dim, depths and num_heads: give it or them, not both"
            )
        return VARIANTS[variant]
    if embed_dim is None or depths is None or num_heads is None:
        raise ValueError(f"give a variant ({', '.join(VARIANTS)}) or all of embed_dim, depths and num_heads")
    if not depths or len(depths) != len(num_heads) or min(depths) < 1:
        raise ValueError(
            f"depths and num_heads name one positive number a stage, got {depths} and {num_heads}"
        )
    return embed_dim, depths, num_heads
