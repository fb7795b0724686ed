"""Exact nearest neighbours: by faiss on a GPU, by faiss on the CPU, and in plain torch as the reference."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vidssl.errors import UsageError

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
