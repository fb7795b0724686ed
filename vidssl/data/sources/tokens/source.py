"""Videos as the ids that ``vidssl tokenize`` made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vidssl.data.sources.origins import derived_origin
from vidssl.data.sources.tokens.store import StoreReader, Transform, data_path
from vidssl.errors import UsageError
from vidssl.interfaces import DataSource, KnowsGroups, KnowsOrigins, Origin, SampleInfo, UnreadableSample


@dataclass(frozen=True)
class StoreNeeds:
    """What views need of a store.

    Attributes:
        size: side of the square in pixels.
        fps: of the stored frames; None for the videos' own.
        transforms: that they choose among.
    """

    size: int
    fps: float | None
    transforms: tuple[Transform, ...]


class TokenStore(DataSource, KnowsGroups, KnowsOrigins):
    """Videos that ``vidssl tokenize`` turned into ids, read without decoding anything.

    Views of it are ``stored_clip_pair`` and ``stored_clip``, for tests ``stored_uniform_clips``. Keys,
    labels, groups and order are those of the videos; those that could not be read when the store was made are
    still listed, as unreadable samples.

    Args:
        root: folder of the store, relative to the working folder.
    """

    def __init__(self, *, root: str) -> None:
        self.root = root
        self._reader = StoreReader(Path(root).absolute())
        self.stored = self._reader.info
        self.label_classes = self.stored.label_classes

    @property
    def pad_id(self) -> int:
        """Stands where a video has no more frames: V + 1, as backbones that read ids have it."""
        return self.stored.vocab_size + 1

    def __len__(self) -> int:
        return len(self._reader.videos)

    def key(self, index: int) -> str:
        return self._reader.videos[index].key

    def labels(self, index: int) -> Mapping[str, int]:
        return self._reader.videos[index].labels

    def group(self, index: int) -> str:
        return self._reader.videos[index].group

    def info(self, index: int) -> SampleInfo:
        video = self._reader.videos[index]
        if video.reason:
            raise UnreadableSample(video.key, video.reason)
        return SampleInfo(video.key, video.num_frames, video.fps, video.labels)

    def origin(self, index: int) -> Origin:
        video, folder = self._reader.videos[index], self._reader.folder
        made = data_path(folder, index // self.stored.videos_per_shard)
        return derived_origin(video.origin, store=folder, key=video.key, made=made)

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        raise UsageError(
            f"{self.root} holds ids, no pixels, and these views cut pixels: "
            "set views.type to stored_clip_pair, stored_clip or stored_uniform_clips"
        )

    def read_ids(self, index: int, frames: Sequence[int], transform: Transform) -> Tensor:
        """Ids int64 [len(frames), h, w]; ``pad_id`` for frames past the end (VIMPAC's release).

        Raises:
            UnreadableSample: if the video could not be read when the store was made.
        """
        total = self.info(index).num_frames
        ids = torch.full((len(frames), *self.stored.grid), self.pad_id)
        inside = [row for row, frame in enumerate(frames) if frame < total]
        found = self._reader.ids(index, transform)[[frames[row] for row in inside]]
        ids[inside] = torch.from_numpy(found.astype("int64"))
        return ids

    def check(self, wanted: StoreNeeds) -> None:
        """Raises ValueError, saying what there is, if the store lacks what views need."""
        if wanted.size != self.stored.size:
            raise ValueError(
                f"{self.root} holds squares of {self.stored.size} pixels, and size is {wanted.size}"
            )
        if wanted.fps != self.stored.fps:
            has, needs = (_rate(fps) for fps in (self.stored.fps, wanted.fps))
            raise ValueError(
                f"{self.root} holds videos at {has}, and the views want {needs}: set fps to what it holds, "
                "and frame_stride to the frames from one to the next"
            )
        lacking = [transform for transform in wanted.transforms if transform not in self.stored.transforms]
        if lacking:
            raise ValueError(
                f"{self.root} lacks {_listed(lacking)}, which the views choose among; it has "
                f"{_listed(self.stored.transforms)}"
            )


def _rate(fps: float | None) -> str:
    return "their own frame rates (fps: null)" if fps is None else f"{fps:g} fps"


def _listed(transforms: Sequence[Transform]) -> str:
    return ", ".join(f"'{transform}'" for transform in transforms)
