"""Which frames of a video make up a clip: pure functions of frame numbers.

A video of n frames has the numbers 0 to n - 1. Rules of the published codes carry their paper's name.
"""

import logging
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from vidssl.interfaces import SampleInfo, UnreadableSample

SVT_FPS = 30.0  # the rate at which SVT's windows are counted in frames

_log = logging.getLogger(__name__)


def draw(generator: torch.Generator, lowest: int, highest: int) -> int:
    """A whole number, each from ``lowest`` to ``highest`` alike likely."""
    return int(torch.randint(lowest, highest + 1, (), generator=generator))


def draw_real(generator: torch.Generator, lowest: float, highest: float) -> float:
    """A real number, uniform between two."""
    return lowest + (highest - lowest) * float(torch.rand((), generator=generator, dtype=torch.float64))


def kept_frames(info: SampleInfo, fps: float | None) -> Sequence[int]:
    """The frames that remain of a video at another frame rate: those nearest in time to its ticks, from 0 on.

    Frames repeat where ``fps`` is above the video's own rate. None keeps all frames; an image stays one.
    The last frame of a video that has ``times`` lasts as long as its frames do on average.

    Raises:
        UnreadableSample: if the video states no frame rate.
    """
    if fps is None or info.num_frames == 1:
        return range(info.num_frames)
    if len(info.times):
        return _nearest(info.times, fps)
    if info.fps <= 0:
        raise UnreadableSample(info.key, "it states no frame rate: leave out 'fps' and set 'frame_stride'")
    count = max(1, math.floor(info.num_frames * fps / info.fps + 0.5))
    return [min(math.floor(tick * info.fps / fps + 0.5), info.num_frames - 1) for tick in range(count)]


def _nearest(times: Sequence[float], fps: float) -> list[int]:
    """The frame nearest to each tick, the later of two."""
    shown = np.asarray(times, dtype=np.float64)
    seconds = shown[-1] * len(shown) / (len(shown) - 1)
    ticks = np.arange(max(1, math.floor(seconds * fps + 0.5))) / fps
    return np.searchsorted((shown[1:] + shown[:-1]) / 2, ticks, side="right").tolist()


def last_start(num_frames: int, length: int, stride: int) -> int:
    """The last frame that a clip can start from, 0 where the video is too short for one.

    A clip takes up ``length * stride`` frames here, the gap behind its last frame with it: BEVT's rule.
    """
    return max(0, num_frames - length * stride)


def vimpac_last_start(num_frames: int, length: int, stride: int) -> int:
    """The same without the gap behind the last frame: VIMPAC's rule, so that a clip can end the video."""
    return max(0, num_frames - 1 - (length - 1) * stride)


def clip_frames(start: int, num_frames: int, *, length: int, stride: int) -> list[int]:
    """Frame numbers of a clip; past the end of the video they go on at its first frame."""
    return [(start + step * stride) % num_frames for step in range(length)]


def held_frames(start: int, num_frames: int, *, length: int, stride: int) -> list[int]:
    """Frame numbers of a clip; past the end of the video its last frame that belongs to the clip is held."""
    inside = range(start, num_frames, stride)
    return [inside[min(step, len(inside) - 1)] for step in range(length)]


def middle_starts(last: int, num_clips: int) -> list[int]:
    """Starts of test clips: the middles of ``num_clips`` equal parts of the starts 0 to ``last`` (BEVT)."""
    return [int((clip + 0.5) * (last + 1) / num_clips) for clip in range(num_clips)]


def end_to_end_starts(last: int, num_clips: int) -> list[int]:
    """Starts of test clips, evenly from 0 to ``last``; a single clip starts at 0 (VIMPAC)."""
    return [int(last * clip / max(num_clips - 1, 1)) for clip in range(num_clips)]


def neighbour_starts(first: int, last: int, max_distance: int | None) -> tuple[int, int]:
    """Lowest and highest start of a second clip at most ``max_distance`` frames from the first (VIMPAC)."""
    if max_distance is None:
        return 0, last
    return max(0, first - max_distance), min(last, first + max_distance)


def spread(first: float, last: float, length: int, num_frames: int) -> list[int]:
    """``length`` frame numbers evenly from ``first`` to ``last``, both included, cut down to whole ones.

    Numbers outside the video become its first or last frame: SVT's rule.
    """
    return torch.linspace(first, last, length).clamp(0, num_frames - 1).long().tolist()


def segments(num_frames: int, length: int) -> list[tuple[int, int]]:
    """First and last frame, both included, of each of ``length`` equal parts of a video.

    Neighbours meet in a frame and a short video's parts repeat frames: BEVT's rule for Something-Something.
    """
    part = (num_frames - 1) / length
    return [(round(part * place), round(part * (place + 1))) for place in range(length)]


def svt_fps(info: SampleInfo) -> float:
    """The frame rate of a video; 30, with a line in the log for the first, where it states none."""
    if info.fps <= 0 and info.num_frames > 1:
        _tell_assumed_rate(SVT_FPS)
    return info.fps if info.fps > 0 else SVT_FPS


@lru_cache(maxsize=1)
def _tell_assumed_rate(fps: float) -> None:
    _log.warning(
        "a video states no frame rate: SVT's windows take it, and others like it, for %g a second", fps
    )


def svt_window_frames(fps: float, window_frames: int) -> float:
    """How many frames of a video last as long as ``window_frames`` at 30 fps."""
    return window_frames * fps / SVT_FPS


def svt_window(start: float, num_frames: int, window: float) -> tuple[int, int]:
    """First and last frame that SVT's published code decodes for a window of ``window`` frames.

    Its first is the first frame not before ``start``, its last the first one past the window's end.
    """
    past_the_end = math.floor(start + window - 1) + 1
    return min(math.ceil(start), num_frames - 1), min(past_the_end, num_frames - 1)


def svt_test_frames(
    num_frames: int, fps: float, *, clip: int, num_clips: int, length: int, window_frames: int
) -> list[int]:
    """Frames of the ``clip``-th of ``num_clips`` test clips as SVT's published code takes them.

    The first clip starts at frame 0; others never reach the last possible start.
    """
    window = svt_window_frames(fps, window_frames)
    first, last = svt_window(max(num_frames - window, 0.0) * clip / num_clips, num_frames, window)
    return [first + frame for frame in spread(0.0, window - 1, length, last - first + 1)]
