"""VIMPAC's mask: boxes in space and time."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vidssl.interfaces import Masker
from vidssl.interfaces.grids import GridSize
from vidssl.interfaces.pretrained import Shown

MAX_ROUNDS = 100  # of drawing clips again that ended up hidden whole


@dataclass(frozen=True)
class Boxes:
    """Boxes on a grid, ``num_blocks`` for each of B clips.

    Attributes:
        start: int64 [B, num_blocks, 3], first cell along time, height and width.
        extent: int64 [B, num_blocks, 3], number of cells.
    """

    start: Tensor
    extent: Tensor


def largest_extents(grid: GridSize) -> GridSize:
    """Cells that a block may at most reach along each axis: two thirds of the time, half of the plane.

    A reader expects two thirds to be rounded up, as App. B.1 says; but Table 2's ratios, and the released
    code, need it rounded down. An axis of one cell, where that would leave nothing, has blocks of one.
    """
    t, h, w = grid
    return max(1, 2 * t // 3), max(1, h // 2), max(1, w // 2)


def draw_boxes(count: int, num_blocks: int, grid: GridSize, generator: torch.Generator) -> Boxes:
    """Extents uniform from 1 to the largest, starts uniform over where the box fits (VIMPAC, App. B.1)."""
    draw = torch.rand((2, count, num_blocks, 3), generator=generator, device=generator.device)
    largest = torch.tensor(largest_extents(grid), device=generator.device)
    extent = torch.minimum((draw[0] * largest).long(), largest - 1) + 1
    places = torch.tensor(grid, device=generator.device) - extent + 1
    return Boxes(torch.minimum((draw[1] * places).long(), places - 1), extent)


def cells_of(boxes: Boxes, grid: GridSize) -> Tensor:
    """bool [B, num_blocks, t, h, w]: the cells of each box."""
    inside = []
    for axis, size in enumerate(grid):
        cell = torch.arange(size, device=boxes.start.device)
        start, extent = boxes.start[..., axis, None], boxes.extent[..., axis, None]
        inside.append((cell >= start) & (cell < start + extent))
    t, h, w = inside
    return t[..., :, None, None] & h[..., None, :, None] & w[..., None, None, :]


class Block3D(Shown, Masker):
    """A number of boxes in space and time, which may overlap (VIMPAC, App. B.1).

    How much is hidden varies from clip to clip (14.5 %, standard deviation 5.4, for 5 blocks on 5x16x16). A
    clip that the blocks would hide whole, which happens on tiny grids, is drawn again.

    Args:
        num_blocks: boxes of a clip. VIMPAC chooses it for a ratio near 15 % (Table 2): 5 for ids of 5x16x16,
            6 for 5x32x32 and 10x16x16, 7 for 10x32x32.
    """

    toy: ClassVar = {"num_blocks": 2}

    def __init__(self, *, num_blocks: int = 5) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, got {num_blocks}: something must be hidden")
        self.num_blocks = num_blocks

    def __call__(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> Tensor:
        return self._draw(batch_size, grid, generator).any(dim=1)

    def groups(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> Tensor:
        """The number of each hidden cell's block, the last one where blocks overlap (published code)."""
        blocks = self._draw(batch_size, grid, generator)
        number = torch.arange(1, self.num_blocks + 1, dtype=torch.int16, device=blocks.device)
        return (blocks * number.view(-1, 1, 1, 1)).amax(dim=1).long() - 1

    def _draw(self, count: int, grid: GridSize, generator: torch.Generator) -> Tensor:
        """bool [count, num_blocks, *grid]: the cells of each block."""
        blocks = cells_of(draw_boxes(count, self.num_blocks, grid, generator), grid)
        for _ in range(MAX_ROUNDS):
            whole = blocks.any(dim=1).flatten(1).all(dim=1)
            if not bool(whole.any()):
                return blocks
            again = draw_boxes(int(whole.sum()), self.num_blocks, grid, generator)
            blocks[whole] = cells_of(again, grid)
        raise ValueError(
            f"{self.num_blocks} blocks (num_blocks) of up to {largest_extents(grid)} cells hide the whole of "
            f"a grid of {grid}: lower num_blocks or give larger clips"
        )
