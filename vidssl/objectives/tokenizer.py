"""Training a discrete tokenizer by reconstruction."""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vidssl.interfaces import (
    Band,
    Batch,
    LossOutput,
    Objective,
    Progress,
    Tokenizer,
    TrainableTokenizer,
    Watched,
    Yardstick,
)
from vidssl.objectives.parts.perceptual import perceptual_distance


class TokenizerTraining(Objective, Watched):
    """Trains a tokenizer to rebuild images or clips from their ids (van den Oord et al. 2017, Eq. 3).

    The loss is the reconstruction error plus the tokenizer's own regulariser, and where a network is named
    the distance in its features too, as in PeCo (Dong et al. 2021). The codebook learns outside the gradient,
    after each step.

    Metrics, each from the batch at hand but for the two about codes, which look back ``usage_window`` steps:

    - ``reconstruction``: the error under ``loss``, pixels in [0, 1].
    - ``regulariser``: the tokenizer's own term, before its weight.
    - ``perceptual``: the distance in features, before its weight; only where a network is named.
    - ``psnr``: in dB; always of the squared error.
    - ``perplexity``: how many equally frequent codes would be as varied as those chosen.
    - ``used_codes``: share of the vocabulary that was chosen at all.

    Args:
        commitment_weight: beta in Eq. 3, where it is 0.25.
        loss: error of a pixel, squared ("l2", as in the paper) or absolute ("l1").
        usage_window: steps over which the use of codes is counted (ours).
        view: what is rebuilt: "image" (T = 1; of a video, a random frame) or "clip".
        perceptual: an image network of timm, such as "vit_base_patch16_224.dino", whose features are compared
            too; see ``vidssl.objectives.parts.perceptual``. None for pixels alone.
        perceptual_weight: of that distance; required with ``perceptual``.
        perceptual_init: where the network's weights come from: ``timm:NAME`` or a file as in
            ``backbone.init``, or "random", which no one gets unasked. None for those that timm has by the
            network's name.
        perceptual_layers: which features are compared, from 0; None for four, evenly spaced.

    Raises:
        ValueError: if an argument is out of its range, or a key of the perceptual loss stands alone.
        UsageError: if the network's weights cannot be had.
    """

    splits_batch = True

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        commitment_weight: float = 0.25,
        loss: Literal["l1", "l2"] = "l2",
        usage_window: int = 100,
        view: Literal["image", "clip"] = "image",
        perceptual: str | None = None,
        perceptual_weight: float | None = None,
        perceptual_init: str | None = None,
        perceptual_layers: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(tokenizer, TrainableTokenizer):
            raise ValueError(f"{type(tokenizer).__name__} cannot be trained here: it comes with its weights")
        if commitment_weight < 0:
            raise ValueError(f"commitment_weight must not be negative, got {commitment_weight}")
        if usage_window < 1:
            raise ValueError(f"usage_window must be at least 1 step, got {usage_window}")
        if loss not in ("l1", "l2"):
            raise ValueError(f"loss must be 'l1' or 'l2', got {loss!r}")
        if view not in ("image", "clip"):
            raise ValueError(f"view must be 'image' or 'clip', got {view!r}")
        self.tokenizer = tokenizer
        self.commitment_weight = commitment_weight
        self.loss = loss
        self.view = view
        self.needs_views: Mapping[str, int] = {view: 1}
        self.perceptual_weight = 0.0 if perceptual_weight is None else perceptual_weight
        self.distance = perceptual_distance(
            perceptual, weight=perceptual_weight, init=perceptual_init, layers=perceptual_layers
        )
        self.recent_counts: (
            Tensor  # a ring of histograms, one a step; saved, so that a resumed run logs the same
        )
        self.register_buffer(
            "recent_counts", torch.zeros(usage_window, tokenizer.vocab_size, dtype=torch.int64)
        )
        self._seen = self.recent_counts[0]  # of the step at hand, which may be several passes
        self._seen_at = -1

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossOutput:
        (clip,) = batch.views[self.view]
        result = self.tokenizer.reconstruct(clip)
        squared = F.mse_loss(result.pixels, clip)
        reconstruction = squared if self.loss == "l2" else F.l1_loss(result.pixels, clip)
        counts = self._count(result.ids, progress.step)
        shares = counts.double() / counts.sum()
        loss = reconstruction + self.commitment_weight * result.regulariser
        metrics = {
            "reconstruction": reconstruction.detach(),
            "regulariser": result.regulariser.detach(),
            "psnr": -10 * squared.detach().log10(),
            "perplexity": torch.special.entr(shares).sum().exp().float(),
            "used_codes": (counts > 0).float().mean(),
        }
        if self.distance is not None:
            distance = self.distance(result.pixels, clip)
            loss = loss + self.perceptual_weight * distance
            metrics["perceptual"] = distance.detach()
        return LossOutput(loss, metrics)

    def _count(self, ids: Tensor, step: int) -> Tensor:
        """How often each code was chosen, [V]: over the window under training, else in these ids alone."""
        flat = ids.flatten()  # not bincount, which waits for a GPU
        counts = flat.new_zeros(self.tokenizer.vocab_size).index_add_(0, flat, torch.ones_like(flat))
        if not self.training:
            return counts
        if step != self._seen_at:  # what an abandoned step left
            self._seen = torch.zeros_like(counts)
        self._seen, self._seen_at = self._seen + counts, step
        oldest = self.recent_counts[step % len(self.recent_counts)]
        return self.recent_counts.sum(dim=0) - oldest + self._seen

    def encoder(self) -> TrainableTokenizer:
        return self.tokenizer

    def after_step(self, progress: Progress, generator: torch.Generator) -> None:
        """The codebook follows the encoder, and this step's histogram takes the place of the oldest."""
        self.tokenizer.update_codebook(generator)
        self.recent_counts[progress.step % len(self.recent_counts)] = self._seen
        self._seen_at = -1

    def yardsticks(self) -> tuple[Yardstick, ...]:
        return (
            Yardstick(metric="psnr", label="reconstruction", says="frames are rebuilt at {}", unit="dB"),
            Yardstick(
                metric="used_codes",
                label="codes in use",
                says="{} of the codes are used",
                unit="%",
            ),
        )

    def bands(self) -> tuple[Band, ...]:
        """Of the use of codes (ours)."""
        cure = "Try more or larger batches, a smaller codebook or, with vqvae, a higher revive_below"
        return (
            Band(
                metric="used_codes",
                says="nineteen of twenty codes have not been chosen at all: most of the codebook is idle",
                cure=cure,
                lowest=0.05,
            ),
            Band(
                metric="perplexity",
                says="ever fewer codes have been chosen: the codebook is collapsing",
                cure=cure,
                share_of_best=0.25,
                zero=1.0,
            ),
        )
