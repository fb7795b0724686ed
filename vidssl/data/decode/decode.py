"""Exact frames from any video file that FFmpeg reads, or one typed error that says what is wrong.

A frame's number is its place in sequential decoding order of the best video stream. Timestamps find it
faster where they can be trusted: the packets of an MP4 or Matroska file, sorted by timestamp, are its
frames in order, so one pass over the packets (no decoding) numbers them all, and reading starts at the
keyframe before the wanted frame. Where they cannot (AVI with packed B-frames, MPEG program streams,
open GOP at the start, files cut off, timestamps that follow the order of storage) frames are counted and
read by decoding from the beginning.
"""

from __future__ import annotations

import math
import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice, pairwise

import av
import numpy as np
import torch
from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from torch import Tensor

from vidssl.data.decode.container import OpenVideo, OpenWebP, open_video
from vidssl.data.decode.content import LIMITS, File, Limits
from vidssl.errors import counted
from vidssl.interfaces import UnreadableSample

_INDEXED_FORMATS = ("mov", "matroska", "avi")
# one packet, one frame: VP8 has packets without a picture, MPEG-2 may split a frame in two
_ONE_PACKET_ONE_FRAME = ("h264", "hevc", "vp9", "av1", "mpeg4", "mjpeg", "prores")
_FIRST_ORDER = 64  # frames by which a file is known whose timestamps follow the order of storage
_NO_PTS = -(1 << 63)  # in a row of timestamps: none
OUT_OF_ORDER = "its timestamps are not in the order of its frames"


@dataclass(frozen=True)
class Keyframe:
    """A packet that decoding can start from: frames numbered ``number`` and above follow from it alone."""

    number: int
    pts: int


@dataclass(frozen=True)
class VideoFacts:
    """Properties of a video file, known after one look.

    Attributes:
        num_frames: frames that are there, whatever the header states.
        promised_frames: as the header states; 0 where it does not.
        fps: mean frame rate: the first of the header's rates that agrees with the timestamps, or theirs; 0
            where there is neither.
        height: after rotation, in pixels.
        width: after rotation, in pixels.
        rotation: degrees counterclockwise by which stored frames are turned: 0, 90, 180 or 270.
        codec: FFmpeg's name.
        no_seeking: why frames can be reached only from the start; empty where seeking is exact.
        pts: timestamp of each frame, rising; empty where ``no_seeking`` and what is decoded has none or
            they do not rise.
        keyframes: where decoding can start, rising; empty where ``no_seeking``.
        tick_seconds: how long one unit of ``pts`` lasts.
        mirrored: whether stored frames are mirrored left to right before they are turned.
        pixel_aspect: width of a stored pixel over its height, before rotation; 1 where none is stated.
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
    mirrored: bool = False
    pixel_aspect: float = 1.0

    @cached_property
    def uneven_times(self) -> array[float]:
        """Seconds from the first frame to each; empty where the frame rate says as much, or no time is known.

        Timestamps are whole ticks, so a steady video may be a tick off its rate.
        """
        if len(self.pts) < 2:
            return array("d")
        times = seconds_of(self.pts, self.tick_seconds)
        if self.fps > 0:
            late = np.abs(np.array(times) - np.arange(len(times)) / self.fps).max()
            if late <= min(1.01 * self.tick_seconds, 0.25 / self.fps):
                return array("d")
        return times

    def with_square_pixels(self) -> VideoFacts:
        """The facts of the same video read with square pixels: its width as stored is stretched."""
        if self.rotation % 180:
            return replace(self, height=max(round(self.height * self.pixel_aspect), 1), pixel_aspect=1.0)
        return replace(self, width=max(round(self.width * self.pixel_aspect), 1), pixel_aspect=1.0)


def seconds_of(pts: Sequence[int], tick_seconds: float) -> array[float]:
    """Seconds from the first timestamp to each."""
    return array("d", (np.array(pts, dtype=np.float64) - pts[0]) * tick_seconds if pts else ())


def part_of(times: Sequence[float], own: range) -> list[float]:
    """Seconds from the first of some frames to each of them; empty if ``times``, of the whole file, is."""
    return [second - times[own.start] for second in times[own.start : own.stop]] if times else []


def probe(file: File, limits: Limits = LIMITS) -> VideoFacts:
    """Counts the frames of a video file and finds out how to reach them.

    Raises:
        UnreadableSample: if the file holds no frame that decodes, or goes past ``limits``.
    """
    with open_video(file, limits) as video:
        packets = _scan_packets(video, str(file), limits)
        rates, codec, tick_seconds = video.rates, video.codec, video.tick_seconds
        pixel_aspect, reorders = video.pixel_aspect, video.reorders
    with open_video(file, limits) as video:
        frames = video.frames()
        first = next(frames, None)
        if first is None:
            raise UnreadableSample(
                str(file), f"damaged: none of its {counted(packets.total, 'frame')} can be decoded"
            )
        seen = array("q", [_NO_PTS if first.pts is None else first.pts])
        picture = Picture.of(first)
        no_seeking = packets.distrust
        if not no_seeking and seen[0] != packets.pts[0]:
            no_seeking = "its first frame cannot be decoded"
        if not no_seeking and reorders and packets.in_order:
            seen.extend(_pts_of(islice(frames, _FIRST_ORDER - 1)))
            if seen != packets.pts[: len(seen)]:
                no_seeking = OUT_OF_ORDER
        if no_seeking:
            seen.extend(_pts_of(frames))
        pts = seen if no_seeking else packets.pts
    turned = bool(picture.turn % 2)
    num_frames = len(pts)
    pts = pts if rising(pts) else array("q")
    return VideoFacts(
        num_frames=num_frames,
        promised_frames=packets.promised,
        fps=_sound_rate(rates, pts, tick_seconds),
        height=picture.width if turned else picture.height,
        width=picture.height if turned else picture.width,
        rotation=90 * picture.turn,
        codec=codec,
        no_seeking=no_seeking,
        pts=pts,
        keyframes=() if no_seeking else packets.keyframes,
        tick_seconds=tick_seconds,
        mirrored=picture.mirrored,
        pixel_aspect=pixel_aspect,
    )


def _pts_of(frames: Iterator[VideoFrame]) -> Iterator[int]:
    return (_NO_PTS if frame.pts is None else frame.pts for frame in frames)


def rising(pts: Sequence[int]) -> bool:
    """Whether each timestamp is there and later than the one before."""
    return pts[0] != _NO_PTS and all(earlier < later for earlier, later in pairwise(pts))


def _sound_rate(stated: Sequence[float], pts: Sequence[int], tick_seconds: float) -> float:
    """The first stated rate that gives as many frames as there are, give or take one, in their time.

    Where none does the timestamps' own rate; where there are none the first rate that is stated at all.
    """
    given = [rate for rate in stated if 0 < rate < math.inf]
    span = (pts[-1] - pts[0]) * tick_seconds if len(pts) > 1 else 0.0
    if span <= 0:
        return given[0] if given else 0.0
    count, seconds = len(pts), span * len(pts) / (len(pts) - 1)
    sound = (rate for rate in given if abs(rate * seconds - count) <= max(1.0, 0.02 * count))
    return next(sound, count / seconds)


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
    try:
        return _read(file, frames, facts)
    except (av.FFmpegError, MemoryError) as error:
        raise UnreadableSample(str(file), f"its frames cannot be turned into RGB ({error})") from error


def _read(file: File, frames: Sequence[int], facts: VideoFacts | None) -> Tensor:
    wanted = sorted(set(frames))
    found = _Found(len(wanted))
    if facts is not None and not facts.no_seeking:
        with open_video(file, limits_of(facts)) as video:
            found = _read_by_seeking(video, facts, wanted)
    if len(found.rows) < len(wanted):
        with open_video(file, limits_of(facts)) as video:
            found, decoded = _read_in_order(video, facts, wanted)
        missing = [number for number in wanted if number not in found.rows]
        if missing:
            raise UnreadableSample(str(file), _why_missing(missing[0], decoded, facts))
    return found.stacked(frames)


def limits_of(facts: VideoFacts | None) -> Limits:
    """Limits under which a file that was let in before is let in again, squared pixels or not."""
    if facts is None:
        return LIMITS
    return Limits(
        max_pixels=max(LIMITS.max_pixels, 2 * facts.height * facts.width),
        max_frames=max(LIMITS.max_frames, facts.num_frames),
        max_seconds=max(LIMITS.max_seconds, 0.05 * facts.num_frames),
    )


def check_numbers(file: File, frames: Sequence[int], facts: VideoFacts | None) -> None:
    """Raises ValueError if ``frames`` is empty or holds a number that is negative or past the last."""
    if not frames or min(frames) < 0 or (facts is not None and max(frames) >= facts.num_frames):
        last = "" if facts is None else f" and below {facts.num_frames}"
        raise ValueError(f"{file}: frame numbers must be at least 0{last}, got {list(frames)}")


@dataclass(frozen=True)
class _Packets:
    """Findings of a pass over the packets, nothing being decoded."""

    total: int
    promised: int  # frames by the header, those left out that an AVI skips
    distrust: str  # why packets do not stand for frames one to one; empty if they do
    pts: array[int]  # of the packets that are shown, rising
    in_order: bool  # whether they are stored in the order of their timestamps
    keyframes: tuple[Keyframe, ...]


def _scan_packets(video: OpenVideo | OpenWebP, key: str, limits: Limits) -> _Packets:
    shown = array("q")
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
        limits.check_length(key, total)
    in_order = all(earlier < later for earlier, later in pairwise(shown))
    shown = array("q", sorted(shown))
    promised = video.promised_frames
    if video.format == "avi" and shown and total < promised <= shown[-1] + 1:
        promised = total  # its timestamps count frames, so what is not there was dropped in recording
    keyframes = tuple(Keyframe(bisect_left(shown, pts), pts) for pts in sorted(starts))
    distrust = _why_no_index(video)
    if not distrust and (corrupt or promised not in (0, total)):
        distrust = f"it is cut off or damaged ({total} of {promised} frames are there)"
    if not distrust and (undated or not shown or len(set(shown)) < len(shown)):
        distrust = "its timestamps are missing or repeated"
    if not distrust and (not keyframes or keyframes[0].number > 0):
        distrust = "it does not start with a keyframe"
    return _Packets(total, promised, distrust, shown, in_order, keyframes)


def _why_no_index(video: OpenVideo | OpenWebP) -> str:
    """Why packets of this kind of file do not stand for its frames; empty if they do."""
    if video.format not in _INDEXED_FORMATS:
        return f"{video.format_name} files have no exact index"
    if video.codec not in _ONE_PACKET_ONE_FRAME:
        return f"{video.codec} packets are not frames one to one"
    if video.reorders and (video.codec == "mpeg4" or video.format == "avi"):
        return "B-frames may be packed with others"
    return ""


class _Found:
    """Frames by number, each copied when it comes: it is in the cache still, and its memory serves the next.

    Attributes:
        rows: number -> its row in what is kept.
    """

    def __init__(self, count: int) -> None:
        self.rows: dict[int, int] = {}
        self._count = count

    def add(self, number: int, picture: NDArray[np.uint8]) -> None:
        """Keeps a picture [H, W, 3]."""
        if not self.rows:
            self._pictures = np.empty((self._count, *picture.shape), dtype=np.uint8)
        self._pictures[self.rows.setdefault(number, len(self.rows))] = picture

    def stacked(self, frames: Sequence[int]) -> Tensor:
        """uint8 [len(frames), 3, H, W]; colours stay innermost in memory: resizing is twice as fast there."""
        clip, rows = torch.from_numpy(self._pictures), [self.rows[number] for number in frames]
        if rows != [*range(self._count)]:
            clip = clip[rows]
        return clip.permute(0, 3, 1, 2)


def _read_by_seeking(video: OpenVideo | OpenWebP, facts: VideoFacts, wanted: Sequence[int]) -> _Found:
    """The wanted frames, run by run from the keyframe before each; fewer if the file misleads."""
    found = _Found(len(wanted))
    picture = Picture.stated(facts)
    numbers = [keyframe.number for keyframe in facts.keyframes]
    runs: dict[Keyframe, list[int]] = {}
    for number in wanted:
        runs.setdefault(facts.keyframes[bisect_right(numbers, number) - 1], []).append(number)
    for keyframe, run in runs.items():
        by_pts = {facts.pts[number]: number for number in run}
        unused = {*facts.pts[keyframe.number : run[-1]]} - by_pts.keys()
        for frame in video.frames_from(keyframe.pts, unused):
            if frame.is_corrupt:  # filled in from frames before it, which may lie before the keyframe
                return found
            if frame.pts in by_pts:
                found.add(by_pts[frame.pts], picture.rgb(frame))
            if frame.pts is None or frame.pts >= facts.pts[run[-1]]:
                break
        if run[-1] not in found.rows:
            break
    return found


def _read_in_order(
    video: OpenVideo | OpenWebP, facts: VideoFacts | None, wanted: Sequence[int]
) -> tuple[_Found, int]:
    """The wanted frames by decoding from the start, and how many frames were decoded for it.

    A frame lost to damage keeps its number where timestamps tell: those behind it do not move up.
    """
    pts = array("q") if facts is None else facts.pts
    by_place: dict[int | None, int] = {pts[number] if pts else number: number for number in wanted}
    picture = None if facts is None else Picture.stated(facts)
    found = _Found(len(wanted))
    decoded = 0
    for frame in video.frames():
        picture = picture or Picture.of(frame)
        number = by_place.get(frame.pts if pts else decoded)
        decoded += 1
        if number is not None:
            found.add(number, picture.rgb(frame))
        if len(found.rows) == len(wanted):
            break
    return found, decoded


def _why_missing(number: int, decoded: int, facts: VideoFacts | None) -> str:
    if facts is None:
        return f"it ends early or is damaged: frame {number} was asked for, {decoded} frames decode"
    promised = max(facts.num_frames, facts.promised_frames)
    return f"damaged: {decoded} of the {promised} frames it promises can be decoded, frame {number} cannot"


@dataclass(frozen=True)
class Picture:
    """Size in which frames are stored; whether they are to be mirrored, then turned counterclockwise."""

    height: int
    width: int
    turn: int  # quarters
    mirrored: bool
    # one for all frames: VideoFrame.reformat sets up its tables anew for each
    reformatter: VideoReformatter = field(default_factory=VideoReformatter)

    @classmethod
    def of(cls, frame: VideoFrame) -> Picture:
        return cls(frame.height, frame.width, *_orientation(frame))

    @classmethod
    def stated(cls, facts: VideoFacts) -> Picture:
        turn = facts.rotation // 90
        height, width = (facts.width, facts.height) if turn % 2 else (facts.height, facts.width)
        return cls(height, width, turn, facts.mirrored)

    def rgb(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """The frame as uint8 [H, W, 3], turned; in this size even if the file changes its own midway.

        It lies where FFmpeg put it, padding between its rows: nothing is copied.
        """
        image = self.reformatter.reformat(
            frame, width=self.width, height=self.height, format="rgb24", interpolation="BILINEAR", threads=1
        )
        if image is frame:  # stored as RGB, and then often upside down
            return self.oriented(np.asarray(image.to_ndarray(), dtype=np.uint8))
        rows = np.frombuffer(memoryview(image.planes[0]), dtype=np.uint8).reshape(self.height, -1)
        return self.oriented(rows[:, : 3 * self.width].reshape(self.height, self.width, 3))

    def oriented(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A stored picture [H, W, 3] as it is meant to be seen."""
        return np.rot90(picture[:, ::-1] if self.mirrored else picture, self.turn)


def _orientation(frame: VideoFrame) -> tuple[int, bool]:
    """Quarter turns counterclockwise, and whether the picture is mirrored left to right before.

    The display matrix takes a pixel from (x, y) to (a x + c y, b x + d y), y pointing down (ISO/IEC 14496-12,
    6.2.2); its first two columns are a, b and c, d.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return 0, False
    a, b, _, c, d = struct.unpack("=5i", memoryview(matrix)[:20])
    mirrored = a * d - b * c < 0
    if mirrored:
        a, b = -a, -b
    return round(math.atan2(-b, a) / (math.pi / 2)) % 4, mirrored
