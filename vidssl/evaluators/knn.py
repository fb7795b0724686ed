"""k nearest neighbours by cosine, votes weighted by similarity (Wu et al. 2018), as in SVT and VIMPAC."""

from collections.abc import Mapping

import faiss
import torch
from torch import Tensor
from torch.nn import functional as F

from vidssl.interfaces import Evaluator, LabelledFeatures

LOWEST_TEMPERATURE = 0.002  # exp(1 / 0.002) still is a number in float64


class KNN(Evaluator):
    """Weighted k nearest neighbours on cosine similarity; nothing is trained."""

    score_kind = "votes"

    def __init__(self, *, k: int | tuple[int, ...] = 20, temperature: float = 0.07) -> None:
        """
        Args:
            k: neighbours that vote; all of them where the training set is smaller. Several give a row each.
            temperature: a neighbour of similarity s votes exp(s / temperature).

        Raises:
            ValueError: if a k is below 1 or named twice, or the temperature below 0.002.
        """
        self.several = (k,) if isinstance(k, int) else k
        if not self.several or min(self.several) < 1 or len(set(self.several)) < len(self.several):
            raise ValueError(f"k must be one or more different numbers, at least 1, got {k}")
        if temperature < LOWEST_TEMPERATURE:
            raise ValueError(f"temperature must be at least {LOWEST_TEMPERATURE}, got {temperature}")
        self.temperature = temperature

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
        similarity, neighbours = cosine_neighbours(train, test_vectors, max(self.several))
        votes = (similarity.double() / self.temperature).exp()
        labels = train.labels[neighbours]
        return {
            "" if len(self.several) == 1 else f"k={k}": torch.zeros(
                len(votes), train.num_classes, dtype=votes.dtype, device=votes.device
            ).scatter_add_(1, labels[:, :k], votes[:, :k])
            for k in self.several
        }


def cosine_neighbours(train: LabelledFeatures, test_vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines and row numbers [M, k] of the training vectors nearest to each test vector, nearest first.

    All of them, fewer than k, where the training set is smaller.
    """
    some = min(k, len(train.vectors))
    return nearest(F.normalize(train.vectors, dim=1), F.normalize(test_vectors, dim=1), some)


def nearest(train: Tensor, test: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k rows of ``train`` [N, D] with the largest inner product with each row of ``test`` [M, D].

    Returns:
        Similarities float32 [M, k], falling, and their row numbers int64 [M, k]. faiss searches on the
        CPU, torch on a GPU; both are exact.
    """
    if test.device.type == "cpu":
        index = faiss.IndexFlatIP(train.shape[1])
        index.add(train.float().contiguous().numpy())
        similarity, neighbours = index.search(test.float().contiguous().numpy(), k)
        return torch.from_numpy(similarity), torch.from_numpy(neighbours)
    parts = [(chunk.float() @ train.float().T).topk(k, dim=1) for chunk in test.split(4096)]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])
