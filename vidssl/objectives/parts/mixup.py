"""Mixup and CutMix on clips: two videos in one, and a target that says how much there is of each."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vidssl.errors import UsageError


def mix(
    views: Sequence[Tensor],
    targets: Tensor,
    *,
    mixup: float,
    cutmix: float,
    generator: torch.Generator,
) -> tuple[list[Tensor], Tensor]:
    """Every clip mixed with its neighbour in the batch, by one draw for the whole batch.

    Mixup (Zhang et al. 2018) adds the two, CutMix (Yun et al. 2019) replaces a box, the same one in all
    frames; where both are on, a fair coin chooses, as VideoMAE has it.

    Args:
        views: clips [B, 3, T, H, W] of the same B videos, mixed alike whatever their sizes.
        targets: float [B, K], probabilities of the classes.
        mixup: alpha of Beta(alpha, alpha), from which the first clip's share comes; 0 is off.
        cutmix: the same for CutMix.
        generator: on any device.

    Returns:
        The mixed clips and their targets. Where both are off, what was given.

    Raises:
        UsageError: if clips are stored ids.
    """
    if not (mixup or cutmix):
        return list(views), targets
    if any(view.dim() == 4 for view in views):
        raise UsageError("mixup and cutmix mix pixels, and the data gives stored ids: set both to 0")
    # torch draws no Beta from a generator of one's own
    drawn = torch.randint(2**62, (), generator=generator, device=generator.device)
    random = np.random.default_rng(int(drawn))
    boxes = cutmix > 0 and (not mixup or random.random() < 0.5)
    alpha = cutmix if boxes else mixup
    share = float(random.beta(alpha, alpha))
    if boxes:
        centre = float(random.random()), float(random.random())
        cut = [_cut(view, share, centre) for view in views]
        mixed = [clip for clip, _ in cut]
        share = sum(kept for _, kept in cut) / len(cut)
    else:
        mixed = [view * share + view.roll(1, 0) * (1 - share) for view in views]
    return mixed, targets * share + targets.roll(1, 0) * (1 - share)


def _cut(clip: Tensor, share: float, centre: tuple[float, float]) -> tuple[Tensor, float]:
    """The clip with a box of its neighbour, and the share of the frame that remains its own.

    The box has (1 - share) of the area and may reach over the edge: what is left of it counts.
    """
    height, width = clip.shape[-2:]
    side = (1 - share) ** 0.5
    top, bottom = _span(height, side, centre[0])
    left, right = _span(width, side, centre[1])
    mixed = clip.clone()
    mixed[..., top:bottom, left:right] = clip.roll(1, 0)[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _span(size: int, side: float, centre: float) -> tuple[int, int]:
    middle, half = int(size * centre), int(size * side) // 2
    return max(0, middle - half), min(size, middle + half)
