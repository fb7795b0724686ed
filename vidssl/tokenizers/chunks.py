"""Running a network over frames a chunk at a time."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def as_weights(x: Tensor, network: nn.Module) -> Tensor:
    """The tensor in the type of a network's weights."""
    return x.to(next(network.parameters()).dtype)


def in_chunks(network: Callable[[Tensor], Tensor], frames: Tensor, size: int) -> Tensor:
    """What ``network`` makes of frames [N, ...], ``size`` of them at a time.

    That bounds the memory, and on a CPU it makes what a frame gives the same whatever stands beside it:
    oneDNN and MKL choose their kernels by shape, and kernels differ in the last bit, which is enough to flip
    an id that lies between two codes. There the last chunk is filled up, so that all have the same shape.
    """
    missing = -len(frames) % size if frames.device.type == "cpu" else 0
    if missing:
        frames = F.pad(frames, (*(0,) * (2 * frames.ndim - 1), missing))
    out = torch.cat([network(chunk) for chunk in frames.split(size)])
    return out[: len(out) - missing]
