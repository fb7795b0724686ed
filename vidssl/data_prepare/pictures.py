"""The pictures of a source video in the size of the output, one after another, none lost and none doubled."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidssl.data.decode import Picture, VideoFacts, limits_of
from vidssl.data.examine import CLIP_FRAMES, CLIP_STRIDE
from vidssl.data.video_file import open_video
from vidssl.interfaces import UnreadableSample

PATIENCE_SECONDS = 6 * 3600.0  # for one file: a film takes longer to encode than to decode
_SAMPLED = 8  # frames of each video that are held against the source

RGB = NDArray[np.uint8]


def fit(facts: VideoFacts, short_side: int, multiple: int = 1) -> tuple[int, int]:
    """Height and width of the output: never enlarged, and each rounded down to a ``multiple`` of pixels."""
    scale = min(short_side / min(facts.height, facts.width), 1.0)
    height, width = (round(side * scale) for side in (facts.height, facts.width))
    return max(height - height % multiple, multiple), max(width - width % multiple, multiple)


def pictures(path: Path, facts: VideoFacts, size: tuple[int, int]) -> Iterator[RGB]:
    """All frames of a video in order, each uint8 [height, width, 3], RGB, rotation applied.

    Args:
        facts: what ``probe`` said of the file.
        size: height and width of the result.

    Raises:
        UnreadableSample: as soon as a frame is missing or spoilt, for those behind it would move up. The end
            of a file that was cut off is not missed.
    """
    picture = Picture.stated(replace(facts, height=size[0], width=size[1]))
    given = 0
    with open_video(path, replace(limits_of(facts), max_seconds=PATIENCE_SECONDS)) as video:
        for frame in video.frames():
            if given >= facts.num_frames or (facts.pts and frame.pts != facts.pts[given]):
                break
            given += 1
            yield np.ascontiguousarray(picture.rgb(frame))
        early = [packet for packet in video.damage if packet < video.num_packets - 1]
    if given < facts.num_frames:
        raise UnreadableSample(str(path), f"damaged: frame {given} of {facts.num_frames} does not decode")
    if early:
        raise UnreadableSample(
            str(path), f"damaged: {len(early)} of its packets are spoilt, the first is {early[0]}"
        )


def sampled(num_frames: int) -> tuple[int, ...]:
    """Numbers of the frames that are held against the source: the first, the last and some between."""
    return tuple(sorted({round(place * (num_frames - 1) / (_SAMPLED - 1)) for place in range(_SAMPLED)}))


def difference(made: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> float:
    """Largest mean absolute difference of a frame, in grey levels of 255; both uint8 [frames, H, W, 3]."""
    apart = np.abs(made.astype(np.int16) - wanted.astype(np.int16))
    return float(apart.mean(axis=(1, 2, 3)).max())


def a_clip(key: str, num_frames: int) -> list[int]:
    """Numbers of the frames of the clip that is timed, the same for a key before and after."""
    span = (CLIP_FRAMES - 1) * CLIP_STRIDE + 1
    place = int(hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:8], 16)
    start = place % max(num_frames - span + 1, 1)
    return [min(start + CLIP_STRIDE * step, num_frames - 1) for step in range(CLIP_FRAMES)]


def core_seconds(read: Callable[[], object]) -> float:
    """Time of this core that a reading takes: what else the machine does, and its disk, do not count."""
    began = time.thread_time()
    read()
    return time.thread_time() - began
