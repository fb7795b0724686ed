"""What happens to a batch on the training device, after cropping."""

from dataclasses import replace

import torch
from torch import Tensor

from vidssl.interfaces import Batch


class PerClipAugment:
    """Flips clips left to right at random; one draw for all frames of a clip, as BEVT's published code does.

    Args:
        flip: probability. 0 where classes have a direction (Something-Something, moving digits).
    """

    def __init__(self, *, flip: float = 0.5) -> None:
        if not 0.0 <= flip <= 1.0:
            raise ValueError(f"flip must lie between 0 and 1, got {flip}")
        self.flip = flip

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with every slot of every view augmented, each clip by a draw of its own.

        Args:
            batch: views [B, 3, T, H, W] on one device.
            generator: on any device.
        """
        views = {
            name: tuple(self._flipped(clip, generator) for clip in slots)
            for name, slots in batch.views.items()
        }
        return replace(batch, views=views)

    def _flipped(self, clip: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.rand(len(clip), generator=generator, device=generator.device) < self.flip
        return torch.where(drawn.to(clip.device)[:, None, None, None, None], clip.flip(-1), clip)
