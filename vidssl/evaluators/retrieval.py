"""Retrieval: is a video of the same class among the nearest? (R@k of CoCLR, Sec. 4.3, and its successors.)"""

from collections.abc import Mapping

import torch
from torch import Tensor

from vidssl.errors import UsageError
from vidssl.evaluators.neighbours import Backend, cosine_neighbours
from vidssl.interfaces import Evaluator, LabelledFeatures


class Retrieval(Evaluator):
    """Recall at k: test videos are queries, training videos the gallery, cosine similarity ranks them."""

    score_kind = "found"

    def __init__(
        self, *, k: tuple[int, ...] = (1, 5, 10, 20), centre: bool = False, backend: Backend = "auto"
    ) -> None:
        """
        Args:
            k: gallery videos that are looked at; a row each, named R@k.
            centre: subtract the mean of the test videos from each of them, and that of the training videos
                from those, before the cosine, as CoCLR's release does. What a test video finds then depends
                on the other test videos.
            backend: what searches, as for ``knn``.

        Raises:
            ValueError: if one is below 1 or named twice.
        """
        if not k or min(k) < 1 or len(set(k)) < len(k):
            raise ValueError(f"k must be one or more different numbers, at least 1, got {k}")
        self.k = k
        self.centre = centre
        self.backend = backend

    def class_scores(
        self, train: LabelledFeatures, test_vectors: Tensor, generator: torch.Generator
    ) -> Tensor:
        """float32 [M, K], 1 for every class among the nearest of the first k; ``generator`` is not used."""
        return next(iter(self.named_scores(train, test_vectors, generator).values()))

    def named_scores(
        self, train: LabelledFeatures, test_vectors: Tensor, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """The same for every k, from one search.

        Raises:
            UsageError: if vectors are to be centred and there is but one.
        """
        gallery, queries = train.vectors, test_vectors
        if self.centre:
            gallery, queries = _centred(gallery, "train"), _centred(queries, "test")
        _, neighbours = cosine_neighbours(gallery, queries, max(self.k), self.backend)
        labels = train.labels[neighbours]
        nothing = torch.zeros(len(labels), train.num_classes, device=labels.device)
        return {f"R@{k}": nothing.scatter(1, labels[:, :k], 1.0) for k in self.k}


def _centred(vectors: Tensor, part: str) -> Tensor:
    """Vectors [N, D] without their mean."""
    if len(vectors) < 2:
        raise UsageError(
            f"evaluator.centre: {part} has one video, which less their mean is nothing: set it to false"
        )
    return vectors - vectors.mean(0)
