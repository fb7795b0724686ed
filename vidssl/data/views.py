"""From one video to its named views: which frames, how large, which crop. Pixels stay uint8."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as resizing

from vidssl.interfaces import DataSource, ViewSampler

Shape = tuple[int, int, int]


class SingleClip(ViewSampler):
    """One random clip of a video, resized and cropped at random as in BEVT's published code.

    The start is uniform over all clips that fit; a video too short for one is read round and round from
    its first frame. The short side becomes a random length, then a square is cut from a random place. A
    video that already has the wanted size is taken as it is.

    Args:
        num_frames: of the clip.
        frame_stride: video frames from one clip frame to the next.
        size: side of the square in pixels.
        short_side: smallest and largest length that the short side is resized to. By default the range
            that BEVT has for 224 pixels, 256 to 320, scaled to ``size``.
    """

    def __init__(
        self,
        *,
        num_frames: int = 16,
        frame_stride: int = 8,
        size: int = 224,
        short_side: tuple[int, int] | None = None,
    ) -> None:
        _check_at_least_one(num_frames=num_frames, frame_stride=frame_stride, size=size)
        self.num_frames = num_frames
        self.frame_stride = frame_stride
        self.size = size
        self.short_side = _short_side_range(short_side, size)

    @property
    def shapes(self) -> Mapping[str, tuple[Shape, ...]]:
        return {"clip": ((self.num_frames, self.size, self.size),)}

    def sample(
        self, source: DataSource, index: int, generator: torch.Generator
    ) -> dict[str, tuple[Tensor, ...]]:
        num_frames = source.info(index).num_frames
        start = _draw(generator, 0, last_start(num_frames, self.num_frames, self.frame_stride))
        frames = source.read(
            index, clip_frames(start, num_frames, length=self.num_frames, stride=self.frame_stride)
        )
        return {"clip": (_random_crop(frames, self.size, self.short_side, generator),)}


class SingleImage(ViewSampler):
    """One random frame of a video, or an image, resized and cropped at random as in BEVT's published code.

    Args:
        size: side of the square in pixels.
        short_side: smallest and largest length that the short side is resized to. By default the range
            that BEVT has for 224 pixels, 256 to 320, scaled to ``size``.
    """

    def __init__(self, *, size: int = 224, short_side: tuple[int, int] | None = None) -> None:
        _check_at_least_one(size=size)
        self.size = size
        self.short_side = _short_side_range(short_side, size)

    @property
    def shapes(self) -> Mapping[str, tuple[Shape, ...]]:
        return {"image": ((1, self.size, self.size),)}

    def sample(
        self, source: DataSource, index: int, generator: torch.Generator
    ) -> dict[str, tuple[Tensor, ...]]:
        frame = _draw(generator, 0, source.info(index).num_frames - 1)
        return {"image": (_random_crop(source.read(index, [frame]), self.size, self.short_side, generator),)}


class UniformClips(ViewSampler):
    """Clips evenly spread over a video, each in one or three crops: the usual test views, nothing random.

    Clips start in the middle of ``num_clips`` equal parts of all possible starts; crops are the middle
    of the frame or both ends of its long side and the middle, after its short side became ``size``.
    Slots are clip by clip, crops inside.

    Args:
        num_clips: of a video; BEVT tests with 4.
        num_crops: 1 or 3; BEVT tests with 3.
        num_frames: of a clip.
        frame_stride: video frames from one clip frame to the next.
        size: side of the square in pixels.
    """

    def __init__(
        self,
        *,
        num_clips: int = 1,
        num_crops: int = 1,
        num_frames: int = 16,
        frame_stride: int = 8,
        size: int = 224,
    ) -> None:
        _check_at_least_one(num_clips=num_clips, num_frames=num_frames, frame_stride=frame_stride, size=size)
        if num_crops not in (1, 3):
            raise ValueError(f"num_crops must be 1 or 3, got {num_crops}")
        self.num_clips = num_clips
        self.num_crops = num_crops
        self.num_frames = num_frames
        self.frame_stride = frame_stride
        self.size = size

    @property
    def shapes(self) -> Mapping[str, tuple[Shape, ...]]:
        return {"clip": ((self.num_frames, self.size, self.size),) * (self.num_clips * self.num_crops)}

    def sample(
        self, source: DataSource, index: int, generator: torch.Generator
    ) -> dict[str, tuple[Tensor, ...]]:
        num_frames = source.info(index).num_frames
        starts = uniform_starts(num_frames, self.num_clips, self.num_frames, self.frame_stride)
        clips = [
            clip_frames(start, num_frames, length=self.num_frames, stride=self.frame_stride)
            for start in starts
        ]
        union = sorted({frame for clip in clips for frame in clip})
        pixels = _resize_short_side(source.read(index, union), self.size)
        row = {frame: place for place, frame in enumerate(union)}
        boxes = crop_boxes(pixels.shape[2], pixels.shape[3], self.size, self.num_crops)
        slots = []
        for clip in clips:
            frames = pixels[[row[frame] for frame in clip]]
            slots += [_crop(frames, top, left, self.size) for top, left in boxes]
        return {"clip": tuple(slots)}


def last_start(num_frames: int, length: int, stride: int) -> int:
    """The last frame that a clip can start from, 0 where the video is too short for one.

    A clip takes up ``length * stride`` frames here, the gap behind its last frame with it: BEVT's rule.
    """
    return max(0, num_frames - length * stride)


def clip_frames(start: int, num_frames: int, *, length: int, stride: int) -> list[int]:
    """Frame numbers of a clip; past the end of the video they go on at its first frame."""
    return [(start + step * stride) % num_frames for step in range(length)]


def uniform_starts(num_frames: int, num_clips: int, length: int, stride: int) -> list[int]:
    """Starts of test clips: the middles of ``num_clips`` equal parts of the possible starts."""
    possible = last_start(num_frames, length, stride) + 1
    return [int((clip + 0.5) * possible / num_clips) for clip in range(num_clips)]


def crop_boxes(height: int, width: int, size: int, num_crops: int) -> list[tuple[int, int]]:
    """(top, left) of 1 crop, the middle, or 3: the near end, the far end and the middle of the long side."""
    down, right = (height - size) // 2, (width - size) // 2
    if num_crops == 1:
        return [(down, right)]
    # twice the rounded middle, not the very edge: on odd lengths the published crops leave out a pixel
    if height > width:
        return [(0, right), (2 * down, right), (down, right)]
    return [(down, 0), (down, 2 * right), (down, right)]


def _random_crop(
    frames: Tensor, size: int, short_side: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """[T, 3, H, W] -> [3, T, size, size]: short side to a random length, then a random square."""
    if frames.shape[2:] != (size, size):
        frames = _resize_short_side(frames, _draw(generator, *short_side))
    # the last offset is drawn too; the published code's random crop never reaches it
    top = _draw(generator, 0, frames.shape[2] - size)
    left = _draw(generator, 0, frames.shape[3] - size)
    return _crop(frames, top, left, size)


def _resize_short_side(frames: Tensor, length: int) -> Tensor:
    """Frames [T, 3, H, W] whose short side has this length, as they are if it already has it."""
    height, width = frames.shape[2:]
    short = min(height, width)
    if short == length:
        return frames
    new = [int(side * length / short + 0.5) for side in (height, width)]
    # bicubic as published, but antialiased: without it, shrinking a large video flickers
    return resizing.resize(frames, new, interpolation=resizing.InterpolationMode.BICUBIC, antialias=True)


def _crop(frames: Tensor, top: int, left: int, size: int) -> Tensor:
    return frames[:, :, top : top + size, left : left + size].transpose(0, 1).contiguous()


def _draw(generator: torch.Generator, lowest: int, highest: int) -> int:
    return int(torch.randint(lowest, highest + 1, (), generator=generator))


def _short_side_range(short_side: tuple[int, int] | None, size: int) -> tuple[int, int]:
    if short_side is None:
        return round(size * 256 / 224), round(size * 320 / 224)
    if not size <= short_side[0] <= short_side[1]:
        raise ValueError(
            f"short_side must be two lengths, rising and not below size ({size}), got {short_side}"
        )
    return short_side


def _check_at_least_one(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
