"""k nearest neighbours by cosine, votes weighted by similarity (Wu et al. 2018), as in SVT and VIMPAC."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vidssl.evaluators.neighbours import Backend, cosine_neighbours
from vidssl.interfaces import Evaluator, LabelledFeatures

LOWEST_TEMPERATURE = 0.002  # exp(1 / 0.002) still is a number in float64


class KNN(Evaluator):
    """Weighted k nearest neighbours on cosine similarity; nothing is trained."""

    score_kind = "votes"

    def __init__(
        self, *, k: int | tuple[int, ...] = 20, temperature: float = 0.07, backend: Backend = "auto"
    ) -> None:
        """
        Args:
            k: neighbours that vote; all of them where the training set is smaller. Several give a row each.
            temperature: a neighbour of similarity s votes exp(s / temperature).
            backend: what searches, exactly in any case: "faiss", plain "torch", or "auto", faiss wherever it
                is there and can. Each on the GPU where the features are there.

        Raises:
            ValueError: if a k is below 1 or named twice, or the temperature below 0.002.
        """
        self.several = (k,) if isinstance(k, int) else k
        if not self.several or min(self.several) < 1 or len(set(self.several)) < len(self.several):
            raise ValueError(f"k must be one or more different numbers, at least 1, got {k}")
        if temperature < LOWEST_TEMPERATURE:
            raise ValueError(f"temperature must be at least {LOWEST_TEMPERATURE}, got {temperature}")
        self.temperature = temperature
        self.backend = backend

    def class_scores(
        self, train: LabelledFeatures, test_vectors: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Summed votes float64 [M, K] of the first k, on the device of ``test_vectors``.

        The search is exact; ``generator`` is not used.
        """
        return next(iter(self.named_scores(train, test_vectors, generator).values()))

    def named_scores(
        self, train: LabelledFeatures, test_vectors: Tensor, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Summed votes of every k, from one search."""
        similarity, neighbours = cosine_neighbours(
            train.vectors, test_vectors, max(self.several), self.backend
        )
        votes = (similarity.double() / self.temperature).exp()
        labels = train.labels[neighbours]
        return {
            "" if len(self.several) == 1 else f"k={k}": torch.zeros(
                len(votes), train.num_classes, dtype=votes.dtype, device=votes.device
            ).scatter_add_(1, labels[:, :k], votes[:, :k])
            for k in self.several
        }
