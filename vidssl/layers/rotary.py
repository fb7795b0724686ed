"""Rotary positions of cells in space and time (RoPE; V-JEPA 2), and who may look at whom."""

from typing import NamedTuple

import torch
from torch import Tensor

from vidssl.interfaces.grids import GridSize, kept


class Rotation(NamedTuple):
    """Angles by which neighbouring channels of queries and keys are turned.

    Attributes:
        cos, sin: float32 [..., N, head width], against [B, heads, N, head width].
    """

    cos: Tensor
    sin: Tensor

    def turn(self, x: Tensor) -> Tensor:
        """Queries or keys [B, heads, N, d], turned; at least in float32, and then of their own type."""
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        across = torch.stack((-second, first), dim=-1).flatten(-2)
        return (x * self.cos + across * self.sin).to(x.dtype)

    def at(self, places: Tensor) -> "Rotation":
        """Those of some cells, int64 [B, n], out of those of all."""
        return Rotation(self.cos[places].unsqueeze(1), self.sin[places].unsqueeze(1))

    def behind_token(self) -> "Rotation":
        """The same behind one token that has no place, and is not turned."""
        one, none = torch.ones_like(self.cos[..., :1, :]), torch.zeros_like(self.sin[..., :1, :])
        return Rotation(torch.cat((one, self.cos), dim=-2), torch.cat((none, self.sin), dim=-2))


@kept(64)
def rotary_positions(
    grid: GridSize, head_dim: int, device: torch.device, *, tiled: bool, span: int | None = None
) -> Rotation:
    """The rotation of each cell of a grid, tables [t * h * w, head_dim] (V-JEPA 2, published code).

    A third of a head's channels each, rounded down to pairs, stands for time, row and column; what is left
    over is not turned. Pair i of P turns by the cell's index times 10000 ** (-i / P).

    Args:
        tiled: sines and cosines in the order that V-JEPA 2's weights were trained with, f0 ... fn f0 ... fn,
            while neighbouring channels are paired, so that the two of a pair turn by different angles. Else,
            as V-JEPA 2.1's, f0 f0 ... fn fn: a rotation.
        span: rows and columns are scaled to run from 0 to ``span - 1`` on any grid (V-JEPA 2.1); times never.

    Raises:
        ValueError: if a head is too narrow or odd.
    """
    if head_dim % 2 or head_dim < 6:
        raise ValueError(
            f"rotary positions turn pairs of channels on three axes: a head needs an even number of them, at "
            f"least 6, got {head_dim}"
        )
    pairs = head_dim // 3 // 2
    with torch.inference_mode(False):
        frequency = 10_000 ** -(torch.arange(pairs, device="cpu", dtype=torch.float64) / pairs)
        frequency = frequency.repeat(2) if tiled else frequency.repeat_interleave(2)
        angles = torch.zeros(*grid, head_dim, dtype=torch.float64, device="cpu")
        for axis, size in enumerate(grid):
            step = 1.0 if span is None or axis == 0 else (span - 1) / max(1, size - 1)
            places = torch.arange(size, device="cpu", dtype=torch.float64) * step
            shape = [size if other == axis else 1 for other in range(3)]
            own = slice(2 * pairs * axis, 2 * pairs * (axis + 1))
            angles[..., own] = (places[:, None] * frequency).view(*shape, -1)
        flat = angles.flatten(0, 2)
        return Rotation(flat.cos().float().to(device), flat.sin().float().to(device))


def block_causal(times: Tensor, *, class_token: bool) -> Tensor:
    """Who may look at whom, bool [B, 1, N, N], if cells see their own and earlier times (LeVJEPA).

    A class token comes first; it looks at all, and nobody at it.

    Args:
        times: int64 [B, n], of each cell.
    """
    seen = times[:, None, :] <= times[:, :, None]
    if class_token:
        seen = torch.nn.functional.pad(seen, (1, 0, 1, 0))
        seen[:, 0] = True
    return seen.unsqueeze(1)
