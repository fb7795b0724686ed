"""An open video file, read with patience but never for ever: packets and frames, damage passed over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import torchvision  # noqa: F401  (before libav's log is turned off: some of its versions turn it on)
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vidssl.data.contents import File, opened
from vidssl.data.diagnose import why_not_a_file, why_unreadable
from vidssl.interfaces import UnreadableSample

PATIENCE_SECONDS = 300.0  # for one file; a whole film decodes faster than this, a hung disk does not

av.logging.set_level(None)  # damage is counted here; libav has several lines to say of each piece


class OpenVideo:
    """The best video stream of an open file. Made by ``open_video``.

    FFmpeg runs on one thread: with a worker per core, more make a clip two to five times slower.

    Attributes:
        num_packets: packets that ``frames`` has been through, the empty one at the end left out.
        damage: number of each such packet that is cut off, does not decode or gives a spoilt frame.
    """

    def __init__(
        self, file: File, container: InputContainer, stream: VideoStream, patience_seconds: float
    ) -> None:
        self.container = container
        self.stream = stream
        self.format = container.format.name.split(",")[0]
        self.codec = stream.codec_context.codec.canonical_name
        self._key = str(file)
        self.num_packets = 0
        self.damage: list[int] = []
        self._patience_seconds = patience_seconds
        self._deadline = time.monotonic() + patience_seconds
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "SLICE"

    def packets(self) -> Iterator[av.Packet[VideoStream]]:
        """Packets up to the end of what can be read; the empty one that flushes the decoder comes last."""
        packets = self.container.demux(self.stream)
        while True:
            if time.monotonic() > self._deadline:
                raise UnreadableSample(self._key, _out_of_patience(self._patience_seconds))
            try:
                packet = next(packets)
            except av.error.ExitError as error:
                raise UnreadableSample(self._key, _out_of_patience(PATIENCE_SECONDS)) from error
            except (StopIteration, av.FFmpegError):  # what follows a broken chain of packets cannot be found
                return
            yield packet

    def frames(self) -> Iterator[VideoFrame]:
        """Frames from here on in decoding order; a packet that does not decode is passed over."""
        for packet in self.packets():
            spoilt = packet.size > 0 and packet.is_corrupt
            try:
                frames = packet.decode()
            except av.FFmpegError:
                frames, spoilt = [], True
            if spoilt or any(frame.is_corrupt for frame in frames):
                self.damage.append(self.num_packets)
            self.num_packets += packet.size > 0
            yield from frames

    def frames_from(self, pts: int) -> Iterator[VideoFrame]:
        """Frames from the keyframe with this timestamp on; none if the file cannot be entered there."""
        try:
            self.container.seek(pts, stream=self.stream, backward=True, any_frame=False)
        except av.FFmpegError:
            return
        entered = False
        for packet in self.packets():
            if not entered and (not packet.is_keyframe or packet.pts is None or packet.pts > pts):
                return  # an MP4's index is in decoding time: a seek can land behind the keyframe
            entered = True
            try:
                frames = packet.decode()
            except av.FFmpegError:
                return
            yield from frames


@contextmanager
def open_video(file: File, patience_seconds: float = PATIENCE_SECONDS) -> Iterator[OpenVideo]:
    """Opens the best video stream of a file.

    Args:
        file: a path, or content.
        patience_seconds: for going through it; whoever does much with each frame needs more.

    Raises:
        UnreadableSample: if there is no such stream; its ``reason`` says what is wrong with the file.
    """
    reason = why_not_a_file(file)
    if reason:
        raise UnreadableSample(str(file), reason)
    try:
        # absolute: a relative name such as "concat:a" would be read as a protocol
        container = av.open(
            str(file.absolute()) if isinstance(file, Path) else opened(file),
            mode="r",
            metadata_errors="replace",  # some HMDB51 files carry a title that is no UTF-8
            timeout=PATIENCE_SECONDS,
        )
    except av.error.ExitError as error:
        raise UnreadableSample(str(file), _out_of_patience(PATIENCE_SECONDS)) from error
    except (av.FFmpegError, OSError) as error:
        raise UnreadableSample(str(file), why_unreadable(file)) from error
    with container:
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
            kinds = sorted({str(other.type) for other in container.streams if other is not stream})
            raise UnreadableSample(str(file), f"no video stream in it (only {', '.join(kinds) or 'nothing'})")
        if stream.codec_context is None:
            raise UnreadableSample(str(file), "its video is in a format that FFmpeg cannot decode here")
        yield OpenVideo(file, container, stream, patience_seconds)


def _out_of_patience(seconds: float) -> str:
    return f"it cannot be read within {seconds:.0f} seconds"
