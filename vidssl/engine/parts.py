"""A step's batch in parts that go through the network one after another."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vidssl.interfaces import Batch, LossOutput


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """The batch in equal parts, row by row, each with its share of every stream.

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
