"""Losses that compare all samples of a batch, for batches that go through the network part by part.

Gradient caching (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
Sec. 3). First all parts without gradients, for the vectors that are compared; then the loss of all vectors
and its gradient for each; then every part once more with the same random numbers, down the gradients of its
own loss and of its vectors. The sum is that of the undivided batch; memory is that of one part, for one more
forward pass.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from vidssl.engine.gather import sum_over_processes
from vidssl.engine.parallel import Parallel
from vidssl.interfaces import Batch, LossOutput, Objective, Progress


@dataclass(frozen=True)
class PartOutput:
    """Result of a micro-batch before the micro-batches meet.

    Attributes:
        vectors: [b, ...], of each sample, what is compared with those of all others.
        weight: scalar, how many items of this process ``own`` is a mean over; 0 without one.
        own: computes the loss that the part has without the others, a mean over the items of all processes,
            and its metrics; None where there is no such loss. Metrics that are such means are the whole
            batch's in the end, others (perplexities) the mean over the parts.
    """

    vectors: Tensor
    weight: Tensor
    own: Callable[[], LossOutput] | None = None


class JointLoss(Objective):
    """An objective with a term that compares all samples of a batch.

    The loss of a batch is ``joint_loss`` of all vectors plus the parts' own losses, each weighted with its
    fraction of all items. ``splits_batch`` says that parts are not to meet: each is a batch of its own then.
    """

    @abstractmethod
    def forward_part(self, batch: Batch, progress: Progress, generator: torch.Generator) -> PartOutput:
        """The vectors of a part; all random numbers come from ``generator`` and from torch's own."""

    @abstractmethod
    def joint_loss(self, vectors: Tensor) -> LossOutput:
        """The loss of the vectors [B, ...] of all parts, and its metrics.

        All processes are seen, as ``gather_rows`` has it. Heads that look at a batch as a whole (batch norm)
        belong here.
        """


def backward_in_parts(
    objective: JointLoss,
    parts: Sequence[Batch],
    progress: Progress,
    generator: torch.Generator,
    *,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> LossOutput:
    """Adds to all parameters the gradient of the loss of a whole batch, never holding more than one part.

    Each process adds its own; they are to be averaged afterwards. Modules that are wrapped to do so during
    ``backward`` (DDP) do not see these calls, which are of the objective's own methods.

    Buffers change as in one forward pass. A batch norm inside the backbone sees a part at a time.

    Args:
        parts: of a batch, in order.
        autocast: opened anew for each forward pass; casts that one keeps must not serve the next, which were
            made without gradients.
        scale: of losses before ``backward``, as a gradient scaler has it.

    Returns:
        The loss, without gradient, and the metrics of the whole batch.
    """
    starts, vectors, weights = _first_pass(objective, parts, progress, generator, autocast)
    together = torch.cat(vectors).requires_grad_()
    with autocast():
        joint = objective.joint_loss(together)
    scale(joint.loss).backward()
    assert together.grad is not None, "the joint loss depends on its vectors"
    gradients = together.grad.split([len(of_part) for of_part in vectors])
    loss, own_metrics = joint.loss.detach(), dict[str, Tensor]()
    for part, start, gradient, share in zip(parts, starts, gradients, _fractions(weights), strict=True):
        start.restore(generator)
        with autocast():
            output = objective.forward_part(part, progress, generator)
            # a part without one item has no mean
            own = output.own() if output.own is not None and share > 0 else None
        if own is None:
            output.vectors.backward(gradient)
            continue
        torch.autograd.backward((scale(own.loss * share), output.vectors), (None, gradient))
        loss = loss + own.loss.detach() * share
        _add(own_metrics, own.metrics, share)
    return LossOutput(loss, {**own_metrics, **joint.metrics}, joint.features)


def _first_pass(
    objective: JointLoss,
    parts: Sequence[Batch],
    progress: Progress,
    generator: torch.Generator,
    autocast: Callable[[], AbstractContextManager[object]],
) -> tuple[list["_RandomState"], list[Tensor], list[Tensor]]:
    """The random state before each part, its vectors and its weight."""
    starts, vectors, weights = [], [], []
    with torch.no_grad(), _buffers_kept(objective):
        for part in parts:
            starts.append(_RandomState.now(generator, part.device))
            with autocast():
                output = objective.forward_part(part, progress, generator)
            vectors.append(output.vectors)
            weights.append(output.weight)
    return starts, vectors, weights


def _fractions(weights: Sequence[Tensor]) -> list[float]:
    """Each part's fraction of the items of all parts and processes; equal ones if there is no item."""
    counts = sum_over_processes(torch.stack([weight.detach().double() for weight in weights])).tolist()
    total = sum(counts)
    return [count / total if total else 1 / len(counts) for count in counts]


def _add(means: dict[str, Tensor], metrics: Mapping[str, Tensor], share: float) -> None:
    for name, value in metrics.items():
        part = value.detach() * share
        means[name] = means[name] + part if name in means else part


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """Undoes writes of forward passes into buffers (running statistics)."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    yield
    for buffer, value in before:
        buffer.copy_(value)


@dataclass(frozen=True)
class _RandomState:
    """Where the sources of random numbers stood."""

    own: Tensor
    cpu: Tensor
    cuda: Tensor | None
    device: torch.device

    @staticmethod
    def now(generator: torch.Generator, device: torch.device) -> "_RandomState":
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return _RandomState(generator.get_state(), torch.get_rng_state(), cuda, device)

    def restore(self, generator: torch.Generator) -> None:
        generator.set_state(self.own)
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)


def forward_backward(
    parallel: Parallel,
    micro_batches: Sequence[Batch],
    progress: Progress,
    generator: torch.Generator,
    *,
    scaler: GradScaler,
    dtype: torch.dtype | None,
) -> LossOutput:
    """Adds the gradient of a batch's loss to all parameters; its loss, without gradient, and its metrics.

    Each micro-batch counts alike, as in the releases of BEVT and VIMPAC, unless their samples are compared.

    Args:
        dtype: of the forward pass under autocast, None for full precision.
    """
    objective, count = parallel.objective, len(micro_batches)
    autocast = partial(torch.autocast, parallel.device.type, dtype=dtype, enabled=dtype is not None)
    if count > 1 and isinstance(objective, JointLoss) and not objective.splits_batch:
        output = backward_in_parts(
            objective, micro_batches, progress, generator, autocast=autocast, scale=scaler.scale
        )
        parallel.average_gradients()
        return output
    outputs = []
    for number, micro_batch in enumerate(micro_batches, 1):
        with parallel.averaging(number == count):
            with autocast():
                output = parallel(micro_batch, progress, generator)
            scaler.scale(output.loss / count).backward()
        outputs.append(LossOutput(output.loss.detach(), output.metrics, output.features))
    return mean_output(outputs)


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """The batch in equal parts, row by row, each with its fraction of every stream.

    Raises:
        ValueError: if the rows of a stream do not divide among them.
    """
    if parts == 1:
        return [batch]
    rows = [slot for slots in batch.views.values() for slot in slots] + [*batch.indices.values()]
    uneven = next((len(tensor) for tensor in rows if len(tensor) % parts), None)
    if uneven is not None:
        raise ValueError(f"a batch of {uneven} does not divide into {parts} equal parts")

    def part(tensor: Tensor, number: int) -> Tensor:
        return tensor.chunk(parts)[number]

    return [
        Batch(
            views={name: tuple(part(slot, i) for slot in slots) for name, slots in batch.views.items()},
            indices={name: part(numbers, i) for name, numbers in batch.indices.items()},
            labels={
                stream: {name: part(numbers, i) for name, numbers in given.items()}
                for stream, given in batch.labels.items()
            },
        )
        for i in range(parts)
    ]


def mean_output(parts: Sequence[LossOutput]) -> LossOutput:
    """The mean loss of a batch's parts, of each metric too, and the features of all."""
    loss = torch.stack([part.loss for part in parts]).mean()
    features = [part.features for part in parts if part.features is not None]
    return LossOutput(
        loss, mean_metrics([part.metrics for part in parts]), torch.cat(features) if features else None
    )


def mean_metrics(parts: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """The mean of each metric over the parts of a batch that have it."""
    if len(parts) == 1:
        return parts[0]
    names = dict.fromkeys(name for part in parts for name in part)
    return {
        name: torch.stack([part[name].detach().float() for part in parts if name in part]).mean()
        for name in names
    }
