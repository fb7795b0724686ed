"""Exact frames from any video file that FFmpeg reads, or one typed error that says what is wrong.

A frame's number is its place in sequential decoding order of the best video stream. Timestamps find it
faster where they can be trusted: the packets of an MP4 or Matroska file, sorted by timestamp, are its
frames in order, so one pass over the packets (no decoding) numbers them all, and reading starts at the
keyframe before the wanted frame. Where they cannot (AVI with packed B-frames, MPEG program streams,
open GOP at the start, files cut off) frames are counted and read by decoding from the beginning.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from torch import Tensor

from vidssl.data.contents import File
from vidssl.data.video_file import OpenVideo, open_video
from vidssl.interfaces import UnreadableSample

_INDEXED_FORMATS = ("mov", "matroska", "avi")
# one packet, one frame: VP8 has packets without a picture, MPEG-2 may split a frame in two
_ONE_PACKET_ONE_FRAME = ("h264", "hevc", "vp9", "av1", "mpeg4", "mjpeg", "prores")


@dataclass(frozen=True)
class Keyframe:
    """A packet that decoding can start from: frames numbered ``number`` and above follow from it alone."""

    number: int
    pts: int


@dataclass(frozen=True)
class VideoFacts:
    """What is known of a video file after one look.

    Attributes:
        num_frames: frames that are there, whatever the header says.
        promised_frames: what the header says; 0 where it says nothing.
        fps: mean frame rate; 0 where the file states none.
        height: after rotation, in pixels.
        width: after rotation, in pixels.
        rotation: degrees counterclockwise by which stored frames are turned: 0, 90, 180 or 270.
        codec: FFmpeg's name.
        no_seeking: why frames can be reached only from the start; empty where seeking is exact.
        pts: timestamp of each frame, rising; empty where ``no_seeking``.
        keyframes: where decoding can start, rising; empty where ``no_seeking``.
        tick_seconds: how long one unit of ``pts`` lasts.
    """

    num_frames: int
    promised_frames: int
    fps: float
    height: int
    width: int
    rotation: int
    codec: str
    no_seeking: str
    pts: array[int]
    keyframes: tuple[Keyframe, ...]
    tick_seconds: float


def probe(file: File) -> VideoFacts:
    """Counts the frames of a video file and finds out how to reach them.

    Raises:
        UnreadableSample: if the file holds no frame that decodes; its ``reason`` says what is wrong.
    """
    with open_video(file) as video:
        packets = _scan_packets(video)
        promised, fps, codec = video.stream.frames, float(video.stream.average_rate or 0), video.codec
        tick_seconds = float(video.stream.time_base or 0)
    with open_video(file) as video:
        frames = video.frames()
        first = next(frames, None)
        if first is None:
            raise UnreadableSample(str(file), f"damaged: none of its {packets.total} frames can be decoded")
        no_seeking = packets.distrust
        if not no_seeking and first.pts != packets.pts[0]:
            no_seeking = "its first frame cannot be decoded"
        num_frames = 1 + sum(1 for _ in frames) if no_seeking else len(packets.pts)
    picture = _Picture.of(first)
    return VideoFacts(
        num_frames=num_frames,
        promised_frames=promised,
        fps=fps,
        height=picture.width if picture.turn % 2 else picture.height,
        width=picture.height if picture.turn % 2 else picture.width,
        rotation=90 * picture.turn,
        codec=codec,
        no_seeking=no_seeking,
        pts=array("q") if no_seeking else packets.pts,
        keyframes=() if no_seeking else packets.keyframes,
        tick_seconds=tick_seconds,
    )


def read_frames(file: File, frames: Sequence[int], facts: VideoFacts | None = None) -> Tensor:
    """Exactly the frames asked for, uint8 [len(frames), 3, H, W], RGB, rotation applied.

    Each is decoded once and only the wanted ones are converted; order and repeats in ``frames`` are kept.

    Args:
        file: a path, or content.
        frames: numbers in sequential decoding order, from 0.
        facts: what ``probe`` said of this file; without it the file is decoded from its start, which is
            the faster way for a short clip.

    Raises:
        ValueError: if ``frames`` is empty or holds a number that is negative or past ``facts.num_frames``.
        UnreadableSample: if any of the frames cannot be decoded.
    """
    check_numbers(file, frames, facts)
    wanted = sorted(set(frames))
    found: dict[int, NDArray[np.uint8]] = {}
    if facts is not None and not facts.no_seeking:
        with open_video(file) as video:
            found = _read_by_seeking(video, facts, wanted)
    if len(found) < len(wanted):
        with open_video(file) as video:
            found, decoded = _read_in_order(video, facts, wanted)
        missing = [number for number in wanted if number not in found]
        if missing:
            raise UnreadableSample(str(file), _why_missing(missing[0], decoded, facts))
    return _stack(found, frames)


def check_numbers(file: File, frames: Sequence[int], facts: VideoFacts | None) -> None:
    """Raises ValueError if ``frames`` is empty or holds a number that is negative or past the last."""
    if not frames or min(frames) < 0 or (facts is not None and max(frames) >= facts.num_frames):
        last = "" if facts is None else f" and below {facts.num_frames}"
        raise ValueError(f"{file}: frame numbers must be at least 0{last}, got {list(frames)}")


@dataclass(frozen=True)
class _Packets:
    """What a pass over the packets says, nothing being decoded."""

    total: int
    distrust: str  # why packets do not stand for frames one to one; empty if they do
    pts: array[int]  # of the packets that are shown, rising
    keyframes: tuple[Keyframe, ...]


def _scan_packets(video: OpenVideo) -> _Packets:
    shown: list[int] = []
    starts: list[int] = []
    total, corrupt, undated = 0, False, False
    for packet in video.packets():
        if packet.size == 0:
            continue
        total += 1
        corrupt = corrupt or packet.is_corrupt
        undated = undated or packet.pts is None
        pts = packet.pts or 0
        if packet.is_keyframe:
            starts.append(pts)
        if not packet.is_discard:  # a cut made without decoding leaves frames that are not shown (edit list)
            shown.append(pts)
    shown.sort()
    keyframes = tuple(Keyframe(bisect_left(shown, pts), pts) for pts in sorted(starts))
    distrust = _why_no_index(video)
    if not distrust and (corrupt or video.stream.frames not in (0, total)):
        distrust = f"it is cut off or damaged ({total} of {video.stream.frames} frames are there)"
    if not distrust and (undated or not shown or len(set(shown)) < len(shown)):
        distrust = "its timestamps are missing or repeated"
    if not distrust and (not keyframes or keyframes[0].number > 0):
        distrust = "it does not start with a keyframe"
    return _Packets(total, distrust, array("q", shown), keyframes)


def _why_no_index(video: OpenVideo) -> str:
    """Why packets of this kind of file do not stand for its frames; empty if they do."""
    if video.format not in _INDEXED_FORMATS:
        return f"{video.container.format.long_name or video.format} files have no exact index"
    if video.codec not in _ONE_PACKET_ONE_FRAME:
        return f"{video.codec} packets are not frames one to one"
    if video.stream.codec_context.has_b_frames and (video.codec == "mpeg4" or video.format == "avi"):
        return "B-frames may be packed with others"
    return ""


def _read_by_seeking(
    video: OpenVideo, facts: VideoFacts, wanted: Sequence[int]
) -> dict[int, NDArray[np.uint8]]:
    """The wanted frames, run by run from the keyframe before each; fewer if the file misleads."""
    found: dict[int, NDArray[np.uint8]] = {}
    picture = _Picture.stated(facts)
    numbers = [keyframe.number for keyframe in facts.keyframes]
    runs: dict[Keyframe, list[int]] = {}
    for number in wanted:
        runs.setdefault(facts.keyframes[bisect_right(numbers, number) - 1], []).append(number)
    for keyframe, run in runs.items():
        by_pts = {facts.pts[number]: number for number in run}
        for frame in video.frames_from(keyframe.pts):
            if frame.pts in by_pts:
                found[by_pts[frame.pts]] = picture.rgb(frame)
            if frame.pts is None or frame.pts >= facts.pts[run[-1]]:
                break
        if run[-1] not in found:
            break
    return found


def _read_in_order(
    video: OpenVideo, facts: VideoFacts | None, wanted: Sequence[int]
) -> tuple[dict[int, NDArray[np.uint8]], int]:
    """The wanted frames by decoding from the start, and how many frames were decoded for it.

    A frame lost to damage keeps its number where timestamps tell: those behind it do not move up.
    """
    pts = array("q") if facts is None else facts.pts
    by_place: dict[int | None, int] = {pts[number] if pts else number: number for number in wanted}
    picture = None if facts is None else _Picture.stated(facts)
    found: dict[int, NDArray[np.uint8]] = {}
    decoded = 0
    for frame in video.frames():
        picture = picture or _Picture.of(frame)
        number = by_place.get(frame.pts if pts else decoded)
        decoded += 1
        if number is not None:
            found[number] = picture.rgb(frame)
        if len(found) == len(wanted):
            break
    return found, decoded


def _why_missing(number: int, decoded: int, facts: VideoFacts | None) -> str:
    if facts is None:
        return f"it ends early or is damaged: frame {number} was asked for, {decoded} frames decode"
    promised = max(facts.num_frames, facts.promised_frames)
    return f"damaged: {decoded} of the {promised} frames it promises can be decoded, frame {number} cannot"


@dataclass(frozen=True)
class _Picture:
    """Size in which frames are stored, and the quarter turns counterclockwise that the file asks for."""

    height: int
    width: int
    turn: int
    # one for all frames: VideoFrame.reformat sets up its tables anew for each
    reformatter: VideoReformatter = field(default_factory=VideoReformatter)

    @classmethod
    def of(cls, frame: VideoFrame) -> _Picture:
        return cls(frame.height, frame.width, round(frame.rotation / 90) % 4)

    @classmethod
    def stated(cls, facts: VideoFacts) -> _Picture:
        turn = facts.rotation // 90
        height, width = (facts.width, facts.height) if turn % 2 else (facts.height, facts.width)
        return cls(height, width, turn)

    def rgb(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """The frame as uint8 [H, W, 3], turned; in this size even if the file changes its own midway.

        It lies where FFmpeg put it, padding between its rows: nothing is copied.
        """
        image = self.reformatter.reformat(
            frame, width=self.width, height=self.height, format="rgb24", interpolation="BILINEAR", threads=1
        )
        if image is frame:  # stored as RGB, and then often upside down
            return np.rot90(image.to_ndarray(), self.turn)
        rows = np.frombuffer(memoryview(image.planes[0]), dtype=np.uint8).reshape(self.height, -1)
        return np.rot90(rows[:, : 3 * self.width].reshape(self.height, self.width, 3), self.turn)


def _stack(found: dict[int, NDArray[np.uint8]], frames: Sequence[int]) -> Tensor:
    height, width, _ = found[frames[0]].shape
    # colours stay innermost in memory, as decoded: resizing is twice as fast there
    clip = torch.empty((len(frames), height, width, 3), dtype=torch.uint8)
    for row, number in zip(clip.numpy(), frames, strict=True):
        row[:] = found[number]
    return clip.permute(0, 3, 1, 2)
