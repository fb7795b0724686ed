"""One random clip or frame of a video, for training. Pixels stay uint8."""

from abc import abstractmethod
from dataclasses import dataclass

import torch

from vidssl.config.schema import Quiet
from vidssl.data.views import crops
from vidssl.data.views.checks import check_counts
from vidssl.data.views.times import clip_frames, draw, last_start, segments
from vidssl.interfaces import DataSource, ViewSampler


@dataclass(kw_only=True, eq=False)
class SingleClip(ViewSampler):
    """One random clip of a video, resized and cropped at random as in BEVT's published code.

    The start is uniform over all clips that fit; a video too short for one is read round and round from
    its first frame. The short side becomes a random length, then a square is cut from a random place. A
    video that already has the wanted size is taken as it is.

    Args:
        num_frames: of the clip.
        frame_stride: video frames from one clip frame to the next.
        size: side of the square in pixels, or [height, width].
        short_side: smallest and largest length that the short side is resized to. By default the range
            that BEVT has for 224 pixels, 256 to 320, scaled to ``size``.
        interpolation: of the resizing; "bicubic" and "bilinear" do not antialias (``crops.resized``).
        fit: "crop" cuts a random part; "stretch" and "pad" show the whole frame, distorted or with black
            beside it.
    """

    num_frames: int = 16
    frame_stride: int = 8
    size: crops.Size = 224
    short_side: tuple[int, int] | None = None
    interpolation: crops.Interpolation = "bicubic_antialiased"
    fit: Quiet[crops.Fit] = "crop"

    def __post_init__(self) -> None:
        check_counts(self, "num_frames", "frame_stride")
        crops.check_fit(self.fit, self.size, self.short_side)
        self.short_side = crops.short_side_range(self.short_side, min(crops.sides(self.size)))

    @property
    def shapes(self) -> crops.Shapes:
        return {"clip": ((self.num_frames, *crops.sides(self.size)),)}

    def sample(self, source: DataSource, index: int, generator: torch.Generator) -> crops.Views:
        clip = _random_clip(source.info(index).num_frames, self.num_frames, self.frame_stride, generator)
        frames = source.read(index, clip)
        how = self.interpolation, self.fit
        return {"clip": (crops.random_view(frames, self.size, self.short_side, generator, *how),)}


# where a box lies, in quarters of the room around it: corners, middle, edges, in between
_PLACES = tuple((a, b) for a in range(5) for b in range(5) if a % 2 == b % 2)


@dataclass(kw_only=True, eq=False)
class MultiScaleClip(ViewSampler):
    """One random clip in a box of one of a few scales at one of 13 places: VideoMAE's view for pre-training.

    Height and width of the box are scales of the frame's short side that are next to each other in the list,
    or the same; every pair is equally likely, and so is every place (TSN's "multi-scale cropping", published
    code). Starts are as those of ``single_clip``.

    Args:
        num_frames: of the clip.
        frame_stride: video frames from one clip frame to the next.
        size: side of the square in pixels that the box is resized to.
        scales: of the box's sides, falling.
        interpolation: of the resizing; the published one is bilinear and antialiased.
    """

    num_frames: int = 16
    frame_stride: int = 4
    size: int = 224
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    interpolation: crops.Interpolation = "bicubic_antialiased"

    def __post_init__(self) -> None:
        check_counts(self, "num_frames", "frame_stride", "size")
        if not self.scales or not 0 < min(self.scales) <= max(self.scales) <= 1:
            raise ValueError(f"scales must be fractions of the short side, up to 1, got {self.scales}")

    @property
    def shapes(self) -> crops.Shapes:
        return {"clip": ((self.num_frames, self.size, self.size),)}

    def sample(self, source: DataSource, index: int, generator: torch.Generator) -> crops.Views:
        clip = _random_clip(source.info(index).num_frames, self.num_frames, self.frame_stride, generator)
        frames = source.read(index, clip)
        height, width = frames.shape[2:]
        sides = [max(1, int(min(height, width) * scale)) for scale in self.scales]
        pairs = [(a, b) for i, a in enumerate(sides) for j, b in enumerate(sides) if abs(i - j) <= 1]
        tall, wide = pairs[draw(generator, 0, len(pairs) - 1)]
        down, right = _PLACES[draw(generator, 0, len(_PLACES) - 1)]
        top, left = down * ((height - tall) // 4), right * ((width - wide) // 4)
        box = frames[:, :, top : top + tall, left : left + wide]
        return {"clip": (crops.as_view(crops.resized(box, self.size, self.size, self.interpolation)),)}


@dataclass(kw_only=True, eq=False)
class SingleImage(ViewSampler):
    """One random frame of a video, or an image, resized and cropped at random as in BEVT's published code.

    Args:
        size: side of the square in pixels, or [height, width].
        short_side: smallest and largest length that the short side is resized to. By default the range
            that BEVT has for 224 pixels, 256 to 320, scaled to ``size``.
        interpolation: of the resizing; "bicubic" and "bilinear" do not antialias (``crops.resized``).
        fit: "crop" cuts a random part; "stretch" and "pad" show the whole frame, distorted or with black
            beside it.
    """

    size: crops.Size = 224
    short_side: tuple[int, int] | None = None
    interpolation: crops.Interpolation = "bicubic_antialiased"
    fit: Quiet[crops.Fit] = "crop"

    def __post_init__(self) -> None:
        crops.check_fit(self.fit, self.size, self.short_side)
        self.short_side = crops.short_side_range(self.short_side, min(crops.sides(self.size)))

    @property
    def shapes(self) -> crops.Shapes:
        return {"image": ((1, *crops.sides(self.size)),)}

    def sample(self, source: DataSource, index: int, generator: torch.Generator) -> crops.Views:
        frame = draw(generator, 0, source.info(index).num_frames - 1)
        frames = source.read(index, [frame])
        how = self.interpolation, self.fit
        return {"image": (crops.random_view(frames, self.size, self.short_side, generator, *how),)}


@dataclass(kw_only=True, eq=False)
class InRandomBox(ViewSampler):
    """A clip in one random box, which serves all frames.

    Args:
        num_frames: of the clip.
        size: side of the square in pixels that the box is resized to.
        area: smallest and largest fraction of the frame that the box covers.
        aspect: smallest and largest width / height of the box.
        short_side: resize the short side to this length before the box is cut, as BEVT's published code
            does with 256; by default frames are resized only once.
        interpolation: of the resizing; "bicubic" and "bilinear" do not antialias (``crops.resized``).
    """

    num_frames: int = 32
    size: int = 224
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = crops.ASPECT
    short_side: int | None = None
    interpolation: crops.Interpolation = "bicubic_antialiased"

    def __post_init__(self) -> None:
        check_counts(self, "num_frames", "short_side")
        self.cut = crops.RandomResizedCrop(
            self.size, self.area, self.aspect, interpolation=self.interpolation
        )

    @property
    def shapes(self) -> crops.Shapes:
        return {"clip": ((self.num_frames, self.size, self.size),)}

    @abstractmethod
    def frames(self, total: int, generator: torch.Generator) -> list[int]:
        """Frames of the clip, of a video that has ``total``."""

    def sample(self, source: DataSource, index: int, generator: torch.Generator) -> crops.Views:
        frames = source.read(index, self.frames(source.info(index).num_frames, generator))
        if self.short_side is not None:
            frames = crops.resize_short_side(frames, self.short_side, self.interpolation)
        return {"clip": (self.cut(frames, generator),)}


@dataclass(kw_only=True, eq=False)
class RandomResizedClip(InRandomBox):
    """One random clip in a box of random area and shape: BEVT's view for finetuning on Kinetics.

    Starts are as those of ``single_clip``. One box serves all frames.

    Args:
        frame_stride: video frames from one clip frame to the next.
        num_frames, size, area, aspect, short_side, interpolation: see ``InRandomBox``.
    """

    frame_stride: int = 2

    def __post_init__(self) -> None:
        check_counts(self, "frame_stride")
        InRandomBox.__post_init__(self)

    def frames(self, total: int, generator: torch.Generator) -> list[int]:
        return _random_clip(total, self.num_frames, self.frame_stride, generator)


@dataclass(kw_only=True, eq=False)
class RandomSegments(InRandomBox):
    """A clip of one random frame from each of equal parts of the whole video, in a random box.

    BEVT's view for finetuning on Something-Something v2.

    Args:
        num_frames: parts, and frames of the clip.
        size, area, aspect, short_side, interpolation: see ``InRandomBox``.
    """

    def frames(self, total: int, generator: torch.Generator) -> list[int]:
        return [draw(generator, first, last) for first, last in segments(total, self.num_frames)]


def _random_clip(num_frames: int, length: int, stride: int, generator: torch.Generator) -> list[int]:
    start = draw(generator, 0, last_start(num_frames, length, stride))
    return clip_frames(start, num_frames, length=length, stride=stride)
