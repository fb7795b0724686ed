"""One pass of an encoder over labelled videos."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vidssl.interfaces import Backbone, Features, Tokenizer, as_clip

Layers = Literal["last", "all"]


@dataclass(frozen=True)
class FeatureTable:
    """Features of the readable videos of a source, in its order.

    Attributes:
        vectors: float32 [N, D], mean over the views of a video.
        labels: label name -> int64 [N], -1 where a video lacks the label.
        classes: label name -> names of its classes, in number order.
        keys: N keys of the videos.
        num_listed: videos that the source lists; N of them were found readable.
        unreadable: what was wrong with each of the others.
    """

    vectors: Tensor
    labels: Mapping[str, Tensor]
    classes: Mapping[str, tuple[str, ...]]
    keys: tuple[str, ...]
    num_listed: int
    unreadable: tuple[str, ...]


@torch.no_grad()
def encode_views(
    backbone: Backbone,
    tokenizer: Tokenizer | None,
    batches: Iterator[tuple[Tensor, Mapping[str, Sequence[Tensor]]]],
    *,
    layers: Layers,
    device: torch.device,
    autocast: bool,
) -> tuple[Tensor, Tensor]:
    """Feature vectors of every video that ``batches`` yields.

    Args:
        backbone: in eval mode on ``device``; one that reads ids needs the ``tokenizer`` of its recipe.
        batches: (sample numbers [B], views: name -> slots, each uint8 [B, 3, T, H, W]). The i-th slots of
            all names are one test view (SVT's slow and fast clips), so every name has as many slots.
        layers: the last layer's vector, or the means of all stages side by side.
        autocast: bfloat16 autocast.

    Returns:
        float32 [N, D] on ``device``, the mean over views; int64 [N], sample numbers.
    """
    vectors, numbers = [], []
    for indices, views in batches:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            views_in_turn = [view for slot in zip(*views.values(), strict=True) for view in slot]
            outputs = [_encode(backbone, tokenizer, as_clip(view.to(device))) for view in views_in_turn]
        pooled = [output.pooled() if layers == "last" else output.pooled_stages() for output in outputs]
        vectors.append(torch.stack(pooled).float().mean(0))
        numbers.append(indices)
    return torch.cat(vectors), torch.cat(numbers)


def _encode(backbone: Backbone, tokenizer: Tokenizer | None, clip: Tensor) -> Features:
    if backbone.input_kind == "pixels":
        return backbone(clip)
    if tokenizer is None:
        raise ValueError("a backbone that reads ids needs the tokenizer of its recipe")
    return backbone(tokenizer.encode(clip))
