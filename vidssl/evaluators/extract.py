"""Features of the videos of a source."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar, get_args

import torch
from rich.console import Console
from torch import Tensor

from vidssl.config.protocol import FrameOrder, Layers, PatchType
from vidssl.data import loader, samples
from vidssl.data.sources import listing, origins
from vidssl.engine import distributed, speed
from vidssl.engine.logging import progress_bar
from vidssl.errors import UsageError, counted
from vidssl.evaluators.features import FeatureTable, KeepPatches, encode_views, in_memory, joined
from vidssl.interfaces import Backbone, DataSource, Tokenizer, ViewSampler, num_listed

Read = TypeVar("Read")

TIMEOUT_SECONDS = 900.0  # that a batch of videos may take
_ORDERS: tuple[FrameOrder, ...] = get_args(FrameOrder)


ALONE = distributed.World()


@dataclass(frozen=True)
class Encoded:
    """Features of the videos of a source, or of a batch of them.

    Attributes:
        vectors: order of frames, "normal" among them -> float32 [N, V, D]; empty where none could be read.
        numbers: int64 [N], their places in the source.
        unreadable: the error of each of the others.
        patches: order of frames -> [N, V, n, D] in half precision, on the CPU; empty where not asked for.
    """

    vectors: Mapping[FrameOrder, Tensor]
    numbers: Tensor
    unreadable: tuple[str, ...]
    patches: Mapping[FrameOrder, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """As tensors by name, to be sent to other processes."""
        text = json.dumps(self.unreadable).encode()
        found = {"numbers": self.numbers, "unreadable": torch.frombuffer(bytearray(text), dtype=torch.uint8)}
        found |= {f"vectors.{order}": part for order, part in self.vectors.items()}
        return found | {f"patches.{order}": part for order, part in self.patches.items()}


def encoded_of(tensors: Mapping[str, Tensor]) -> Encoded:
    """The inverse of ``Encoded.tensors``."""
    return Encoded(
        vectors={order: tensors[f"vectors.{order}"] for order in _ORDERS if f"vectors.{order}" in tensors},
        numbers=tensors["numbers"],
        unreadable=tuple(json.loads(tensors["unreadable"].numpy().tobytes())),
        patches={order: tensors[f"patches.{order}"] for order in _ORDERS if f"patches.{order}" in tensors},
    )


def extract(
    backbone: Backbone,
    source: DataSource,
    views: ViewSampler,
    *,
    tokenizer: Tokenizer | None = None,
    layers: Layers = "last",
    frames: Sequence[FrameOrder] = ("normal",),
    patches: PatchType | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | None = None,
    autocast: bool = False,
    console: Console | None = None,
    title: str = "features",
    world: distributed.World = ALONE,
) -> FeatureTable:
    """Features of every view of every readable video of a source, with the videos' labels.

    Args:
        backbone: is moved to the device and put into eval mode.
        tokenizer: of a backbone that reads ids.
        layers: the last layer's vector (``Features.pooled``), or the means of all stages side by side.
        frames: orders of a clip's frames, "normal" among them; the others become ``FeatureTable.reordered``.
        patches: keep patch tokens too, for an attentive probe, in memory and in this precision.
        batch_size: videos whose clips go through the network together.
        workers: processes that decode; 0 decodes in this one.
        device: None for the GPU where there is one.
        autocast: run the network in bfloat16 autocast.
        console: where a bar of progress is shown; None for none.
        title: of that bar.
        world: processes that all call this and share the work; all get the features, rank 0 the patch
            tokens.

    Raises:
        UsageError: if no video can be read.
    """
    device = device or speed.pick_device("auto")
    kept: dict[FrameOrder, list[Tensor]] = {}
    found = encode(
        backbone, source, views, tokenizer=tokenizer, layers=layers, frames=frames, batch_size=batch_size,
        workers=workers, device=device, autocast=autocast, console=console, title=title,
        keep_patches=None if patches is None else in_memory(kept, patches), world=world,
    )  # fmt: skip
    return table_of(source, replace(found, patches=joined(kept)), device)


def encode(
    backbone: Backbone,
    source: DataSource,
    views: ViewSampler,
    *,
    tokenizer: Tokenizer | None,
    layers: Layers,
    frames: Sequence[FrameOrder],
    batch_size: int,
    workers: int,
    device: torch.device,
    autocast: bool,
    console: Console | None,
    title: str,
    keep_patches: KeepPatches | None = None,
    world: distributed.World = ALONE,
) -> Encoded:
    """``extract`` without the labels; patch tokens go to ``keep_patches``, batch by batch.

    Args:
        world: processes that all call this and share the work. All get the features, and bit for bit those
            that one would have found; ``keep_patches`` is called on rank 0.
    """
    backbone = backbone.to(device).eval()
    tokenizer = tokenizer.to(device).eval() if tokenizer is not None else None
    one_pass = partial(
        encode_views, backbone, tokenizer, layers=layers, orders=frames, device=device, autocast=autocast
    )
    if world.size > 1:
        of_parcel = partial(_of_parcel, one_pass, keep_patches is not None)
        batches = _gathered(source, views, of_parcel, world, batch_size, workers)
        return _joined(batches, keep_patches if world.first else None, len(source))
    problems: list[str] = []
    single = loader.iterate_once(
        source, views, batch_size=batch_size, workers=workers, unreadable=lambda e: problems.append(str(e))
    )
    if console is not None:
        single = _told(single, console, title, -(-len(source) // batch_size))
    vectors, numbers = one_pass(single, keep_patches=keep_patches)
    return Encoded(vectors, numbers, tuple(problems))


def _told(batches: Iterator[Read], console: Console, title: str, total: int) -> Iterator[Read]:
    with progress_bar(console, title, total) as advance:
        for batch in batches:
            yield batch
            advance()


def _of_parcel(
    one_pass: Callable[..., tuple[dict[FrameOrder, Tensor], Tensor]],
    with_patches: bool,
    parcel: samples.Parcel,
) -> Encoded:
    unreadable = tuple(map(str, parcel.failures))
    if not len(parcel.indices):
        return Encoded({}, parcel.indices, unreadable)
    kept: dict[FrameOrder, Tensor] = {}
    vectors, numbers = one_pass(
        iter([(parcel.indices, parcel.views)]), keep_patches=kept.__setitem__ if with_patches else None
    )
    return Encoded({order: part.cpu() for order, part in vectors.items()}, numbers, unreadable, kept)


def _gathered(
    source: DataSource,
    views: ViewSampler,
    of_parcel: Callable[[samples.Parcel], Encoded],
    world: distributed.World,
    batch_size: int,
    workers: int,
) -> Iterator[Encoded]:
    """All batches in their order, in every process, a round of one for each process at a time."""
    batches = list(torch.arange(len(source)).split(batch_size))
    own = samples.parcels(
        samples.InOrder(source, views),
        [batch.tolist() for batch in batches[world.rank :: world.size]],
        workers=workers,
        batch_bytes=samples.bytes_of_batch(views, batch_size),
        timeout_seconds=TIMEOUT_SECONDS,
    )
    for _ in range(0, len(batches), world.size):
        parcel = next(own, None)  # in the last round some have nothing
        given = {} if parcel is None else of_parcel(parcel).tensors()
        yield from (encoded_of(tensors) for tensors in world.gather_tensors(given) if tensors)


def _joined(batches: Iterator[Encoded], keep_patches: KeepPatches | None, listed: int) -> Encoded:
    """One of all batches; their patch tokens go to ``keep_patches``.

    Raises:
        UsageError: if no video can be read.
    """
    vectors: dict[FrameOrder, list[Tensor]] = {}
    numbers: list[Tensor] = []
    unreadable: list[str] = []
    for batch in batches:
        unreadable += batch.unreadable
        numbers.append(batch.numbers)
        for order, part in batch.vectors.items():
            vectors.setdefault(order, []).append(part)
            if keep_patches is not None:
                keep_patches(order, batch.patches[order])
    if not vectors:
        named = "".join(f"\n  {line}" for line in unreadable[:20])
        raise UsageError(f"none of the {counted(listed, 'sample')} can be read.{named}")
    whole = {order: torch.cat(parts) for order, parts in vectors.items()}
    return Encoded(whole, torch.cat(numbers), tuple(unreadable))


def table_of(source: DataSource, found: Encoded, device: torch.device) -> FeatureTable:
    """Features with the keys and labels that the source has for them."""
    numbers = found.numbers.tolist()
    labels = {
        name: torch.tensor([source.labels(number).get(name, -1) for number in numbers], device=device)
        for name in source.label_classes
    }
    vectors = {order: part.to(device) for order, part in found.vectors.items()}
    return FeatureTable(
        vectors=vectors.pop("normal"),
        labels=labels,
        classes=source.label_classes,
        keys=tuple(map(source.key, numbers)),
        num_listed=num_listed(source),
        unreadable=found.unreadable,
        reordered=vectors,
        patches=found.patches,
        groups=listing.groups_of(source, numbers),
        origins=tuple(origins.video_of(source, number).origin for number in numbers),
    )
