"""Views of videos that are stored as ids, without decoding: VIMPAC's for training, and uniform test clips."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidssl.data.sources.token_store import Crop, StoreNeeds, TokenStore, Transform, transforms_of
from vidssl.data.views import checks, times, uniform, vimpac
from vidssl.data.views.crops import Shapes, Views
from vidssl.errors import UsageError
from vidssl.interfaces import DataSource, ViewSampler


class StoredViews(ViewSampler):
    """Views out of a token store: slots are ids int64 [t, h, w], ``shapes`` those of the pixels behind."""

    @property
    @abstractmethod
    def wanted(self) -> StoreNeeds:
        """What the store must hold."""


@dataclass(kw_only=True, eq=False)
class _Transformed(StoredViews):
    """Clips under one of several transforms, which is drawn for each sample."""

    num_frames: int
    frame_stride: int
    fps: float | None
    size: int
    resize: tuple[float, ...]
    crops: tuple[Crop, ...]
    flip: bool

    def __post_init__(self) -> None:
        checks.check_counts(self, "num_frames", "frame_stride", "size")
        checks.check_fps(self.fps)
        if not self.resize or min(self.resize) < 1.0:
            raise ValueError(f"resize must list numbers of at least 1, got {self.resize}")
        if not self.crops:
            raise ValueError("crops must list one place or more")

    @property
    def wanted(self) -> StoreNeeds:
        flips = (False, True) if self.flip else (False,)
        return StoreNeeds(self.size, self.fps, transforms_of(self.size, self.resize, self.crops, flips))

    def clips(
        self, store: TokenStore, index: int, starts: Sequence[int], generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """Ids of the clips at some starts; their transform is drawn as ``corner_clip`` draws."""
        ratio = self.resize[times.draw(generator, 0, len(self.resize) - 1)]
        crop = self.crops[times.draw(generator, 0, len(self.crops) - 1)]
        transform = Transform(round(ratio * self.size), crop, self.flip and bool(times.draw(generator, 0, 1)))
        span, stride = self.num_frames * self.frame_stride, self.frame_stride
        return tuple(store.read_ids(index, range(start, start + span, stride), transform) for start in starts)


@dataclass(kw_only=True, eq=False)
class StoredClipPair(vimpac.PairOfClips, _Transformed):
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

    resize: tuple[float, ...] = (1.0,)
    crops: tuple[Crop, ...] = ("middle",)
    flip: bool = False

    def __post_init__(self) -> None:
        vimpac.PairOfClips.__post_init__(self)
        _Transformed.__post_init__(self)

    def sample(self, source: DataSource, index: int, generator: torch.Generator) -> Views:
        store = _store(source)
        info = store.info(index)
        # before the transform, so that these are the starts of the same clips' pixels
        starts = self.starts(info, info.num_frames, info.fps, generator)
        return {"clip": self.clips(store, index, starts, generator)}


@dataclass(kw_only=True, eq=False)
class StoredClip(_Transformed):
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

    num_frames: int = 10
    frame_stride: int = 8
    fps: float | None = 16.0
    size: int = 256
    resize: tuple[float, ...] = (1.0, 1.25)
    crops: tuple[Crop, ...] = ("top", "middle", "bottom")
    flip: bool = True

    @property
    def shapes(self) -> Shapes:
        return {"clip": ((self.num_frames, self.size, self.size),)}

    def sample(self, source: DataSource, index: int, generator: torch.Generator) -> Views:
        store = _store(source)
        last = times.vimpac_last_start(store.info(index).num_frames, self.num_frames, self.frame_stride)
        return {"clip": self.clips(store, index, (times.draw(generator, 0, last),), generator)}


@dataclass(kw_only=True, eq=False)
class StoredUniformClips(uniform.EvenClips, StoredViews):
    """Test views out of a token store: the clips that ``uniform_clips`` takes of pixels, nothing random.

    The rules of ``uniform_clips`` for short videos hold too, so nothing is padding.

    Args:
        num_clips, num_frames, frame_stride, size, starts: see ``EvenClips``.
        num_crops: 1, the middle, or 3, for which the store must hold ``top``, ``middle`` and ``far``.
        fps: frame rate of the store; null for one that keeps the videos' own.
    """

    @property
    def wanted(self) -> StoreNeeds:
        # in the order of ``crop_boxes``
        crops: tuple[Crop, ...] = ("middle",) if self.num_crops == 1 else ("top", "far", "middle")
        return StoreNeeds(self.size, self.fps, transforms_of(self.size, (1.0,), crops, (False,)))

    def sample(self, source: DataSource, index: int, generator: torch.Generator) -> Views:
        store, transforms = _store(source), self.wanted.transforms
        clips = self.ticks(store.info(index).num_frames)
        slots = [store.read_ids(index, clip, transform) for clip in clips for transform in transforms]
        return {"clip": tuple(slots)}


def _store(source: DataSource) -> TokenStore:
    if not isinstance(source, TokenStore):
        raise UsageError("these views read stored ids: the source must be of type token_store")
    return source
