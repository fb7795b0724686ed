"""Tensors that are not finite (NaN or inf): found where weights are loaded or saved, named in one line."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vidssl.engine.parallel import own_shards
from vidssl.errors import UsageError

_NAMED = 3  # tensors that a message lists


def broken(tensors: Mapping[str, Tensor], buffers: frozenset[str] = frozenset()) -> list[str]:
    """Names of the tensors that hold NaN or inf.

    Args:
        buffers: names of those that may hold -inf, as attention masks do.
    """
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()]
    values = own_shards([tensors[name].detach() for name in names])
    sound = [
        (value < torch.inf).all() if name in buffers else value.isfinite().all()
        for name, value in zip(names, values, strict=True)
    ]
    if not sound:
        return []
    found = torch.stack([each.cpu() for each in sound]).tolist()
    return [name for name, fine in zip(names, found, strict=True) if not fine]


def buffers_of(module: nn.Module) -> frozenset[str]:
    """Names of a module's buffers."""
    return frozenset(name for name, _ in module.named_buffers())


def broken_weights(module: nn.Module, optimizer: Optimizer | None = None) -> list[str]:
    """Names of a module's weights and buffers, and of an optimizer's state, that hold NaN or inf."""
    found = broken(module.state_dict(), buffers_of(module))
    if optimizer is None:
        return found
    state = {
        f"{kind} of {name}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for kind, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }
    return found + broken(state)


def refuse_broken(source: object, tensors: Mapping[str, Tensor], buffers: frozenset[str]) -> None:
    """Refuses weights that are not finite.

    Raises:
        UsageError: naming ``source``, how many tensors hold NaN or inf, and some of them.
    """
    found = broken(tensors, buffers)
    if found:
        raise UsageError(
            f"{source}: not finite (NaN or inf): {listed(found)} of {len(tensors)}. The training that wrote "
            "these weights diverged: take an earlier checkpoint or other weights"
        )


def listed(names: list[str]) -> str:
    """How many tensors, and which: ``3 tensors (a, b, c)``."""
    more = ", ..." if len(names) > _NAMED else ""
    return f"{len(names)} tensor{'s' * (len(names) > 1)} ({', '.join(names[:_NAMED])}{more})"
