"""Masks of VideoMAE: the encoder's of version 1, the decoder's of version 2."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vidssl.interfaces import Masker
from vidssl.interfaces.grids import GridSize


@dataclass(frozen=True, kw_only=True)
class RandomTube(Masker):
    """Cells of a plane picked one by one, hidden at all times (VideoMAE, Sec. 3.3: "tube masking").

    Unlike ``tube``'s, the plane has no blocks, and the tube reaches through the whole clip.

    Args:
        ratio: fraction of the plane that is hidden, rounded down to whole cells as published: 176 of 196.
    """

    toy: ClassVar = {"ratio": 0.5}
    equal_counts = True
    ratio: float = 0.9

    def __call__(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> Tensor:
        t, h, w = grid
        hidden = int(self.ratio * h * w)
        if not 0 < hidden < h * w:
            raise ValueError(
                f"ratio {self.ratio} of {h}x{w} cells hides {hidden}: it must hide some and leave some"
            )
        draw = torch.rand((batch_size, h * w), generator=generator, device=generator.device)
        plane = torch.zeros_like(draw, dtype=torch.bool).scatter_(1, draw.topk(hidden, dim=1).indices, True)
        return plane.view(batch_size, 1, h, w).repeat(1, t, 1, 1)


@dataclass(frozen=True, kw_only=True)
class RunningCell(Masker):
    """One pattern in every square of 2x2 cells, moved on by a cell from slot to slot (VideoMAE v2, Sec. 3.2).

    Where the pattern starts is drawn for each clip, so that there are four masks. Each cell is hidden for
    ``ratio`` of the time.

    Args:
        ratio: fraction that is hidden: 0.25, 0.5 or 0.75, that is 1, 2 or 3 cells of a square.
    """

    equal_counts = True
    ratio: float = 0.5

    def __post_init__(self) -> None:
        if self.ratio not in (0.25, 0.5, 0.75):
            raise ValueError(f"ratio is of squares of four cells, 0.25, 0.5 or 0.75, got {self.ratio}")

    def __call__(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> Tensor:
        t, h, w = grid
        if h % 2 or w % 2:
            raise ValueError(f"squares of 2x2 cells do not tile a plane of {h}x{w}")
        device = generator.device
        start = torch.randint(4, (batch_size, 1, 1, 1), generator=generator, device=device)
        slot = torch.arange(t, device=device).view(t, 1, 1)
        row, column = torch.arange(h, device=device).view(h, 1), torch.arange(w, device=device)
        return (start + slot + 2 * (row % 2) + column % 2) % 4 < round(4 * self.ratio)
