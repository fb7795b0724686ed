"""The part of the training videos that chooses settings, so that the test videos never do."""

import torch
from torch import Tensor

from vidssl.interfaces import LabelledFeatures, LabelledPatches


def hold_out(
    train: LabelledFeatures | LabelledPatches, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Row numbers of a random part that is kept and of one that is held out; views of a video stay together.

    Args:
        share: of the videos that is held out, rounded down; it may come to none.
        generator: on the CPU.

    Returns:
        int64 [n] and [m] on the device of the features, n + m = N.
    """
    if train.videos is None:
        order = torch.randperm(len(train.labels), generator=generator).to(train.labels.device)
        number = int(len(order) * share)
        return order[number:], order[:number]
    videos = train.videos.unique()
    order = torch.randperm(len(videos), generator=generator).to(videos.device)
    held = torch.isin(train.videos, videos[order[: int(len(order) * share)]])
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]
