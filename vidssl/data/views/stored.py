"""Views of videos that are stored as ids, without decoding: VIMPAC's for training, and uniform test clips."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vidssl.data.sources.tokens.source import TokenStore, Wanted
from vidssl.data.sources.tokens.store import Crop, Transform, transforms_of
from vidssl.data.views.checks import check_counts, check_fps, check_num_crops
from vidssl.data.views.random import Shape
from vidssl.data.views.times import draw, neighbour_starts, vimpac_last_start
from vidssl.data.views.uniform import Starts, uniform_ticks
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


class StoredUniformClips(StoredViews):
    """Test views out of a token store: the clips that ``uniform_clips`` takes of pixels, nothing random.

    Args:
        num_clips: of a video.
        num_crops: 1, the middle, or 3, for which the store must hold ``top``, ``middle`` and ``far``.
        num_frames: of a clip.
        frame_stride: stored frames from one clip frame to the next.
        fps: frame rate of the store; null for one that keeps the videos' own.
        size: side of the square in pixels.
        starts: as in ``uniform_clips``; its rules for short videos hold too, so nothing is padding.
    """

    def __init__(
        self,
        *,
        num_clips: int = 1,
        num_crops: int = 1,
        num_frames: int = 16,
        frame_stride: int = 8,
        fps: float | None = None,
        size: int = 224,
        starts: Starts = "middles",
    ) -> None:
        check_counts(
            {"num_clips": num_clips, "num_frames": num_frames, "frame_stride": frame_stride, "size": size}
        )
        check_num_crops(num_crops)
        check_fps(fps)
        self.num_clips = num_clips
        self.num_crops = num_crops
        self.num_frames = num_frames
        self.frame_stride = frame_stride
        self.fps = fps
        self.size = size
        self.starts = starts
        # in the order of ``crop_boxes``
        self.crops: tuple[Crop, ...] = ("middle",) if num_crops == 1 else ("top", "far", "middle")

    @property
    def shapes(self) -> Mapping[str, tuple[Shape, ...]]:
        return {"clip": ((self.num_frames, self.size, self.size),) * (self.num_clips * len(self.crops))}

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.size, self.fps, transforms_of(self.size, (1.0,), self.crops, (False,)))

    def sample(
        self, source: DataSource, index: int, generator: torch.Generator
    ) -> dict[str, tuple[Tensor, ...]]:
        store = _store(source)
        clips = uniform_ticks(
            store.info(index).num_frames,
            num_clips=self.num_clips,
            length=self.num_frames,
            stride=self.frame_stride,
            starts=self.starts,
        )
        slots = [
            store.read_ids(index, clip, transform) for clip in clips for transform in self.wanted.transforms
        ]
        return {"clip": tuple(slots)}


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
