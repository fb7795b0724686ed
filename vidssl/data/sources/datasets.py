"""Sources made of others: ``torch`` or Hugging Face data sets, part of another source, balanced classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from vidssl.config.few_labels import Subset, drawn
from vidssl.data.classes import label_kind, repeated
from vidssl.data.decode.content import Content, File
from vidssl.data.decode.decode import VideoFacts, probe, read_frames
from vidssl.data.sources import listing, origins, token_store
from vidssl.errors import UsageError
from vidssl.interfaces import DataSource, KnowsOrigins, Origin, SampleInfo, UnreadableSample


class ClipDataset(Protocol):
    """A map-style dataset: a length, and items (clip, label) or dicts of them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> object: ...


@dataclass
class _Encoded:
    """A video file that is looked at when it is asked for."""

    file: File

    @cached_property
    def facts(self) -> VideoFacts:
        return probe(self.file)


class DatasetSource(DataSource):
    """A dataset of clips in memory, or of video files, for use in Python.

    An item is (video, class number), a video alone, or a mapping with the keys ``video`` (or ``clip``) and
    ``label``. A video is a clip [3, T, H, W], uint8, or float in [0, 1]; the path of a file; or a mapping
    with ``path`` and ``bytes``, as the video column of a Hugging Face dataset gives it undecoded:
    ``dataset.cast_column("video", datasets.Video(decode=False))``.

    Args:
        dataset: whose items these are.
        classes: names of the classes in number order; None where there are no labels.
        fps: frame rate of the clips; 0 where it means nothing. Files have their own.
        label: what the label is called.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        *,
        classes: Sequence[str] | None = None,
        fps: float = 0.0,
        label: str = "class",
    ) -> None:
        self._dataset = dataset
        self._fps = fps
        self._label = label
        self._last: tuple[int, Tensor | _Encoded, int | None] | None = None
        self.label_classes: Mapping[str, tuple[str, ...]] = {} if classes is None else {label: tuple(classes)}

    def __len__(self) -> int:
        return len(self._dataset)

    def __repr__(self) -> str:
        return f"DatasetSource({type(self._dataset).__name__} of {len(self)} items, {self.label_classes})"

    def key(self, index: int) -> str:
        return f"{index:09d}"

    def info(self, index: int) -> SampleInfo:
        video, key = self._item(index)[0], self.key(index)
        if isinstance(video, Tensor):
            return SampleInfo(key, video.shape[1], self._fps, self.labels(index))
        try:
            facts = video.facts
        except UnreadableSample as error:
            raise UnreadableSample(key, error.reason) from error
        return SampleInfo(key, facts.num_frames, facts.fps, self.labels(index), facts.uneven_times)

    def labels(self, index: int) -> Mapping[str, int]:
        if not self.label_classes:
            return {}
        number = self._item(index)[1]
        if number is None or not 0 <= number < len(self.label_classes[self._label]):
            known = len(self.label_classes[self._label])
            raise UsageError(f"item {index}: its class is {number}, and there are {known} names of classes")
        return {self._label: number}

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        video = self._item(index)[0]
        if isinstance(video, Tensor):
            return video[:, list(frames)].transpose(0, 1).contiguous()
        try:
            return read_frames(video.file, frames, video.facts)
        except UnreadableSample as error:
            raise UnreadableSample(self.key(index), error.reason) from error

    def _item(self, index: int) -> tuple[Tensor | _Encoded, int | None]:
        """The clip as uint8 or the file, and the class; the last is kept, as questions follow one another."""
        if self._last is None or self._last[0] != index:
            self._last = (index, *self._read(index))
        return self._last[1:]

    def _read(self, index: int) -> tuple[Tensor | _Encoded, int | None]:
        item, label = self._dataset[index], None
        if isinstance(item, Mapping) and not _is_file(item):
            label = item.get("label")
            item = item["video"] if "video" in item else item.get("clip")
        elif isinstance(item, (tuple, list)):
            item, label = item[0], item[1] if len(item) > 1 else None
        number = None if label is None else int(label)
        if isinstance(item, (str, Path)):
            return _Encoded(Path(item)), number
        if isinstance(item, Mapping) and _is_file(item):
            path, content = item.get("path"), item.get("bytes")
            file = Path(str(path)) if content is None else Content(str(path or self.key(index)), content)
            return _Encoded(file), number
        return _checked(item, index), number


def _is_file(item: Mapping[object, object]) -> bool:
    return not item.keys() - {"path", "bytes"} and bool(item.get("path") or item.get("bytes"))


def _checked(item: object, index: int) -> Tensor:
    """A clip as uint8 [3, T, H, W]."""
    array = isinstance(item, (Tensor, Sequence)) or type(item).__module__ == "numpy"
    clip = torch.as_tensor(item) if array else torch.empty(0)
    if clip.ndim != 4 or clip.shape[0] != 3:
        given = [*clip.shape] if array else type(item).__name__
        raise UsageError(
            f"item {index}: a clip is [3, T, H, W], got {given}. A Hugging Face dataset gives files with "
            "dataset.cast_column('video', datasets.Video(decode=False))"
        )
    if clip.is_floating_point():
        if float(clip.min()) < 0 or float(clip.max()) > 1:
            raise UsageError(f"item {index}: a clip of floats lies in [0, 1], got {float(clip.max()):.4g}")
        clip = (clip * 255).round()
    return clip.to(torch.uint8)


def labelled_subset(source: DataSource, subset: Subset) -> "Chosen":
    """The videos of a source that a draw names, in the source's order.

    Raises:
        UsageError: if the source is a token store, has no such label, or too few videos of a class.
    """
    numbers = _numbers(source, subset.label, "subset.label")
    every = range(len(source))
    places = drawn(
        [source.key(number) for number in every],
        numbers,
        subset.amount,
        draw=subset.draw,
        seed=subset.seed,
        classes=source.label_classes[subset.label],
        groups=listing.groups_of(source, every),
    )
    return Chosen(source, places)


def balanced(source: DataSource, label: str) -> "Chosen":
    """A source whose videos come again until every class has as many as the commonest; others are left out.

    Raises:
        UsageError: if the source is a token store or has no such label.
    """
    return Chosen(source, repeated(_numbers(source, label, "balance")))


def _numbers(source: DataSource, label: str, key: str) -> list[int]:
    if isinstance(source, token_store.TokenStore):
        raise UsageError(f"{key}: a token store is read whole; this needs a source of videos")
    if label not in source.label_classes:
        known = ", ".join(source.label_classes) or "none"
        raise UsageError(f"{key}: the videos have no label '{label}', but {known}")
    if (kind := label_kind(label, source.label_classes[label])) != "class":
        raise UsageError(f"{key}: takes a label of one class a video, and '{label}' is a {kind}")
    return [source.labels(number).get(label, -1) for number in range(len(source))]


class Chosen(DataSource, KnowsOrigins):
    """Videos of a source by their numbers there, in that order, some perhaps several times."""

    def __init__(self, source: DataSource, numbers: Sequence[int]) -> None:
        self._source = source
        self._numbers = numbers
        self.label_classes = source.label_classes

    def __len__(self) -> int:
        return len(self._numbers)

    def info(self, index: int) -> SampleInfo:
        return self._source.info(self._numbers[index])

    def key(self, index: int) -> str:
        return self._source.key(self._numbers[index])

    def labels(self, index: int) -> Mapping[str, int]:
        return self._source.labels(self._numbers[index])

    def origin(self, index: int) -> Origin:
        return origins.video_of(self._source, self._numbers[index]).origin

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        return self._source.read(self._numbers[index], frames)
