"""Any ``torch.utils.data.Dataset`` of clips and labels as a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from vidssl.errors import UsageError
from vidssl.interfaces import DataSource, SampleInfo


class ClipDataset(Protocol):
    """A map-style dataset: a length, and items (clip, label) or dicts of them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> object: ...


class DatasetSource(DataSource):
    """A dataset of clips in memory or decoded by itself, for use in Python.

    An item is (clip, class number), a clip alone, or a mapping with the keys ``video`` (or ``clip``) and
    ``label``. A clip is [3, T, H, W], uint8, or float in [0, 1].

    Args:
        dataset: whose items these are.
        classes: names of the classes in number order; None where there are no labels.
        fps: frame rate of the clips; 0 where it means nothing.
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
        self._last: tuple[int, Tensor, int | None] | None = None
        self.label_classes: Mapping[str, tuple[str, ...]] = {} if classes is None else {label: tuple(classes)}

    def __len__(self) -> int:
        return len(self._dataset)

    def __repr__(self) -> str:
        return f"DatasetSource({type(self._dataset).__name__} of {len(self)} items, {self.label_classes})"

    def key(self, index: int) -> str:
        return f"{index:09d}"

    def info(self, index: int) -> SampleInfo:
        clip, _ = self._item(index)
        return SampleInfo(self.key(index), clip.shape[1], self._fps, self.labels(index))

    def labels(self, index: int) -> Mapping[str, int]:
        if not self.label_classes:
            return {}
        number = self._item(index)[1]
        if number is None or not 0 <= number < len(self.label_classes[self._label]):
            known = len(self.label_classes[self._label])
            raise UsageError(f"item {index}: its class is {number}, and there are {known} names of classes")
        return {self._label: number}

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        clip, _ = self._item(index)
        return clip[:, list(frames)].transpose(0, 1).contiguous()

    def _item(self, index: int) -> tuple[Tensor, int | None]:
        """The clip as uint8, and its class; the last one is kept, as several questions follow one another."""
        if self._last is None or self._last[0] != index:
            self._last = (index, *self._read(index))
        return self._last[1:]

    def _read(self, index: int) -> tuple[Tensor, int | None]:
        item, label = self._dataset[index], None
        if isinstance(item, Mapping):
            label = item.get("label")
            item = item["video"] if "video" in item else item.get("clip")
        elif isinstance(item, (tuple, list)):
            item, label = item[0], item[1] if len(item) > 1 else None
        clip = torch.as_tensor(item) if item is not None else torch.empty(0)
        if clip.ndim != 4 or clip.shape[0] != 3:
            raise UsageError(f"item {index}: a clip is [3, T, H, W], got {[*clip.shape]}")
        if clip.is_floating_point():
            if float(clip.min()) < 0 or float(clip.max()) > 1:
                raise UsageError(
                    f"item {index}: a clip of floats lies in [0, 1], got {float(clip.max()):.4g}"
                )
            clip = (clip * 255).round()
        return clip.to(torch.uint8), None if label is None else int(label)
