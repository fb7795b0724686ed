"""BEiT's mask: one blockwise plane, through all frames."""

from typing import ClassVar

import torch
from torch import Tensor

from vidssl.interfaces import Masker
from vidssl.interfaces.grids import GridSize
from vidssl.maskers.shapes import blockwise_planes


class Blockwise(Masker):
    """One blockwise plane per clip, the same in every frame (BEiT, Algorithm 1; BEVT, Table 9, length T).

    Args:
        ratio: share of the plane that is hidden, never exceeded. BEiT: 75 of 196 cells, 0.3827.
        min_block: cells of the smallest block. BEiT: 16, on planes of 14x14.
    """

    toy: ClassVar = {"min_block": 4}

    def __init__(self, *, ratio: float = 0.5, min_block: int = 16) -> None:
        self.ratio = ratio
        self.min_block = min_block

    def __call__(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> Tensor:
        t, h, w = grid
        planes = blockwise_planes(
            batch_size, h, w, ratio=self.ratio, min_block=self.min_block, generator=generator
        )
        return planes[:, None].repeat(1, t, 1, 1)
