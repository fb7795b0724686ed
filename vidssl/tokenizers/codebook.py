"""A codebook that follows the vectors it quantises (van den Oord et al. 2017, App. A.1)."""

import torch
import torch.distributed as dist
from torch import Tensor

from vidssl.interfaces import TrainableTokenizer

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
