"""Features of the videos of a source."""

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.progress import track

from vidssl.data.loader import iterate_once
from vidssl.engine.devices import pick_device
from vidssl.evaluators.features import FeatureTable, Layers, encode_views
from vidssl.interfaces import Backbone, DataSource, Tokenizer, ViewSampler
from vidssl.protocol import FrameOrder


def extract(
    backbone: Backbone,
    source: DataSource,
    views: ViewSampler,
    *,
    tokenizer: Tokenizer | None = None,
    layers: Layers = "last",
    frames: Sequence[FrameOrder] = ("normal",),
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | None = None,
    autocast: bool = False,
    console: Console | None = None,
    title: str = "features",
) -> FeatureTable:
    """Features of every view of every readable video of a source.

    Args:
        layers: the last layer's vector (``Features.pooled``), or the means of all stages side by side.
        frames: orders of a clip's frames, "normal" among them; the others become ``FeatureTable.reordered``.

    Raises:
        UsageError: if no video can be read.
    """
    device = device or pick_device("auto")
    backbone = backbone.to(device).eval()
    tokenizer = tokenizer.to(device).eval() if tokenizer is not None else None
    problems: list[str] = []
    batches = iterate_once(
        source, views, batch_size=batch_size, workers=workers, unreadable=lambda e: problems.append(str(e))
    )
    if console is not None and console.is_terminal:
        total = -(-len(source) // batch_size)
        batches = iter(track(batches, description=title, total=total, console=console, transient=True))
    vectors, numbers = encode_views(
        backbone, tokenizer, batches, layers=layers, orders=frames, device=device, autocast=autocast
    )
    found = numbers.tolist()
    labels = {
        name: torch.tensor([source.labels(number).get(name, -1) for number in found], device=device)
        for name in source.label_classes
    }
    normal = vectors.pop("normal")
    keys = tuple(map(source.key, found))
    return FeatureTable(
        normal, labels, source.label_classes, keys, len(source), tuple(problems), reordered=vectors
    )
