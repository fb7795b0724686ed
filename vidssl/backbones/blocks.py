"""First steps of backbones: normalised clips, patches, mask tokens, and codes of where a cell is."""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidssl.interfaces.grids import GridSize, kept
from vidssl.layers.transformer import Attention, Rotation

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalise(nn.Module):
    """Clips [B, 3, T, H, W] in [0, 1] with the training set's mean subtracted, divided by its std."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        # not in the state: external checkpoints do not have them, and the recipe holds them
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1, 1), persistent=False)

    def forward(self, clip: Tensor) -> Tensor:
        return (clip - self.mean) / self.std


class PatchEmbed(nn.Module):
    """One vector a patch, [B, t, h, w, D]: a convolution whose kernel is its stride, then LayerNorm.

    A clip that is no whole number of patches is filled up with zeros at the end of each axis.
    """

    def __init__(self, patch_size: GridSize, embed_dim: int, *, norm: bool) -> None:
        super().__init__()
        self.patch_size = patch_size
        # the convolution holds the weights in their usual shape; ``forward`` applies them as one matmul
        self.proj = nn.Conv3d(3, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dim) if norm else nn.Identity()

    def forward(self, clip: Tensor) -> Tensor:
        return self.embed(self.pixels(clip))

    def pixels(self, clip: Tensor) -> Tensor:
        """The numbers of every patch, [B, t, h, w, 3 * pixels of a patch]."""
        missing = [-size % patch for size, patch in zip(clip.shape[2:], self.patch_size, strict=True)]
        if any(missing):
            clip = F.pad(clip, (0, missing[2], 0, missing[1], 0, missing[0]))
        p, q, r = self.patch_size
        return rearrange(clip, "b c (t p) (h q) (w r) -> b t h w (c p q r)", p=p, q=q, r=r)

    def embed(self, pixels: Tensor) -> Tensor:
        """[..., D] of such numbers."""
        return self.norm(F.linear(pixels, self.proj.weight.flatten(1), self.proj.bias))


def hide(embedded: Tensor, mask: Tensor | None, mask_token: Tensor) -> Tensor:
    """Patch embeddings [B, t, h, w, D], those under the mask (bool [B, t, h, w]) replaced by the mask token.

    Raises:
        ValueError: if the mask is not on the grid of the patches.
    """
    if mask is None:
        return embedded
    if mask.shape != embedded.shape[:-1]:
        raise ValueError(
            f"mask must be {tuple(embedded.shape[:-1])} to match the patch grid, got {tuple(mask.shape)}"
        )
    return torch.where(mask.unsqueeze(-1), mask_token.to(embedded.dtype), embedded)


def first_token_attention(attention: Attention, x: Tensor, rotation: Rotation | None = None) -> Tensor:
    """Attention of the first of N tokens [B, N, D]: its weights over all others, [B, heads, N - 1].

    The weight that it gives itself is left out, so they sum to less than 1.
    """
    queries, keys, _ = attention.project(x)
    if rotation is not None:
        queries, keys = rotation.turn(queries), rotation.turn(keys)
    query = queries[:, :, :1]
    scores = (query * query.shape[-1] ** -0.5) @ keys.transpose(-2, -1)
    return scores.softmax(dim=-1)[:, :, 0, 1:]


PositionResize = Literal["nearest", "bilinear", "bicubic"]


@kept(64)
def sincos_positions(grid: GridSize, dim: int, device: torch.device) -> Tensor:
    """Sine and cosine codes of a grid's cells, float32 [t, h, w, dim].

    The channels are shared out among the axes, a third each (what is left over goes to time), so that
    time, row and column can be read apart.

    Raises:
        ValueError: if ``dim`` is odd or below 6.
    """
    if dim % 2 or dim < 6:
        raise ValueError(f"position codes need an even number of channels, at least 6, got {dim}")
    spatial = dim // 6 * 2
    widths = (dim - 2 * spatial, spatial, spatial)
    with torch.inference_mode(False):
        codes = [_axis_codes(size, width) for size, width in zip(grid, widths, strict=True)]
        t, h, w = grid
        parts = (
            codes[0].view(t, 1, 1, -1).expand(t, h, w, -1),
            codes[1].view(1, h, 1, -1).expand(t, h, w, -1),
            codes[2].view(1, 1, w, -1).expand(t, h, w, -1),
        )
        return torch.cat(parts, dim=-1).to(device)


def _axis_codes(size: int, dim: int) -> Tensor:
    """float32 [size, dim]: wavelengths rise geometrically from 2 pi to 20,000 pi cells."""
    half = dim // 2
    frequency = 10_000 ** -(torch.arange(half, device="cpu", dtype=torch.float64) / half)
    angle = torch.arange(size, device="cpu", dtype=torch.float64)[:, None] * frequency
    return torch.cat((angle.sin(), angle.cos()), dim=1).float()


def resize_positions(table: Tensor, size: tuple[int, int], rule: PositionResize) -> Tensor:
    """A table of positions [rows, columns, D] for a plane of another size, [*size, D].

    Nearest is the rule of SVT's release, with the floor: cell i of n takes entry floor(i * old / n), so 14
    rows become 0, 2, 4, 7, 9, 11 for 6. The other two take pixel centres as aligned and do not smooth
    first, as DINO resizes its positions. A line (time) is a plane of one column.
    """
    old = tuple(table.shape[:2])
    if old == size:
        return table
    if rule == "nearest":
        rows, columns = (
            torch.arange(new, device=table.device) * count // new
            for count, new in zip(old, size, strict=True)
        )
        return table[rows][:, columns]
    image = table.permute(2, 0, 1).unsqueeze(0)
    return F.interpolate(image, size=size, mode=rule, align_corners=False)[0].permute(1, 2, 0)
