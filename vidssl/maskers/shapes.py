"""Blockwise masks of a plane, as BEiT draws them (Algorithm 1); BEVT's maskers place them in time."""

import math
from typing import Literal

import torch
from torch import Tensor

from vidssl.errors import counted

ATTEMPTS = 10  # to place one block; published code of BEiT and BEVT
MIN_ASPECT = 0.3  # of a block's height to its width, up to the inverse; published code of BEiT and BEVT
MAX_ROUNDS = 20  # in a row without one block, before a plane is declared too small for such blocks


def cells_to_hide(ratio: float, cells: int) -> int:
    """How many of ``cells`` the ratio hides: some, never all.

    Raises:
        ValueError: if that is none or all of them.
    """
    hidden = round(ratio * cells)
    if not 0 < hidden < cells:
        raise ValueError(f"ratio {ratio} of {cells} cells hides {hidden}: it must hide some and leave some")
    return hidden


def blockwise_planes(
    count: int, height: int, width: int, *, ratio: float, min_block: int, generator: torch.Generator
) -> Tensor:
    """Masks of a plane made of rectangles, bool [count, height, width] on the generator's device.

    Blocks of at least ``min_block`` cells (less where the target is near) are laid on each plane, one a
    round, until it reaches ``ratio`` exactly or ten attempts in a row would add nothing or go beyond it. So
    a mask never exceeds the ratio: of BEVT's 98 in 196 cells, 97.5 on average are hidden.

    Raises:
        ValueError: if no such block fits on such a plane.
    """
    budget = cells_to_hide(ratio, height * width)
    if min(height, width) < 2 or not 1 <= min_block <= budget:
        raise ValueError(
            f"ratio {ratio} hides {counted(budget, 'cell')} of a plane of {height}x{width}: blocks of at "
            "least "
            f"{min_block} (min_block) need a plane of 2x2 or more and a min_block between 1 and {budget}"
        )
    masks = torch.zeros(count, height, width, device=generator.device)
    growing = torch.arange(count, device=generator.device)
    left = torch.full((count,), budget, device=generator.device)
    rounds_without_block = 0
    while len(growing):
        plane = masks[growing]
        grown = torch.maximum(plane, _place_blocks(plane, left, min_block, generator))
        masks[growing] = grown
        before, left = left, budget - grown.sum(dim=(1, 2)).long()
        # a plane that found no place for a block is finished; an empty one tries again
        again = ((left < before) & (left > 0)) | (left == budget)
        rounds_without_block = rounds_without_block + 1 if bool((left == budget).any()) else 0
        if rounds_without_block == MAX_ROUNDS:
            raise ValueError(
                f"no block of {min_block} (min_block) to {counted(budget, 'cell')} fits on a plane of "
                f"{height}x{width}: "
                "lower min_block"
            )
        growing, left = growing[again], left[again]
    return masks.bool()


def _place_blocks(planes: Tensor, left: Tensor, min_block: int, generator: torch.Generator) -> Tensor:
    """One block for each plane, the first of ten attempts that adds 1 to ``left`` new cells.

    Attempts that fail change nothing, so that all ten can be drawn and judged at once.

    Args:
        planes: float [B, h, w], 1 where hidden.
        left: int64 [B], cells that may still be hidden.

    Returns:
        float [B, h, w], 1 within the block, all 0 where no attempt succeeded.
    """
    count, height, width = planes.shape
    draw = torch.rand((4, count, ATTEMPTS, 1), generator=generator, device=planes.device)
    limit = left[:, None, None]
    # near the target the bounds are the wrong way round, and the area still lies between them
    area = min_block + draw[0] * (limit - min_block)
    aspect = torch.exp((2 * draw[1] - 1) * -math.log(MIN_ASPECT))
    tall, wide = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    top, first = (draw[2] * (height - tall + 1)).floor(), (draw[3] * (width - wide + 1)).floor()

    row = torch.arange(height, dtype=draw.dtype, device=planes.device)
    column = torch.arange(width, dtype=draw.dtype, device=planes.device)
    rows = ((row >= top) & (row < top + tall)).float()
    columns = ((column >= first) & (column < first + wide)).float()
    new = tall * wide - ((rows @ planes) * columns).sum(dim=-1, keepdim=True)
    good = (tall < height) & (wide < width) & (new > 0) & (new <= limit)
    chosen = good.int().argmax(dim=1)[:, :, None]  # the first good attempt
    rows = rows.gather(1, chosen.expand(-1, -1, height)) * good.any(dim=1, keepdim=True)
    return rows.mT * columns.gather(1, chosen.expand(-1, -1, width))


Placement = Literal["circular", "straight"]


def check_length(length: tuple[float, float]) -> None:
    """Raises ValueError unless ``length`` is a range of fractions of the clip."""
    shortest, longest = length
    if not 0 < shortest <= longest <= 1:
        raise ValueError(f"length is a range of fractions of the clip, such as (0.5, 1.0), got {length}")


def draw_lengths(
    count: int, num_frames: int, length: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """int64 [count, 1]: frames each mask reaches, uniform over the range and at least 1.

    Both ends are rounded down, as in the published code: of 8 frames, (0.5, 1.0) means 4 to 8.
    """
    shortest, longest = (max(1, int(part * num_frames)) for part in length)
    return torch.randint(shortest, longest + 1, (count, 1), generator=generator, device=generator.device)


def draw_spans(
    count: int,
    num_frames: int,
    *,
    length: tuple[float, float],
    placement: Placement,
    generator: torch.Generator,
) -> Tensor:
    """bool [count, num_frames]: a run of neighbouring frames for each clip.

    "circular" starts at any frame and continues at the clip's beginning when it meets its end (published
    code of BEVT: 45 % of clips); "straight" starts where the whole run fits (paper: "from t to t + l").
    """
    lengths = draw_lengths(count, num_frames, length, generator)
    draw = torch.rand((count, 1), generator=generator, device=generator.device)
    frame = torch.arange(num_frames, device=generator.device)
    if placement == "circular":
        start = (draw * num_frames).long()
    elif placement == "straight":
        start = (draw * (num_frames - lengths + 1)).long()
    else:
        raise ValueError(f"placement must be 'circular' or 'straight', got '{placement}'")
    return (frame - start) % num_frames < lengths
