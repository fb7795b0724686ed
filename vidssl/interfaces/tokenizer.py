"""Networks from clips to discrete ids."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vidssl.interfaces.grids import GridSize, divide_exactly
from vidssl.interfaces.pretrained import Recorded


class Tokenizer(Recorded, nn.Module, ABC):
    """A frozen map from pixels to discrete ids: what masked prediction predicts.

    ``named``: the name or file that its weights were loaded by; None where they were not.
    ``strides``: frames, rows and columns of pixels that one id stands for.
    ``toy``: constructor arguments of a small one, for the tests that every tokenizer passes.
    """

    toy: ClassVar[Mapping[str, object]] = {}
    vocab_size: int
    strides: GridSize
    named: str | None = None

    def grid(self, num_frames: int, height: int, width: int) -> GridSize:
        """Shape of the ids for a clip of this size; an image is one cell deep.

        Raises:
            ValueError: if the size is not a whole multiple of the strides.
        """
        temporal = 1 if num_frames == 1 else self.strides[0]
        return divide_exactly((num_frames, height, width), (temporal, *self.strides[1:]), type(self).__name__)

    @abstractmethod
    def encode(self, clip: Tensor) -> Tensor:
        """Ids int64 [B, t, h, w] in [0, vocab_size) of a clip [B, 3, T, H, W] in [0, 1]. No gradient."""

    @abstractmethod
    def decode(self, ids: Tensor) -> Tensor:
        """Pixels [B, 3, T, H, W] in [0, 1] that ids [B, t, h, w] stand for, for pictures."""


@dataclass(frozen=True)
class Reconstruction:
    """A tokenizer's reconstruction of a clip, under training.

    Attributes:
        pixels: [B, 3, T, H, W], with gradient to encoder and decoder.
        ids: int64 [B, t, h, w].
        regulariser: scalar, the family's own term (VQ-VAE: the commitment).
    """

    pixels: Tensor
    ids: Tensor
    regulariser: Tensor


class TrainableTokenizer(Tokenizer):
    """A tokenizer that a recipe can train."""

    @abstractmethod
    def reconstruct(self, clip: Tensor) -> Reconstruction:
        """Encode, quantise and decode with gradients; in training mode it may collect codebook statistics."""

    @abstractmethod
    def update_codebook(self, generator: torch.Generator) -> None:
        """Applies what ``reconstruct`` collected (EMA, revival of dead codes); called once a step."""
