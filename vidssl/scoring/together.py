"""Features made by several processes: the batches of one process are dealt out, and gathered in their order.

A batch is never taken apart, and none is made up to fill a last round, as distributed samplers do: every
video goes through the network once, beside the very videos that it has beside it on one process.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from vidssl.data.samples import InOrder, Parcel, parcels
from vidssl.engine.distributed import World
from vidssl.errors import UsageError, counted
from vidssl.evaluators.features import KeepPatches
from vidssl.interfaces import DataSource, ViewSampler
from vidssl.protocol import FrameOrder

TIMEOUT_SECONDS = 900.0  # that a batch of videos may take
_ORDERS: tuple[FrameOrder, ...] = get_args(FrameOrder)


@dataclass(frozen=True)
class EncodedBatch:
    """What an encoder makes of a batch of videos, of which some could not be read, or all.

    Attributes:
        vectors: order of frames -> float32 [B, V, D]; empty where nothing could be read.
        numbers: int64 [B], places in the source.
        unreadable: what was wrong with each of the others.
        patches: order of frames -> [B, V, n, D]; empty where they are not kept.
    """

    vectors: Mapping[FrameOrder, Tensor]
    numbers: Tensor
    unreadable: tuple[str, ...]
    patches: Mapping[FrameOrder, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """As tensors by name, for the way to other processes."""
        text = json.dumps(self.unreadable).encode()
        found = {"numbers": self.numbers, "unreadable": torch.frombuffer(bytearray(text), dtype=torch.uint8)}
        found |= {f"vectors.{order}": part for order, part in self.vectors.items()}
        return found | {f"patches.{order}": part for order, part in self.patches.items()}


def encoded_batch(tensors: Mapping[str, Tensor]) -> EncodedBatch:
    """What ``EncodedBatch.tensors`` was made of."""
    return EncodedBatch(
        vectors={order: tensors[f"vectors.{order}"] for order in _ORDERS if f"vectors.{order}" in tensors},
        numbers=tensors["numbers"],
        unreadable=tuple(json.loads(tensors["unreadable"].numpy().tobytes())),
        patches={order: tensors[f"patches.{order}"] for order in _ORDERS if f"patches.{order}" in tensors},
    )


def encode_together(
    source: DataSource,
    views: ViewSampler,
    encode: Callable[[Parcel], EncodedBatch],
    world: World,
    *,
    batch_size: int,
    workers: int,
    keep_patches: KeepPatches | None,
) -> tuple[dict[FrameOrder, Tensor], Tensor, tuple[str, ...]]:
    """Features of a source in all processes, as one of them would have found them.

    Args:
        encode: what each process does with its batches; called for those with readable videos.
        keep_patches: gets the patch tokens of all batches in their order; None in processes that keep none.

    Returns:
        Order of frames -> float32 [N, V, D] on the CPU; int64 [N], places in the source; what was wrong with
        each of the other videos.

    Raises:
        UsageError: if no video can be read.
    """
    vectors: dict[FrameOrder, list[Tensor]] = {}
    numbers: list[Tensor] = []
    unreadable: list[str] = []
    for batch in _gathered(source, views, encode, world, batch_size, workers):
        unreadable += batch.unreadable
        numbers.append(batch.numbers)
        for order, part in batch.vectors.items():
            vectors.setdefault(order, []).append(part)
            if keep_patches is not None:
                keep_patches(order, batch.patches[order])
    if not vectors:
        named = "".join(f"\n  {line}" for line in unreadable[:20])
        raise UsageError(f"none of the {counted(len(source), 'sample')} can be read.{named}")
    return (
        {order: torch.cat(parts) for order, parts in vectors.items()},
        torch.cat(numbers),
        tuple(unreadable),
    )


def _gathered(
    source: DataSource,
    views: ViewSampler,
    encode: Callable[[Parcel], EncodedBatch],
    world: World,
    batch_size: int,
    workers: int,
) -> Iterator[EncodedBatch]:
    """All batches in their order, in every process, a round of one for each process at a time."""
    batches = [
        list(range(len(source)))[start : start + batch_size] for start in range(0, len(source), batch_size)
    ]
    own = parcels(
        InOrder(source, views),
        batches[world.rank :: world.size],
        workers=workers,
        timeout_seconds=TIMEOUT_SECONDS,
    )
    for _ in range(0, len(batches), world.size):
        parcel = next(own, None)  # in the last round some have nothing
        given = {} if parcel is None else _encoded(parcel, encode).tensors()
        yield from (encoded_batch(tensors) for tensors in world.gather_tensors(given) if tensors)


def _encoded(parcel: Parcel, encode: Callable[[Parcel], EncodedBatch]) -> EncodedBatch:
    if len(parcel.indices):
        return encode(parcel)
    return EncodedBatch({}, parcel.indices, tuple(map(str, parcel.failures)), {})
