"""Sums and rows from all processes of a run, through which gradients go back to where they came from.

Each process takes the gradient of its own loss, and gradients are then averaged over processes, as DDP does.
What is gathered here is therefore exact if a loss of the whole batch is the mean of the processes' losses.
Without other processes every function returns its input.

A batch of all processes lies in their order: each has as many rows, and several slots of the samples (the
two clips of each video, say) follow one another. Every process draws random numbers for all of its rows, from
generators in the same state, so that a run draws the same whatever their number, see ``OwnRows``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx


def num_processes() -> int:
    """Processes of this run, 1 where nobody has set up more."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return dist.get_rank() if num_processes() > 1 else 0


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of all processes' tensors of one shape; each of them gets the sum of the sum's gradients."""
    return _Sum.apply(x) if num_processes() > 1 else x


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of all processes' tensors of one shape."""
    return sum_over_processes(x) / num_processes()


@torch.no_grad()
def max_over_processes(x: Tensor) -> Tensor:
    """The largest of all processes' values at each place of tensors of one shape. No gradient."""
    if num_processes() == 1:
        return x
    largest = x.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def gather_rows(x: Tensor) -> Tensor:
    """All processes' rows [processes * B, ...] in the order of processes, from [B, ...] on each.

    A process gets back the sum of all gradients of its rows.
    """
    return _Gather.apply(x) if num_processes() > 1 else x


def share_of_mean(count: int, device: torch.device) -> Tensor | float:
    """How many times the mean count of all processes this one's is; 1 without others.

    A mean over what one process has, times this, is its part of the mean over what all have.
    """
    if num_processes() == 1:
        return 1.0
    return count * num_processes() / sum_over_processes(torch.tensor(float(count), device=device))


@dataclass(frozen=True)
class OwnRows:
    """This process's rows among those of all processes.

    Attributes:
        count: of its own rows, all slots together.
        slots: how many times the samples follow one another; as many times the parts of ``in_parts``.
    """

    count: int
    slots: int = 1

    @property
    def all(self) -> int:
        """How many rows to draw for."""
        return self.count * _seat()[1]

    def of(self, drawn: Tensor) -> Tensor:
        """Its own rows [count, ...] of [all, ...]."""
        number, processes = _seat()
        if processes == 1:
            return drawn
        return drawn.unflatten(0, (self.slots * _parts[-1], processes, -1))[:, number].flatten(0, 1)


_parts = [1]


@contextmanager
def in_parts(parts: int) -> Iterator[None]:
    """While rows are drawn for whole batches whose parts, one behind the other, are sliced each by itself."""
    _parts.append(parts)
    try:
        yield
    finally:
        _parts.pop()


_taken: list[tuple[int, int]] = []


def _seat() -> tuple[int, int]:
    """The number of the process that is drawn for, and how many there are."""
    return _taken[-1] if _taken else (rank(), num_processes())


@contextmanager
def drawing_as(number: int, processes: int) -> Iterator[None]:
    """Lets a process without others draw what one of several would: a step of theirs is repeated alone."""
    _taken.append((number, processes))
    try:
        yield
    finally:
        _taken.pop()


class _Sum(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class _Gather(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(num_processes())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        # a reduce-scatter in two steps, which every backend has; the rows are few
        total = gradient.clone()
        dist.all_reduce(total)
        return total.chunk(num_processes())[rank()]
