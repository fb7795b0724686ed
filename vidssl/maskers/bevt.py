"""The maskers that BEVT compares (Table 9): its own tube, and four others."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vidssl.interfaces import Masker
from vidssl.interfaces.grids import GridSize
from vidssl.maskers.shapes import (
    Placement,
    blockwise_planes,
    cells_to_hide,
    check_length,
    draw_lengths,
    draw_spans,
)


@dataclass(frozen=True, kw_only=True)
class _Blocks(Masker):
    toy: ClassVar = {"min_block": 4}
    ratio: float = 0.5
    min_block: int = 16

    def planes(self, number: int, grid: GridSize, generator: torch.Generator) -> Tensor:
        """Blockwise planes, bool [number, h, w], True is hidden."""
        _, h, w = grid
        return blockwise_planes(number, h, w, ratio=self.ratio, min_block=self.min_block, generator=generator)


@dataclass(frozen=True, kw_only=True)
class _BlocksInFrames(_Blocks):
    length: tuple[float, float] = (0.5, 1.0)

    def __post_init__(self) -> None:
        check_length(self.length)


@dataclass(frozen=True, kw_only=True)
class Tube(_BlocksInFrames):
    """One blockwise plane per clip, repeated along a run of frames (BEVT, Sec. 3, "Mask strategy").

    On an image (one frame) it is BEiT's blockwise mask.

    Args:
        ratio: fraction of a masked frame that is hidden, never exceeded. BEVT: 0.5.
        length: range of the fraction of the clip's frames that are masked. BEVT: 0.5 to 1.
        min_block: cells of the smallest block. 16 in BEVT's published code, on planes of 14x14.
        placement: "circular" as in the published code, whose tube continues at the clip's beginning when it
            meets its end; "straight" as the paper says, from t to t + l.
    """

    placement: Placement = "circular"

    def __call__(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> Tensor:
        t, planes = grid[0], self.planes(batch_size, grid, generator)
        frames = draw_spans(batch_size, t, length=self.length, placement=self.placement, generator=generator)
        return frames[:, :, None, None] & planes[:, None]


@dataclass(frozen=True, kw_only=True)
class Blockwise(_Blocks):
    """One blockwise plane per clip, the same in every frame (BEiT, Algorithm 1; BEVT, Table 9, length T).

    Args:
        ratio: fraction of the plane that is hidden, never exceeded. BEiT: 75 of 196 cells, 0.3827.
        min_block: cells of the smallest block. BEiT: 16, on planes of 14x14.
    """

    def __call__(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> Tensor:
        planes = self.planes(batch_size, grid, generator)
        return planes[:, None].repeat(1, grid[0], 1, 1)


@dataclass(frozen=True, kw_only=True)
class FrameDiff(_BlocksInFrames):
    """A run of frames, each with a blockwise plane of its own (BEVT, Table 9, "Frame-Diff").

    Args:
        ratio: fraction of a masked frame that is hidden, never exceeded.
        length: range of the fraction of the clip's frames that are masked.
        min_block: cells of the smallest block.
        placement: of the run of frames, as the tube's.
    """

    placement: Placement = "circular"

    def __call__(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> Tensor:
        t = grid[0]
        planes = self.planes(batch_size * t, grid, generator)
        frames = draw_spans(batch_size, t, length=self.length, placement=self.placement, generator=generator)
        return frames[:, :, None, None] & planes.unflatten(0, (batch_size, t))


@dataclass(frozen=True, kw_only=True)
class RandomFrame(_BlocksInFrames):
    """One blockwise plane per clip, on frames that need not be neighbours (BEVT, Table 9, "Random-Frame").

    Args:
        ratio: fraction of a masked frame that is hidden, never exceeded.
        length: range of the fraction of the clip's frames that are masked.
        min_block: cells of the smallest block.
    """

    def __call__(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> Tensor:
        planes = self.planes(batch_size, grid, generator)
        lengths = draw_lengths(batch_size, grid[0], self.length, generator)
        rank = (
            torch.rand((batch_size, grid[0]), generator=generator, device=generator.device)
            .argsort(1)
            .argsort(1)
        )
        return (rank < lengths)[:, :, None, None] & planes[:, None]


@dataclass(frozen=True, kw_only=True)
class Random3D(Masker):
    """Cells hidden one by one, uniformly over space and time (BEVT, Table 9, "Random-3D"; MAE-ST).

    Args:
        ratio: fraction of the cells that is hidden, the same number in every clip.
    """

    equal_counts = True
    ratio: float = 0.5

    def __call__(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> Tensor:
        t, h, w = grid
        hidden = cells_to_hide(self.ratio, t * h * w)
        draw = torch.rand((batch_size, t * h * w), generator=generator, device=generator.device)
        chosen = draw.topk(hidden, dim=1).indices
        mask = torch.zeros_like(draw, dtype=torch.bool).scatter_(1, chosen, True)
        return mask.unflatten(1, grid)
