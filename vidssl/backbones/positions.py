"""Where a cell is: fixed codes for grids of any size, and learned tables resized to them."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vidssl.interfaces.grids import GridSize, kept

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
