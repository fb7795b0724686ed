"""Image formats that may hold videos: which files do, and animated WebP as an open video.

FFmpeg reads GIF as any video, but of WebP single pictures only, so Pillow reads the animations.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from PIL import Image, UnidentifiedImageError

from vidssl.data.decode.content import File, opened
from vidssl.data.decode.diagnose import why_unreadable
from vidssl.data.decode.limits import Limits
from vidssl.interfaces import UnreadableSample

_HEAD_BYTES = 21  # RIFF, length, WEBP, VP8X, length, flags


def is_animated_webp(file: File) -> bool:
    """Whether a file begins like an animation; False for any other WebP, and for what cannot be opened."""
    head = _head(file)
    return head[8:16] == b"WEBPVP8X" and head[:4] == b"RIFF" and bool(head[20] & 2)


def is_still_webp(file: File) -> bool:
    """Whether a file is a single picture, as the thumbnails are that lie beside downloaded videos."""
    head = _head(file)
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP" and not is_animated_webp(file)


def is_animated(file: File) -> bool:
    """Whether an image file, such as a GIF, has more than one frame; False for what cannot be opened."""
    try:
        with opened(file) as stream, Image.open(stream) as image:
            return bool(getattr(image, "is_animated", False))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def _head(file: File) -> bytes:
    try:
        with opened(file) as stream:
            return stream.read(_HEAD_BYTES).ljust(_HEAD_BYTES, b"\0")
    except OSError:
        return bytes(_HEAD_BYTES)


class OpenWebP:
    """The frames of an animation, with what ``vidssl.data.decode.container.OpenVideo`` has.

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

    def frames_from(self, pts: int) -> Iterator[VideoFrame]:
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
