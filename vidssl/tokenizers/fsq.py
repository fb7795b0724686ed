"""Finite scalar quantisation (Mentzer et al. 2023, "Finite Scalar Quantization: VQ-VAE Made Simple")."""

import math
from typing import ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor

from vidssl.engine.speed import full_precision
from vidssl.interfaces import Reconstruction, TrainableTokenizer, check_clip
from vidssl.tokenizers.frame_networks import as_weights, centred, frame_decoder, frame_encoder, in_chunks

_CPU_CHUNK = 16  # frames; they stay in the cache
_EPSILON = 1e-3  # keeps the outermost values off the boundary between two levels (App. A.1)


class FSQ(TrainableTokenizer):
    """FSQ on single frames: a few numbers a cell, each rounded to one of a few levels.

    A code is a list of levels, so the vocabulary is the product of ``levels``, and there is no codebook that
    could collapse: no moving averages, no revival, no commitment. Encoder and decoder are those of ``vqvae``,
    for comparisons of the quantiser alone.

    Args:
        levels: of each number of a cell; the paper advises at least 5 each: (8, 6, 5) for 240 codes,
            (8, 5, 5, 5) for 1000, (7, 5, 5, 5, 5) for 4375, (8, 8, 8, 6, 5) for 15360 (Table 1).
        width: channels of the encoder and decoder on the grid of ids.
        stride: side of the square of pixels that one id stands for.
        num_res_blocks: residual blocks in the encoder and again in the decoder.

    Raises:
        ValueError: if an argument is out of its range.
    """

    toy: ClassVar = {"levels": (4, 4), "width": 8, "stride": 8, "num_res_blocks": 1}

    def __init__(
        self,
        *,
        levels: tuple[int, ...] = (8, 5, 5, 5),
        width: int = 64,
        stride: Literal[4, 8, 16] = 8,
        num_res_blocks: int = 2,
    ) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"levels must be one or more numbers of at least 2, got {levels}")
        if stride not in (4, 8, 16):
            raise ValueError(f"stride must be 4, 8 or 16, got {stride}")
        if width < 1 or num_res_blocks < 0:
            raise ValueError(
                f"width must be at least 1 and num_res_blocks at least 0, got {width} and {num_res_blocks}"
            )
        self.vocab_size = math.prod(levels)
        self.strides = (1, stride, stride)
        self.encoder = frame_encoder(width, len(levels), stride, num_res_blocks)
        self.decoder = frame_decoder(width, len(levels), stride, num_res_blocks)
        self.levels: Tensor
        self.basis: Tensor  # what one level of each number adds to the id
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        basis = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    @torch.no_grad()
    def encode(self, clip: Tensor) -> Tensor:
        check_clip(clip, self)
        self.grid(*clip.shape[2:])  # refuses sizes that leave a rest
        frames = as_weights(rearrange(clip, "b c t h w -> (b t) c h w"), self.encoder)
        size = _CPU_CHUNK if frames.device.type == "cpu" else len(frames)
        with torch.autocast(clip.device.type, enabled=False):  # targets do not depend on the run's precision
            outputs = in_chunks(lambda chunk: self.encoder(centred(chunk)), frames, size)
        ids = self.ids_of(rearrange(outputs, "n d h w -> n h w d"))
        return rearrange(ids, "(b t) h w -> b t h w", b=len(clip))

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        with torch.autocast(ids.device.type, enabled=False):
            pixels = self._decode_codes(self.codes_of(ids))
        return pixels.clamp(0, 1)

    def reconstruct(self, clip: Tensor) -> Reconstruction:
        """The clip through the rounding, which the gradient passes as if it were not there (Eq. 1).

        There is no regulariser: it is zero.
        """
        check_clip(clip, self)
        self.grid(*clip.shape[2:])
        outputs = full_precision(self.encoder(centred(rearrange(clip, "b c t h w -> (b t) c h w"))))
        bounded = self._bounded(rearrange(outputs, "(b t) d h w -> b t h w d", b=len(clip)))
        through = bounded + (bounded.round() - bounded).detach()
        ids = self._numbered(bounded.detach().round())
        return Reconstruction(self._decode_codes(through / (self.levels // 2)), ids, outputs.new_zeros(()))

    def update_codebook(self, generator: torch.Generator) -> None:
        """Does nothing: the codes are a fixed grid."""

    def ids_of(self, outputs: Tensor) -> Tensor:
        """Ids int64 [...] of encoder outputs [..., D]."""
        return self._numbered(self._bounded(outputs).round())

    def codes_of(self, ids: Tensor) -> Tensor:
        """Points in [-1, 1]^D that ids [...] stand for, [..., D]; what the decoder reads."""
        digits = ids[..., None] // self.basis % self.levels
        half = self.levels // 2
        return as_weights((digits - half) / half, self.decoder)

    def _bounded(self, outputs: Tensor) -> Tensor:
        """Outputs squeezed so that rounding gives each number its levels, 0 in their middle (App. A.1).

        An even number of levels lies unevenly around zero, e.g. -2, -1, 0, 1.
        """
        half = (self.levels - 1) * (1 - _EPSILON) / 2
        offset = 0.5 * (self.levels % 2 == 0)
        shift = (offset / half).tan()  # as published; with atanh, zero would stay exactly zero
        return (outputs + shift).tanh() * half - offset

    def _numbered(self, rounded: Tensor) -> Tensor:
        """Ids of whole numbers between -(L // 2) and (L - 1) // 2, the first of them the fastest digit."""
        return ((rounded.long() + self.levels // 2) * self.basis).sum(dim=-1)

    def _decode_codes(self, codes: Tensor) -> Tensor:
        """Pixels [B, 3, T, H, W], not clamped, from points [B, t, h, w, D]."""
        frames = self.decoder(rearrange(codes, "b t h w d -> (b t) d h w"))
        return rearrange(frames + 0.5, "(b t) c h w -> b c t h w", b=len(codes))
