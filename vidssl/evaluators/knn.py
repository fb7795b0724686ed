"""Nearest neighbours by cosine: the search, kNN classification and retrieval."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vidssl.errors import UsageError, counted
from vidssl.interfaces import Evaluator, Fits, LabelledFeatures, LabelledPatches
from vidssl.interfaces.pretrained import Recorded

if TYPE_CHECKING:
    import faiss

INSTALLED = find_spec("faiss") is not None
Backend = Literal["auto", "faiss", "torch"]
CHUNK_BYTES = 1 << 28  # of similarities that plain torch holds at once
MOST_ON_GPU = 2048  # neighbours that faiss can name on a GPU


def cosine_neighbours(
    train: Tensor, test: Tensor, k: int, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """Cosines and row numbers [M, k] of the vectors of ``train`` [N, D] nearest to each of ``test`` [M, D].

    All of them, fewer than k, where N is smaller. Arguments and errors otherwise as ``nearest``.
    """
    return nearest(F.normalize(train, dim=1), F.normalize(test, dim=1), min(k, len(train)), backend)


def nearest(train: Tensor, test: Tensor, k: int, backend: Backend = "auto") -> tuple[Tensor, Tensor]:
    """The k rows of ``train`` [N, D] with the largest inner product with each row of ``test`` [M, D].

    Args:
        k: at most N.
        backend: "faiss" on the device of the vectors; "torch" as well; "auto" is faiss wherever it is there
            and can.

    Returns:
        Similarities float32 [M, k], falling, and their row numbers int64 [M, k], on the device of ``test``.
        Which of several equally similar rows are named, and in which order, is left open.

    Raises:
        UsageError: if faiss is asked for and not installed; or on a GPU, where it is not built for that, or
            cannot name as many.
    """
    if backend == "torch" or (backend == "auto" and not INSTALLED):
        return _by_torch(train, test, k)
    if not INSTALLED:
        raise UsageError(
            "backend: faiss is not installed: install 'faiss-gpu' (without a CUDA GPU 'faiss-cpu'), or take "
            "'torch' or 'auto', which find the same neighbours"
        )
    import faiss  # here: importing takes half a second

    if test.device.type == "cpu":
        return _by_faiss(faiss.IndexFlatIP(train.shape[1]), train, test, k)
    usable = faiss.get_num_gpus() > 0
    if usable and k <= MOST_ON_GPU:
        return _by_faiss(_gpu_index(train.shape[1], test.device), train, test, k)
    if backend == "auto":
        return _by_torch(train, test, k)
    why = f"names at most {MOST_ON_GPU} neighbours" if usable else "sees none: this faiss is built for CPUs"
    raise UsageError(f"backend: faiss on a GPU {why}; take 'torch' or 'auto'")


def _by_torch(train: Tensor, test: Tensor, k: int) -> tuple[Tensor, Tensor]:
    rows = max(1, CHUNK_BYTES // (4 * len(train)))
    columns = train.float().T
    parts = [(chunk.float() @ columns).topk(k, dim=1) for chunk in test.split(rows)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def _by_faiss(index: "faiss.Index", train: Tensor, test: Tensor, k: int) -> tuple[Tensor, Tensor]:
    index.add(_array(train))
    similarity, rows = index.search(_array(test), k)
    return torch.from_numpy(similarity).to(test.device), torch.from_numpy(rows).to(test.device)


def _gpu_index(width: int, device: torch.device) -> "faiss.Index":
    import faiss

    config = faiss.GpuIndexFlatConfig()
    config.device = device.index or 0
    return faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), width, config)


def _array(vectors: Tensor) -> NDArray[np.float32]:
    return vectors.float().contiguous().cpu().numpy()


LOWEST_TEMPERATURE = 0.002  # exp(1 / 0.002) still is a number in float64


class Neighbours(Recorded, nn.Module):
    """Votes of the k nearest of some labelled vectors.

    Args:
        num_samples: N, of these vectors.
        width: D.
        num_classes: K.
        k, temperature: see ``KNN``.
    """

    vectors: Tensor
    labels: Tensor

    def __init__(self, *, num_samples: int, width: int, num_classes: int, k: int, temperature: float) -> None:
        super().__init__()
        self.num_classes, self.k, self.temperature = num_classes, k, temperature
        self.register_buffer("vectors", torch.zeros(num_samples, width))
        self.register_buffer("labels", torch.zeros(num_samples, dtype=torch.long))

    def forward(self, vectors: Tensor) -> Tensor:
        """float64 [M, K] of [M, D]."""
        train = LabelledFeatures(self.vectors, self.labels, self.num_classes)
        probe = KNN(k=self.k, temperature=self.temperature, backend="torch")
        return probe.class_scores(train, vectors, torch.Generator())


class KNN(Evaluator, Fits):
    """Weighted k nearest neighbours on cosine similarity; nothing is trained."""

    score_kind = "votes"
    learns = ("class", "set", "number")

    def __init__(
        self, *, k: int | tuple[int, ...] = 20, temperature: float = 0.07, backend: Backend = "auto"
    ) -> None:
        """
        Args:
            k: neighbours that vote; all, which a line says, where there are no more. Several give a row each.
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

    def remark(self, num_train: int) -> str:
        """Names each k that leaves no training sample out."""
        whole = ", ".join(f"k={k}" for k in self.several if k >= num_train)
        samples = counted(num_train, "training sample", verb="vote")
        return whole and f"{whole}: all {samples}, the nearer the more; fewer do with a smaller evaluator.k"

    def class_scores(
        self, train: LabelledFeatures, test_vectors: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Summed votes float64 [M, K] of the first k, on the device of ``test_vectors``.

        The search is exact; ``generator`` is not used.
        """
        return next(iter(self.named_scores(train, test_vectors, generator).values()))

    def fit(self, train: LabelledFeatures | LabelledPatches, generator: torch.Generator) -> Neighbours:
        """The training vectors themselves; of several k the first."""
        assert isinstance(train, LabelledFeatures), "patches are for evaluators that read them"
        count, width = train.vectors.shape
        made = Neighbours(
            num_samples=count,
            width=width,
            num_classes=train.num_classes,
            k=self.several[0],
            temperature=self.temperature,
        )
        made.vectors, made.labels = train.vectors, train.labels
        return made

    def named_scores(
        self, train: LabelledFeatures, test_vectors: Tensor, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Summed votes of every k, from one search; of sets and numbers the mean weighted by them."""
        similarity, neighbours = cosine_neighbours(
            train.vectors, test_vectors, max(self.several), self.backend
        )
        votes = (similarity.double() / self.temperature).exp()
        if train.outputs is not None:
            outputs = train.outputs.to(votes.device)[neighbours]  # [M, k, P]
            return {
                "" if len(self.several) == 1 else f"k={k}": (votes[:, :k, None] * outputs[:, :k]).sum(1)
                / votes[:, :k].sum(1, keepdim=True)
                for k in self.several
            }
        labels = train.labels[neighbours]
        return {
            "" if len(self.several) == 1 else f"k={k}": torch.zeros(
                len(votes), train.num_classes, dtype=votes.dtype, device=votes.device
            ).scatter_add_(1, labels[:, :k], votes[:, :k])
            for k in self.several
        }


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

    def remark(self, num_train: int) -> str:
        """Names each k that leaves no gallery video out."""
        whole = ", ".join(f"R@{k}" for k in self.k if k >= num_train)
        return whole and f"{whole}: of a gallery of {num_train}, in which every class is found by any network"

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
