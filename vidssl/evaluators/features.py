"""One pass of an encoder over labelled videos."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from vidssl.evaluators.frame_orders import in_order
from vidssl.interfaces import Backbone, Tokenizer, as_clip
from vidssl.protocol import FrameOrder

Layers = Literal["last", "all"]


@dataclass(frozen=True)
class FeatureTable:
    """Features of the readable videos of a source, in its order.

    Attributes:
        vectors: float32 [N, V, D], one for each of the V views of a video.
        labels: label name -> int64 [N], -1 where a video lacks the label.
        classes: label name -> names of its classes, in number order.
        keys: N keys of the videos.
        num_listed: videos that the source lists; N of them were found readable.
        unreadable: what was wrong with each of the others.
        reordered: order of frames -> [N, V, D], the same views with their frames in that order.
    """

    vectors: Tensor
    labels: Mapping[str, Tensor]
    classes: Mapping[str, tuple[str, ...]]
    keys: tuple[str, ...]
    num_listed: int
    unreadable: tuple[str, ...]
    reordered: Mapping[FrameOrder, Tensor] = field(default_factory=dict)


@torch.no_grad()
def encode_views(
    backbone: Backbone,
    tokenizer: Tokenizer | None,
    batches: Iterator[tuple[Tensor, Mapping[str, Sequence[Tensor]]]],
    *,
    layers: Layers,
    orders: Sequence[FrameOrder],
    device: torch.device,
    autocast: bool,
) -> tuple[dict[FrameOrder, Tensor], Tensor]:
    """Feature vectors of every video that ``batches`` yields.

    Args:
        backbone: in eval mode on ``device``; one that reads ids needs the ``tokenizer`` of its recipe.
        batches: (sample numbers [B], views: name -> slots, each uint8 [B, 3, T, H, W]). The i-th slots of
            all names are one view, whose vector is their mean (SVT's slow and fast clips), so every name
            has as many slots.
        layers: the last layer's vector, or the means of all stages side by side.
        orders: of a clip's frames that are asked for.
        autocast: bfloat16 autocast.

    Returns:
        Order -> float32 [N, V, D] on ``device``; int64 [N], sample numbers.
    """
    vectors: dict[FrameOrder, list[Tensor]] = {order: [] for order in orders}
    numbers = []
    for indices, views in batches:
        clips = [[as_clip(slot.to(device)) for slot in slots] for slots in views.values()]
        for order in orders:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
                of_names = [
                    [
                        _vector(backbone, tokenizer, in_order(clip, order, indices, draw=place), layers)
                        for place, clip in enumerate(slots)
                    ]
                    for slots in clips
                ]
            of_views = [torch.stack(same).float().mean(0) for same in zip(*of_names, strict=True)]
            vectors[order].append(torch.stack(of_views, dim=1))
        numbers.append(indices)
    return {order: torch.cat(parts) for order, parts in vectors.items()}, torch.cat(numbers)


def _vector(backbone: Backbone, tokenizer: Tokenizer | None, clip: Tensor, layers: Layers) -> Tensor:
    """[B, D] of one clip [B, 3, T, H, W]."""
    if backbone.input_kind == "pixels":
        output = backbone(clip)
    elif tokenizer is None:
        raise ValueError("a backbone that reads ids needs the tokenizer of its recipe")
    else:
        # in full precision, as in training: an id that is rounded is another one
        with torch.autocast(clip.device.type, enabled=False):
            ids = tokenizer.encode(clip)
        output = backbone(ids)
    return output.pooled() if layers == "last" else output.pooled_stages()
