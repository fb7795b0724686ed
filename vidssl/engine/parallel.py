"""One objective trained by all processes of a run, each on its rows of the batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from vidssl.abilities import Blockwise
from vidssl.engine.distributed import World
from vidssl.interfaces import Batch, LossOutput, Objective, Progress

Kind = Literal["ddp", "fsdp"]


class Parallel:
    """Calls an objective so that ``backward`` leaves the mean of all processes' gradients in its parameters.

    Alone it calls the objective and nothing else. ``ddp`` keeps everything in every process. ``fsdp`` keeps a
    shard of every parameter in each (FSDP2), averaged teachers included, and brings a backbone's blocks
    together one at a time; parameters are then ``DTensor``s, so an optimizer is built afterwards.

    Buffers are each process's own; those of this package agree anyway. Only the running statistics of batch
    norms inside networks of others may differ, and ``share_buffers`` makes them the first process's.

    Args:
        objective: on the device it trains on; sharded in place by ``fsdp``.
    """

    def __init__(self, objective: Objective, world: World, kind: Kind, device: torch.device) -> None:
        self.objective = objective
        self.world = world
        self.kind = kind
        self._called: nn.Module | None = None
        if world.size > 1:
            self._called = _replicated(objective) if kind == "ddp" else _sharded(objective, device)

    def __call__(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossOutput:
        if self._called is None or not (torch.is_grad_enabled() or self.kind == "fsdp"):
            return self.objective(batch, progress, generator)
        with _quiet():
            loss, metrics, features = self._called(batch, progress, generator)
        return LossOutput(loss, metrics, features)

    @contextmanager
    def averaging(self, now: bool) -> Iterator[None]:
        """Whether the backward passes of forward passes in this context exchange gradients.

        Of several parts of a batch, the last one does: what has been added up before goes along with it.
        """
        if isinstance(self._called, FSDPModule):
            self._called.set_requires_gradient_sync(now)
            yield
        elif isinstance(self._called, DistributedDataParallel) and not now:
            with self._called.no_sync():
                yield
        else:
            yield

    def average_gradients(self) -> None:
        """Averages gradients that were not made by way of ``__call__``; ``ddp`` alone."""
        assert self.world.size == 1 or self.kind == "ddp", "shards are averaged on their way back alone"
        if self.world.size == 1:
            return
        trained = [parameter for parameter in self.objective.parameters() if parameter.requires_grad]
        found = [parameter.grad is not None for parameter in trained]
        anywhere = torch.tensor(found, dtype=torch.uint8)
        dist.all_reduce(anywhere, op=dist.ReduceOp.MAX)
        for parameter, has_one in zip(trained, anywhere.tolist(), strict=True):
            if has_one:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                dist.all_reduce(gradient)
                parameter.grad = gradient.div_(self.world.size)

    def share_buffers(self) -> None:
        """Makes every buffer the first process's."""
        if self.world.size == 1:
            return
        for buffer in self.objective.buffers():
            dist.broadcast(buffer, src=0)


class _Called(nn.Module):
    """An objective whose output the wrappers' hooks can look through: no dataclass."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(
        self, batch: Batch, progress: Progress, generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor], Tensor | None]:
        output = self.objective(batch, progress, generator)
        return output.loss, output.metrics, None if output.features is None else output.features.detach()


class _CalledAlike(_Called):
    """The same without buffers, as DDP sees it: it would overwrite them with the first process's.

    Its own switch has changed its name between versions of torch.
    """

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        return iter(())


def _replicated(objective: Objective) -> DistributedDataParallel:
    # Which parameters have a gradient may change from step to step: SVT's prototypes rest in the first
    # epochs, a mask token is of no use to an objective that hides nothing. So each step looks.
    return DistributedDataParallel(
        _CalledAlike(objective),
        find_unused_parameters=True,
    )


def _sharded(objective: Objective, device: torch.device) -> nn.Module:
    called = _Called(objective)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in list(objective.modules()):
        for block in module.blocks_in_order() if isinstance(module, Blockwise) else ():
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # the rest comes together for the whole of a forward pass, and goes apart after it in an averaged teacher
    # too, which has no backward pass
    fully_shard(called, mesh=mesh, reshard_after_forward=True)
    return called


@contextmanager
def _quiet() -> Iterator[None]:
    """Without DDP's remark, made once, that in this step no parameter was without a gradient."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
        yield
