"""A VQ-VAE over frames or tubelets (van den Oord et al. 2017, "Neural Discrete Representation Learning")."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from vidssl.engine.precision import full_precision
from vidssl.interfaces import Reconstruction, check_clip
from vidssl.tokenizers.codebook import CodebookTokenizer, nearest_code
from vidssl.tokenizers.frame_networks import (
    as_weights,
    centred,
    frame_decoder,
    frame_encoder,
    in_chunks,
    of_length,
)

_CPU_CHUNK, _GPU_CHUNK = 16, 256  # frames or tubelets at once; on a CPU they stay in the cache


class VQVAE(CodebookTokenizer):
    """VQ-VAE on frames or tubelets: convolutions around a codebook that follows them by moving averages.

    Every frame (or tubelet of ``temporal_stride`` frames) is encoded by itself, so an image and a frame of a
    clip get the same ids; for tubelets an image is a still one. The encoder cuts it into patches in its first
    layer and spends its channels on the coarse grid: it runs in every training step of the objective that
    predicts its ids, while the decoder only ever draws pictures.

    The codebook is no parameter. It follows the encoder's outputs (van den Oord et al. 2017, App. A.1), and
    a code that hardly anything chooses is moved onto a current output that is badly served (ours). All
    codes start unused, so the first update takes the whole codebook from the data.

    Args:
        vocab_size: V, number of codes.
        code_dim: numbers per code.
        width: channels of the encoder and decoder on the grid of ids.
        stride: side of the square of pixels that one id stands for.
        temporal_stride: frames that one id stands for.
        num_res_blocks: residual blocks in the encoder and again in the decoder.
        ema_decay: fraction of the old average that a step keeps; gamma in App. A.1, where it is 0.99.
        revive_below: a code is dead when its average count falls below this fraction of an even share of
            the outputs; 0 keeps the dead dead.

    Raises:
        ValueError: if an argument is out of its range.
    """

    toy: ClassVar = {"vocab_size": 16, "code_dim": 4, "width": 8, "stride": 8, "num_res_blocks": 1}

    def __init__(
        self,
        *,
        vocab_size: int = 256,
        code_dim: int = 16,
        width: int = 64,
        stride: Literal[4, 8, 16] = 8,
        temporal_stride: Literal[1, 2] = 1,
        num_res_blocks: int = 2,
        ema_decay: float = 0.99,
        revive_below: float = 0.03,
    ) -> None:
        super().__init__()
        if stride not in (4, 8, 16):
            raise ValueError(f"stride must be 4, 8 or 16, got {stride}")
        if temporal_stride not in (1, 2):
            raise ValueError(f"temporal_stride must be 1 or 2, got {temporal_stride}")
        if min(vocab_size, code_dim, width) < 1 or num_res_blocks < 0:
            raise ValueError(
                "vocab_size, code_dim and width must be at least 1 and num_res_blocks at least 0, "
                f"got {vocab_size}, {code_dim}, {width} and {num_res_blocks}"
            )
        self.vocab_size = vocab_size
        self.strides = (temporal_stride, stride, stride)
        self.encoder = frame_encoder(width, code_dim, stride, num_res_blocks, num_frames=temporal_stride)
        self.decoder = frame_decoder(width, code_dim, stride, num_res_blocks, num_frames=temporal_stride)
        self.add_codebook(code_dim, ema_decay=ema_decay, revive_below=revive_below)

    @torch.no_grad()
    def encode(self, clip: Tensor) -> Tensor:
        check_clip(clip, self)
        self.grid(*clip.shape[2:])  # refuses sizes that leave a rest
        tubelets = self._tubelets(clip)
        with torch.autocast(clip.device.type, enabled=False):  # targets do not depend on the run's precision
            size = _CPU_CHUNK if tubelets.device.type == "cpu" else _GPU_CHUNK
            ids = in_chunks(self._encode_tubelets, as_weights(tubelets, self.encoder), size)
        return rearrange(ids, "(b t) h w -> b t h w", b=len(clip))

    def _tubelets(self, clip: Tensor) -> Tensor:
        """A clip [B, 3, T, H, W] as [B * t, 3 * temporal_stride, H, W]; an image fills a tubelet alone."""
        if clip.shape[2] == 1:
            return repeat(clip[:, :, 0], "b c h w -> b (k c) h w", k=self.strides[0])
        return rearrange(clip, "b c (t k) h w -> (b t) (k c) h w", k=self.strides[0])

    def _encode_tubelets(self, tubelets: Tensor) -> Tensor:
        outputs = self.encoder(centred(tubelets))
        vectors = rearrange(outputs, "n d h w -> n (h w) d")
        ids = nearest_code(vectors, self.codebook)
        return ids.view(len(tubelets), *outputs.shape[2:])

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Pixels [B, 3, t * temporal_stride, H, W] in [0, 1]: an image too comes back as a whole tubelet."""
        with torch.autocast(ids.device.type, enabled=False):
            pixels = self._decode_vectors(self.codebook[ids])
        return pixels.clamp(0, 1)

    def _decode_vectors(self, vectors: Tensor) -> Tensor:
        """Pixels [B, 3, T, H, W], not clamped, from code vectors [B, t, h, w, code_dim]."""
        tubelets = self.decoder(rearrange(vectors, "b t h w d -> (b t) d h w"))
        return rearrange(tubelets + 0.5, "(b t) (k c) h w -> b c (t k) h w", b=len(vectors), c=3)

    def reconstruct(self, clip: Tensor) -> Reconstruction:
        """The clip through the codebook; the regulariser is the commitment, ||z_e - sg(e)||^2 (Eq. 3)."""
        check_clip(clip, self)
        self.grid(*clip.shape[2:])
        outputs = full_precision(self.encoder(centred(self._tubelets(clip))))
        outputs = rearrange(outputs, "(b t) d h w -> b t h w d", b=len(clip))
        with torch.autocast(clip.device.type, enabled=False):
            ids = nearest_code(outputs.detach().flatten(0, 3)[None], self.codebook).view(outputs.shape[:-1])
        if self.training:
            self.collect(outputs.detach().flatten(0, 3), ids.flatten())
        codes = self.codebook[ids]
        through = outputs + (codes - outputs).detach()  # straight-through: the gradient skips the codebook
        pixels = of_length(self._decode_vectors(through), clip.shape[2])
        return Reconstruction(pixels, ids, F.mse_loss(outputs, codes))
