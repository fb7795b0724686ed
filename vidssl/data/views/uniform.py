"""Test views: evenly spread over a video, nothing random."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from vidssl.config.schema import Quiet
from vidssl.data.views import crops, times
from vidssl.data.views.checks import check_counts, check_fps, check_test_clips
from vidssl.interfaces import DataSource, ViewSampler

Starts = Literal["middles", "end_to_end", "last"]


@dataclass(kw_only=True, eq=False)
class EvenClips(ViewSampler):
    """Clips evenly spread over a video, each in one or three crops. Slots are clip by clip, crops inside.

    Args:
        num_clips: of a video; BEVT tests with 4, VIMPAC with 10.
        num_crops: 1, the middle, or 3: both ends of the long side and the middle; both papers test with 3.
        num_frames: of a clip.
        frame_stride: frames from one clip frame to the next, counted at ``fps`` if that is given.
        fps: frame rate that the video is thinned out to first; None keeps its own.
        size: side of the square in pixels, and length that the short side is resized to; ``uniform_clips``
            takes [height, width] too.
        starts: "middles" is BEVT's rule, clips start in the middle of equal parts of all possible starts
            and a video too short for a clip is read round and round. "end_to_end" is VIMPAC's, the first
            clip starts the video and the last one ends it; a single clip starts it, and a video too short
            holds its last frame. "last" is V-JEPA 2's for what comes next: the one clip ends the video,
            and before one too short stands its first frame.
    """

    num_clips: int = 1
    num_crops: int = 1
    num_frames: int = 16
    frame_stride: int = 8
    fps: float | None = None
    size: int = 224
    starts: Starts = "middles"

    def __post_init__(self) -> None:
        check_test_clips(self, "num_clips", "num_frames", "frame_stride")
        crops.check_fit("crop", self.size)
        check_fps(self.fps)
        if self.starts == "last" and self.num_clips != 1:
            raise ValueError(f"starts 'last' is of one clip, got num_clips {self.num_clips}")

    @property
    def shapes(self) -> crops.Shapes:
        return {"clip": ((self.num_frames, *crops.sides(self.size)),) * (self.num_clips * self.num_crops)}

    def ticks(self, total: int) -> list[list[int]]:
        """Frames of each clip, of a video that has ``total`` at ``fps``."""
        length, stride = self.num_frames, self.frame_stride
        if self.starts == "last":
            return [[max(0, total - (length - step) * stride) for step in range(length)]]
        if self.starts == "middles":
            firsts = times.middle_starts(times.last_start(total, length, stride), self.num_clips)
            return [times.clip_frames(first, total, length=length, stride=stride) for first in firsts]
        firsts = times.end_to_end_starts(times.vimpac_last_start(total, length, stride), self.num_clips)
        return [times.held_frames(first, total, length=length, stride=stride) for first in firsts]


@dataclass(kw_only=True, eq=False)
class UniformClips(EvenClips):
    """Clips evenly spread over a video, each in one or three crops: the usual test views, nothing random.

    Args:
        num_clips, num_crops, num_frames, frame_stride, fps, size, starts: see ``EvenClips``.
        interpolation: of the resizing; "bicubic" and "bilinear" do not antialias (``crops.resized``).
        fit: "crop" cuts the crops; "stretch" and "pad" show the whole frame, distorted or with black beside
            it.
    """

    size: crops.Size = 224  # type: ignore[assignment]
    interpolation: crops.Interpolation = "bicubic_antialiased"
    fit: Quiet[crops.Fit] = "crop"

    def __post_init__(self) -> None:
        EvenClips.__post_init__(self)
        crops.check_fit(self.fit, self.size, num_crops=self.num_crops)

    def sample(self, source: DataSource, index: int, generator: torch.Generator) -> crops.Views:
        kept = times.kept_frames(source.info(index), self.fps)
        clips = [[kept[tick] for tick in ticks] for ticks in self.ticks(len(kept))]
        frames = crops.FramesOfClips(source, index, clips)
        if self.fit != "crop":
            pixels, rows = frames.only(clips)
            fitted = crops.whole(pixels, self.size, self.fit, self.interpolation)
            return {"clip": tuple(crops.as_view(crops.picked(fitted, own)) for own in rows)}
        return {"clip": even_crops(frames, clips, self.size, self.num_crops, self.interpolation)}


@dataclass(kw_only=True, eq=False)
class SegmentMiddles(ViewSampler):
    """One clip of the middle frames of equal parts of the whole video: BEVT's test view for SSv2.

    Args:
        num_frames: parts, and frames of the clip.
        num_crops: 1 or 3, as in ``uniform_clips``; BEVT tests with 3.
        size: side of the square in pixels.
        interpolation: of the resizing; "bicubic" and "bilinear" do not antialias (``crops.resized``).
    """

    num_frames: int = 32
    num_crops: int = 3
    size: int = 224
    interpolation: crops.Interpolation = "bicubic_antialiased"

    def __post_init__(self) -> None:
        check_test_clips(self, "num_frames", "size")

    @property
    def shapes(self) -> crops.Shapes:
        return {"clip": ((self.num_frames, self.size, self.size),) * self.num_crops}

    def sample(self, source: DataSource, index: int, generator: torch.Generator) -> crops.Views:
        parts = times.segments(source.info(index).num_frames, self.num_frames)
        clip = [(first + last) // 2 for first, last in parts]
        frames = crops.FramesOfClips(source, index, [clip])
        return {"clip": even_crops(frames, [clip], self.size, self.num_crops, self.interpolation)}


@dataclass(kw_only=True, eq=False)
class SVTPublishedTest(ViewSampler):
    """The test views of SVT's published code: clips from the start of a video on, its crops and its resizing.

    A clip lasts as long as ``window_frames`` at 30 fps; the i-th of n starts at i/n of the last possible
    start, so a single clip is the first. A video too short holds its last frame.

    Args:
        num_clips: of a video.
        num_crops: 1, the middle, or 3: near end, middle and far end of the long side.
        num_frames: evenly over the clip, its first and last frame among them.
        window_frames: of a clip, at 30 fps; published: 8 x 32.
        size: side of the square in pixels.
        short_side: length that the short side is resized to; by default ``size``. Published: 256 for one
            crop, 224 for three.
    """

    num_clips: int = 1
    num_crops: int = 3
    num_frames: int = 8
    window_frames: int = 256
    size: int = 224
    short_side: int | None = None

    def __post_init__(self) -> None:
        check_test_clips(self, "num_clips", "num_frames", "window_frames", "size")
        if self.short_side is not None and self.short_side < self.size:
            raise ValueError(f"short_side must not be below size ({self.size}), got {self.short_side}")

    @property
    def shapes(self) -> crops.Shapes:
        return {"clip": ((self.num_frames, self.size, self.size),) * (self.num_clips * self.num_crops)}

    def sample(self, source: DataSource, index: int, generator: torch.Generator) -> crops.Views:
        info = source.info(index)
        clips = [
            times.svt_test_frames(
                info.num_frames,
                times.svt_fps(info),
                clip=clip,
                num_clips=self.num_clips,
                length=self.num_frames,
                window_frames=self.window_frames,
            )
            for clip in range(self.num_clips)
        ]
        frames = crops.FramesOfClips(source, index, clips)
        pixels = crops.svt_resize_short_side(frames.pixels, self.short_side or self.size)
        boxes = crops.svt_crop_boxes(pixels.shape[2], pixels.shape[3], self.size, self.num_crops)
        slots = [crops.crop(pixels, *box, self.size, frames.rows(clip)) for clip in clips for box in boxes]
        return {"clip": tuple(slots)}


@dataclass(kw_only=True, eq=False)
class SlowAndFast(ViewSampler):
    """Few large frames and many small ones of one stretch of video (SVT, Sec. 3.4).

    The paper does not state the frames' spacing; by default both clips cover 256 frames. Past the end of a
    video its last frame is held.

    Args:
        num_frames: of a slow and of a fast clip.
        frame_strides: of each, video frames from one clip frame to the next.
        sizes: of each, side of the square in pixels.
        interpolation: of the resizing; "bicubic" and "bilinear" do not antialias (``crops.resized``).
    """

    num_frames: tuple[int, int] = (8, 64)
    frame_strides: tuple[int, int] = (32, 4)
    sizes: tuple[int, int] = (224, 96)
    interpolation: crops.Interpolation = "bicubic_antialiased"

    def __post_init__(self) -> None:
        check_counts(self, "num_frames", "frame_strides", "sizes")

    def last_start(self, total: int) -> int:
        """The last frame that both clips fit behind."""
        return min(map(partial(times.last_start, total), self.num_frames, self.frame_strides))

    def clips(self, start: int, total: int) -> list[list[int]]:
        """Frames of the slow and of the fast clip."""
        spacings = zip(self.num_frames, self.frame_strides, strict=True)
        return [times.held_frames(start, total, length=length, stride=stride) for length, stride in spacings]


@dataclass(kw_only=True, eq=False)
class SlowFast(SlowAndFast):
    """Test views of slow-fast inference (SVT, Sec. 3.4): few large frames and many small ones of one clip.

    The i-th slots of the views ``slow`` and ``fast`` are one test view. Clips start in the middle of equal
    parts of the possible starts of the longer one; the short side is resized to each size.

    Args:
        num_frames, frame_strides, sizes, interpolation: see ``SlowAndFast``.
        num_clips: of a video.
        num_crops: 1 or 3, as in ``uniform_clips``; the paper has 3.
    """

    num_clips: int = 1
    num_crops: int = 3

    def __post_init__(self) -> None:
        SlowAndFast.__post_init__(self)
        check_test_clips(self, "num_clips")

    @property
    def shapes(self) -> crops.Shapes:
        slots = self.num_clips * self.num_crops
        slow, fast = ((length, size, size) for length, size in zip(self.num_frames, self.sizes, strict=True))
        return {"slow": (slow,) * slots, "fast": (fast,) * slots}

    def sample(self, source: DataSource, index: int, generator: torch.Generator) -> crops.Views:
        total = source.info(index).num_frames
        starts = times.middle_starts(self.last_start(total), self.num_clips)
        slow, fast = map(list, zip(*(self.clips(start, total) for start in starts), strict=True))
        frames = crops.FramesOfClips(source, index, [*slow, *fast])
        return {
            "slow": even_crops(frames, slow, self.sizes[0], self.num_crops, self.interpolation),
            "fast": even_crops(frames, fast, self.sizes[1], self.num_crops, self.interpolation),
        }


def even_crops(
    frames: crops.FramesOfClips,
    clips: list[list[int]],
    size: crops.Size,
    num_crops: int,
    interpolation: crops.Interpolation,
) -> tuple[Tensor, ...]:
    """Each clip in its crops, [3, T, height, width]: short side resized to that of views, BEVT's boxes."""
    pixels, rows_of_clips = frames.only(clips)
    pixels = crops.covering(pixels, size, min(crops.sides(size)), interpolation)
    boxes = crops.crop_boxes(pixels.shape[2], pixels.shape[3], size, num_crops)
    return tuple(crops.crop(pixels, *box, size, rows) for rows in rows_of_clips for box in boxes)
