"""k nearest neighbours by cosine, votes weighted by similarity (Wu et al. 2018), as in SVT and VIMPAC."""

import faiss
import torch
from torch import Tensor
from torch.nn import functional as F

from vidssl.interfaces import Evaluator, LabelledFeatures


class KNN(Evaluator):
    """Weighted k nearest neighbours on cosine similarity; nothing is trained."""

    def __init__(self, *, k: int = 20, temperature: float = 0.07) -> None:
        """
        Args:
            k: neighbours that vote; all of them where the training set is smaller.
            temperature: a neighbour of similarity s votes exp(s / temperature).

        Raises:
            ValueError: if either is not above 0.
        """
        if k < 1 or temperature <= 0:
            raise ValueError(f"k and temperature must be above 0, got k={k}, temperature={temperature}")
        self.k = k
        self.temperature = temperature

    def class_scores(
        self, train: LabelledFeatures, test_vectors: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Summed votes [M, K], on the device of ``test_vectors``. Exact search; ``generator`` is not used."""
        k = min(self.k, len(train.vectors))
        similarity, neighbours = nearest(
            F.normalize(train.vectors, dim=1), F.normalize(test_vectors, dim=1), k
        )
        votes = (similarity / self.temperature).exp()
        labels = train.labels[neighbours]
        return torch.zeros(len(votes), train.num_classes, device=votes.device).scatter_add_(1, labels, votes)


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
