"""Clips whose frames are put in another order: does a network use time at all? BEVT, Table 2."""

import torch
from torch import Tensor

from vidssl.config.protocol import FrameOrder


def in_order(clip: Tensor, order: FrameOrder, numbers: Tensor, *, draw: int) -> Tensor:
    """The clips with their frames in that order.

    "single" repeats one random frame, "shuffled" permutes the frames at random (a permutation may be the
    identity), as BEVT does; "reversed" is not the paper's.

    Args:
        clip: [B, C, T, H, W], or ids [B, t, h, w] of frames.
        numbers: int64 [B], numbers of the videos; what is random depends on them and on ``draw`` alone.
        draw: tells the clips of one video apart.

    Returns:
        As ``clip``.
    """
    if order == "normal":
        return clip
    time = clip.dim() - 3
    if order == "reversed":
        return clip.flip(time)
    num_frames = clip.shape[time]
    rows = []
    for number in numbers.tolist():
        generator = torch.Generator().manual_seed(65_537 * number + draw)
        if order == "single":
            rows.append(torch.randint(num_frames, (1,), generator=generator).expand(num_frames))
        elif order == "shuffled":
            rows.append(torch.randperm(num_frames, generator=generator))
        else:
            raise ValueError(f"unknown order of frames '{order}'")
    frames = torch.stack(rows).to(clip.device)
    every = torch.arange(len(clip), device=clip.device)[:, None]
    return clip.transpose(1, time)[every, frames].transpose(1, time)
