"""A VQ-VAE over frames or tubelets (van den Oord et al. 2017), and the codebook it quantises by."""

from typing import ClassVar, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from vidssl.engine.speed import full_precision
from vidssl.interfaces import Reconstruction, TrainableTokenizer, check_clip
from vidssl.tokenizers.frame_networks import (
    as_weights,
    centred,
    frame_decoder,
    frame_encoder,
    in_chunks,
    of_length,
)

_MOST_DISTANCES = 2**26  # held at once: 256 MB, where 8192 codes and a batch of clips would make tens of GB


class CodebookTokenizer(TrainableTokenizer):
    """What tokenizers with a codebook share: ids of its nearest vectors, moving averages, revival.

    The codebook is no parameter. It follows the vectors that are quantised, and a code that hardly anything
    chooses is moved onto a current vector that is badly served (ours). All codes start unused, so the first
    update takes the whole codebook from the data.
    """

    codebook: Tensor
    ema_counts: Tensor  # N_i, Eq. 6
    ema_sums: Tensor  # m_i, Eq. 7
    seen_counts: Tensor  # what `reconstruct` collects for the next update
    seen_sums: Tensor

    def add_codebook(self, code_dim: int, *, ema_decay: float, revive_below: float) -> None:
        """A fresh codebook of ``vocab_size`` vectors, for the constructor.

        Raises:
            ValueError: if a share is out of its range.
        """
        if not 0 <= ema_decay < 1 or not 0 <= revive_below < 1:
            raise ValueError(
                f"ema_decay and revive_below must lie in [0, 1), got {ema_decay} and {revive_below}"
            )
        self.ema_decay = ema_decay
        self.revive_below = revive_below
        size = self.vocab_size
        self.register_buffer("codebook", torch.randn(size, code_dim))
        self.register_buffer("ema_counts", torch.zeros(size))
        self.register_buffer("ema_sums", torch.zeros(size, code_dim))
        self.register_buffer("seen_counts", torch.zeros(size), persistent=False)
        self.register_buffer("seen_sums", torch.zeros(size, code_dim), persistent=False)
        self._candidates: Tensor | None = None  # [M, code_dim], vectors that a dead code may move onto

    @torch.no_grad()
    def collect(self, outputs: Tensor, ids: Tensor) -> None:
        """Counts outputs [M, D] and their ids [M] for the next update."""
        if not torch.isfinite(outputs).all():
            return  # the loss is not finite either: the step will be skipped, and so must this be
        self.seen_counts.index_add_(0, ids, torch.ones_like(outputs[:, 0]))
        self.seen_sums.index_add_(0, ids, outputs)
        self._candidates = outputs

    @torch.no_grad()
    def update_codebook(self, generator: torch.Generator) -> None:
        """One step of the moving averages (Eq. 6 to 8), then dead codes move onto current outputs.

        Processes share their counts and sums; the first one draws for all, so codebooks stay equal.
        """
        counts, sums = self.seen_counts, self.seen_sums
        if dist.is_initialized():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        total = float(counts.sum())
        if total > 0:
            self.ema_counts.lerp_(counts, 1 - self.ema_decay)
            self.ema_sums.lerp_(sums, 1 - self.ema_decay)
            alive = self.ema_counts > 0
            self.codebook[alive] = self.ema_sums[alive] / self.ema_counts[alive, None]
            self._revive(total / self.vocab_size, generator)
        self.seen_counts.zero_()
        self.seen_sums.zero_()
        self._candidates = None

    def _revive(self, even_share: float, generator: torch.Generator) -> None:
        """Moves each dead code onto an output drawn with the squared distance to its code as weight."""
        dead = (self.ema_counts < self.revive_below * even_share).nonzero()[:, 0]
        if len(dead) and self._candidates is not None:
            vectors = _far_outputs(self._candidates, self.codebook, len(dead), generator)
            self.codebook[dead] = vectors
            self.ema_counts[dead] = even_share  # a fair start: it takes many idle steps to die again
            self.ema_sums[dead] = vectors * even_share
        if dist.is_initialized():
            for shared in (self.codebook, self.ema_counts, self.ema_sums):
                dist.broadcast(shared, src=0)


def nearest_code(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Ids int64 [n, m] of the codes [V, D] that lie nearest to ``vectors`` [n, m, D] (Eq. 1)."""
    axis = 0 if len(vectors) > 1 else 1
    size = max(1, _MOST_DISTANCES // (vectors.shape[1 - axis] * len(codebook)))
    half_norms = codebook.square().sum(dim=1) / 2
    found = []
    for part in vectors.split(size, dim=axis):
        table = codebook.t().expand(len(part), -1, -1)
        found.append(torch.baddbmm(half_norms, part, table, alpha=-1).argmin(dim=-1))
    return torch.cat(found, dim=axis)


def _far_outputs(outputs: Tensor, codebook: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` of the outputs [M, D], the likelier the worse their nearest code serves them."""
    ids = nearest_code(outputs[None], codebook)[0]
    weights = (outputs - codebook[ids]).square().sum(dim=1).add(1e-8).to(generator.device)
    repeat_draws = count > len(outputs)  # then twins are drawn, and all but one of them will die again
    chosen = torch.multinomial(weights, count, replacement=repeat_draws, generator=generator)
    return outputs[chosen.to(outputs.device)]


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
