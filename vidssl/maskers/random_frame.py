"""One blockwise plane on frames picked at random."""

from typing import ClassVar

import torch
from torch import Tensor

from vidssl.interfaces import Masker
from vidssl.interfaces.grids import GridSize
from vidssl.maskers.shapes import blockwise_planes, check_length, draw_lengths


class RandomFrame(Masker):
    """One blockwise plane per clip, on frames that need not be neighbours (BEVT, Table 9, "Random-Frame").

    Args:
        ratio: share of a masked frame that is hidden, never exceeded.
        length: range of the share of the clip's frames that are masked.
        min_block: cells of the smallest block.
    """

    toy: ClassVar = {"min_block": 4}

    def __init__(
        self, *, ratio: float = 0.5, length: tuple[float, float] = (0.5, 1.0), min_block: int = 16
    ) -> None:
        check_length(length)
        self.ratio = ratio
        self.length = length
        self.min_block = min_block

    def __call__(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> Tensor:
        t, h, w = grid
        planes = blockwise_planes(
            batch_size, h, w, ratio=self.ratio, min_block=self.min_block, generator=generator
        )
        lengths = draw_lengths(batch_size, t, self.length, generator)
        rank = torch.rand((batch_size, t), generator=generator, device=generator.device).argsort(1).argsort(1)
        return (rank < lengths)[:, :, None, None] & planes[:, None]
