"""BEVT's mask: one blockwise plane, repeated along a run of frames."""

from typing import ClassVar

import torch
from torch import Tensor

from vidssl.interfaces import Masker
from vidssl.interfaces.grids import GridSize
from vidssl.maskers.shapes import Placement, blockwise_planes, check_length, draw_spans


class Tube(Masker):
    """One blockwise plane per clip, repeated along a run of frames (BEVT, Sec. 3, "Mask strategy").

    On an image (one frame) it is BEiT's blockwise mask.

    Args:
        ratio: share of a masked frame that is hidden, never exceeded. BEVT: 0.5.
        length: range of the share of the clip's frames that are masked. BEVT: 0.5 to 1.
        min_block: cells of the smallest block. 16 in BEVT's published code, on planes of 14x14.
        placement: "circular" as in the published code, whose tube goes on at the clip's beginning when it
            meets its end; "straight" as the paper says, from t to t + l.
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
            batch_size, h, w, ratio=self.ratio, min_block=self.min_block, generator=generator
        )
        frames = draw_spans(batch_size, t, length=self.length, placement=self.placement, generator=generator)
        return frames[:, :, None, None] & planes[:, None]
