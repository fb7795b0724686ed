"""One objective trained by all processes of a run, each on its rows of the batch."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from inspect import signature
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vidssl.engine.distributed import World
from vidssl.errors import UsageError
from vidssl.interfaces import Batch, HasBlocks, LossOutput, Objective, Progress

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs

Wrapper = Literal["ddp", "fsdp"]


class Parallel:
    """Calls an objective so that ``backward`` leaves the mean of all processes' gradients in its parameters.

    Alone it calls the objective and nothing else. ``ddp`` keeps everything in every process. ``fsdp`` keeps a
    shard of every parameter in each (FSDP2), averaged teachers included, and brings a backbone's blocks
    together one at a time; parameters are then ``DTensor``s, so an optimizer is built afterwards.

    Buffers are each process's own; those of this package agree anyway. Only the running statistics of batch
    norms inside external networks may differ, and ``share_buffers`` makes them rank 0's.

    Args:
        objective: on the device it trains on; sharded in place by ``fsdp``.

    Raises:
        UsageError: if it is to be sharded on CPUs by a torch that cannot.
    """

    def __init__(self, objective: Objective, world: World, kind: Wrapper, device: torch.device) -> None:
        self.objective = objective
        self.world = world
        self.kind = kind
        self.device = device
        self._now = True
        self._replicas: DistributedDataParallel | None = None
        self._shards: _Called | None = None
        if world.size > 1 and kind == "fsdp" and device.type == "cpu" and not can_shard_on_cpus():
            raise UsageError(
                f"run.parallel is fsdp, and torch {torch.__version__} adds up gradients on CPUs that it is "
                "to average: take a newer torch, or set run.parallel=ddp"
            )
        if world.size > 1:
            self._from_first([*objective.parameters(), *objective.buffers()])
        if world.size > 1 or (dist.is_available() and dist.is_initialized()):  # a group of one, too
            self._shards = _sharded(objective, device) if kind == "fsdp" else None

    def __call__(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossOutput:
        """The objective's output.

        Raises:
            UsageError: if parameters get no gradient any more that had one in the first step, under ``ddp``.
        """
        if self._shards is not None:
            from torch.distributed.fsdp import FSDPModule

            assert isinstance(self._shards, FSDPModule)
            self._shards.set_requires_gradient_sync(self._now)
            return LossOutput(*self._shards(batch, progress, generator))
        if self.world.size == 1 or not torch.is_grad_enabled():
            return self.objective(batch, progress, generator)
        if self._replicas is None:
            output = self.objective(batch, progress, generator)
            self._replicas = self._replicated(output.loss)
            return self._through(self._replicas, output)
        return self._through(self._replicas, batch, progress, generator)

    def _replicated(self, loss: Tensor) -> DistributedDataParallel:
        """DDP, which exchanges gradients in backward passes, made before the first one begins."""
        # Which parameters have none may change later: SVT's prototypes rest in the first epochs, and a mask
        # token is of no use to an objective that hides nothing. Where there are such, every step looks anew
        # which they are; elsewhere that would cost time, and torch would complain.
        reached = _parameters_behind(loss)
        trained = [parameter for parameter in self.objective.parameters() if parameter.requires_grad]
        unused = any(parameter not in reached for parameter in trained)
        return unsynchronised(_CalledAlike(self.objective), find_unused=self.world.any(unused))

    def _through(self, replicas: DistributedDataParallel, *arguments: object) -> LossOutput:
        try:
            with nullcontext() if self._now else replicas.no_sync():
                return LossOutput(*replicas(*arguments))
        except RuntimeError as error:
            if "finished reduction in the prior iteration" not in str(error):
                raise
            raise UsageError(
                f"parameters of this {type(self.objective).__name__} that had a gradient in the first step "
                "have none in a later one, which run.parallel=ddp cannot follow: set run.parallel=fsdp"
            ) from error

    @contextmanager
    def averaging(self, now: bool) -> Iterator[None]:
        """Whether the backward passes of forward passes in this context exchange gradients.

        Of several parts of a batch, the last one does: what has been added up before goes along with it.
        """
        before, self._now = self._now, now
        try:
            yield
        finally:
            self._now = before

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
        """Makes every buffer rank 0's."""
        if self.world.size > 1:
            self._from_first(list(self.objective.buffers()))

    @torch.no_grad()
    def _from_first(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


class _Called(nn.Module):
    """An objective whose output the wrappers' hooks can look through: no dataclass."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(
        self, first: Batch | LossOutput, *rest: object
    ) -> tuple[Tensor, Mapping[str, Tensor], Tensor | None]:
        """Loss, metrics and features of what an objective takes; or of an output that there is already."""
        output = first if isinstance(first, LossOutput) else self.objective(first, *rest)  # type: ignore[arg-type]
        return output.loss, output.metrics, None if output.features is None else output.features.detach()


class _CalledAlike(_Called):
    """The same without buffers, as DDP sees it: it would overwrite them with rank 0's.

    Its own switch has changed its name between versions of torch.
    """

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        return iter(())


def can_shard_on_cpus() -> bool:
    """Whether FSDP2 gets averages of gradients from gloo; to be called by all processes.

    It asks gloo for them, and gloo of torch 2.6 and 2.7 gives sums, and says nothing.
    """
    mean = torch.empty(1)
    # the name that newer versions of torch have for it; they warn of the other
    average = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    average(mean, torch.ones(dist.get_world_size()), op=dist.ReduceOp.AVG)
    return mean.item() == 1


def unsynchronised(module: nn.Module, *, find_unused: bool) -> DistributedDataParallel:
    """DDP that leaves parameters alone when it is made: a graph of them is there, and all have the same."""
    if "init_sync" in signature(DistributedDataParallel).parameters:
        return DistributedDataParallel(module, find_unused_parameters=find_unused, init_sync=False)
    # torch 2.6 always writes rank 0's parameters over everybody's. They are the same already, so
    # that the graph remains true of them, and need only be taken for untouched.
    with ExitStack() as untouched:
        for parameter in module.parameters():
            untouched.enter_context(torch.autograd._unsafe_preserve_version_counter(parameter))
        return DistributedDataParallel(module, find_unused_parameters=find_unused)


def _sharded(objective: Objective, device: torch.device) -> _Called:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    called = _Called(objective)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in list(objective.modules()):
        for block in module.blocks_in_order() if isinstance(module, HasBlocks) else ():
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # the rest comes together for the whole of a forward pass, and goes apart after it in an averaged teacher
    # too, which has no backward pass
    fully_shard(called, mesh=mesh, reshard_after_forward=True)
    return called


def _parameters_behind(loss: Tensor) -> set[Tensor]:
    """The leaves of the graph that leads to a loss."""
    found: set[Tensor] = set()
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)  # of those nodes that add up a leaf's gradient
        if isinstance(leaf, Tensor):
            found.add(leaf)
        nodes += [following for following, _ in node.next_functions]
    return found


@torch.no_grad()
def whole(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """The same tensors, none of them in shards; those that were are on the CPU.

    Args:
        keep: off in processes that only give their shards; they get nothing.
    """
    found = {}
    for key, value in tensors.items():
        if _is_sharded(value):
            value = value.full_tensor().detach().cpu()  # one after another: memory for one that is not kept
        if keep:
            found[key] = value
    return found


def spread_like(tensor: Tensor, example: Tensor | None) -> Tensor:
    """A whole tensor, the same in all processes, in shards as the example is."""
    if example is None or not _is_sharded(example) or tensor.shape != example.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    placed = tensor.to(example.device)
    return distribute_tensor(placed, example.device_mesh, example.placements)


def spread_state(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A module's state, whole as files hold it, as ``load_state_dict`` takes it."""
    own = module.state_dict()
    return {key: spread_like(value, own.get(key)) for key, value in state.items()}


def in_shards(tensors: Sequence[Tensor]) -> bool:
    """Whether any of them is."""
    return any(map(_is_sharded, tensors))


def _is_sharded(tensor: Tensor) -> "TypeIs[DTensor]":
    """Whether it is a ``DTensor``; none exists before their module is imported, which takes a second."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def own_shards(tensors: Sequence[Tensor]) -> list[Tensor]:
    """This process's shards of them, not copied."""
    return [tensor.to_local() if _is_sharded(tensor) else tensor for tensor in tensors]


@torch.no_grad()
def norms(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of each of some tensors, [n], all in shards or none of them."""
    if not in_shards(gradients):
        return torch.stack(torch._foreach_norm(list(gradients)))
    squares = torch.stack(torch._foreach_norm(own_shards(gradients))).square()
    dist.all_reduce(squares)
    return squares.sqrt()
