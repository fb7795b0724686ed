"""Cells of the whole clip, picked one by one."""

import torch
from torch import Tensor

from vidssl.interfaces import Masker
from vidssl.interfaces.grids import GridSize
from vidssl.maskers.shapes import cells_to_hide


class Random3D(Masker):
    """Cells hidden one by one, uniformly over space and time (BEVT, Table 9, "Random-3D").

    Args:
        ratio: share of the cells that is hidden, the same number in every clip.
    """

    def __init__(self, *, ratio: float = 0.5) -> None:
        self.ratio = ratio

    def __call__(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> Tensor:
        t, h, w = grid
        hidden = cells_to_hide(self.ratio, t * h * w)
        draw = torch.rand((batch_size, t * h * w), generator=generator, device=generator.device)
        chosen = draw.topk(hidden, dim=1).indices
        mask = torch.zeros_like(draw, dtype=torch.bool).scatter_(1, chosen, True)
        return mask.unflatten(1, grid)
