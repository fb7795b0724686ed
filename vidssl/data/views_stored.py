"""Views of videos that are stored as ids: VIMPAC's, without decoding."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vidssl.data.checks import check_counts, check_fps
from vidssl.data.times import draw, neighbour_starts, vimpac_last_start
from vidssl.data.token_source import TokenStore, Wanted
from vidssl.data.views import Shape
from vidssl.engine.token_store import Crop, Transform, transforms_of
from vidssl.errors import UsageError
from vidssl.interfaces import DataSource, SampleInfo, UnreadableSample, ViewSampler


class StoredViews(ViewSampler):
    """Views out of a token store: slots are ids int64 [t, h, w], ``shapes`` those of the pixels behind."""

    @property
    @abstractmethod
    def wanted(self) -> Wanted:
        """What the store must hold."""


class StoredClipPair(StoredViews):
    """Two clips of one video out of a token store, the same as ``clip_pair`` takes of pixels.

    Where a video ends before its clip, what is missing is padding (VIMPAC's release), not its last frame.

    Args:
        num_frames: of each clip.
        frame_stride: stored frames from one clip frame to the next.
        fps: frame rate of the store; null for one that keeps the videos' own.
        size: side of the square in pixels.
        max_distance_seconds: largest distance between the two starts (Table 10); None for any.
        resize: short sides, as multiples of ``size``; one of these and of ``crops`` is drawn for a pair.
        crops: places of the square. The paper pre-trains on the middle alone (App. C.1).
        flip: whether half of the pairs are mirrored.
    """

    def __init__(
        self,
        *,
        num_frames: int = 5,
        frame_stride: int = 1,
        fps: float | None = 2.0,
        size: int = 128,
        max_distance_seconds: float | None = None,
        resize: tuple[float, ...] = (1.0,),
        crops: tuple[Crop, ...] = ("middle",),
        flip: bool = False,
    ) -> None:
        check_counts({"num_frames": num_frames, "frame_stride": frame_stride, "size": size})
        check_fps(fps)
        _check_choices(resize, crops)
        if max_distance_seconds is not None and max_distance_seconds < 0:
            raise ValueError(f"max_distance_seconds must be at least 0, got {max_distance_seconds}")
        self.num_frames = num_frames
        self.frame_stride = frame_stride
        self.fps = fps
        self.size = size
        self.max_distance_seconds = max_distance_seconds
        self.resize = resize
        self.crops = crops
        self.flip = flip

    @property
    def shapes(self) -> Mapping[str, tuple[Shape, ...]]:
        return {"clip": ((self.num_frames, self.size, self.size),) * 2}

    @property
    def wanted(self) -> Wanted:
        flips = (False, True) if self.flip else (False,)
        return Wanted(self.size, self.fps, transforms_of(self.size, self.resize, self.crops, flips))

    def sample(
        self, source: DataSource, index: int, generator: torch.Generator
    ) -> dict[str, tuple[Tensor, ...]]:
        store = _store(source)
        info = store.info(index)
        last = vimpac_last_start(info.num_frames, self.num_frames, self.frame_stride)
        first_start = draw(generator, 0, last)
        second_start = draw(generator, *neighbour_starts(first_start, last, self._max_distance(info)))
        # after the starts, so that these are those of the same clips' pixels
        transform = _drawn(self.size, self.resize, self.crops, self.flip, generator)
        starts = (first_start, second_start)
        return {"clip": tuple(self._clip(store, index, start, transform) for start in starts)}

    def _clip(self, store: TokenStore, index: int, start: int, transform: Transform) -> Tensor:
        frames = range(start, start + self.num_frames * self.frame_stride, self.frame_stride)
        return store.read_ids(index, frames, transform)

    def _max_distance(self, info: SampleInfo) -> int | None:
        """In stored frames."""
        if self.max_distance_seconds is None or info.num_frames == 1:
            return None
        if info.fps <= 0:
            raise UnreadableSample(info.key, "it states no frame rate, which max_distance_seconds needs")
        return round(self.max_distance_seconds * info.fps)


class StoredClip(StoredViews):
    """One random clip out of a token store, under one of several transforms: VIMPAC's view for finetuning.

    Without a flip it is the clip that ``corner_clip`` takes of pixels. Where a video ends before its clip,
    what is missing is padding (VIMPAC's release), not its last frame.

    Args:
        num_frames: of the clip.
        frame_stride: stored frames from one clip frame to the next; the release thins out stores of 16 fps.
        fps: frame rate of the store; null for one that keeps the videos' own.
        size: side of the square in pixels.
        resize: short sides, as multiples of ``size``; see ``corner_clip``.
        crops: places of the square.
        flip: whether half of the clips are mirrored; off where classes have a direction.
    """

    def __init__(
        self,
        *,
        num_frames: int = 10,
        frame_stride: int = 8,
        fps: float | None = 16.0,
        size: int = 256,
        resize: tuple[float, ...] = (1.0, 1.25),
        crops: tuple[Crop, ...] = ("top", "middle", "bottom"),
        flip: bool = True,
    ) -> None:
        check_counts({"num_frames": num_frames, "frame_stride": frame_stride, "size": size})
        check_fps(fps)
        _check_choices(resize, crops)
        self.num_frames = num_frames
        self.frame_stride = frame_stride
        self.fps = fps
        self.size = size
        self.resize = resize
        self.crops = crops
        self.flip = flip

    @property
    def shapes(self) -> Mapping[str, tuple[Shape, ...]]:
        return {"clip": ((self.num_frames, self.size, self.size),)}

    @property
    def wanted(self) -> Wanted:
        flips = (False, True) if self.flip else (False,)
        return Wanted(self.size, self.fps, transforms_of(self.size, self.resize, self.crops, flips))

    def sample(
        self, source: DataSource, index: int, generator: torch.Generator
    ) -> dict[str, tuple[Tensor, ...]]:
        store = _store(source)
        last = vimpac_last_start(store.info(index).num_frames, self.num_frames, self.frame_stride)
        start = draw(generator, 0, last)
        frames = range(start, start + self.num_frames * self.frame_stride, self.frame_stride)
        transform = _drawn(self.size, self.resize, self.crops, self.flip, generator)
        return {"clip": (store.read_ids(index, frames, transform),)}


def _store(source: DataSource) -> TokenStore:
    if not isinstance(source, TokenStore):
        raise UsageError("these views read stored ids: the source must be of type token_store")
    return source


def _drawn(
    size: int, resize: Sequence[float], crops: Sequence[Crop], flip: bool, generator: torch.Generator
) -> Transform:
    """One of the transforms, in the order in which ``corner_clip`` draws."""
    ratio = resize[draw(generator, 0, len(resize) - 1)]
    crop = crops[draw(generator, 0, len(crops) - 1)]
    return Transform(round(ratio * size), crop, flip and bool(draw(generator, 0, 1)))


def _check_choices(resize: Sequence[float], crops: Sequence[Crop]) -> None:
    if not resize or min(resize) < 1.0:
        raise ValueError(f"resize must list numbers of at least 1, got {resize}")
    if not crops:
        raise ValueError("crops must list one place or more")
