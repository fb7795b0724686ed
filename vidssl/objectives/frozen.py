"""A part that an objective uses and never trains."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vidssl.engine.devices import full_precision
from vidssl.errors import UsageError
from vidssl.interfaces import Tokenizer


class FrozenTokenizer(nn.Module):
    """Holds a tokenizer outside parameters, state and training mode; it still moves along with ``to``.

    Checkpoints therefore do not carry it (the published ones do, 54 M parameters of them), and no
    optimizer, clipping or ``train()`` reaches it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        # within a tuple PyTorch does not see it
        self._held = (tokenizer.eval().requires_grad_(False),)

    @property
    def tokenizer(self) -> Tokenizer:
        return self._held[0]

    def forward(self, clip: Tensor) -> Tensor:
        """Ids of a clip, in full precision whatever the training runs in: targets are not rounded.

        Raises:
            UsageError: if the clip is stored ids already, which an objective must ask for.
        """
        if clip.dim() == 4:
            raise UsageError(
                "the data gives stored ids, and the objective tokenizes pixels: take a source of videos"
            )
        with torch.no_grad(), torch.autocast(clip.device.type, enabled=False):
            return self.tokenizer.encode(full_precision(clip))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrozenTokenizer":
        super()._apply(fn, recurse)
        self.tokenizer._apply(fn, recurse)
        return self
