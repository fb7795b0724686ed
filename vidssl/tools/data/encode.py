"""One video into its prepared form, made and verified by one process."""

from __future__ import annotations

import hashlib
import json
import os
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from fractions import Fraction
from functools import partial
from io import BytesIO
from itertools import islice, pairwise
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from vidssl.data.decode.container import open_video
from vidssl.data.decode.content import LIMITS, Limits
from vidssl.data.decode.decode import Picture, VideoFacts, limits_of, probe, read_frames
from vidssl.data.decode.examine import CLIP_FRAMES, CLIP_STRIDE, FileToExamine, examine
from vidssl.data.sources import jpeg_shards, manifest
from vidssl.engine.facts import HIGHEST, Row
from vidssl.errors import UsageError, counted
from vidssl.interfaces import UnreadableSample
from vidssl.tools.data.runner import CannotWrite

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
        facts: of the file, from ``probe``.
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


_AT_ONCE = 32  # frames of a segment that are held in memory


def segment_pictures(path: Path, facts: VideoFacts, size: tuple[int, int], span: range) -> Iterator[RGB]:
    """Some consecutive frames, as ``pictures`` gives all; with exact seeking those before are not decoded.

    Raises:
        UnreadableSample: as soon as one of them does not decode.
    """
    if facts.no_seeking:
        yield from islice(pictures(path, facts, size), span.start, span.stop)
        return
    sized = replace(facts, height=size[0], width=size[1])
    for first in range(span.start, span.stop, _AT_ONCE):
        some = read_frames(path, range(first, min(first + _AT_ONCE, span.stop)), sized)
        for frame in some.permute(0, 2, 3, 1).numpy():
            yield np.ascontiguousarray(frame)


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


_UNSTATED_FPS = 25.0  # of a single picture


@dataclass(frozen=True)
class H264:
    """H.264 files, yuv420p, in an MP4 container whatever the name of the file.

    Attributes:
        short_side: of the pictures, in pixels; smaller ones stay as they are.
        gop: frames from one keyframe to the next.
        crf: quality of x264, 0 (lossless) to 51.
        max_difference: mean absolute difference to the source that a sampled frame may have, of 255.
    """

    _: KW_ONLY
    short_side: int = 256
    gop: int = 12
    crf: int = 18
    max_difference: float = 8.0

    def __post_init__(self) -> None:
        _check("--short-side", self.short_side, 16, 8192)
        _check("--gop", self.gop, 1, 1000)
        _check("--crf", self.crf, 0, 51)
        _check("--max-difference", self.max_difference, 0, 255)


@dataclass(frozen=True)
class Jpegs:
    """Frames as JPEGs, many videos to a shard; ``quality`` is that of libjpeg, 1 to 100, else as ``H264``."""

    _: KW_ONLY
    short_side: int = 256
    quality: int = 90
    max_difference: float = 8.0

    def __post_init__(self) -> None:
        _check("--short-side", self.short_side, 16, 8192)
        _check("--quality", self.quality, 1, 100)
        _check("--max-difference", self.max_difference, 0, 255)


Form = H264 | Jpegs


def _check(name: str, value: float, lowest: float, highest: float) -> None:
    if not lowest <= value <= highest:
        raise UsageError(f"{name} must lie between {lowest} and {highest}, got {value}")


def settings(form: Form) -> dict[str, object]:
    """A form as the journal keeps it."""
    kept = {name: value for name, value in asdict(form).items() if name != "max_difference"}
    return {"form": "h264" if isinstance(form, H264) else "jpeg_shards", **kept}


@dataclass(frozen=True)
class FileToPrepare:
    """A video to prepare.

    Attributes:
        root: folder that the key is relative to.
        labels: label name -> name of the class.
        target: the file to write.
        timed: whether a clip is read from source and result against the clock.
        limits: that the video has to keep.
        cut: the file and the segment of it that the video is; None where it is a whole file.
    """

    root: Path
    key: str
    labels: Mapping[str, str]
    target: Path
    form: Form
    timed: bool = False
    limits: Limits = LIMITS
    cut: tuple[str, manifest.Segment] | None = None

    @property
    def path(self) -> Path:
        """Of the file that it is made from."""
        return self.root / (self.key if self.cut is None else self.cut[0])

    def span(self, facts: VideoFacts) -> range:
        """Frames of that file which belong to it.

        Raises:
            UnreadableSample: if the file ends before the segment begins.
        """
        return range(facts.num_frames) if self.cut is None else self.cut[1].frames_of(self.key, facts)


@dataclass(frozen=True)
class Prepared:
    """The result for a video.

    Attributes:
        key: of the video.
        source: size in bytes and modification time in ns of the source; -1 and 0 where there is none.
        reason: why it was skipped; empty if it was made.
        bytes: of the result.
        frames: of both.
        seconds: of a core that it took.
        before: seconds of a core for reading a clip from the source; 0 where none was timed.
        after: the same from the result.
        about: the line of a manifest that describes an H.264 file, or what is known of a block of JPEGs.
    """

    key: str
    source: tuple[int, int] = (-1, 0)
    reason: str = ""
    bytes: int = 0
    frames: int = 0
    seconds: float = 0.0
    before: float = 0.0
    after: float = 0.0
    about: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_row(cls, row: Row, *, blocks: bool) -> Prepared:
        """The result that a line of the journal describes.

        Args:
            blocks: whether results are blocks of JPEGs.

        Raises:
            ValueError: if it describes none, naming the field.
        """
        about, reason = row.row("about"), row.text("reason")
        source = row.parts("source", "size", "mtime_ns")
        if not reason and blocks:
            jpeg_shards.Block.from_row(Row({"frames": row.value("frames"), **dict(about.entries())}), {})
        elif not reason:
            manifest.FileRecord.from_row(about)
        return cls(
            row.path("key"),
            (source.whole("size", lowest=-1), source.whole("mtime_ns", lowest=-HIGHEST)),
            reason,
            bytes=row.whole("bytes"),
            frames=row.whole("frames"),
            seconds=row.real("seconds"),
            before=row.real("before"),
            after=row.real("after"),
            about=dict(about.entries()),
        )


def prepare_file(file: FileToPrepare) -> Prepared | CannotWrite:
    """Makes the target of a file and verifies it. Never raises for faults of file or disk."""
    path = file.path
    began = time.thread_time()
    source = (-1, 0)
    temporary = file.target.with_name(f".{file.target.name}.part")
    try:
        facts = probe(path, file.limits)
        status = os.stat(path)
        source = (status.st_size, status.st_mtime_ns)
        made = (_make_h264 if isinstance(file.form, H264) else _make_jpegs)(file, facts, temporary)
    except UnreadableSample as error:
        return Prepared(file.key, source, error.reason)
    except OSError as error:  # reading raises no OSError: it was in writing
        return CannotWrite(f"cannot write {file.target}: {error.strerror or error}")
    except (av.FFmpegError, MemoryError) as error:
        return Prepared(file.key, source, f"its frames cannot be encoded ({error})")
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return replace(made, source=source, frames=len(file.span(facts)), seconds=time.thread_time() - began)


def _make_h264(file: FileToPrepare, source: VideoFacts, temporary: Path) -> Prepared:
    form, path, span = file.form, file.path, file.span(source)
    assert isinstance(form, H264)
    facts = replace(source, num_frames=len(span), pts=source.pts[span.start : span.stop])
    size = fit(facts, form.short_side, multiple=2)
    times, tick = _times(facts)
    kept = _Kept(facts)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    timing = (times, tick, _rate(facts))
    aspect = Fraction(facts.pixel_aspect).limit_denominator(1000)
    aspect = 1 / aspect if facts.rotation % 180 else aspect
    whole = len(span) == source.num_frames
    shown = pictures(path, source, size) if whole else segment_pictures(path, source, size, span)
    _encode(kept.pass_on(shown), temporary, (*size, aspect), timing, form)
    with temporary.open("rb+") as written:
        os.fsync(written.fileno())
    entry = examine(FileToExamine(temporary.parent, temporary.name, file.labels, limits=file.limits))
    out = entry.facts
    if entry.status != "ok" or out is None or out.no_seeking:
        raise _unsound(file, entry.reason or (out.no_seeking if out else "unreadable"))
    if (out.num_frames, out.height, out.width) != (facts.num_frames, *size) or entry.gop > form.gop:
        raise _unsound(
            file, f"{counted(out.num_frames, 'frame')}, {out.width}x{out.height}, groups of {entry.gop}"
        )
    late = [
        abs((p - out.pts[0]) * out.tick_seconds - (t - times[0]) * tick)
        for p, t in zip(out.pts, times, strict=True)
    ]
    if max(late) > 1.01 * max(float(tick), out.tick_seconds):
        raise _unsound(file, f"its frames are up to {max(late):.4f} seconds from their times")
    kept.compare(read_frames(temporary, kept.numbers, out).permute(0, 2, 3, 1).numpy(), file)
    clip, before, after = a_clip(file.key, facts.num_frames), 0.0, 0.0
    if file.timed:
        before = core_seconds(lambda: read_frames(path, [span.start + number for number in clip], source))
        after = core_seconds(lambda: read_frames(temporary, clip, out))
    os.replace(temporary, file.target)
    line = json.loads(replace(entry, key=file.key, clip_seconds=after).to_line())
    return Prepared(file.key, bytes=entry.bytes, before=before, after=after, about=line)


def _make_jpegs(file: FileToPrepare, facts: VideoFacts, temporary: Path) -> Prepared:
    form, path = file.form, file.root / file.key
    assert isinstance(form, Jpegs)
    size = fit(facts, form.short_side)
    kept = _Kept(facts)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("w+b") as block:
        images = (_jpeg(picture, form.quality) for picture in kept.pass_on(pictures(path, facts, size)))
        length = jpeg_shards.write_block(block, images, facts.num_frames)
        block.flush()
        part = partial(os.pread, block.fileno())
        read = jpeg_shards.read_block(part, kept.numbers)
        kept.compare(read.permute(0, 2, 3, 1).numpy(), file)
        clip, before, after = a_clip(file.key, facts.num_frames), 0.0, 0.0
        if file.timed:
            before = core_seconds(lambda: read_frames(path, clip, facts))
            after = core_seconds(lambda: jpeg_shards.read_block(part, clip))
    os.replace(temporary, file.target)
    about: dict[str, object] = {"fps": facts.fps, "height": size[0], "width": size[1]}
    if facts.uneven_times:
        about |= {"tick_seconds": facts.tick_seconds, "pts": manifest.packed(facts.pts)}
    return Prepared(file.key, bytes=length, before=before, after=after, about=about)


def _jpeg(picture: RGB, quality: int) -> bytes:
    content = BytesIO()
    Image.fromarray(picture).save(content, "JPEG", quality=quality)
    return content.getvalue()


class _Kept:
    """Some pictures of the source, kept until the result is there to be held against them."""

    def __init__(self, facts: VideoFacts) -> None:
        self.numbers = sampled(facts.num_frames)
        self._pictures: list[RGB] = []

    def pass_on(self, pictures: Iterator[RGB]) -> Iterator[RGB]:
        for number, picture in enumerate(pictures):
            if number in self.numbers:
                self._pictures.append(picture)
            yield picture

    def compare(self, made: RGB, file: FileToPrepare) -> None:
        """Raises UnreadableSample unless uint8 [sampled, H, W, 3] are near enough to what was kept."""
        wanted = np.stack(self._pictures)
        apart = difference(made, wanted) if made.shape == wanted.shape else 255.0
        if apart > file.form.max_difference:
            raise _unsound(
                file,
                f"a frame differs from the source by {apart:.1f} grey levels on average, and "
                f"--max-difference allows {file.form.max_difference:g}",
            )


def _unsound(file: FileToPrepare, what: str) -> UnreadableSample:
    return UnreadableSample(file.key, f"what was made of it did not pass the check: {what}")


def _times(facts: VideoFacts) -> tuple[array[int], Fraction]:
    """Times of the frames in ticks, and the tick in seconds; evenly spaced where the file's say nothing."""
    if facts.pts:
        return facts.pts, Fraction(facts.tick_seconds).limit_denominator(1_000_000)
    if facts.fps <= 0 and facts.num_frames > 1:
        raise UnreadableSample("", "it states neither a frame rate nor times, and a file has to")
    return array("q", range(facts.num_frames)), 1 / _rate(facts)


def _rate(facts: VideoFacts) -> Fraction:
    return Fraction(facts.fps or _UNSTATED_FPS).limit_denominator(30_000)


def _encode(
    shown: Iterator[RGB],
    target: Path,
    shape: tuple[int, int, Fraction],
    timing: tuple[array[int], Fraction, Fraction],
    form: H264,
) -> None:
    times, tick, rate = timing
    reformatter = VideoReformatter()
    lasts = (later - earlier for earlier, later in pairwise([*times, _end(times, tick, rate)]))
    # groups of the stated length; without a lookahead the same frames give the same bytes (see MovingDigits)
    options = {"crf": str(form.crf), "preset": "fast", "sc_threshold": "0"}
    options["x264-params"] = "mbtree=0:rc-lookahead=0"
    with av.open(str(target.absolute()), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width, stream.codec_context.sample_aspect_ratio = shape
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.gop_size, codec.time_base, codec.thread_count = form.gop, tick, 1
        codec.max_b_frames = 0  # packets stay in the order of frames, so each can say how long it lasts
        for number, picture in enumerate(shown):
            frame = reformatter.reformat(
                av.VideoFrame.from_ndarray(picture, format="rgb24"), format="yuv420p", threads=1
            )
            frame.pts, frame.time_base = times[number] - times[0], tick
            container.mux(_lasting(stream.encode(frame), lasts))
        container.mux(_lasting(stream.encode(None), lasts))


def _lasting(packets: list[av.Packet[VideoStream]], lasts: Iterator[int]) -> list[av.Packet[VideoStream]]:
    """Sets how long the frame of each packet lasts; the encoder knows the mean rate alone."""
    for packet in packets:
        packet.duration = next(lasts)
    return packets


def _end(times: array[int], tick: Fraction, rate: Fraction) -> int:
    """When the last frame ends, in ticks: such that the mean rate is the stated one, if it may be."""
    mean = max(round(1 / (rate * tick)), 1)
    last = times[0] + round(len(times) / (rate * tick)) - times[-1]
    return times[-1] + (last if 0 < last <= 4 * mean else mean)
