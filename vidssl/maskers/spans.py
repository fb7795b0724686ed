"""Which frames of a clip a mask reaches."""

from typing import Literal

import torch
from torch import Tensor

Placement = Literal["circular", "straight"]


def check_length(length: tuple[float, float]) -> None:
    """Raises ValueError unless ``length`` is a range of shares of the clip."""
    shortest, longest = length
    if not 0 < shortest <= longest <= 1:
        raise ValueError(f"length is a range of shares of the clip, such as (0.5, 1.0), got {length}")


def draw_lengths(
    count: int, num_frames: int, length: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """int64 [count, 1]: frames each mask reaches, uniform over the range and at least 1.

    Both ends are rounded down, as in the published code: of 8 frames, (0.5, 1.0) means 4 to 8.
    """
    shortest, longest = (max(1, int(share * num_frames)) for share in length)
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

    "circular" starts at any frame and goes on at the clip's beginning when it meets its end (published
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
