"""One pass of an encoder over labelled videos, and its patch tokens on disk.

Patch tokens are written as they come, so that they never lie in memory at once, and mapped to be read: a
safetensors file for each order of frames, with one tensor "patches" [N, V, n, D] in half precision. How
many videos can be read is known at the end, so the header is written then, into room left for it.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TypeVar

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vidssl.config.protocol import FrameOrder, Layers, PatchType
from vidssl.data.classes import LabelClasses, label_kind, numbered_together, renumbered
from vidssl.engine import checkpoint, process
from vidssl.engine.logging import Say
from vidssl.errors import LabelError, UsageError, counted
from vidssl.evaluators.corruptions import corrupted, is_corrupted
from vidssl.interfaces import Backbone, Evaluator, Features, Origin, Tokenizer, as_clip


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


HEADER = 512  # bytes before the tokens
_CODES = {torch.float16: "F16", torch.bfloat16: "BF16"}


def patch_path(vectors: Path, order: FrameOrder, kind: PatchType) -> Path:
    """Where the patch tokens lie that belong to a file of vectors."""
    return vectors.with_name(f"{vectors.stem}-patches-{order}-{kind}.safetensors")


def read_patches(
    vectors: Path, orders: Sequence[FrameOrder], kind: PatchType, num_videos: int
) -> dict[FrameOrder, Tensor]:
    """Order -> [N, V, n, D] in half precision, mapped into memory.

    Raises:
        UsageError: if a file is damaged, or of another number of videos than the vectors.
    """
    found: dict[FrameOrder, Tensor] = {}
    for order in orders:
        path = patch_path(vectors, order, kind)
        tensors = checkpoint.read_tensors(path)[1]
        if "patches" not in tensors or tensors["patches"].dim() != 4:
            raise UsageError(f"{path}: damaged, it holds no patch tokens [videos, views, tokens, values]")
        found[order] = tensors["patches"]
        if len(found[order]) != num_videos:
            raise UsageError(
                f"{path}: holds {counted(len(found[order]), 'video')} and {vectors} {num_videos}: remove "
                "both files"
            )
    return found


class PatchWriter:
    """Writes patch tokens batch by batch; the files appear under their names when its context is left whole.

    Args:
        vectors: the file of vectors that they belong to.
        num_videos: at most; for the size that is logged before anything is written.
        say: gets that size.
    """

    def __init__(
        self,
        vectors: Path,
        orders: Sequence[FrameOrder],
        kind: PatchType,
        *,
        num_videos: int,
        say: Callable[[str], None],
    ) -> None:
        self.kind = kind
        self._paths = {order: patch_path(vectors, order, kind) for order in orders}
        self._num_videos = num_videos
        self._say = say
        self._files: dict[FrameOrder, BinaryIO] = {}
        self._rows = dict.fromkeys(orders, 0)
        self._shape: torch.Size | None = None

    def __enter__(self) -> "PatchWriter":
        return self

    def __call__(self, order: FrameOrder, patches: Tensor) -> None:
        """Keeps [B, V, n, D], the next videos.

        Raises:
            UsageError: if a token is too large for the type, or the disk too small.
        """
        patches = half(patches, self.kind)
        if self._shape is None:
            self._shape = patches.shape[1:]
            self._announce(patches[0].numel() * patches.element_size())
        try:
            file = self._files.get(order) or self._open(order)
            file.write(patches.contiguous().view(torch.uint8).numpy().tobytes())
        except OSError as error:
            raise self._cannot(order, error) from error
        self._rows[order] += len(patches)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for order, file in self._files.items():
            path = Path(file.name)
            with file:
                if kind is None:
                    try:
                        self._finish(order, file)
                    except OSError as failed:
                        path.unlink(missing_ok=True)
                        raise self._cannot(order, failed) from failed
            if kind is not None:
                path.unlink(missing_ok=True)

    def _announce(self, size: int) -> None:
        folder = next(iter(self._paths.values())).parent
        folder.mkdir(parents=True, exist_ok=True)
        needed, free = size * self._num_videos * len(self._paths), shutil.disk_usage(folder).free
        self._say(
            f"patch tokens: {needed / 1e9:.3g} GB in {self.kind} go into {folder}, where "
            f"{free / 1e9:.3g} GB are free"
        )
        if needed > free:
            raise UsageError(
                f"{folder}: the disk has {free / 1e9:.3g} GB free and patch tokens need {needed / 1e9:.3g}: "
                "take fewer videos, views or orders of frames, or a disk that holds them"
            )

    def _open(self, order: FrameOrder) -> BinaryIO:
        self._files[order] = file = process.begun_beside(self._paths[order])
        file.write(bytes(HEADER))
        return file

    def _finish(self, order: FrameOrder, file: BinaryIO) -> None:
        assert self._shape is not None, "a file is opened when there is something to write"
        end = file.tell() - HEADER
        shape = [self._rows[order], *self._shape]
        kind = _CODES[_dtype(self.kind)]
        header = json.dumps({"patches": {"dtype": kind, "shape": shape, "data_offsets": [0, end]}})
        file.seek(0)
        file.write((HEADER - 8).to_bytes(8, "little") + header.encode().ljust(HEADER - 8))
        file.flush()
        os.fsync(file.fileno())
        os.replace(file.name, self._paths[order])

    def _cannot(self, order: FrameOrder, error: OSError) -> UsageError:
        return UsageError(f"cannot write {self._paths[order]}: {error.strerror or error}")


def half(patches: Tensor, kind: PatchType) -> Tensor:
    """Patch tokens in half precision, on the CPU.

    Raises:
        UsageError: if one is not finite, or too large for it.
    """
    small = patches.to(_dtype(kind)).cpu()
    if not small.isfinite().all():
        if not patches.isfinite().all():
            broken = int((~patches.reshape(len(patches), -1).isfinite().all(1)).sum())
            raise UsageError(
                f"the patch tokens of {broken} of {counted(len(patches), 'video')} of a batch are not "
                "finite (NaN or "
                "inf): the network is broken, or run.precision=fp32 is needed"
            )
        largest = patches.abs().max().item()
        way = "set patches=bfloat16" if kind == "float16" and largest < 3e38 else "the network is broken"
        raise UsageError(f"patch tokens reach {largest:.3g}, which {kind} cannot hold: {way}")
    return small


def in_memory(kept: dict[FrameOrder, list[Tensor]], kind: PatchType) -> Callable[[FrameOrder, Tensor], None]:
    """A writer that keeps them in lists, by order of frames."""

    def keep(order: FrameOrder, patches: Tensor) -> None:
        kept.setdefault(order, []).append(half(patches, kind))

    return keep


def joined(kept: Mapping[FrameOrder, Sequence[Tensor]]) -> dict[FrameOrder, Tensor]:
    """The lists that ``in_memory`` filled, as tensors [N, V, n, D]."""
    return {order: torch.cat(list(parts)) for order, parts in kept.items()}


def _dtype(kind: PatchType) -> torch.dtype:
    return torch.float16 if kind == "float16" else torch.bfloat16


Plain = tuple[ArrayLike | Tensor, ArrayLike | Tensor]  # vectors [N, D] or [N, V, D], class numbers [N]


def as_table(given: FeatureTable | Plain) -> FeatureTable:
    """Features and their class numbers, -1 for none, as a table whose label is called "class".

    Raises:
        UsageError: if there are not as many labels as vectors.
    """
    if isinstance(given, FeatureTable):
        return given
    vectors, numbers = torch.as_tensor(given[0]).float(), torch.as_tensor(given[1]).long()
    if vectors.ndim not in (2, 3) or numbers.shape != vectors.shape[:1] or not len(numbers):
        raise UsageError(
            f"probe takes vectors [N, D] and class numbers [N], got {[*vectors.shape]} and {[*numbers.shape]}"
        )
    names = tuple(map(str, range(1 + int(numbers.max()))))
    return FeatureTable(
        vectors if vectors.ndim == 3 else vectors[:, None],
        {"class": numbers.to(vectors.device)},
        {"class": names},
        keys=tuple(f"{number:09d}" for number in range(len(numbers))),
        num_listed=len(numbers),
        unreadable=(),
    )


def shared_labels(train: LabelClasses, test: LabelClasses) -> LabelClasses:
    """Labels that the videos to learn from and those to test on have both, their classes numbered together.

    Raises:
        UsageError: if there is none.
    """
    shared = numbered_together(train, test)
    if not shared:
        raise UsageError(
            f"the videos to learn from and those to test on share no label (learn: "
            f"{', '.join(train) or 'none'}; test: {', '.join(test) or 'none'}). A list's header names its "
            "labels; of folders and of a single label without a name it is 'class'"
        )
    return shared


Made = TypeVar("Made")


def of_labels(
    evaluator: Evaluator, classes: LabelClasses, of: Callable[[str], Made], say: Say, *, single: str = ""
) -> dict[str, Made]:
    """What is made of each label that a probe can learn; the others are named, with why.

    Args:
        single: what takes one class a video, whatever the evaluator takes.

    Raises:
        LabelError: if nothing is made of any.
    """
    learns = ("class",) if single else evaluator.learns
    kinds = {label: label_kind(label, names) for label, names in classes.items()}
    others = ", ".join(f"'{label}' is a {kind}" for label, kind in kinds.items() if kind not in learns)
    who, cure = single or type(evaluator).__name__, "" if single else "; linear and knn take all"
    made, without = {}, [f"{others}: {who} takes one class a video{cure}"] if others else []
    for label in (label for label, kind in kinds.items() if kind in learns):
        try:
            made[label] = of(label)
        except LabelError as error:
            without.append(f"label '{label}': {error}")
    if not made:
        raise LabelError("; ".join(without) + (f"; leave {single} out" if single and others else ""))
    for line in without:
        say(f"left out: {line}")
    return made
