"""Which part of a video each row of features is of: clips, sliding windows, or stretches of frames."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from vidssl.data.views.times import held_frames, kept_frames
from vidssl.data.views.uniform import EvenClips
from vidssl.errors import UsageError
from vidssl.interfaces import DataSource, SampleInfo, UnreadableSample, ViewSampler

Per = Literal["video", "clip", "window", "frame"]


@dataclass(frozen=True)
class Window:
    """Some frames of a video.

    Attributes:
        video: its number in the source.
        frames: numbers of the frames; past the end of the video its last one is held.
        times: seconds from the video's start to each of those that are not held, and to their end; nan where
            the video states no rate.
    """

    video: int
    frames: tuple[int, ...]
    times: tuple[float, ...]

    def span(self, cell: int | None, num_cells: int) -> tuple[float, float]:
        """Start and end in seconds, of the whole or of one of the ``num_cells`` that the frames fall into."""
        if cell is None:
            return self.times[0], self.times[-1]
        frames = len(self.frames) // num_cells
        last = len(self.times) - 1
        return self.times[cell * frames], self.times[min((cell + 1) * frames, last)]

    def cells(self, num_cells: int) -> int:
        """How many of the cells hold a frame that is not held."""
        return -(-(len(self.times) - 1) * num_cells // len(self.frames))


class Windows(DataSource):
    """Windows of videos as samples of their own."""

    def __init__(self, source: DataSource, windows: Sequence[Window]) -> None:
        self._source = source
        self._windows = windows
        self.label_classes: Mapping[str, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self._windows)

    def key(self, index: int) -> str:
        return self._source.key(self._windows[index].video)

    def labels(self, index: int) -> Mapping[str, int]:
        return {}

    def info(self, index: int) -> SampleInfo:
        return SampleInfo(self.key(index), len(self._windows[index].frames), 0.0, {})

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        window = self._windows[index]
        return self._source.read(window.video, [window.frames[frame] for frame in frames])


def even_views(views: ViewSampler, per: Per) -> EvenClips:
    """Views that say how far apart the frames of a clip are.

    Raises:
        UsageError: if these are of another kind.
    """
    if not isinstance(views, EvenClips):
        raise UsageError(
            f"--per {per} needs to know how clips are cut, and the views are of type {type(views).__name__}: "
            "name others, e.g. views='{type: uniform_clips, num_frames: 16, frame_stride: 4, size: 112}'"
        )
    return views


def one_clip(views: EvenClips) -> EvenClips:
    """Views of a window's own frames, in the crops and the resizing of these."""
    return replace(views, num_clips=1, frame_stride=1, fps=None, starts="end_to_end")


def windows_of(
    source: DataSource, views: EvenClips, per: Per, every: float | None
) -> tuple[list[Window], list[str]]:
    """All windows of all videos in order, and what is wrong with the videos that cannot be opened.

    Args:
        per: "clip" for the clips that ``views`` cut, "window" for clips that start every ``every`` seconds,
            "frame" for clips side by side over the whole video.
    """
    found, problems = list[Window](), list[str]()
    for video in range(len(source)):
        try:
            info = source.info(video)
            kept = kept_frames(info, views.fps)
            found += [
                _window(video, info, kept, ticks) for ticks in _ticks(info, len(kept), views, per, every)
            ]
        except UnreadableSample as error:
            problems.append(str(error))
    if not found:
        raise UsageError(f"none of the {len(source)} videos can be read: {'; '.join(problems[:3])}")
    return found, problems


def _ticks(
    info: SampleInfo, total: int, views: EvenClips, per: Per, every: float | None
) -> list[tuple[list[int], int]]:
    """Numbers among the kept frames of each window, and how many of them are not held."""
    length, stride = views.num_frames, views.frame_stride
    if per == "clip":
        return [(ticks, length) for ticks in views.ticks(total)]
    step = length * stride
    if every is not None:
        rate = views.fps or info.fps
        if rate <= 0:
            raise UnreadableSample(info.key, "states no frame rate, so that seconds mean nothing: set fps")
        step = max(1, round(every * rate))
    inside = total if per == "frame" else max(1, total - (length - 1) * stride)
    return [
        (
            held_frames(first, total, length=length, stride=stride),
            min(length, len(range(first, total, stride))),
        )
        for first in range(0, inside, step)
    ]


def _window(video: int, info: SampleInfo, kept: Sequence[int], part: tuple[list[int], int]) -> Window:
    ticks, own = part
    frames = tuple(kept[tick] for tick in ticks)

    def second(frame: int) -> float:
        if len(info.times):
            return float(info.times[frame])
        return frame / info.fps if info.fps > 0 else math.nan

    times = [second(frame) for frame in frames[:own]]
    # the last frame lasts until the next of the video, or as long as frames do on average
    last = frames[own - 1]
    end = second(last + 1) if last + 1 < info.num_frames else second(last) + _frame_seconds(info)
    return Window(video, frames, (*times, end))


def _frame_seconds(info: SampleInfo) -> float:
    if len(info.times) > 1:
        return float(info.times[-1]) / (len(info.times) - 1)
    return 1 / info.fps if info.fps > 0 else math.nan


def mean_over(parts: Sequence[Tensor]) -> Tensor:
    """The mean of the features of several views of one thing, float32."""
    return torch.stack([part.float() for part in parts]).mean(0)
