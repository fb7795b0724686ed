"""The tube's frames, each with a mask of its own."""

from typing import ClassVar

import torch
from torch import Tensor

from vidssl.interfaces import Masker
from vidssl.interfaces.grids import GridSize
from vidssl.maskers.shapes import Placement, blockwise_planes, check_length, draw_spans


class FrameDiff(Masker):
    """A run of frames, each with a blockwise plane of its own (BEVT, Table 9, "Frame-Diff").

    Args:
        ratio: share of a masked frame that is hidden, never exceeded.
        length: range of the share of the clip's frames that are masked.
        min_block: cells of the smallest block.
        placement: of the run of frames, as the tube's.
    """

    toy: ClassVar = {"min_block": 4}

    def __init__(
        self,
        *,
        ratio: float = 0.5,
        length: tuple[float, float] = (0.5, 1.0),
        min_block: int = 16,
        placement: Placement = "circular",
    ) -> None:
        check_length(length)
        self.ratio = ratio
        self.length = length
        self.min_block = min_block
        self.placement = placement

    def __call__(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> Tensor:
        t, h, w = grid
        planes = blockwise_planes(
            batch_size * t, h, w, ratio=self.ratio, min_block=self.min_block, generator=generator
        )
        frames = draw_spans(batch_size, t, length=self.length, placement=self.placement, generator=generator)
        return frames[:, :, None, None] & planes.unflatten(0, (batch_size, t))
