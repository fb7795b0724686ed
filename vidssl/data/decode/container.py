"""An open video file, read with patience but never for ever: packets and frames, damage passed over.

Of WebP FFmpeg reads single pictures only, so Pillow reads the animations.
"""

import re
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image, UnidentifiedImageError

from vidssl.data.decode.content import LIMITS, File, Limits, opened, why_not_a_file, why_unreadable
from vidssl.data.decode.images import is_animated_webp
from vidssl.interfaces import UnreadableSample

_STATE_DURATION = (
    "mov",
    "matroska",
    "flv",
    "asf",
)  # elsewhere FFmpeg estimates it from the file's end or rate
_Packet = TypeVar("_Packet")


class OpenVideo:
    """The best video stream of an open file. Made by ``open_video``.

    FFmpeg runs on one thread: with a worker per core, more make a clip two to five times slower.

    Attributes:
        format: FFmpeg's short name; ``format_name`` is the long one.
        promised_frames: that the header states; 0 where it states none.
        rates: frames a second by the header, the most trustworthy first; 0 for one that it does not state.
        tick_seconds: unit of timestamps.
        pixel_aspect: width of a stored pixel over its height; 1 where none is stated.
        reorders: whether frames may be stored in another order than they are shown in.
        num_packets: packets that ``frames`` has been through, the empty one at the end left out.
        damage: number of each such packet that is cut off, does not decode or gives a spoilt frame.
    """

    def __init__(self, file: File, container: InputContainer, stream: VideoStream, limits: Limits) -> None:
        self.container = container
        self.stream = stream
        self.format = container.format.name.split(",")[0]
        self.format_name = container.format.long_name or self.format
        self.codec = stream.codec_context.codec.canonical_name
        self.promised_frames = stream.frames
        self.rates = tuple(
            float(rate or 0) for rate in (stream.average_rate, stream.base_rate, stream.guessed_rate)
        )
        self.tick_seconds = float(stream.time_base or 0)
        aspect = float(stream.sample_aspect_ratio or 1)
        self.pixel_aspect = aspect if 0.1 <= aspect <= 10 else 1.0  # beyond, the header is damaged
        self.reorders = bool(stream.codec_context.has_b_frames)
        self.num_packets = 0
        self.damage: list[int] = []
        self._key = str(file)
        self._limits = limits
        self._deadline = time.monotonic() + limits.max_seconds
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "SLICE"
        limits.check_size(self._key, stream.codec_context.width, stream.codec_context.height)

    def stated_seconds(self) -> float:
        """How long the video is by its header: its own track or else the whole file; 0 where not stated."""
        if self.format not in _STATE_DURATION:
            return 0.0
        for name, value in self.stream.metadata.items():
            if name.upper().startswith("DURATION") and (seconds := _seconds(value)):
                return seconds
        return (self.container.duration or 0) / av.time_base

    def last_seconds(self) -> float:
        """When the last packet of any stream ends, of those that ``packets`` has not been through yet."""
        last = 0.0
        for packet in self._in_time(self.container.demux()):
            if packet.size > 0 and packet.pts is not None and packet.time_base is not None:
                last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        return last

    def packets(self) -> "Iterator[av.Packet[VideoStream]]":
        """Packets up to the end of what can be read; the empty one that flushes the decoder comes last."""
        return self._in_time(self.container.demux(self.stream))

    def _in_time(self, packets: Iterator[_Packet]) -> Iterator[_Packet]:
        while True:
            if time.monotonic() > self._deadline:
                raise self._limits.out_of_time(self._key)
            try:
                packet = next(packets)
            except av.error.ExitError as error:
                raise self._limits.out_of_time(self._key) from error
            except (StopIteration, av.FFmpegError):  # what follows a broken chain of packets cannot be found
                return
            yield packet

    def frames(self) -> Iterator[VideoFrame]:
        """Frames from here on in decoding order; a packet that does not decode is passed over."""
        given = 0
        for packet in self.packets():
            spoilt = packet.size > 0 and packet.is_corrupt
            try:
                frames = packet.decode()
            except av.FFmpegError:
                frames, spoilt = [], True
            if spoilt or any(frame.is_corrupt for frame in frames):
                self.damage.append(self.num_packets)
            self.num_packets += packet.size > 0
            given += len(frames)
            self._limits.check_length(self._key, given)
            for frame in frames:
                self._limits.check_size(self._key, frame.width, frame.height)
            yield from frames

    def frames_from(self, pts: int, unused: Container[int] = ()) -> Iterator[VideoFrame]:
        """Frames from the keyframe with this timestamp on; none if the file cannot be entered there.

        H.264 marks frames that no other is predicted from: those whose timestamps are in ``unused`` are not
        decoded, which changes no other. HEVC's mark holds within one temporal layer alone. A packet without a
        timestamp, or with one that is no frame's, may be a wanted frame's second field.
        """
        context = self.stream.codec_context
        try:
            self.container.seek(pts, stream=self.stream, backward=True, any_frame=False)
        except av.FFmpegError:
            return
        entered = False
        for packet in self.packets():
            if not entered and (not packet.is_keyframe or packet.pts is None or packet.pts > pts):
                return  # an MP4's index is in decoding time: a seek can land behind the keyframe
            entered = True
            if self.codec == "h264":
                context.skip_frame = "NONREF" if packet.pts in unused else "DEFAULT"
            try:
                frames = packet.decode()
            except av.FFmpegError:
                return
            yield from frames


class OpenWebP:
    """The frames of an animation, with what ``OpenVideo`` has.

    The format's only times are how long each frame lasts, in milliseconds; it has no index.

    Args:
        file: for messages.
        stream: its content, open for as long as this is used.

    Raises:
        UnreadableSample: if its header is damaged or ``limits`` refuse it.
    """

    format, format_name, codec = "webp", "WebP", "webp"
    rates = (0.0,)
    tick_seconds, pixel_aspect, reorders = 0.001, 1.0, False

    def __init__(self, file: File, stream: BinaryIO, limits: Limits) -> None:
        self._key, self._limits = str(file), limits
        self._deadline = time.monotonic() + limits.max_seconds
        try:
            self._image = Image.open(stream, formats=["WEBP"])
        except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
            raise UnreadableSample(self._key, why_unreadable(file)) from error
        limits.check_size(self._key, *self._image.size)
        self.promised_frames = int(getattr(self._image, "n_frames", 1))
        limits.check_length(self._key, self.promised_frames)
        self.num_packets = 0
        self.damage: list[int] = []

    def stated_seconds(self) -> float:
        return 0.0

    def last_seconds(self) -> float:
        return 0.0

    def packets(self) -> Iterator[Packet]:
        return iter(())

    def frames_from(self, pts: int, unused: Container[int] = ()) -> Iterator[VideoFrame]:
        return iter(())

    def frames(self) -> Iterator[VideoFrame]:
        """All frames in order, up to the first that does not decode."""
        pts = 0
        for number in range(self.promised_frames):
            if time.monotonic() > self._deadline:
                raise self._limits.out_of_time(self._key)
            try:
                self._image.seek(number)
                picture = np.asarray(self._image.convert("RGB"))
            except (OSError, SyntaxError, ValueError, EOFError):
                self.damage.append(number)
                self.num_packets = self.promised_frames
                return
            frame = VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = pts
            pts += int(self._image.info.get("duration", 0))
            self.num_packets += 1
            yield frame


@contextmanager
def open_video(file: File, limits: Limits = LIMITS) -> Iterator[OpenVideo | OpenWebP]:
    """Opens the best video stream of a file.

    Args:
        file: a path, or content.
        limits: that it has to keep; whoever does much with each frame needs more seconds.

    Raises:
        UnreadableSample: if there is no such stream; its ``reason`` says what is wrong with the file.
    """
    reason = why_not_a_file(file)
    if reason:
        raise UnreadableSample(str(file), reason)
    if is_animated_webp(file):  # FFmpeg reads single pictures of this format only
        with opened(file) as content:
            yield OpenWebP(file, content, limits)
        return
    # damage is counted here, of which libav would log several lines a piece; at every file, since importing
    # some versions of torchvision turns the log on
    av.logging.set_level(None)
    try:
        # absolute: a relative name such as "concat:a" would be read as a protocol
        container = av.open(
            str(file.absolute()) if isinstance(file, Path) else opened(file),
            mode="r",
            metadata_errors="replace",  # some HMDB51 files carry a title that is no UTF-8
            timeout=limits.max_seconds,
        )
    except av.error.ExitError as error:
        raise limits.out_of_time(str(file)) from error
    except (av.FFmpegError, OSError) as error:
        raise UnreadableSample(str(file), why_unreadable(file)) from error
    with container:
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
            kinds = sorted({str(other.type) for other in container.streams if other is not stream})
            raise UnreadableSample(str(file), f"no video stream in it (only {', '.join(kinds) or 'nothing'})")
        if stream.codec_context is None:
            raise UnreadableSample(str(file), "its video is in a format that FFmpeg cannot decode here")
        yield OpenVideo(file, container, stream, limits)


def _seconds(stated: str) -> float:
    """Seconds of a time as Matroska's tags have it, such as 00:00:04.033000000; 0 for anything else."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stated.strip("\0 "))
    return 0.0 if match is None else 3600 * int(match[1]) + 60 * int(match[2]) + float(match[3])
