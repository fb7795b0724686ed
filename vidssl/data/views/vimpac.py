"""VIMPAC's views: clips at a stated frame rate, with no randomness but the place."""

from dataclasses import dataclass

import torch

from vidssl.data.views.checks import check_counts, check_fps
from vidssl.data.views.crops import FramesOfClips, Shapes, Views, crop, crop_boxes, resize_short_side
from vidssl.data.views.times import draw, held_frames, kept_frames, neighbour_starts, vimpac_last_start
from vidssl.interfaces import DataSource, SampleInfo, UnreadableSample, ViewSampler


@dataclass(kw_only=True, eq=False)
class CornerClip(ViewSampler):
    """One random clip, cut from the top left, the middle or the bottom right: VIMPAC's view for finetuning.

    The short side becomes one of several lengths, then a square is cut at one of the three places. With
    a flip these are the paper's twelve augmentations (App. C). A video too short for a clip holds its last
    frame.

    Args:
        num_frames: of the clip.
        frame_stride: frames from one clip frame to the next, counted at ``fps``.
        fps: frame rate that the video is thinned out to first; None keeps its own.
        size: side of the square in pixels.
        resize: the short side is one of these times ``size``. The paper's text says 1 and 1.5, its
            Table 4 and the published code 1 and 1.25.
    """

    num_frames: int = 10
    frame_stride: int = 1
    fps: float | None = 2.0
    size: int = 256
    resize: tuple[float, ...] = (1.0, 1.25)

    def __post_init__(self) -> None:
        check_counts(self, "num_frames", "frame_stride", "size")
        check_fps(self.fps)
        if not self.resize or min(self.resize) < 1.0:
            raise ValueError(f"resize must list numbers of at least 1, got {self.resize}")

    @property
    def shapes(self) -> Shapes:
        return {"clip": ((self.num_frames, self.size, self.size),)}

    def sample(self, source: DataSource, index: int, generator: torch.Generator) -> Views:
        kept = kept_frames(source.info(index), self.fps)
        start = draw(generator, 0, vimpac_last_start(len(kept), self.num_frames, self.frame_stride))
        clip = held_frames(start, len(kept), length=self.num_frames, stride=self.frame_stride)
        frames = source.read(index, [kept[tick] for tick in clip])  # before what is drawn of its crop
        ratio = self.resize[draw(generator, 0, len(self.resize) - 1)]
        place = draw(generator, 0, 2)
        frames = resize_short_side(frames, round(ratio * self.size))
        top, left = (place * (side - self.size) // 2 for side in frames.shape[2:])
        return {"clip": (crop(frames, top, left, self.size),)}


@dataclass(kw_only=True, eq=False)
class PairOfClips(ViewSampler):
    """Two clips of one video, each uniform over all that fit: VIMPAC, Sec. 3.2. They may overlap or coincide.

    Args:
        num_frames: of each clip.
        frame_stride: frames from one clip frame to the next, counted at ``fps``.
        fps: frame rate that the video is thinned out to first; None keeps its own.
        size: side of the square in pixels; the short side is resized to it.
        max_distance_seconds: largest distance between the two starts (Table 10); None for any.
    """

    num_frames: int = 5
    frame_stride: int = 1
    fps: float | None = 2.0
    size: int = 128
    max_distance_seconds: float | None = None

    def __post_init__(self) -> None:
        check_counts(self, "num_frames", "frame_stride", "size")
        check_fps(self.fps)
        if self.max_distance_seconds is not None and self.max_distance_seconds < 0:
            raise ValueError(f"max_distance_seconds must be at least 0, got {self.max_distance_seconds}")

    @property
    def shapes(self) -> Shapes:
        return {"clip": ((self.num_frames, self.size, self.size),) * 2}

    def is_one_clip(self, info: SampleInfo) -> bool:
        """Whether a video has only one place for a clip, so that both clips of its pair are the same."""
        total = len(kept_frames(info, self.fps))
        return info.num_frames > 1 and vimpac_last_start(total, self.num_frames, self.frame_stride) == 0

    def starts(
        self, info: SampleInfo, total: int, rate: float, generator: torch.Generator
    ) -> tuple[int, int]:
        """Starts of both clips among ``total`` frames, ``rate`` a second; 0 where the rate is not stated.

        Raises:
            UnreadableSample: if the distance is limited and the rate not stated.
        """
        last = vimpac_last_start(total, self.num_frames, self.frame_stride)
        first = draw(generator, 0, last)
        distance = None
        if self.max_distance_seconds is not None and info.num_frames > 1:
            if rate <= 0:
                raise UnreadableSample(info.key, "it states no frame rate, which max_distance_seconds needs")
            distance = round(self.max_distance_seconds * rate)
        return first, draw(generator, *neighbour_starts(first, last, distance))


@dataclass(kw_only=True, eq=False)
class ClipPair(PairOfClips):
    """Two clips of one video, each uniform over all that fit, in the middle of the frame: VIMPAC, Sec. 3.2.

    They may overlap or coincide. Nothing else is random (App. C.1). A video too short for a clip holds its
    last frame; the published code, which reads stored ids, pads it instead.

    Args:
        num_frames, frame_stride, fps, size, max_distance_seconds: see ``PairOfClips``.
    """

    def sample(self, source: DataSource, index: int, generator: torch.Generator) -> Views:
        info = source.info(index)
        kept = kept_frames(info, self.fps)
        clips = []
        for start in self.starts(info, len(kept), info.fps if self.fps is None else self.fps, generator):
            ticks = held_frames(start, len(kept), length=self.num_frames, stride=self.frame_stride)
            clips.append([kept[tick] for tick in ticks])
        frames = FramesOfClips(source, index, clips)
        pixels = resize_short_side(frames.pixels, self.size)
        (box,) = crop_boxes(pixels.shape[2], pixels.shape[3], self.size, 1)
        return {"clip": tuple(crop(pixels, *box, self.size, frames.rows(clip)) for clip in clips)}
