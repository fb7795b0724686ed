"""Tensors that lie in shards over the processes of a run (FSDP), and the whole ones that files hold.

Every function is to be called by all processes, in the same order. Tensors that are not sharded are taken as
they are, so callers need not know.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


@torch.no_grad()
def whole(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """The same tensors, none of them in shards; those that were are on the CPU.

    Args:
        keep: off in processes that only give their shards; they get nothing.
    """
    found = {}
    for key, value in tensors.items():
        if isinstance(value, DTensor):
            value = value.full_tensor().detach().cpu()  # one after another: memory for one that is not kept
        if keep:
            found[key] = value
    return found


def spread_like(tensor: Tensor, example: Tensor | None) -> Tensor:
    """A whole tensor, the same in all processes, in shards as the example is."""
    if not isinstance(example, DTensor) or tensor.shape != example.shape:
        return tensor
    placed = tensor.to(example.device)
    return distribute_tensor(placed, example.device_mesh, example.placements)


def spread_state(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A module's state, whole as files hold it, as ``load_state_dict`` takes it."""
    own = module.state_dict()
    return {key: spread_like(value, own.get(key)) for key, value in state.items()}


def in_shards(tensors: Sequence[Tensor]) -> bool:
    """Whether any of them is."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def own_shards(tensors: Sequence[Tensor]) -> list[Tensor]:
    """What this process holds of them, not copied."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


@torch.no_grad()
def norms(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of each of some tensors, [n], all in shards or none of them."""
    if not in_shards(gradients):
        return torch.stack(torch._foreach_norm(list(gradients)))
    squares = torch.stack(torch._foreach_norm(own_shards(gradients))).square()
    dist.all_reduce(squares)
    return squares.sqrt()
