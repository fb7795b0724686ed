"""Features of the videos of a source."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vidssl.abilities import num_listed
from vidssl.data.groups import groups_of
from vidssl.data.loader import iterate_once
from vidssl.data.origins import video_of
from vidssl.data.samples import Parcel
from vidssl.engine.devices import pick_device
from vidssl.engine.distributed import World
from vidssl.evaluators.features import FeatureTable, KeepPatches, Layers, encode_views
from vidssl.interfaces import Backbone, DataSource, Tokenizer, ViewSampler
from vidssl.protocol import FrameOrder, PatchType
from vidssl.scoring.patch_file import in_memory, joined
from vidssl.scoring.together import EncodedBatch, encode_together

ALONE = World()


@dataclass(frozen=True)
class Encoded:
    """What an encoder makes of the videos of a source.

    Attributes:
        vectors: order of frames, "normal" among them -> float32 [N, V, D].
        numbers: int64 [N], their places in the source.
        unreadable: what was wrong with each of the others.
        patches: order of frames -> [N, V, n, D] in half precision, on the CPU; empty where not asked for.
    """

    vectors: Mapping[FrameOrder, Tensor]
    numbers: Tensor
    unreadable: tuple[str, ...]
    patches: Mapping[FrameOrder, Tensor] = field(default_factory=dict)


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
    world: World = ALONE,
) -> FeatureTable:
    """Features of every view of every readable video of a source, with the videos' labels.

    Args:
        layers: the last layer's vector (``Features.pooled``), or the means of all stages side by side.
        frames: orders of a clip's frames, "normal" among them; the others become ``FeatureTable.reordered``.
        patches: keep patch tokens too, for an attentive probe, in memory and in this precision.
        world: processes that all call this and share the work; all get the features, the first one patch
            tokens.

    Raises:
        UsageError: if no video can be read.
    """
    device = device or pick_device("auto")
    kept: dict[FrameOrder, list[Tensor]] = {}
    found = encode(
        backbone,
        source,
        views,
        tokenizer=tokenizer,
        layers=layers,
        frames=frames,
        batch_size=batch_size,
        workers=workers,
        device=device,
        autocast=autocast,
        console=console,
        title=title,
        keep_patches=None if patches is None else in_memory(kept, patches),
        world=world,
    )
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
    world: World = ALONE,
) -> Encoded:
    """``extract`` without the labels; patch tokens go to ``keep_patches``, batch by batch.

    Args:
        world: processes that all call this and share the work. All get the features, and bit for bit those
            that one would have found; ``keep_patches`` is called in the first.
    """
    backbone = backbone.to(device).eval()
    tokenizer = tokenizer.to(device).eval() if tokenizer is not None else None
    one_pass = partial(
        encode_views, backbone, tokenizer, layers=layers, orders=frames, device=device, autocast=autocast
    )
    if world.size > 1:
        vectors, numbers, unreadable = encode_together(
            source,
            views,
            partial(_encoded_batch, one_pass, keep_patches is not None),
            world,
            batch_size=batch_size,
            workers=workers,
            keep_patches=keep_patches if world.first else None,
        )
        return Encoded(vectors, numbers, unreadable)
    problems: list[str] = []
    batches = iterate_once(
        source, views, batch_size=batch_size, workers=workers, unreadable=lambda e: problems.append(str(e))
    )
    if console is not None and console.is_terminal:
        total = -(-len(source) // batch_size)
        batches = iter(track(batches, description=title, total=total, console=console, transient=True))
    vectors, numbers = one_pass(batches, keep_patches=keep_patches)
    return Encoded(vectors, numbers, tuple(problems))


def _encoded_batch(
    one_pass: Callable[..., tuple[dict[FrameOrder, Tensor], Tensor]], with_patches: bool, parcel: Parcel
) -> EncodedBatch:
    """A batch of its own as ``encode_together`` wants it."""
    kept: dict[FrameOrder, Tensor] = {}
    vectors, numbers = one_pass(
        iter([(parcel.indices, parcel.views)]), keep_patches=kept.__setitem__ if with_patches else None
    )
    unreadable = tuple(map(str, parcel.failures))
    return EncodedBatch({order: part.cpu() for order, part in vectors.items()}, numbers, unreadable, kept)


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
        groups=groups_of(source, numbers),
        origins=tuple(video_of(source, number).origin for number in numbers),
    )
