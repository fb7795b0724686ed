"""One pass of an encoder over labelled videos."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vidssl.config.protocol import FrameOrder, Layers
from vidssl.data.classes import LabelClasses, renumbered
from vidssl.errors import UsageError
from vidssl.evaluators.corruptions import corrupted, is_corrupted
from vidssl.interfaces import Backbone, Features, Origin, Tokenizer, as_clip


def in_order(clip: Tensor, order: FrameOrder, numbers: Tensor, *, draw: int) -> Tensor:
    """The clips with their frames in that order.

    "single" repeats one random frame, "shuffled" permutes the frames at random (a permutation may be the
    identity), as BEVT does; "reversed" is not the paper's. "noise-1" to "frozen-5" are ``corruptions``.

    Args:
        clip: [B, C, T, H, W], or ids [B, t, h, w] of frames.
        numbers: int64 [B], numbers of the videos; what is random depends on them and on ``draw`` alone.
        draw: tells the clips of one video apart.

    Returns:
        As ``clip``.
    """
    if order == "normal":
        return clip
    if is_corrupted(order):
        return corrupted(clip, order, numbers, draw=draw)
    time = clip.dim() - 3
    if order == "reversed":
        return clip.flip(time)
    num_frames = clip.shape[time]
    rows = []
    for number in numbers.tolist():
        generator = torch.Generator().manual_seed(65_537 * number + draw)
        if order == "single":
            rows.append(torch.randint(num_frames, (1,), generator=generator).expand(num_frames))
        elif order == "shuffled":
            rows.append(torch.randperm(num_frames, generator=generator))
        else:
            raise ValueError(f"unknown order of frames '{order}'")
    frames = torch.stack(rows).to(clip.device)
    every = torch.arange(len(clip), device=clip.device)[:, None]
    return clip.transpose(1, time)[every, frames].transpose(1, time)


class SeveralBlocks(Backbone):
    """A network whose patches are those of several blocks, each under the last norm, side by side in time.

    So V-JEPA 2's probe on Diving48 is given the tokens of four depths.

    Args:
        blocks: their numbers, from 0.

    Raises:
        UsageError: if the network does not know its blocks.
    """

    takes_mask = False

    def __init__(self, network: Backbone, blocks: Sequence[int]) -> None:
        super().__init__()
        self.network, self.blocks = network, tuple(blocks)
        self.embed_dim, self.strides = network.embed_dim, network.strides
        self.vocab_size = network.vocab_size

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        maps = self.network.forward_intermediates(
            x, self.blocks, norm=True, output_fmt="NTHWC", intermediates_only=True
        )
        assert isinstance(maps, list), "asked for alone"
        return Features(torch.cat(maps, dim=1))


KeepPatches = Callable[[FrameOrder, Tensor], None]  # gets those of the next videos, [B, V, n, D]


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
        patches: order of frames, "normal" among them -> [N, V, n, D] in half precision on the CPU, perhaps
            mapped from a disk; empty where none were asked for. Finite, as ``half`` sees to.
        groups: N names of the groups that videos were cut from one source in, empty for those of none; no
            names where there are no groups.
        origins: the file behind each of the N videos; empty where that was not asked for.

    Raises:
        UsageError: if vectors are not finite; names the videos.
    """

    vectors: Tensor
    labels: Mapping[str, Tensor]
    classes: Mapping[str, tuple[str, ...]]
    keys: tuple[str, ...]
    num_listed: int
    unreadable: tuple[str, ...]
    reordered: Mapping[FrameOrder, Tensor] = field(default_factory=dict)
    patches: Mapping[FrameOrder, Tensor] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    origins: tuple[Origin, ...] = ()

    def __post_init__(self) -> None:
        finite = torch.stack(
            [part.flatten(1).isfinite().all(1) for part in (self.vectors, *self.reordered.values())]
        ).all(0)
        broken = (~finite).nonzero()[:, 0].tolist()
        if broken:
            some = ", ".join(self.keys[number] for number in broken[:3]) + ", ..." * (len(broken) > 3)
            way = (
                "the network is broken: take an earlier checkpoint, or train again with a lower optim.lr"
                if len(broken) == len(self.keys)
                else "look at these videos, take them out of the list, or set run.precision=fp32"
            )
            raise UsageError(
                f"the features of {len(broken)} of {len(self.keys)} videos are not finite (NaN or inf): "
                f"{some}; {way}"
            )

    def renumbered(self, classes: LabelClasses) -> "FeatureTable":
        """The same with these numbers for the classes of the labels that are in ``classes``, by name."""
        own = {label: classes.get(label, names) for label, names in self.classes.items()}
        labels = {
            label: renumbered(numbers, self.classes[label], own[label])
            for label, numbers in self.labels.items()
        }
        return replace(self, labels=labels, classes=own)


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
    keep_patches: KeepPatches | None = None,
) -> tuple[dict[FrameOrder, Tensor], Tensor]:
    """Feature vectors of every video that ``batches`` yields.

    Args:
        backbone: in eval mode on ``device``; one that reads ids needs the ``tokenizer`` of its recipe, unless
            the slots are ids.
        batches: (sample numbers [B], views: name -> slots, each uint8 [B, 3, T, H, W], or stored ids int64
            [B, t, h, w]). The i-th slots of
            all names are one view, whose vector is their mean (SVT's slow and fast clips), so every name
            has as many slots.
        layers: the last layer's vector (class token, or mean of patches where there is none), the means of
            all stages side by side, or the mean of the last patches though there is a class token.
        orders: of a clip's frames that are asked for.
        autocast: bfloat16 autocast.
        keep_patches: gets the last layer's patch tokens of each order, batch by batch. Those of all names
            of a view stand side by side.

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
                        features_of(backbone, tokenizer, in_order(clip, order, indices, draw=place))
                        for place, clip in enumerate(slots)
                    ]
                    for slots in clips
                ]
            of_views = list(zip(*of_names, strict=True))
            means = [
                torch.stack([_vector(each, layers) for each in same]).float().mean(0) for same in of_views
            ]
            vectors[order].append(torch.stack(means, dim=1))
            if keep_patches is not None:
                tokens = [torch.cat([each.patches.flatten(1, 3) for each in same], 1) for same in of_views]
                keep_patches(order, torch.stack(tokens, dim=1))
        numbers.append(indices)
    return {order: torch.cat(parts) for order, parts in vectors.items()}, torch.cat(numbers)


def features_of(backbone: Backbone, tokenizer: Tokenizer | None, clip: Tensor) -> Features:
    """Of one clip [B, 3, T, H, W], or of stored ids [B, t, h, w]."""
    if backbone.input_kind == "pixels" or clip.dim() == 4:
        return backbone(clip)
    if tokenizer is None:
        raise ValueError("a backbone that reads ids needs the tokenizer of its recipe")
    # in full precision, as in training: an id that is rounded is another one
    with torch.autocast(clip.device.type, enabled=False):
        ids = tokenizer.encode(clip)
    return backbone(ids)


def _vector(features: Features, layers: Layers) -> Tensor:
    """[B, D] of one clip."""
    if layers == "patches":
        return features.patches.mean(dim=(1, 2, 3))
    return features.pooled() if layers == "last" else features.pooled_stages()
