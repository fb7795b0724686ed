"""The pixels themselves: what a probe knows without any network."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from vidssl.interfaces import Backbone, Features
from vidssl.interfaces.grids import GridSize


class Pixels(Backbone):
    """A clip made small in time and space, as one vector: the baseline that every network has to beat.

    It has no weights, so no recipe can train it; ``vidssl eval pixels`` measures it. A clip of fewer frames
    or pixels than asked for repeats them.

    Args:
        num_frames: frames that are left, each the mean of its part of the clip.
        size: rows and columns that are left, each the mean of its part of the frame.
    """

    takes_mask: ClassVar[bool] = False

    def __init__(self, *, num_frames: int = 8, size: int = 8) -> None:
        super().__init__()
        if min(num_frames, size) < 1:
            raise ValueError(f"num_frames and size must be at least 1, got {num_frames} and {size}")
        self._left = num_frames, size, size
        self.embed_dim = 3 * num_frames * size * size
        self.strides = (1, 1, 1)
        self.gives_cls = True

    def grid(self, num_frames: int, height: int, width: int) -> GridSize:
        """One cell, whatever the size."""
        return 1, 1, 1

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        if mask is not None:
            raise ValueError("pixels take no mask")
        vector = F.adaptive_avg_pool3d(x, self._left).flatten(1)  # [B, 3 * num_frames * size * size]
        return Features(patches=vector[:, None, None, None], cls=vector)
